"""Segmentations to files: the suffix chooses the format, and the file is there whole or not at all.

====================  =================================================================================
``.seg.nrrd``         segments with names, colours, codes and provenance; overlaps kept
``.nrrd``             labelmap, one value per segmentation in the order given
``.nii`` ``.nii.gz``  labelmap
``.png``              labelmap of a 2D image, 8 or 16 bits
``.dcm``              DICOM Segmentation that refers to the instances of the series it was made on
====================  =================================================================================
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from MedSAM3Core.errors import OutputError
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.atomic import atomic_file, check_folder
from MedSAM3Core.volume.dicomseg import check_dicom_source, write_dicom_seg
from MedSAM3Core.volume.labelmap import flat_labels
from MedSAM3Core.volume.nifti import write_nifti
from MedSAM3Core.volume.segnrrd import COMPRESSION, write_nrrd, write_seg_nrrd
from MedSAM3Core.volume.volume import Volume

Notices = tuple[str, ...]
_Writer = Callable[[BinaryIO, Sequence[Segmentation], Volume], Notices]


def write_segmentations(path: str | Path, segmentations: Sequence[Segmentation], volume: Volume) -> Notices:
    """Write segmentations to one file.

    Args:
        path: Where to; its suffix chooses the format (see the module's table).
        segmentations: At least one, all on the grid of ``volume``; empty ones are kept.
        volume: What they were made on; for ``.dcm`` it must have been read from DICOM.

    Returns:
        Sentences for the user, for example about overlaps that a labelmap cannot hold.

    Raises:
        OutputError: If the format cannot hold this, or the file cannot be written; then nothing is left behind.
    """
    target = Path(path)
    writer = check_output(target, volume)
    if not segmentations:
        raise OutputError(f"There is no segmentation to write to {target.name}; give at least one.")
    for one in segmentations:
        if not one.geometry.same_grid(volume.geometry):
            raise OutputError(
                f"The segmentation of {one.concept.phrase!r} has the grid {one.geometry.shape}, the volume "
                f"{volume.geometry.shape} at another place or size; write each with the volume it was made on."
            )
    with atomic_file(target) as stream:
        return writer(stream, segmentations, volume)


def check_output(path: str | Path, volume: Volume | None = None) -> _Writer:
    """See whether a file could be written, before the work that fills it is done.

    Args:
        path: Where to.
        volume: What will be segmented, when known.

    Returns:
        The writer of the format.

    Raises:
        OutputError: If the suffix is unknown, the folder absent or closed, or the volume unfit for the format.
    """
    target = Path(path)
    suffix = next((suffix for suffix in _WRITERS if target.name.lower().endswith(suffix)), None)
    if suffix is None or target.name.lower() == suffix:
        raise OutputError(
            f"The output is {target.name!r}; expected a name that ends in one of {', '.join(_WRITERS)}."
        )
    if suffix == ".png" and volume is not None and not volume.is_2d:
        raise OutputError(
            f"A PNG cannot hold the {volume.geometry.shape[0]} slices of this volume; write .seg.nrrd or .nii.gz."
        )
    if suffix == ".dcm" and volume is not None:
        check_dicom_source(volume)
    check_folder(target)
    return _WRITERS[suffix]


def _seg_nrrd(stream: BinaryIO, segmentations: Sequence[Segmentation], volume: Volume) -> Notices:
    write_seg_nrrd(stream, segmentations, volume.geometry)
    return ()


def _nrrd(stream: BinaryIO, segmentations: Sequence[Segmentation], volume: Volume) -> Notices:
    labels, notices = flat_labels(segmentations)
    write_nrrd(stream, labels, volume.geometry)
    return notices


def _nifti(stream: BinaryIO, segmentations: Sequence[Segmentation], volume: Volume) -> Notices:
    labels, notices = flat_labels(segmentations)
    write_nifti(stream, labels, volume.geometry.ijk_to_ras)
    return notices


def _nifti_gz(stream: BinaryIO, segmentations: Sequence[Segmentation], volume: Volume) -> Notices:
    with gzip.GzipFile("", "wb", COMPRESSION, stream, mtime=0) as packed:
        return _nifti(packed, segmentations, volume)  # type: ignore[arg-type]


def _png(stream: BinaryIO, segmentations: Sequence[Segmentation], volume: Volume) -> Notices:
    labels, notices = flat_labels(segmentations)
    Image.fromarray(labels[0]).save(stream, format="PNG")
    return notices


def _dicom(stream: BinaryIO, segmentations: Sequence[Segmentation], volume: Volume) -> Notices:
    return write_dicom_seg(stream, segmentations, volume)


_WRITERS: dict[str, _Writer] = {
    ".seg.nrrd": _seg_nrrd,
    ".nrrd": _nrrd,
    ".nii.gz": _nifti_gz,
    ".nii": _nifti,
    ".png": _png,
    ".dcm": _dicom,
}
