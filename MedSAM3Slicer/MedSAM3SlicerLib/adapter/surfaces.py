"""Closed surfaces for the 3D view, made one segment at a time so that a window can repaint between two."""

from __future__ import annotations

from collections.abc import Iterator

import slicer

from MedSAM3SlicerLib.adapter.labelmaps import BINARY_LABELMAP

CLOSED_SURFACE = "Closed surface"


def surfaceSteps(node: slicer.vtkMRMLSegmentationNode) -> Iterator[None]:
    """Give every segment its closed surface, one a step; those that have one already cost nothing.

    Slicer's own call converts all segments in one go (measured: docs/benchmarks.md). The rules and their settings
    are the segmentation's own.
    """
    segmentation = node.GetSegmentation()
    for segmentId in [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]:
        segment = segmentation.GetSegment(segmentId)
        if segment is None or segment.GetRepresentation(CLOSED_SURFACE) is not None:
            continue
        surface = _surfaceOf(segmentation, segment)
        if surface is not None:
            segment.AddRepresentation(CLOSED_SURFACE, surface)
        yield
    node.CreateClosedSurfaceRepresentation()  # whatever is left, and Slicer's own bookkeeping


def hideSurfaces(node: slicer.vtkMRMLSegmentationNode) -> None:
    """Take the surfaces away again."""
    node.RemoveClosedSurfaceRepresentation()


def _surfaceOf(segmentation: slicer.vtkSegmentation, segment: slicer.vtkSegment) -> object | None:
    """The surface of one segment, converted in a segmentation of its own; None where it has no voxels."""
    labelmap = segment.GetRepresentation(BINARY_LABELMAP)
    if labelmap is None or labelmap.GetNumberOfPoints() == 0:
        return None
    alone, copy = slicer.vtkSegmentation(), slicer.vtkSegment()
    alone.SetSourceRepresentationName(BINARY_LABELMAP)
    alone.CopyConversionParameters(segmentation)
    copy.AddRepresentation(BINARY_LABELMAP, labelmap)
    copy.SetLabelValue(segment.GetLabelValue())
    alone.AddSegment(copy, "one")
    if not alone.CreateRepresentation(CLOSED_SURFACE):
        return None
    return copy.GetRepresentation(CLOSED_SURFACE)
