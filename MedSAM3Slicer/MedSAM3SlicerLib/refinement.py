"""Improving a segment: what is known of it, what was drawn for it, its locks, its revisions, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import slicer

from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Box, Point
from MedSAM3Core.segmentation import Segmentation
from MedSAM3SlicerLib.adapter import boxes as boxAdapter
from MedSAM3SlicerLib.adapter import points as pointAdapter
from MedSAM3SlicerLib.adapter import provenance, segments
from MedSAM3SlicerLib.adapter.drawing import DrawingBook, readDrawing, writeDrawing
from MedSAM3SlicerLib.adapter.revisions import Revision, RevisionBook


@dataclass(frozen=True)
class Marks:
    """What goes with a rerun.

    Attributes:
        boxes: In voxels of the image.
        points: In voxels of the image.
        moreLikeThis: Look for what resembles the segment.
    """

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    moreLikeThis: bool = False

    def newSince(self, previous: Segmentation) -> Marks:
        """Those that did not shape the previous result; all of them if none is new."""
        new = replace(
            self,
            boxes=tuple(box for box in self.boxes if box not in previous.boxes),
            points=tuple(point for point in self.points if point not in previous.points),
        )
        return new if new.boxes or new.points or self.moreLikeThis else self

    def describe(self) -> str:
        """For the list of revisions."""
        parts = []
        for count, word in ((len(self.boxes), "box"), (len(self.points), "point")):
            if count:
                plural = "es" if word == "box" else "s"
                parts.append(f"{count} {word}{plural if count > 1 else ''}")
        parts += ["more like this"] if self.moreLikeThis else []
        return ", ".join(parts) or "hand edits"


class Refinement:
    """What improving segments needs beside the worker.

    Args:
        scene: The scene.
        writer: Writes masks; its history takes boxes and locks too.
    """

    def __init__(self, scene: slicer.vtkMRMLScene, writer: segments.SegmentWriter) -> None:
        self._scene = scene
        self._writer = writer
        self.drawings = DrawingBook(scene, writer.history)
        self.revisions = RevisionBook(scene)
        self._results: dict[tuple[str, str], Segmentation] = {}

    # What is known of a segment -------------------------------------------------------------------------------------

    def remember(
        self, node: slicer.vtkMRMLSegmentationNode, segmentId: str, result: Segmentation, what: str
    ) -> None:
        """A run has written a result: the segment's next revision."""
        self._results[(node.GetID(), segmentId)] = result
        segment = node.GetSegmentation().GetSegment(segmentId)
        self.revisions.add(node, segmentId, result, what, readDrawing(segment))

    def forgetNode(self, nodeId: str) -> None:
        """A segmentation is going; its revisions go with it."""
        if not self._scene.IsClosing():
            self.revisions.removeOf(nodeId)
        self._results = {key: value for key, value in self._results.items() if key[0] != nodeId}

    def forgetAll(self) -> None:
        """The scene is closed."""
        self._results.clear()
        self.drawings.forget()

    def lastWritten(
        self, node: slicer.vtkMRMLSegmentationNode, segmentId: str, volumeNode: slicer.vtkMRMLVolumeNode
    ) -> Segmentation | None:
        """The result that the segment's tags speak of: also after an undo, and in a scene that was opened again."""
        segment = node.GetSegmentation().GetSegment(segmentId)
        mark = provenance.getTag(segment, provenance.FINGERPRINT_TAG)
        kept = self._results.get((node.GetID(), segmentId))
        if kept is not None and provenance.fingerprint(kept.extent, kept.mask) == mark:
            return kept
        for revision in reversed(self.revisions.of(node, segmentId)):
            result, _ = self.revisions.read(revision, volumeNode)
            if provenance.fingerprint(result.extent, result.mask) == mark:
                return result
        return None

    def previous(
        self, node: slicer.vtkMRMLSegmentationNode, segmentId: str, volumeNode: slicer.vtkMRMLVolumeNode
    ) -> tuple[Segmentation, Segmentation | None]:
        """The segment as it stands, and, if it was edited by hand since, the result it was edited from.

        The first is the very result of the last run where nobody touched it: that one knows its probabilities.
        """
        written = self.lastWritten(node, segmentId, volumeNode)
        if written is not None and not self._writer.wasEdited(node, segmentId, volumeNode):
            return written, None
        segment = node.GetSegmentation().GetSegment(segmentId)
        made = provenance.readProvenance(segment)
        concept = resolve(made.concept if made else segment.GetName())
        return segments.readSegmentation(node, segmentId, volumeNode, concept), written

    # What is drawn for it -------------------------------------------------------------------------------------------

    def marks(
        self,
        roiNodes: Sequence[slicer.vtkMRMLMarkupsROINode],
        pointNodes: Sequence[slicer.vtkMRMLMarkupsFiducialNode],
        volumeNode: slicer.vtkMRMLVolumeNode,
        moreLikeThis: bool = False,
    ) -> Marks:
        """Boxes and points that are switched on, in voxels.

        Raises:
            PromptError: If one lies outside the volume.
        """
        drawn = [boxAdapter.boxFromROI(node, volumeNode) for node in roiNodes if boxAdapter.isEnabled(node)]
        clicked = [
            point
            for node in pointNodes
            if boxAdapter.isEnabled(node)
            for point in pointAdapter.pointsFromNode(node, volumeNode)
        ]
        return Marks(tuple(drawn), tuple(clicked), moreLikeThis)

    def adopt(
        self,
        node: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        markupsNodes: Sequence[slicer.vtkMRMLMarkupsNode],
        volumeNode: slicer.vtkMRMLVolumeNode,
    ) -> None:
        """Boxes and points that are for no segment yet are for this one; undo then takes them back with its mask."""
        for markups in markupsNodes:
            if boxAdapter.ownerOf(markups) == ("", ""):
                boxAdapter.belongTo(markups, node, segmentId)
        self.drawings.reconcile(node, volumeNode)

    def checkSomething(
        self,
        node: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        volumeNode: slicer.vtkMRMLVolumeNode,
        marks: Marks,
    ) -> None:
        """Raise `PromptError` unless there is anything to refine with: marks, or corrections by hand."""
        if marks.boxes or marks.points or marks.moreLikeThis:
            return
        if not self._writer.wasEdited(node, segmentId, volumeNode):
            raise PromptError("There is no box to refine with; draw one on the image and switch it on.")

    # Locks and acceptance -------------------------------------------------------------------------------------------

    def lockedSlices(self, node: slicer.vtkMRMLSegmentationNode, segmentId: str) -> tuple[int, ...]:
        """Slices, as grid indices along the slicing axis, that reruns leave as they are."""
        segment = node.GetSegmentation().GetSegment(segmentId)
        return readDrawing(segment).locked if segment is not None else ()

    def setLocked(
        self,
        node: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        slices: Sequence[int],
        locked: bool = True,
    ) -> None:
        """Lock slices, or release them; one step that can be undone."""
        before = set(self.lockedSlices(node, segmentId))
        after = before | set(slices) if locked else before - set(slices)
        if after != before:
            self.drawings.change(node, segmentId, locked=tuple(sorted(after)))

    def isAccepted(self, node: slicer.vtkMRMLSegmentationNode, segmentId: str) -> bool:
        """Whether the segment is done: no run replaces it any more."""
        segment = node.GetSegmentation().GetSegment(segmentId)
        return segment is not None and bool(provenance.getTag(segment, provenance.ACCEPTED_TAG))

    def accept(
        self,
        node: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        volumeNode: slicer.vtkMRMLVolumeNode,
        accepted: bool = True,
    ) -> None:
        """End the improving: boxes, points and locks go, and no run replaces the segment; one step that can be undone.

        Args:
            node: Holds the segment.
            segmentId: Which one.
            volumeNode: The image.
            accepted: False takes the acceptance back, without the boxes.
        """
        self.drawings.reconcile(node, volumeNode)
        segment = node.GetSegmentation().GetSegment(segmentId)
        self._writer.history.saveState(node)
        stamp = datetime.now(UTC).isoformat(timespec="seconds") if accepted else ""
        provenance.setTag(segment, provenance.ACCEPTED_TAG, stamp)
        if accepted:
            writeDrawing(segment, replace(readDrawing(segment), marks=(), locked=()))
            self.drawings.reconcile(node, volumeNode)

    # The way back ---------------------------------------------------------------------------------------------------

    def undo(self, node: Any, volumeNode: Any) -> None:
        """Take the last change back: mask, boxes, points and locks."""
        if node is not None and volumeNode is not None:
            self.drawings.reconcile(node, volumeNode)
        self._writer.history.undo()
        if node is not None and volumeNode is not None:
            self.drawings.reconcile(node, volumeNode)

    def redo(self, node: Any, volumeNode: Any) -> None:
        """Bring it again."""
        self._writer.history.redo()
        if node is not None and volumeNode is not None:
            self.drawings.reconcile(node, volumeNode)

    def restore(
        self,
        node: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        number: int,
        volumeNode: slicer.vtkMRMLVolumeNode,
    ) -> Revision:
        """Bring a revision back, with its boxes, points and locks; one step that can be undone, no model needed.

        Raises:
            PromptError: If there is no such revision.
        """
        self.drawings.reconcile(node, volumeNode)
        found = {revision.number: revision for revision in self.revisions.of(node, segmentId)}
        if number not in found:
            known = ", ".join(str(n) for n in found) or "none"
            raise PromptError(f"Revision {number} is not kept; there are: {known}.")
        result, drawing = self.revisions.read(found[number], volumeNode)
        list(self._writer.writeSteps(node, volumeNode, [result], [segmentId]))
        writeDrawing(node.GetSegmentation().GetSegment(segmentId), drawing)
        self._results[(node.GetID(), segmentId)] = result
        self.drawings.reconcile(node, volumeNode)
        return found[number]
