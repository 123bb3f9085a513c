"""Segmentations of the core as segments of a segmentation node, and back.

A result is a crop. It is written as a crop (measured on 300x512x512: 0.015 s instead of 0.119 s for the whole grid),
one undo state is saved before the first voxel changes, and everything that can fail is done before that state is
saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM3Core.errors import OutputError
from MedSAM3Core.prompts import Box, Concept, Point
from MedSAM3Core.segmentation import Extent, Provenance, Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3SlicerLib.adapter import hierarchy, provenance
from MedSAM3SlicerLib.adapter.history import NoHistory, UndoHistory
from MedSAM3SlicerLib.adapter.labelmaps import (
    BINARY_LABELMAP,
    extentOf,
    referenceGrid,
    segmentsIn,
    sharesItsLabelmap,
    voxelsOf,
)
from MedSAM3SlicerLib.adapter.masking import isRestricted, maskedWrite
from MedSAM3SlicerLib.adapter.matrices import ijkToNode, nodeToWorld, toMatrix
from MedSAM3SlicerLib.adapter.volumes import ijkToWorld
from MedSAM3SlicerLib.terminology import applyTerminology


@dataclass(frozen=True)
class WrittenSegment:
    """One segment as it stands in the scene.

    Attributes:
        segmentId: The segment's ID in its segmentation.
        name: Its name.
        replaced: Whether an earlier result of the same concept was there.
        volumeMl: Millilitres.
        score: Confidence, 0..1.
    """

    segmentId: str
    name: str
    replaced: bool
    volumeMl: float
    score: float


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A result with all done that could fail: its image on the segmentation's grid, the segment it goes to."""

    segmentation: Segmentation
    image: slicer.vtkOrientedImageData | None
    segmentId: str
    resampled: bool
    ready: Ready


@dataclass(frozen=True)
class _Held:
    """What a segment holds after a write.

    Attributes:
        mark: `provenance.fingerprint`, or None where it has to be read back.
        volumeMl: Millilitres.
    """

    mark: str | None
    volumeMl: float


@dataclass(frozen=True, eq=False)
class Ready:
    """What can be done for a write without the scene, and takes time.

    Attributes:
        mark: `provenance.fingerprint`.
        voxels: The crop as VTK keeps it, 0 or 1; None for an empty result.
        volumeMl: Millilitres.
    """

    mark: str
    voxels: vtk.vtkUnsignedCharArray | None
    volumeMl: float = 0.0


def makeReady(result: Segmentation) -> Ready:
    """Fingerprint a result and copy its voxels. Knows no scene, so that another thread can do it.

    The copy is the scene's own: what a user draws there must not reach the result, which is compared with it later.
    """
    mark = provenance.fingerprint(result.extent, result.mask)
    if result.empty:
        return Ready(mark, None)
    voxels = vtk.vtkUnsignedCharArray()
    voxels.SetName("ImageScalars")
    voxels.SetNumberOfValues(result.mask.size)
    vtk_to_numpy(voxels)[...] = result.mask.reshape(-1)
    return Ready(mark, voxels, result.volume_ml)


class SegmentWriter:
    """Writes results into segmentation nodes.

    Args:
        scene: The scene that the nodes are in.
        editorLogic: A segment editor logic; its parameter node says what masking and overwriting the user wants.
        history: Where undo states go; that of Slicer's segment editor where it shows the same segmentation.
    """

    def __init__(
        self,
        scene: slicer.vtkMRMLScene,
        editorLogic: slicer.vtkSlicerSegmentEditorLogic,
        history: UndoHistory,
    ) -> None:
        self._scene = scene
        self._editorLogic = editorLogic
        self.history = history
        self._writtenAt: dict[tuple[str, str], int] = {}

    def forHiddenNodes(self) -> SegmentWriter:
        """A writer under the same masks and overwriting that saves no undo states."""
        return SegmentWriter(self._scene, self._editorLogic, NoHistory())

    def createNode(
        self, volumeNode: slicer.vtkMRMLVolumeNode, name: str = ""
    ) -> slicer.vtkMRMLSegmentationNode:
        """A segmentation node on the volume's grid, under its transform and in its study."""
        title = name or f"{volumeNode.GetName()} segmentation"
        node = self._scene.AddNewNodeByClass("vtkMRMLSegmentationNode", title)
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(
            volumeNode
        )  # relative to the transform, so after it
        hierarchy.placeBeside(self._scene, node, volumeNode)
        return node

    def write(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        volumeNode: slicer.vtkMRMLVolumeNode,
        segmentations: Sequence[Segmentation],
        segmentIds: Sequence[str] = (),
    ) -> list[WrittenSegment]:
        """`writeSteps`, all of them at once."""
        return list(self.writeSteps(segmentationNode, volumeNode, segmentations, segmentIds))

    def writeSteps(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        volumeNode: slicer.vtkMRMLVolumeNode,
        segmentations: Sequence[Segmentation],
        segmentIds: Sequence[str] = (),
        ready: Sequence[Ready] = (),
    ) -> Iterator[WrittenSegment]:
        """Write all results with one undo state before them, one segment a step, so that a window can repaint between
        two.

        A segment that an earlier run made for the same concept is replaced, unless it was edited by hand since: then
        the result becomes a segment of its own and the edit stays. Concepts that were found nowhere make no segment.

        Args:
            segmentationNode: Where the segments go.
            volumeNode: The volume that was segmented.
            segmentations: Results on the volume's grid.
            segmentIds: Segments to replace in any case (a refinement), one for each result, "" for none.
            ready: `makeReady` of each result, where that was done elsewhere already.

        Yields:
            What was written, in the order of those results that are not empty.

        Raises:
            OutputError: If the results do not fit; nothing was changed then.
        """
        targets = list(segmentIds) or [""] * len(segmentations)
        known = list(ready) or [makeReady(result) for result in segmentations]
        prepared = [
            self._prepare(segmentationNode, volumeNode, result, target, done)
            for result, target, done in zip(segmentations, targets, known, strict=True)
            if not result.empty or target
        ]
        if not prepared:
            return
        self._bind(segmentationNode, volumeNode)
        self.history.saveState(segmentationNode)
        for item in prepared:
            yield self._writeOne(segmentationNode, volumeNode, item)

    def _bind(
        self, segmentationNode: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLVolumeNode
    ) -> None:
        editorNode = self._editorLogic.GetSegmentEditorNode()
        editorNode.SetAndObserveSegmentationNode(segmentationNode)
        if volumeNode.IsA("vtkMRMLScalarVolumeNode"):
            editorNode.SetAndObserveSourceVolumeNode(volumeNode)
        segmentationNode.SetSourceRepresentationToBinaryLabelmap()

    def _prepare(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        volumeNode: slicer.vtkMRMLVolumeNode,
        result: Segmentation,
        target: str,
        ready: Ready,
    ) -> _Prepared:
        segmentation = segmentationNode.GetSegmentation()
        if target and segmentation.GetSegment(target) is None:
            raise OutputError(
                f"The segment {target} is no longer in {segmentationNode.GetName()}; segment it again."
            )
        crop = None if result.empty else cropImage(result, volumeNode, ready.voxels)
        image = None if crop is None else _onGridOf(crop, segmentationNode, volumeNode)
        segmentId = target or self._replaceable(segmentationNode, volumeNode, result)
        return _Prepared(result, image, segmentId, image is not crop, ready)

    def _replaceable(
        self, node: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLVolumeNode, result: Segmentation
    ) -> str:
        for segmentId in segmentIdsOf(node, result.concept.phrase):
            accepted = provenance.getTag(
                node.GetSegmentation().GetSegment(segmentId), provenance.ACCEPTED_TAG
            )
            if not accepted and not self.wasEdited(node, segmentId, volumeNode):
                return segmentId
        return ""

    def _writeOne(
        self, node: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLVolumeNode, item: _Prepared
    ) -> WrittenSegment:
        segmentId = item.segmentId or self._addSegment(node, item.segmentation.concept)
        segment = node.GetSegmentation().GetSegment(segmentId)
        held = self._setImage(node, segmentId, item)
        provenance.writeProvenance(segment, item.segmentation, held.mark or item.ready.mark)
        if held.mark is None:
            markAsWritten(node, segmentId, volumeNode)
        self._writtenAt[(node.GetID(), segmentId)] = _labelmapStamp(segment)
        return WrittenSegment(
            segmentId,
            segment.GetName(),
            bool(item.segmentId),
            held.volumeMl,
            item.segmentation.score,
        )

    def _addSegment(self, node: slicer.vtkMRMLSegmentationNode, concept: Concept) -> str:
        segmentation = node.GetSegmentation()
        segment = slicer.vtkSegment()
        segment.SetName(_uniqueName(segmentation, concept.name or concept.phrase))
        segment.SetColor(*(channel / 255.0 for channel in concept.colour))
        segment.AddRepresentation(BINARY_LABELMAP, slicer.vtkOrientedImageData())
        applyTerminology(segment, concept)
        segmentId = segmentation.GenerateUniqueSegmentID(concept.phrase.replace(" ", "_") or "segment")
        segmentation.AddSegment(segment, segmentId)
        return segmentId

    def _setImage(self, node: slicer.vtkMRMLSegmentationNode, segmentId: str, item: _Prepared) -> _Held:
        """Set the segment to exactly the image, within the user's masks, cutting out of neighbours only if told to.

        Without masks, with overlaps allowed and a labelmap of its own, the segment takes the image's voxels over as
        they are. (Measured in turns on 120x205x205 voxels: `SetBinaryLabelmapToSegment` takes several times as long,
        `ModifySegmentByLabelmap` tens of times; docs/benchmarks.md.)
        """
        if isRestricted(self._editorLogic.GetSegmentEditorNode()):
            return self._setMasked(node, segmentId, item)
        if item.image is None:
            node.GetSegmentation().ClearSegment(segmentId)
        else:
            _replaceImage(node, segmentId, item.image, isTight=not item.resampled)
        return _Held(None if item.resampled else item.ready.mark, item.ready.volumeMl)

    def _setMasked(self, node: slicer.vtkMRMLSegmentationNode, segmentId: str, item: _Prepared) -> _Held:
        editorNode = self._editorLogic.GetSegmentEditorNode()
        reckoned = maskedWrite(editorNode, node, segmentId, item.image)
        if reckoned is None:
            _setByLogic(self._editorLogic, node, segmentId, item.image)
            return _Held(None, volumeMlOf(node, segmentId))
        if reckoned.image is None:
            node.GetSegmentation().ClearSegment(segmentId)
        else:
            reckoned.cutOutOfNeighbours()
            _replaceImage(node, segmentId, reckoned.image, isTight=True)
        if item.resampled:
            return _Held(None, volumeMlOf(node, segmentId))
        if reckoned.image is item.image:
            return _Held(item.ready.mark, item.ready.volumeMl)
        extent = extentOf(reckoned.image) if reckoned.image is not None else None
        voxels = np.count_nonzero(reckoned.mask)
        return _Held(
            provenance.fingerprint(extent, reckoned.mask),
            voxels * item.segmentation.geometry.voxel_volume_ml,
        )

    def wasEdited(
        self, node: slicer.vtkMRMLSegmentationNode, segmentId: str, volumeNode: slicer.vtkMRMLVolumeNode
    ) -> bool:
        """`editedByHand`, without looking at voxels as long as the labelmap is the very one that was written."""
        segment = node.GetSegmentation().GetSegment(segmentId)
        if self._writtenAt.get((node.GetID(), segmentId)) == _labelmapStamp(segment):
            return False
        return editedByHand(node, segmentId, volumeNode)

    def isTouched(self, node: slicer.vtkMRMLSegmentationNode, segmentId: str) -> bool:
        """Whether the labelmap is not the very one that was written: at once, without looking at voxels."""
        segment = node.GetSegmentation().GetSegment(segmentId)
        return segment is not None and self._writtenAt.get((node.GetID(), segmentId)) != _labelmapStamp(
            segment
        )


def _setByLogic(
    logic: slicer.vtkSlicerSegmentEditorLogic,
    node: slicer.vtkMRMLSegmentationNode,
    segmentId: str,
    image: slicer.vtkOrientedImageData | None,
) -> None:
    """The segment editor logic's own way; on the whole grid, or it forgets what masks protect beside the image."""
    editorNode = logic.GetSegmentEditorNode()
    selected, isSilent = editorNode.GetSelectedSegmentID(), editorNode.GetDisableModifiedEvent()
    editorNode.SetDisableModifiedEvent(True)  # the user's selection is the same afterwards
    editorNode.SetSelectedSegmentID(segmentId)  # the one that no mask protects from a change
    try:
        whole = _onWholeGrid(image, node)
        if whole is not None:
            logic.ModifySegmentByLabelmap(node, segmentId, whole, logic.ModificationModeSet, False, False)
    finally:
        editorNode.SetSelectedSegmentID(selected)
        editorNode.SetDisableModifiedEvent(isSilent)


def _replaceImage(
    node: slicer.vtkMRMLSegmentationNode, segmentId: str, image: slicer.vtkOrientedImageData, isTight: bool
) -> None:
    """Set the segment's voxels; ``isTight`` says that the image's extent is the smallest that holds them."""
    segmentation = node.GetSegmentation()
    segment = segmentation.GetSegment(segmentId)
    labelmap = segment.GetRepresentation(BINARY_LABELMAP)
    if labelmap is None or not isTight or sharesItsLabelmap(segmentation, segmentId):
        modules = slicer.vtkSlicerSegmentationsModuleLogic
        modules.SetBinaryLabelmapToSegment(image, node, segmentId, modules.MODE_REPLACE)
        return
    segment.SetLabelValue(1)
    labelmap.ShallowCopy(image)
    labelmap.Modified()


def _labelmapStamp(segment: slicer.vtkSegment) -> int:
    """Changes with every change of the segment's voxels."""
    labelmap = segment.GetRepresentation(BINARY_LABELMAP)
    return labelmap.GetMTime() if labelmap is not None else 0


def segmentIdsOf(segmentationNode: slicer.vtkMRMLSegmentationNode, phrase: str) -> list[str]:
    """IDs of the segments that this module made for the phrase, in the segmentation's order."""
    segmentation = segmentationNode.GetSegmentation()
    return [i for i in segmentsIn(segmentation) if provenance.phraseOf(segmentation.GetSegment(i)) == phrase]


def findSegment(segmentationNode: slicer.vtkMRMLSegmentationNode, text: str) -> str:
    """ID of the segment that is meant by an ID, a name or a concept's phrase.

    Raises:
        OutputError: If there is none.
    """
    segmentation = segmentationNode.GetSegmentation()
    if segmentation.GetSegment(text) is not None:
        return text
    wanted = text.strip().lower()
    for n in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(n)
        if wanted in (segment.GetName().lower(), provenance.phraseOf(segment).lower()):
            return segmentation.GetNthSegmentID(n)
    names = ", ".join(
        segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())
    )
    raise OutputError(f"{segmentationNode.GetName()} has no segment {text!r}; it has: {names or 'none'}.")


def readMask(
    segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str, volumeNode: slicer.vtkMRMLVolumeNode
) -> tuple[Extent | None, np.ndarray]:
    """The segment on the volume's grid, as the smallest extent and a boolean crop (slices, rows, columns) of it."""
    image = slicer.vtkOrientedImageData()
    segmentationNode.GetBinaryLabelmapRepresentation(segmentId, image)
    if image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        return None, np.zeros((0, 0, 0), bool)
    image = _resampled(image, _volumeGridIn(segmentationNode, volumeNode))
    low = np.array(image.GetExtent()).reshape(3, 2)[::-1, 0]
    whole = voxelsOf(image) > 0
    size = np.array(volumeNode.GetImageData().GetDimensions())[::-1]
    first, last = np.maximum(low, 0), np.minimum(low + whole.shape, size)
    if (last <= first).any():
        return None, np.zeros((0, 0, 0), bool)
    inside = whole[tuple(slice(a - o, b - o) for a, b, o in zip(first, last, low, strict=True))]
    extent = Extent.of_mask(inside)
    if extent is None:
        return None, np.zeros((0, 0, 0), bool)
    crop = inside[extent.slices]
    ends = [(int(a + o), int(b + o)) for (a, b), o in zip((extent.k, extent.j, extent.i), first, strict=True)]
    return Extent(i=ends[2], j=ends[1], k=ends[0]), crop


def readSegmentation(
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    segmentId: str,
    volumeNode: slicer.vtkMRMLVolumeNode,
    concept: Concept,
) -> Segmentation:
    """A segment of the scene as a `Segmentation` on the grid that `volumeReader` gives, hand edits included."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    made = provenance.readProvenance(segment)
    extent, mask = readMask(segmentationNode, segmentId, volumeNode)
    columns, rows, slices = volumeNode.GetImageData().GetDimensions()
    return Segmentation(
        concept,
        Geometry((slices, rows, columns), ijkToWorld(volumeNode)),
        extent,
        mask,
        score=provenance.scoreOf(segment) or 0.0,
        provenance=made or Provenance(concept.typed, ""),
        boxes=tuple(parsedBox(text) for text in made.boxes) if made else (),
        points=tuple(Point.parse(text) for text in made.points) if made else (),
        anchors=made.anchors if made else (),
    )


def editedByHand(
    segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str, volumeNode: slicer.vtkMRMLVolumeNode
) -> bool:
    """Whether the segment differs from what a run wrote."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    written = provenance.getTag(segment, provenance.FINGERPRINT_TAG)
    return written != provenance.fingerprint(*readMask(segmentationNode, segmentId, volumeNode))


def editedSlices(written: Segmentation, now: Segmentation) -> list[int]:
    """Slices, as grid indices along the slicing axis, on which a segment differs from what was written.

    Knows neither MRML nor Qt, so that it can run on another thread.
    """
    found = re.search(r"grid axis ([ijk])", written.provenance.axis)
    axis = "kji".index(found.group(1)) if found else 0
    different = written.to_array() != now.to_array()
    others = tuple(n for n in range(3) if n != axis)
    return [int(n) for n in np.flatnonzero(different.any(axis=others))]


def markAsWritten(
    segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str, volumeNode: slicer.vtkMRMLVolumeNode
) -> None:
    """Take the segment as it stands (after masking) for what the run wrote."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    text = provenance.fingerprint(*readMask(segmentationNode, segmentId, volumeNode))
    provenance.setTag(segment, provenance.FINGERPRINT_TAG, text)


def volumeMlOf(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> float:
    """Millilitres of a segment's own labelmap, in world space under a linear transform."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    image = segment.GetRepresentation(BINARY_LABELMAP)
    if image is None or image.GetNumberOfPoints() == 0:
        return 0.0
    voxels = int((voxelsOf(image) == segment.GetLabelValue()).sum())
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return voxels * abs(matrix.Determinant()) / 1000.0


def cropImage(
    result: Segmentation,
    volumeNode: slicer.vtkMRMLVolumeNode,
    voxels: vtk.vtkUnsignedCharArray | None = None,
) -> slicer.vtkOrientedImageData:
    """The crop as an oriented image at its extent of the volume's own grid, unsigned char, in the volume's coordinates.

    Args:
        result: Not empty.
        volumeNode: The volume that was segmented.
        voxels: Of `makeReady`; they become the image's own.

    Raises:
        OutputError: If the result is of another grid.
    """
    columns, rows, slices = volumeNode.GetImageData().GetDimensions()
    if result.geometry.shape != (slices, rows, columns):
        raise OutputError(
            f"The result has {result.geometry.shape} voxels, {volumeNode.GetName()} has {(slices, rows, columns)}; "
            "the volume was changed during the run, segment it again."
        )
    extent = result.extent
    assert extent is not None
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*extent.i, *extent.j, *extent.k)
    image.SetGeometryFromImageToWorldMatrix(toMatrix(ijkToNode(volumeNode)))
    image.GetPointData().SetScalars(makeReady(result).voxels if voxels is None else voxels)
    return image


def _uniqueName(segmentation: slicer.vtkSegmentation, name: str) -> str:
    taken = {segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())}
    names = [name, *(f"{name} {n}" for n in range(2, len(taken) + 3))]
    return next(candidate for candidate in names if candidate not in taken)


def _onGridOf(
    image: slicer.vtkOrientedImageData,
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    volumeNode: slicer.vtkMRMLVolumeNode,
) -> slicer.vtkOrientedImageData:
    """The crop in the segmentation's coordinates and on its grid; the very same voxels when both share them already."""
    if segmentationNode.GetTransformNodeID() != volumeNode.GetTransformNodeID():
        image = _moved(image, volumeNode, segmentationNode)
    grid = referenceGrid(segmentationNode)
    if grid is None:
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        return image
    return _resampled(image, grid)


def _moved(
    image: slicer.vtkOrientedImageData,
    fromNode: slicer.vtkMRMLTransformableNode,
    toNode: slicer.vtkMRMLTransformableNode,
) -> slicer.vtkOrientedImageData:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    between = toMatrix(np.linalg.inv(nodeToWorld(toNode)) @ nodeToWorld(fromNode))
    vtk.vtkMatrix4x4.Multiply4x4(between, matrix, matrix)
    moved = slicer.vtkOrientedImageData()
    moved.ShallowCopy(image)
    moved.SetGeometryFromImageToWorldMatrix(matrix)
    return moved


def _volumeGridIn(
    segmentationNode: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLVolumeNode
) -> slicer.vtkOrientedImageData:
    """The volume's grid, without voxels, in the segmentation's coordinates."""
    grid = slicer.vtkOrientedImageData()
    grid.SetExtent(*volumeNode.GetImageData().GetExtent())
    grid.SetGeometryFromImageToWorldMatrix(toMatrix(ijkToNode(volumeNode)))
    if segmentationNode.GetTransformNodeID() != volumeNode.GetTransformNodeID():
        return _moved(grid, volumeNode, segmentationNode)
    return grid


def _resampled(
    image: slicer.vtkOrientedImageData, grid: slicer.vtkOrientedImageData
) -> slicer.vtkOrientedImageData:
    resample = slicer.vtkOrientedImageDataResample
    if resample.DoGeometriesMatch(image, grid):
        return image
    output = slicer.vtkOrientedImageData()
    if not resample.ResampleOrientedImageToReferenceOrientedImage(image, grid, output, False, True):
        raise OutputError("The segment could not be brought to the other grid; choose a new segmentation.")
    return output


def _onWholeGrid(
    image: slicer.vtkOrientedImageData | None, node: slicer.vtkMRMLSegmentationNode
) -> slicer.vtkOrientedImageData | None:
    """The image with zeros around it, as far as the segmentation's grid goes; no image is one of zeros only."""
    grid = referenceGrid(node)
    if grid is None:
        return image
    if image is None:
        grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        voxelsOf(grid)[...] = 0
        return grid
    ends = list(zip(image.GetExtent(), grid.GetExtent(), strict=True))
    extent = [(min, max)[n % 2](pair) for n, pair in enumerate(ends)]
    whole = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.CopyImage(image, whole, extent)
    return whole


def parsedBox(text: str) -> Box:
    """A box as a provenance holds it, on one slice or in 3D."""
    return Box.parse(text) if text.rstrip("+-, ").count(",") == 4 else Box.parse_3d(text)
