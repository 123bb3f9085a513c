"""What the segment editor's masks and its overwriting make of a result, reckoned where voxels are concerned.

`vtkSlicerSegmentEditorLogic.ModifySegmentByLabelmap` gives the same, voxel by voxel, but goes through images of the
whole grid many times (docs/benchmarks.md has the figures). What is rare (other grids, a mask of what is not there) is
left to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import slicer

from MedSAM3Core.segmentation import Extent
from MedSAM3SlicerLib.adapter.labelmaps import (
    extentOf,
    labelmapOf,
    newImage,
    referenceGrid,
    segmentsIn,
    sharesItsLabelmap,
    voxelsOf,
)
from MedSAM3SlicerLib.adapter.matrices import ijkToNode, toMatrix

_Node = slicer.vtkMRMLSegmentationNode
_OUTSIDE = (_Node.EditAllowedOutsideAllSegments, _Node.EditAllowedOutsideVisibleSegments)
_VISIBLE = (_Node.EditAllowedInsideVisibleSegments, _Node.EditAllowedOutsideVisibleSegments)
_PORTION_VOXELS = 1 << 19
"""What is reckoned at once: small enough that the steps' arrays stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class _Part:
    """One segment's voxels: those of a labelmap that have its value."""

    labelmap: slicer.vtkOrientedImageData
    value: int


@dataclass(frozen=True, eq=False)
class _Range:
    """Intensities (slices, rows, columns) on the segmentation's grid, and those that may be edited, ends included."""

    voxels: np.ndarray
    low: np.generic
    high: np.generic


@dataclass(frozen=True, eq=False)
class MaskedWrite:
    """All that a write under masks or overwriting changes, reckoned before the first voxel changes.

    Attributes:
        image: What the segment is to hold, cut to its voxels, unsigned char; None when that is nothing. It is the very
            image that was given where no mask takes anything from it.
        mask: Its voxels, bool (slices, rows, columns).
        neighbours: What it may be cut out of.
    """

    image: slicer.vtkOrientedImageData | None
    mask: np.ndarray
    neighbours: Sequence[_Part]

    def cutOutOfNeighbours(self) -> None:
        """Take what the segment holds from the segments that the user lets it overwrite."""
        extent = extentOf(self.image) if self.image is not None else None
        for part in self.neighbours:
            there = extentOf(part.labelmap)  # an earlier one in the same labelmap may have left nothing of it
            shared = _shared(there, extent) if there and extent else None
            if there is None or extent is None or shared is None:
                continue
            voxels = voxelsOf(part.labelmap)[_within(shared, there)]
            lost = (voxels == part.value) & self.mask[_within(shared, extent)]
            if lost.any():
                np.copyto(voxels, 0, where=lost)
                _shrink(part.labelmap)


def isRestricted(editorNode: slicer.vtkMRMLSegmentEditorNode) -> bool:
    """Whether a write is anything else than taking the result over: a mask is set, or neighbours are overwritten."""
    return _isMasked(editorNode) or editorNode.GetOverwriteMode() != editorNode.OverwriteNone


def maskedWrite(
    editorNode: slicer.vtkMRMLSegmentEditorNode,
    node: slicer.vtkMRMLSegmentationNode,
    segmentId: str,
    image: slicer.vtkOrientedImageData | None,
) -> MaskedWrite | None:
    """What setting a segment to an image does: where edits are allowed it takes the image's voxels, elsewhere it keeps
    its own.

    Args:
        editorNode: Masks and overwriting, as the user set them; its source volume is the one that was segmented.
        node: The segmentation.
        segmentId: The segment; no mask protects it from itself.
        image: 0 and 1, unsigned char, on the segmentation's grid; None for a result without voxels.

    Returns:
        None where the segment editor's logic has to do it.
    """
    segmentation, grid = node.GetSegmentation(), referenceGrid(node)
    maskIds, overwritten = _maskIds(editorNode, node, segmentId), _overwrittenIds(editorNode, node, segmentId)
    if grid is None or maskIds is None or _areEntangled(segmentation, segmentId, overwritten):
        return None
    own, new = _parts(segmentation, [segmentId]), [_Part(image, 1)] if image is not None else []
    masks, neighbours = _parts(segmentation, maskIds), _parts(segmentation, overwritten)
    matches = slicer.vtkOrientedImageDataResample.DoGeometriesMatch
    if not all(matches(part.labelmap, grid) for part in (*own, *new, *masks, *neighbours)):
        return None
    region = _union([extentOf(part.labelmap) for part in (*own, *new)])
    if region is None:
        return _NOTHING
    if not _isMasked(editorNode):
        return _NOTHING if image is None else _made(image, neighbours)
    ranges = _ranges(editorNode, node, grid)
    if ranges is None or _shared(region, extentOf(grid)) != region:
        return None
    held = newImage(grid, region)
    mask = voxelsOf(held)
    for portion in _portions(region):
        allowed = _allowed(editorNode.GetMaskMode(), masks, ranges, portion)
        voxels = _painted(new, portion) & allowed
        if own:
            voxels |= _painted(own, portion) & ~allowed
        mask[_within(portion, region)] = voxels
    return _made(held, neighbours)


_NOTHING = MaskedWrite(None, np.zeros((0, 0, 0), bool), ())


def _made(image: slicer.vtkOrientedImageData, neighbours: Sequence[_Part]) -> MaskedWrite:
    """The write of an image of 0 and 1, cut to its voxels."""
    region, mask = extentOf(image), voxelsOf(image).view(bool)
    assert region is not None
    extent = _tight(mask, region)
    if extent is None:
        return _NOTHING
    if extent == region:
        return MaskedWrite(image, mask, neighbours)
    cut, crop = newImage(image, extent), mask[_within(extent, region)]
    voxelsOf(cut)[...] = crop
    return MaskedWrite(cut, crop, neighbours)


def _areEntangled(segmentation: slicer.vtkSegmentation, segmentId: str, overwritten: Sequence[str]) -> bool:
    """Whether one labelmap holds what is overwritten and what is not, or the segment itself and others.

    The logic moves segments between labelmaps as it cuts, and then spares some that it would cut otherwise.
    """
    spared = [one for one in segmentsIn(segmentation) if one not in overwritten]
    kept = [labelmapOf(segmentation, one) for one in spared]
    cut = [labelmapOf(segmentation, one) for one in overwritten]
    isShared = any(one is not None and one is other for one in cut for other in kept)
    return bool(overwritten) and (isShared or sharesItsLabelmap(segmentation, segmentId))


def _isMasked(editorNode: slicer.vtkMRMLSegmentEditorNode) -> bool:
    return bool(
        editorNode.GetMaskMode() != _Node.EditAllowedEverywhere or editorNode.GetSourceVolumeIntensityMask()
    )


def _overwrittenIds(
    editorNode: slicer.vtkMRMLSegmentEditorNode, node: slicer.vtkMRMLSegmentationNode, segmentId: str
) -> list[str]:
    mode = editorNode.GetOverwriteMode()
    if mode == editorNode.OverwriteNone:
        return []
    others = [other for other in segmentsIn(node.GetSegmentation()) if other != segmentId]
    return _visible(node, others) if mode == editorNode.OverwriteVisibleSegments else others


def _maskIds(
    editorNode: slicer.vtkMRMLSegmentEditorNode, node: slicer.vtkMRMLSegmentationNode, segmentId: str
) -> list[str] | None:
    """The segments that the mask mode speaks of; None when they are unknown."""
    mode = editorNode.GetMaskMode()
    ids = segmentsIn(node.GetSegmentation())
    if mode == _Node.EditAllowedEverywhere:
        return []
    if mode == _Node.EditAllowedInsideSingleSegment:
        named = editorNode.GetMaskSegmentID()
        return [named] if named in ids else None
    if mode in _VISIBLE:
        if node.GetDisplayNode() is None:
            return None
        ids = _visible(node, ids)
    return [one for one in ids if one != segmentId] if mode in _OUTSIDE else ids


def _visible(node: slicer.vtkMRMLSegmentationNode, ids: Sequence[str]) -> list[str]:
    display = node.GetDisplayNode()
    return [one for one in ids if display is not None and display.GetSegmentVisibility(one)]


def _parts(segmentation: slicer.vtkSegmentation, ids: Sequence[str]) -> list[_Part]:
    labelmaps = ((one, labelmapOf(segmentation, one)) for one in ids)
    return [
        _Part(labelmap, segmentation.GetSegment(one).GetLabelValue())
        for one, labelmap in labelmaps
        if labelmap is not None
    ]


def _ranges(
    editorNode: slicer.vtkMRMLSegmentEditorNode,
    node: slicer.vtkMRMLSegmentationNode,
    grid: slicer.vtkOrientedImageData,
) -> list[_Range] | None:
    """The editable intensity range, if there is one; None when the source volume does not lie on the grid."""
    if not editorNode.GetSourceVolumeIntensityMask():
        return []
    volumeNode = editorNode.GetSourceVolumeNode()
    image = volumeNode.GetImageData() if volumeNode is not None else None
    if image is None or image.GetNumberOfScalarComponents() != 1:
        return None
    lattice = slicer.vtkOrientedImageData()
    lattice.SetExtent(*image.GetExtent())
    lattice.SetGeometryFromImageToWorldMatrix(toMatrix(ijkToNode(volumeNode)))
    resample = slicer.vtkOrientedImageDataResample
    if (
        volumeNode.GetTransformNodeID() != node.GetTransformNodeID()
        or not resample.DoGeometriesMatch(lattice, grid)
        or not resample.DoExtentsMatch(lattice, grid)
        or image.GetExtent()[0::2] != (0, 0, 0)
    ):
        return None
    voxels = voxelsOf(image)
    return [_Range(voxels, *_ends(editorNode.GetSourceVolumeIntensityMaskRange(), voxels.dtype))]


def _ends(ends: Sequence[float], dtype: np.dtype) -> Iterator[np.generic]:
    """The ends of an intensity range as vtkImageThreshold takes them: in the image's own type, fractions cut off."""
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
    return (np.float64(min(max(end, info.min), info.max)).astype(dtype) for end in ends)


def _portions(region: Extent) -> Iterator[Extent]:
    """A region, some slices at a time."""
    step = max(1, _PORTION_VOXELS // (region.shape[1] * region.shape[2]))
    for first in range(region.k[0], region.k[1] + 1, step):
        yield Extent(i=region.i, j=region.j, k=(first, min(first + step - 1, region.k[1])))


def _painted(parts: Sequence[_Part], portion: Extent) -> np.ndarray:
    """Where in a portion of the grid one of the parts is, bool (slices, rows, columns)."""
    painted = np.zeros(portion.shape, bool)
    for part in parts:
        there = extentOf(part.labelmap)
        shared = _shared(there, portion) if there else None
        if there is not None and shared is not None:
            painted[_within(shared, portion)] |= voxelsOf(part.labelmap)[_within(shared, there)] == part.value
    return painted


def _allowed(mode: int, masks: Sequence[_Part], ranges: Sequence[_Range], portion: Extent) -> np.ndarray:
    """Where in a portion of the grid edits are allowed, bool (slices, rows, columns)."""
    allowed = _painted(masks, portion)
    if mode == _Node.EditAllowedEverywhere or mode in _OUTSIDE:
        np.logical_not(allowed, out=allowed)
    for one in ranges:
        intensities = one.voxels[portion.slices]
        allowed &= intensities >= one.low
        allowed &= intensities <= one.high
    return allowed


def _union(extents: Sequence[Extent | None]) -> Extent | None:
    known = [extent for extent in extents if extent is not None]
    if not known:
        return None
    ends = {axis: [getattr(extent, axis) for extent in known] for axis in "ijk"}
    return Extent(**{axis: (min(a for a, _ in e), max(b for _, b in e)) for axis, e in ends.items()})


def _shared(one: Extent, other: Extent | None) -> Extent | None:
    """What two extents have in common."""
    if other is None:
        return None
    ends = {axis: (getattr(one, axis), getattr(other, axis)) for axis in "ijk"}
    common = {axis: (max(a[0], b[0]), min(a[1], b[1])) for axis, (a, b) in ends.items()}
    return None if any(a > b for a, b in common.values()) else Extent(**common)


def _within(inner: Extent, outer: Extent) -> tuple[slice, slice, slice]:
    """Index of an extent into an array (slices, rows, columns) of one that holds it."""
    pairs = ((inner.k, outer.k), (inner.j, outer.j), (inner.i, outer.i))
    return tuple(slice(a - low, b - low + 1) for (a, b), (low, _) in pairs)  # type: ignore[return-value]


def _tight(mask: np.ndarray, region: Extent) -> Extent | None:
    """The smallest extent that holds all true voxels of a region's mask (slices, rows, columns).

    `Extent.of_mask` for large masks (57 million voxels: 7 ms against 25): it reads them as they lie in memory.
    """
    across = Extent.of_mask(np.bitwise_or.reduce(mask.view(np.uint8), axis=0).view(bool)[None])
    if across is None:
        return None
    slices = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    k, j, i = region.k[0], region.j[0], region.i[0]
    return Extent(
        i=(across.i[0] + i, across.i[1] + i),
        j=(across.j[0] + j, across.j[1] + j),
        k=(int(slices[0]) + k, int(slices[-1]) + k),
    )


def _shrink(labelmap: slicer.vtkOrientedImageData) -> None:
    """Cut a labelmap to what is in it, as the logic does after each change."""
    extent = [0, -1, 0, -1, 0, -1]
    resample = slicer.vtkOrientedImageDataResample
    if resample.CalculateEffectiveExtent(labelmap, extent):
        whole = slicer.vtkOrientedImageData()
        whole.ShallowCopy(labelmap)
        resample.CopyImage(whole, labelmap, extent)
    else:
        labelmap.SetExtent(0, -1, 0, -1, 0, -1)
        labelmap.AllocateScalars(labelmap.GetScalarType(), 1)
    labelmap.Modified()
