"""Cine loops frame by frame: a DICOM film of a thousand frames need not be in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.pixels import iter_pixels

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume.dicom.gdcm import JPEG_LS, iter_frames
from MedSAM3Core.volume.dicom.headers import Series, scan_file
from MedSAM3Core.volume.dicom.source import read_dataset
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.modality import from_dicom
from MedSAM3Core.volume.raw import FOREIGN_ERRORS, SizedFile, foreign_warnings_silenced, reason
from MedSAM3Core.volume.volume import Volume, axial_affine

_PLAIN = frozenset(["MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"])
"""Colour spaces whose frames are pictures as pydicom decodes them; palettes and inverted grey are read as a whole."""


@dataclass(frozen=True, eq=False)
class Cine:
    """A loop on disk.

    Attributes:
        path: The file.
        series: What its header says.
    """

    path: Path
    series: Series

    @property
    def count(self) -> int:
        """Frames that the header promises."""
        return len(self.series.frames)

    def frames(self) -> Iterator[Volume]:
        """The frames in order as 2D volumes; each is decoded when it is asked for.

        Raises:
            VolumeError: If a frame is damaged or missing.
        """
        first = self.series.frames[0]
        affine = axial_affine((*(first.spacing or (1.0, 1.0)), first.thickness or 1.0))
        geometry = Geometry((1, first.rows, first.columns), affine)
        count = 0
        try:
            with foreign_warnings_silenced():
                for pixels in self._pixels():
                    yield self._volume(pixels, geometry, count)
                    count += 1
        except FOREIGN_ERRORS as error:
            raise VolumeError(
                f"Frame {count} of {self.path.name} cannot be decoded ({reason(error)}); copy it again."
            ) from error
        if count < self.count:
            raise VolumeError(f"{self.path.name} holds {count} of {self.count} frames; copy it again.")

    def _pixels(self) -> Iterator[np.ndarray]:
        syntax = read_dataset(self.path, stop_before_pixels=True, force=True).file_meta.TransferSyntaxUID
        if syntax in JPEG_LS:
            yield from iter_frames(read_dataset(self.path, force=True))
            return
        with SizedFile(self.path) as file:
            yield from iter_pixels(file)

    def _volume(self, pixels: np.ndarray, geometry: Geometry, index: int) -> Volume:
        return Volume(
            pixels[np.newaxis],
            geometry,
            modality=from_dicom(self.series.modality),
            name=f"{self.path.stem}_{index:05d}",
            source=self.path,
            time_s=index * (self.series.frame_time_s or 0.0),
            calibrated=self.series.frames[0].spacing is not None,
        )


def open_cine(path: Path) -> Cine | None:
    """A file's loop, or None for a file that is to be read as a whole: no loop, or one with a palette or a table.

    Raises:
        VolumeError: If it is no image or damaged.
    """
    series = scan_file(path)
    first = series.frames[0]
    placed = first.position is not None and first.axes is not None
    if len(series.frames) < 2 or placed or (first.slope, first.intercept) != (1.0, 0.0):
        return None
    tags = ["PhotometricInterpretation", "ModalityLUTSequence"]
    header = read_dataset(path, stop_before_pixels=True, force=True, specific_tags=list(tags))
    plain = str(header.get("PhotometricInterpretation", "")) in _PLAIN and "ModalityLUTSequence" not in header
    return Cine(path, series) if plain else None
