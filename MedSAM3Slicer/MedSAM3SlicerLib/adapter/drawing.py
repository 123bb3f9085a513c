"""What a user drew for a segment, as one text in the segment's tags.

The segment editor's undo states hold a segment's tags together with its voxels. So whatever stands in the tags is
taken back and brought again with the mask, by the same list of at most 50 steps, whoever presses undo: boxes and
points follow the tag (`DrawingBook`), and the tag follows them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import slicer
import vtk

from MedSAM3SlicerLib.adapter import boxes, points
from MedSAM3SlicerLib.adapter.history import UndoHistory
from MedSAM3SlicerLib.adapter.matrices import toArray
from MedSAM3SlicerLib.adapter.provenance import PREFIX, getTag, setTag

DRAWING_TAG = PREFIX + "Drawing"
ROI_CLASS = "vtkMRMLMarkupsROINode"


@dataclass(frozen=True)
class Mark:
    """A box or a list of points.

    Attributes:
        id: Stays the same when the node is deleted and comes back.
        name: Of the node.
        isBox: A box, or a list of points.
        positive: Whether the concept is there.
        enabled: Whether it takes part in the next rerun.
        matrix: Of a box: object to the node's coordinates, 4x4 row by row, mm.
        size: Of a box: mm.
        positions: Of a list: the node's coordinates, mm.
        transform: ID of the node's parent transform, or "".
    """

    id: str
    name: str
    isBox: bool
    positive: bool = True
    enabled: bool = True
    matrix: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()
    transform: str = ""


@dataclass(frozen=True)
class Drawing:
    """All that was drawn for a segment.

    Attributes:
        marks: Boxes and points, in the order drawn.
        locked: Slices, as grid indices along the slicing axis, that no rerun may change.
    """

    marks: tuple[Mark, ...] = ()
    locked: tuple[int, ...] = ()

    def text(self) -> str:
        """As it stands in the tag; empty when nothing was drawn."""
        return json.dumps(asdict(self), separators=(",", ":")) if self.marks or self.locked else ""

    @classmethod
    def parse(cls, text: str) -> Drawing:
        """What `text` wrote."""
        if not text:
            return cls()
        plain = json.loads(text)
        return cls(tuple(_mark(one) for one in plain["marks"]), tuple(plain["locked"]))


def readDrawing(segment: slicer.vtkSegment) -> Drawing:
    """The drawing in the segment's tags."""
    return Drawing.parse(getTag(segment, DRAWING_TAG))


def writeDrawing(segment: slicer.vtkSegment, drawing: Drawing) -> None:
    """Put the drawing into the segment's tags; the caller keeps an undo state first."""
    setTag(segment, DRAWING_TAG, drawing.text())


def nodesOf(
    scene: slicer.vtkMRMLScene, segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str
) -> Iterator[slicer.vtkMRMLMarkupsNode]:
    """The boxes and point lists that belong to a segment."""
    for className in (ROI_CLASS, points.CLASS_NAME):
        for n in range(scene.GetNumberOfNodesByClass(className)):
            node = scene.GetNthNodeByClass(n, className)
            if boxes.ownerOf(node) == (segmentationNode.GetID(), segmentId):
                yield node


def marksOf(
    scene: slicer.vtkMRMLScene, segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str
) -> tuple[Mark, ...]:
    """The segment's boxes and points as they are in the scene; what is being placed is left out."""
    nodes = nodesOf(scene, segmentationNode, segmentId)
    return tuple(_markOf(node) for node in nodes if node.GetNumberOfDefinedControlPoints() > 0)


def showMarks(
    scene: slicer.vtkMRMLScene,
    volumeNode: slicer.vtkMRMLVolumeNode,
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    segmentId: str,
    marks: tuple[Mark, ...],
) -> None:
    """Make the scene's boxes and points of a segment those of ``marks``."""
    there = {
        node.GetAttribute(boxes.ID_ATTRIBUTE): node for node in nodesOf(scene, segmentationNode, segmentId)
    }
    wanted = {mark.id for mark in marks}
    for markId, node in there.items():
        if markId not in wanted:
            scene.RemoveNode(node)
    for mark in marks:
        node = there.get(mark.id) or _addNode(scene, volumeNode, segmentationNode, segmentId, mark)
        if _markOf(node) != mark:
            _setNode(node, mark)


class DrawingBook:
    """Keeps tags and scene the same: what was drawn goes into the tag with an undo state, what undo changed comes back.

    Args:
        scene: The scene.
        history: The undo stack of masks.
    """

    def __init__(self, scene: slicer.vtkMRMLScene, history: UndoHistory) -> None:
        self._scene = scene
        self._history = history
        self._known: dict[tuple[str, str], str] = {}

    def reconcile(
        self, segmentationNode: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLVolumeNode
    ) -> bool:
        """Bring tags and scene together; returns whether anything changed."""
        segmentation = segmentationNode.GetSegmentation()
        changed = False
        for n in range(segmentation.GetNumberOfSegments()):
            segmentId = segmentation.GetNthSegmentID(n)
            changed |= self._reconcileSegment(segmentationNode, segmentId, volumeNode)
        return changed

    def change(self, segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str, **fields: Any) -> None:
        """Change fields of a segment's drawing as one step that can be undone."""
        segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
        self._history.saveState(segmentationNode)
        drawing = replace(readDrawing(segment), **fields)
        writeDrawing(segment, drawing)
        self._known[(segmentationNode.GetID(), segmentId)] = drawing.text()

    def forget(self) -> None:
        """The scene was closed."""
        self._known.clear()

    def _reconcileSegment(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        volumeNode: slicer.vtkMRMLVolumeNode,
    ) -> bool:
        key = (segmentationNode.GetID(), segmentId)
        segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
        text = getTag(segment, DRAWING_TAG)
        marks = marksOf(self._scene, segmentationNode, segmentId)
        drawing = Drawing.parse(text)
        if key in self._known and text != self._known[key]:  # undo, redo, or a revision that was restored
            self._known[key] = text
            showMarks(self._scene, volumeNode, segmentationNode, segmentId, drawing.marks)
            return True
        self._known[key] = text
        if marks == drawing.marks:
            return False
        self.change(segmentationNode, segmentId, marks=marks)
        return True


def _mark(plain: dict[str, Any]) -> Mark:
    fields = dict(plain)
    for name in ("matrix", "size"):
        fields[name] = tuple(fields[name])
    fields["positions"] = tuple(tuple(position) for position in fields["positions"])
    return Mark(**fields)


def _markOf(node: slicer.vtkMRMLMarkupsNode) -> Mark:
    if not node.GetAttribute(boxes.ID_ATTRIBUTE):
        node.SetAttribute(boxes.ID_ATTRIBUTE, uuid.uuid4().hex[:12])
    isBox = bool(node.IsA(ROI_CLASS))
    return Mark(
        id=node.GetAttribute(boxes.ID_ATTRIBUTE),
        name=node.GetName(),
        isBox=isBox,
        positive=boxes.isPositive(node),
        enabled=boxes.isEnabled(node),
        matrix=tuple(float(v) for v in toArray(node.GetObjectToNodeMatrix()).ravel()) if isBox else (),
        size=tuple(node.GetSize()) if isBox else (),
        positions=() if isBox else tuple(_localPositions(node)),
        transform=node.GetTransformNodeID() or "",
    )


def _localPositions(node: slicer.vtkMRMLMarkupsNode) -> Iterator[tuple[float, ...]]:
    for n in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointPositionStatus(n) == node.PositionDefined:
            yield tuple(node.GetNthControlPointPosition(n))


def _addNode(
    scene: slicer.vtkMRMLScene,
    volumeNode: slicer.vtkMRMLVolumeNode,
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    segmentId: str,
    mark: Mark,
) -> slicer.vtkMRMLMarkupsNode:
    node = scene.AddNewNodeByClass(ROI_CLASS if mark.isBox else points.CLASS_NAME, mark.name)
    node.CreateDefaultDisplayNodes()
    node.SetNodeReferenceID(boxes.VOLUME_REFERENCE, volumeNode.GetID())
    node.SetAttribute(boxes.ID_ATTRIBUTE, mark.id)
    boxes.belongTo(node, segmentationNode, segmentId)
    return node


def _setNode(node: slicer.vtkMRMLMarkupsNode, mark: Mark) -> None:
    node.SetName(mark.name)
    node.SetAndObserveTransformNodeID(mark.transform or None)
    if mark.isBox:
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(list(mark.matrix))
        node.SetAndObserveObjectToNodeMatrix(matrix)
        node.SetSize(*mark.size)
    else:
        node.RemoveAllControlPoints()
        for position in mark.positions:
            node.AddControlPoint(vtk.vtkVector3d(*position))
    boxes.setPositive(node, mark.positive)
    boxes.setEnabled(node, mark.enabled)
