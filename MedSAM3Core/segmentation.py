"""What a run gives back: one concept's mask in its volume's own grid, with where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MedSAM3Core.prompts import Box, Concept, Point
from MedSAM3Core.volume.geometry import Geometry


@dataclass(frozen=True)
class Extent:
    """An inclusive range of voxel indices along each axis of a grid.

    Attributes:
        i: First and last column.
        j: First and last row.
        k: First and last slice.
    """

    i: tuple[int, int]
    j: tuple[int, int]
    k: tuple[int, int]

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> Extent | None:
        """Smallest extent that holds every true voxel of ``mask`` (slices, rows, columns); None if there is none."""
        ranges = []
        for axis in range(3):
            other = tuple(a for a in range(3) if a != axis)
            hits = np.flatnonzero(mask.any(axis=other))
            if hits.size == 0:
                return None
            ranges.append((int(hits[0]), int(hits[-1])))
        return cls(i=ranges[2], j=ranges[1], k=ranges[0])

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the extent into an array (slices, rows, columns)."""
        return tuple(slice(a, b + 1) for a, b in (self.k, self.j, self.i))  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the extent as (slices, rows, columns)."""
        return tuple(b - a + 1 for a, b in (self.k, self.j, self.i))  # type: ignore[return-value]


@dataclass(frozen=True)
class Provenance:
    """What made a segmentation (DESIGN decision 10); plain values only, so that it can be written as JSON.

    Attributes:
        concept: The phrase as typed.
        model: Registry name or path of the model.
        model_hash: SHA-256 of the weights file, hexadecimal.
        version: Version of this package.
        prompts: Phrases that were said to the model.
        boxes: Boxes as the command line writes them.
        thresholds: Name to value.
        axis: Slicing axis: "axial", "sagittal" or "coronal" and the grid axis it fell on.
        window: The intensity window in words.
        device: For example "cpu" or "cuda:0 (NVIDIA H200)".
        created: UTC time, ISO 8601.
        notices: Sentences for the user.
        points: Points as the command line writes them.
        anchors: As in `Segmentation`.
    """

    concept: str
    model: str
    model_hash: str = ""
    version: str = ""
    prompts: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    axis: str = ""
    window: str = ""
    device: str = ""
    created: str = ""
    notices: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    anchors: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One concept in one volume.

    Attributes:
        concept: What was asked for.
        geometry: The volume's own grid.
        extent: Where `mask` sits in the grid, None when the concept was found nowhere.
        mask: Boolean crop (slices, rows, columns) of the size of ``extent``; empty (0, 0, 0) when nothing was found.
        probability: Crop of the same extent, float16, 0..1, or None if it was not kept.
        score: Confidence of the whole object, 0..1.
        slice_scores: Slice index along the slicing axis to presence score, 0..1.
        provenance: What made it.
        boxes: Boxes that shaped it, in the order they were drawn.
        timings: Stage name to seconds.
        points: Clicks that shaped it, in the order they were made.
        anchors: Slices, as grid indices along the slicing axis, that a user has settled by a box, a point or by hand;
            no rerun overrides them.
    """

    concept: Concept
    geometry: Geometry
    extent: Extent | None
    mask: np.ndarray
    probability: np.ndarray | None = None
    score: float = 0.0
    slice_scores: dict[int, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=lambda: Provenance("", ""))
    boxes: tuple[Box, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    anchors: tuple[int, ...] = ()

    @classmethod
    def from_mask(cls, concept: Concept, geometry: Geometry, mask: np.ndarray, **fields: Any) -> Segmentation:
        """Crop a whole-grid boolean ``mask`` (slices, rows, columns) to its extent.

        A ``probability`` of the whole grid among ``fields`` is cropped with it.
        """
        extent = Extent.of_mask(mask)
        crop = mask[extent.slices].astype(bool) if extent else np.zeros((0, 0, 0), bool)
        probability = fields.pop("probability", None)
        if probability is not None:
            probability = probability[extent.slices].astype(np.float16) if extent else None
        return cls(concept, geometry, extent, crop, probability, **fields)

    @property
    def empty(self) -> bool:
        """Whether the concept was found nowhere."""
        return self.extent is None

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(self.mask.sum())

    @property
    def volume_ml(self) -> float:
        """Volume in millilitres."""
        return self.voxels * self.geometry.voxel_volume_ml

    def to_array(self) -> np.ndarray:
        """Mask on the volume's own grid: bool, (slices, rows, columns)."""
        full = np.zeros(self.geometry.shape, bool)
        if self.extent is not None:
            full[self.extent.slices] = self.mask
        return full

    def probability_map(self) -> np.ndarray:
        """Probability on the volume's own grid: float32, (slices, rows, columns), 0 outside the extent."""
        full = np.zeros(self.geometry.shape, np.float32)
        if self.extent is not None:
            full[self.extent.slices] = self.mask if self.probability is None else self.probability
        return full
