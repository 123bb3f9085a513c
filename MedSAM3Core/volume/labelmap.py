"""Segmentations as labels: one value per concept, in one layer or in as many as their overlaps need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedSAM3Core.segmentation import Segmentation


@dataclass(frozen=True)
class Place:
    """Where a segment is among the layers.

    Attributes:
        layer: Index of the layer.
        label: Its value there, from 1.
    """

    layer: int
    label: int


def flat_labels(segmentations: Sequence[Segmentation]) -> tuple[np.ndarray, tuple[str, ...]]:
    """One labelmap with value 1 for the first segmentation, 2 for the second, and so on.

    Where segments overlap, the later one is seen: who asks for the liver and then for its tumour wants the tumour.

    Args:
        segmentations: At least one, all of one grid.

    Returns:
        (slices, rows, columns) of uint8 or, for more than 255 segments, uint16; and a sentence for each segment that
        lost voxels to a later one.
    """
    labels = np.zeros(segmentations[0].geometry.shape, np.uint8 if len(segmentations) < 256 else np.uint16)
    lost: dict[int, int] = {}
    for value, one in enumerate(segmentations, 1):
        if one.extent is None:
            continue
        window = labels[one.extent.slices]
        for former, count in zip(*np.unique(window[one.mask], return_counts=True), strict=True):
            if former:
                lost[int(former)] = lost.get(int(former), 0) + int(count)
        window[one.mask] = value
    notices = tuple(
        f"{count} of {one.voxels} voxels of {name_of(one)!r} lie under a later segment in this labelmap; "
        "write .seg.nrrd to keep both."
        for one, count in ((segmentations[value - 1], count) for value, count in lost.items())
    )
    return labels, notices


def layered_labels(segmentations: Sequence[Segmentation]) -> tuple[list[np.ndarray], list[Place]]:
    """As few layers as a greedy search finds in which no two segments of a layer overlap.

    Args:
        segmentations: At least one, all of one grid.

    Returns:
        Layers, each (slices, rows, columns) of uint8 or uint16, at least one; and each segmentation's place.
    """
    shape = segmentations[0].geometry.shape
    dtype = np.uint8 if len(segmentations) < 256 else np.uint16
    layers: list[np.ndarray] = [np.zeros(shape, dtype)]
    counts = [0]
    places = []
    for one in segmentations:
        index = next((n for n, layer in enumerate(layers) if not _overlaps(one, layer)), len(layers))
        if index == len(layers):
            layers.append(np.zeros(shape, dtype))
            counts.append(0)
        counts[index] += 1
        if one.extent is not None:
            layers[index][one.extent.slices][one.mask] = counts[index]
        places.append(Place(index, counts[index]))
    return layers, places


def _overlaps(segmentation: Segmentation, layer: np.ndarray) -> bool:
    extent = segmentation.extent
    return extent is not None and bool(layer[extent.slices][segmentation.mask].any())


def name_of(segmentation: Segmentation) -> str:
    """What to call the segment: the concept's name, or its phrase."""
    return segmentation.concept.name or segmentation.concept.phrase
