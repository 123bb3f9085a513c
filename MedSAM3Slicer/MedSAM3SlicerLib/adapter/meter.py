"""Millilitres of segments, measured in small portions so that a window never waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM3SlicerLib.adapter.labelmaps import BINARY_LABELMAP

_PORTION_VOXELS = 4_000_000  # about 2 ms


class VolumeMeter:
    """Remembers each segment's millilitres until its labelmap changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[int, float]] = {}
        self._waiting: dict[tuple[str, str], Iterator[float | None]] = {}

    def millilitres(self, node: slicer.vtkMRMLSegmentationNode, segmentId: str) -> float | None:
        """The volume, or None while it is not measured yet; `step` measures it."""
        key = (node.GetID(), segmentId)
        segment = node.GetSegmentation().GetSegment(segmentId)
        image = segment.GetRepresentation(BINARY_LABELMAP)
        if image is None or image.GetNumberOfPoints() == 0:
            return 0.0
        stamp = image.GetMTime()
        known = self._known.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        self._waiting[key] = _count(image, segment.GetLabelValue(), stamp, self._known, key)
        return None

    def step(self, budgetS: float = 0.01) -> bool:
        """Measure for about so many seconds; returns whether something is left to do."""
        deadline = time.perf_counter() + budgetS
        while self._waiting and time.perf_counter() < deadline:
            key, counting = next(iter(self._waiting.items()))
            if next(counting, "done") == "done":
                self._waiting.pop(key, None)
        return bool(self._waiting)


def _count(
    image: slicer.vtkOrientedImageData,
    label: int,
    stamp: int,
    known: dict[tuple[str, str], tuple[int, float]],
    key: tuple[str, str],
) -> Iterator[None]:
    flat = vtk_to_numpy(image.GetPointData().GetScalars())
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    voxels = 0
    for start in range(0, flat.size, _PORTION_VOXELS):
        voxels += int(np.count_nonzero(flat[start : start + _PORTION_VOXELS] == label))
        yield
    known[key] = (stamp, voxels * abs(matrix.Determinant()) / 1000.0)
