"""MetaImage (``.mha``, and ``.mhd`` with its data beside it) through SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume.nrrd import lps_image_affine
from MedSAM3Core.volume.raw import RawImage

_DATA_FILE = re.compile(r"^ElementDataFile\s*=\s*(\S.*?)\s*$", re.MULTILINE)
_HEADER_BYTES = 1 << 16


def read_metaimage(path: Path) -> RawImage:
    """Read a MetaImage of two or three axes, grey or in colour.

    Raises:
        VolumeError: If the file with its voxels is missing, or it has more axes.
    """
    with path.open("rb") as stream:
        match = _DATA_FILE.search(stream.read(_HEADER_BYTES).decode("latin-1"))
    if match and match[1] not in ("LOCAL", "LIST") and not (path.parent / match[1]).is_file():
        raise VolumeError(
            f"The header names {match[1]} as its voxels, which is not beside it; copy both files."
        )
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    if image.GetDimension() not in (2, 3):
        raise VolumeError(f"The image has {image.GetDimension()} axes; expected two or three.")
    missing = 4 + (image.GetNumberOfComponentsPerPixel() > 1) - array.ndim
    return RawImage(array[(np.newaxis,) * missing], lps_image_affine(image))
