"""Labelmaps of segments as arrays: their voxels, where they lie, and the grid that they are cut from."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM3Core.segmentation import Extent

BINARY_LABELMAP = "Binary labelmap"


def voxelsOf(image: vtk.vtkImageData) -> np.ndarray:
    """View (slices, rows, columns) of an image's scalars."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def extentOf(image: vtk.vtkImageData) -> Extent | None:
    """Where an image lies in its grid; None when that is nowhere."""
    first, last = image.GetExtent()[0::2], image.GetExtent()[1::2]
    i, j, k = zip(first, last, strict=True)
    return None if any(a > b for a, b in (i, j, k)) else Extent(i=i, j=j, k=k)


def newImage(grid: slicer.vtkOrientedImageData, extent: Extent) -> slicer.vtkOrientedImageData:
    """An image at an extent of a grid, unsigned char; its voxels are still to be set."""
    matrix = vtk.vtkMatrix4x4()
    grid.GetImageToWorldMatrix(matrix)
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*extent.i, *extent.j, *extent.k)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    return image


def labelmapOf(segmentation: slicer.vtkSegmentation, segmentId: str) -> slicer.vtkOrientedImageData | None:
    """The labelmap that holds a segment, and perhaps others too; None when there are no voxels."""
    image = segmentation.GetSegment(segmentId).GetRepresentation(BINARY_LABELMAP)
    if image is None or extentOf(image) is None or image.GetPointData().GetScalars() is None:
        return None
    return image


def segmentsIn(segmentation: slicer.vtkSegmentation) -> list[str]:
    """IDs of all segments, in the segmentation's order."""
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def sharesItsLabelmap(segmentation: slicer.vtkSegmentation, segmentId: str) -> bool:
    """Whether other segments are in the segment's labelmap, under values of their own."""
    own = segmentation.GetSegment(segmentId).GetRepresentation(BINARY_LABELMAP)
    others = (segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments()))
    return sum(other.GetRepresentation(BINARY_LABELMAP) is own for other in others) > 1


def referenceGrid(segmentationNode: slicer.vtkMRMLSegmentationNode) -> slicer.vtkOrientedImageData | None:
    """The segmentation's grid, without voxels; None when it has none yet."""
    converter = slicer.vtkSegmentationConverter
    text = segmentationNode.GetSegmentation().GetConversionParameter(
        converter.GetReferenceImageGeometryParameterName()
    )
    grid = slicer.vtkOrientedImageData()
    return grid if text and converter.DeserializeImageGeometry(text, grid, False) else None
