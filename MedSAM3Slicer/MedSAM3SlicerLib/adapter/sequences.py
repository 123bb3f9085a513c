"""4D: a sequence of volumes, segmented frame by frame, as a sequence of segmentations that is browsed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import slicer

from MedSAM3Core.segmentation import Segmentation
from MedSAM3SlicerLib.adapter import hierarchy
from MedSAM3SlicerLib.adapter.segments import SegmentWriter, WrittenSegment


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a sequence.

    Attributes:
        number: 0 for the first.
        indexValue: The sequence's own name of the frame, for example seconds as text.
        volumeNode: The frame's data; it is not in the scene.
    """

    number: int
    indexValue: str
    volumeNode: slicer.vtkMRMLVolumeNode


def browserOf(
    scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode
) -> slicer.vtkMRMLSequenceBrowserNode | None:
    """The browser that the volume is the current frame of, or None for a volume that does not change."""
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(n, "vtkMRMLSequenceBrowserNode")
        if browser.GetSequenceNode(volumeNode) is not None:
            return browser
    return None


def frames(
    browser: slicer.vtkMRMLSequenceBrowserNode, volumeNode: slicer.vtkMRMLVolumeNode
) -> Iterator[Frame]:
    """The frames of the volume's sequence in order; what the views show stays as it is."""
    sequence = browser.GetSequenceNode(volumeNode)
    for number in range(sequence.GetNumberOfDataNodes()):
        node = sequence.GetNthDataNode(number)
        yield Frame(number, sequence.GetNthIndexValue(number), node)


def addSegmentationSequence(
    scene: slicer.vtkMRMLScene,
    browser: slicer.vtkMRMLSequenceBrowserNode,
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    volumeNode: slicer.vtkMRMLVolumeNode,
) -> slicer.vtkMRMLSequenceNode:
    """An empty sequence for the frames' segmentations, browsed together with the volume's; the node shows the current
    frame.
    """
    master = browser.GetSequenceNode(volumeNode)
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", f"{segmentationNode.GetName()} sequence")
    _indexLike(sequence, master)
    browser.AddSynchronizedSequenceNode(sequence)
    browser.SetSaveChanges(sequence, True)
    return sequence


def _indexLike(sequence: slicer.vtkMRMLSequenceNode, master: slicer.vtkMRMLSequenceNode) -> None:
    for name in ("IndexName", "IndexUnit"):
        getattr(sequence, f"Set{name}")(getattr(master, f"Get{name}")())
    sequence.SetIndexType(master.GetIndexType())


def storeFrame(
    sequence: slicer.vtkMRMLSequenceNode, segmentationNode: slicer.vtkMRMLSegmentationNode, frame: Frame
) -> None:
    """Keep the segmentation as it is now under the frame's index value."""
    sequence.SetDataNodeAtValue(segmentationNode, frame.indexValue)


class FrameTarget:
    """Where the results of all frames go: nothing that the user sees changes before `show`.

    A new segmentation; or one of the user's, whose other segments then stay whole in every frame; or one that follows
    the browser already, each frame of which keeps its own segments.

    Args:
        scene: The scene.
        browser: Browses the volume's frames.
        volumeNode: Shows the current frame.
        segmentationNode: The user's choice, None for a new one.
        writer: Makes nodes, and says what is masked.
    """

    def __init__(
        self,
        scene: slicer.vtkMRMLScene,
        browser: slicer.vtkMRMLSequenceBrowserNode,
        volumeNode: slicer.vtkMRMLVolumeNode,
        segmentationNode: slicer.vtkMRMLSegmentationNode | None,
        writer: SegmentWriter,
    ) -> None:
        self._scene, self._browser, self._volumeNode = scene, browser, volumeNode
        self._chosen = segmentationNode
        self._writer = writer.forHiddenNodes()
        self._scratch = writer.createNode(volumeNode)
        self._scratch.SetHideFromEditors(True)
        if segmentationNode is not None:
            self._scratch.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID())
        self._before = browser.GetSequenceNode(segmentationNode) if segmentationNode is not None else None
        self._sequence = (
            slicer.vtkMRMLSequenceNode()
        )  # never in the scene; what it holds is handed over by `show`
        _indexLike(self._sequence, browser.GetSequenceNode(volumeNode))

    def writeSteps(self, frame: Frame, results: Sequence[Segmentation]) -> Iterator[WrittenSegment]:
        """One frame's results beside what the frame holds already, one segment a step."""
        segmentation = self._scratch.GetSegmentation()
        base = self._baseOf(frame)
        if base is not None:
            segmentation.DeepCopy(base.GetSegmentation())
        else:
            segmentation.RemoveAllSegments()
        yield from self._writer.writeSteps(self._scratch, frame.volumeNode, results)
        storeFrame(self._sequence, self._scratch, frame)

    def show(self, sequencesLogic: slicer.vtkSlicerSequencesLogic) -> slicer.vtkMRMLSegmentationNode:
        """Let the segmentation follow the browser from now on; returns it."""
        node = self._chosen or self._writer.createNode(self._volumeNode)
        paused = self._browser.StartModify()  # or the browser makes a proxy node of its own meanwhile
        made = self._before or addSegmentationSequence(self._scene, self._browser, node, self._volumeNode)
        if self._before is None:
            self._browser.AddProxyNode(node, made, False)
        for n in range(self._sequence.GetNumberOfDataNodes()):
            made.SetDataNodeAtValue(self._sequence.GetNthDataNode(n), self._sequence.GetNthIndexValue(n))
        self._browser.EndModify(paused)
        sequencesLogic.UpdateProxyNodesFromSequences(self._browser)
        self.discard()
        return node

    def discard(self) -> None:
        """Take the hidden node away again."""
        if self._scratch.GetScene() is not None:
            hierarchy.removeNode(self._scene, self._scratch)

    def _baseOf(self, frame: Frame) -> slicer.vtkMRMLSegmentationNode | None:
        if self._before is not None:
            return self._before.GetDataNodeAtValue(frame.indexValue)
        return self._chosen
