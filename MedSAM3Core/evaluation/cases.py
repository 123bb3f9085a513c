"""One image with what is known about it: where each concept's mask is, whose image it is, which split it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from MedSAM3Core.errors import MedSAM3Error, VolumeError
from MedSAM3Core.evaluation.coco import draw_annotations
from MedSAM3Core.evaluation.instances import components
from MedSAM3Core.evaluation.polygons import draw_polygons
from MedSAM3Core.volume import Volume, read_volume
from MedSAM3Core.volume.reference import place_on_grid, read_segmentation

ReferenceKind = Literal["mask", "labels", "instances", "objects", "outline", "polygons", "coco", "segment"]

HALF_OF_8_BITS = 127
"""Masks saved as JPEG hold values around 0 and 255."""


@dataclass(frozen=True)
class Reference:
    """Where a concept's mask is, and how it is written there.

    Attributes:
        files: One file, or several whose union it is; none for a concept that was looked for and is absent.
        kind: "mask" (foreground is bright), "labels" (of the given values), "instances" (every value but 0 is an
            object), "objects" (every file is an object), "outline" (a closed line, filled here), "polygons" (an XML
            file of corners in pixels), "coco" (annotations of a COCO file), or "segment" (a named segment of a
            ``.seg.nrrd`` or DICOM SEG).
        values: Label values, for "labels".
        segment: Name, for "segment".
        ids: Annotations, for "coco".
        by_array: Voxels are taken in the order of the file, whatever its header says about their place.
    """

    files: tuple[Path, ...]
    kind: ReferenceKind = "mask"
    values: tuple[int, ...] = ()
    segment: str = ""
    by_array: bool = False
    ids: tuple[int, ...] = ()

    @property
    def counts_objects(self) -> bool:
        """Whether single objects are known."""
        return self.kind in ("instances", "objects", "polygons", "coco")

    def read(self, volume: Volume) -> np.ndarray:
        """The mask on a volume's grid: bool, (slices, rows, columns).

        Raises:
            VolumeError: If a file cannot be read or is on another grid.
        """
        return self.read_objects(volume) > 0 if self.counts_objects else self._read_mask(volume)

    def read_objects(self, volume: Volume) -> np.ndarray:
        """Objects on a volume's grid, integers from 1, (slices, rows, columns); components where they are not known.

        Raises:
            VolumeError: As for `read`.
        """
        if self.kind == "instances":
            return self._place(read_volume(self.files[0]), volume).astype(np.int64)
        if self.kind == "polygons":
            return draw_polygons(self.files, volume.geometry.shape)
        if self.kind == "coco":
            return draw_annotations(self.files[0], self.ids, volume.geometry.shape)
        if self.kind == "objects":
            objects = np.zeros(volume.geometry.shape, np.int64)
            for number, file in enumerate(self.files, start=1):
                objects[_bright(self._place(read_volume(file), volume))] = number
            return objects
        return components(self._read_mask(volume))

    def _read_mask(self, volume: Volume) -> np.ndarray:
        mask = np.zeros(volume.geometry.shape, bool)
        for file in self.files:
            mask |= self._read_file(file, volume)
        return mask

    def _read_file(self, file: Path, volume: Volume) -> np.ndarray:
        if self.kind == "segment":
            segments = {one.name: one for one in read_segmentation(file)}
            if self.segment not in segments:
                raise VolumeError(
                    f"{file.name} has no segment {self.segment!r}; it has {', '.join(segments) or 'none'}."
                )
            return segments[self.segment].on(volume.geometry)
        array = self._place(read_volume(file, time=0), volume)
        if self.kind == "labels":
            return np.isin(array, self.values)
        if self.kind == "outline":
            return np.stack([ndimage.binary_fill_holes(plane) for plane in _bright(array)])
        return _bright(array)

    def _place(self, mask: Volume, volume: Volume) -> np.ndarray:
        """A mask file's values on the volume's grid, (slices, rows, columns)."""
        array = mask.array.max(axis=-1) if mask.is_rgb else mask.array
        same_shape = array.shape == volume.geometry.shape
        plain = self.by_array or not (mask.calibrated and volume.calibrated)
        if same_shape and (plain or mask.geometry.same_grid(volume.geometry, _tolerance(volume))):
            return array
        if plain or not same_shape:
            raise VolumeError(
                f"The mask {_name(mask)} has {_size(array.shape)}, its image {_name(volume)} "
                f"{_size(volume.geometry.shape)}; expected one size: resample the mask."
            )
        placed = np.zeros(volume.geometry.shape, array.dtype)
        for value in np.unique(array[array != 0]):
            placed[place_on_grid(array == value, mask.geometry, volume.geometry)] = value
        return placed


@dataclass(frozen=True)
class LabelledCase:
    """An image with its references.

    Attributes:
        name: Unique within its data set.
        image: File, or folder of a DICOM series.
        references: Concept to where its mask is; a concept that is not among them is unknown, not absent.
        patient: What must not be split, and what is counted as one: a patient, a video, or the image itself.
        source: Name of the data set.
        modality: As `Volume.modality`; None where the file says it.
        split: "train", "validation" or "test", or "" when the data set says nothing.
        absent: Concepts that cannot be in the picture; asked, and expected to stay empty.
        licence: Of the image and its masks.
    """

    name: str
    image: Path
    references: Mapping[str, Reference]
    patient: str
    source: str
    modality: str | None = None
    split: str = ""
    absent: tuple[str, ...] = field(default=())
    licence: str = ""

    def read(self) -> Volume:
        """The image, of several times the first.

        Raises:
            VolumeError: If it cannot be read.
        """
        return read_volume(self.image, time=0, modality=self.modality)

    def read_references(self, volume: Volume) -> dict[str, np.ndarray]:
        """Concept to its mask, bool (slices, rows, columns).

        Raises:
            VolumeError: Naming the concept, if a mask cannot be read or is on another grid.
        """
        masks = {}
        for concept, reference in self.references.items():
            try:
                masks[concept] = reference.read(volume)
            except MedSAM3Error as error:
                raise VolumeError(f"{self.name}, {concept!r}: {error.message}", error.remedy) from error
        return masks


def _bright(array: np.ndarray) -> np.ndarray:
    return array > (HALF_OF_8_BITS if array.max() > HALF_OF_8_BITS else 0)


def _tolerance(volume: Volume) -> float:
    """A tenth of the smallest voxel in mm: headers are rounded."""
    return 0.1 * min(volume.geometry.spacing)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in reversed(shape))


def _name(volume: Volume) -> str:
    return volume.source.name if volume.source else volume.name
