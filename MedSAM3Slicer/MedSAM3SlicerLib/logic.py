"""The controller: everything the panel does is one call here, and the same calls serve scripts and the console."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.util import VTKObservationMixin

from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import InputError, MedSAM3Error, PromptError
from MedSAM3Core.inference.linking import number_objects
from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback
from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume
from MedSAM3SlicerLib.adapter import boxes as boxAdapter
from MedSAM3SlicerLib.adapter import hierarchy, segments, sequences, surfaces
from MedSAM3SlicerLib.adapter.drawing import readDrawing
from MedSAM3SlicerLib.adapter.history import LogicHistory, UndoHistory
from MedSAM3SlicerLib.adapter.volumes import contentStamp, volumeReader
from MedSAM3SlicerLib.batches import BatchResult, segmentNodes
from MedSAM3SlicerLib.parameter import Overlap, RunSettings
from MedSAM3SlicerLib.refinement import Marks, Refinement
from MedSAM3SlicerLib.runs import InThread, Run, State, Steps, Work, waitFor
from MedSAM3SlicerLib.signals import Signal
from MedSAM3SlicerLib.ticker import INTERVAL_MS, NoTicker, Ticker
from MedSAM3SlicerLib.workers import WorkerSetup, workerSetup

logger = logging.getLogger(__name__)

EDITOR_TAG = "MedSAM3"
SEGMENT_EDITOR_TAG = "SegmentEditor"


@dataclass
class _OpenVolume:
    """The volume whose features the worker keeps, and what made them."""

    key: tuple[Any, ...]
    volumeId: str
    session: Any


class SegmentationLogic(VTKObservationMixin):
    """Segments volumes of a scene through a worker.

    Args:
        scene: The scene.
        clientFactory: Makes a `MedSAM3Core.worker.WorkerClient` for a setup, given the functions that receive its
            events and its questions.
        history: Where undo states go; None keeps a stack of its own.
        sequencesLogic: Needed for 4D only.
        ticker: Drives runs that were started without waiting for them.
        pump: Called while a blocking call waits, so that a window stays alive (``slicer.app.processEvents``).
        startupEnvironment: The environment a foreign Python is started in.
    """

    def __init__(
        self,
        scene: slicer.vtkMRMLScene,
        clientFactory: Callable[..., Any],
        *,
        history: UndoHistory | None = None,
        sequencesLogic: slicer.vtkSlicerSequencesLogic | None = None,
        ticker: Ticker | None = None,
        pump: Callable[[], None] = lambda: None,
        startupEnvironment: Mapping[str, str] | None = None,
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.scene = scene
        self.runStarted = Signal()
        self.workerSaid = Signal()
        self.answer: Callable[[str], bool] = lambda question: False
        self._clientFactory = clientFactory
        self._sequencesLogic = sequencesLogic
        self._ticker = ticker or NoTicker()
        self._pump = pump
        self._startupEnvironment = startupEnvironment
        self._editorLogic = _editorLogic(scene)
        self.writer = segments.SegmentWriter(
            scene, self._editorLogic, history or LogicHistory(self._editorLogic)
        )
        self.refinement = Refinement(scene, self.writer)
        self.run: Run | None = None
        self._busyWith: set[str] = set()
        self._client: Any = None
        self._setup: WorkerSetup | None = None
        self._open: _OpenVolume | None = None
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeRemoved)
        self.addObserver(scene, scene.StartCloseEvent, self._onSceneClose)

    # For scripts ----------------------------------------------------------------------------------------------------

    def segment(
        self,
        volumeNode: slicer.vtkMRMLVolumeNode,
        concepts: str | Sequence[str],
        segmentationNode: slicer.vtkMRMLSegmentationNode | None = None,
        *,
        roiNodes: Sequence[slicer.vtkMRMLMarkupsROINode] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        callback: Callable[[Run], None] | None = None,
        **settings: Any,
    ) -> Any:
        """Segment concepts in a volume.

        Args:
            volumeNode: Scalar or colour volume, 2D or 3D, or the current frame of a sequence.
            concepts: Phrases, for example ``["liver", "left kidney"]``.
            segmentationNode: Where the segments go; None makes a new one in the volume's study.
            roiNodes: Boxes for the concepts, any rotation.
            progress: Receives `Progress`.
            cancel: Stops the call.
            callback: Receives the ended `Run`; the call then returns at once with the `Run`.
            settings: Fields of `RunSettings`, for example ``model="demo"``, ``thorough=True``.

        Returns:
            The segmentation node; None if nothing was found and no node was given. With a callback, the `Run`.

        Raises:
            InputError: If volume, concepts or boxes cannot be used.
            ModelError, ResourceError, WorkerError, Cancelled: As the worker says.
        """
        run = self.start(volumeNode, concepts, segmentationNode, RunSettings(**settings), roiNodes)
        return self._hand(run, segmentationNode, progress, cancel, callback)

    def refine(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        segment: str,
        roiNodes: Sequence[slicer.vtkMRMLMarkupsROINode] = (),
        volumeNode: slicer.vtkMRMLVolumeNode | None = None,
        *,
        pointNodes: Sequence[slicer.vtkMRMLMarkupsFiducialNode] = (),
        moreLikeThis: bool = False,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        callback: Callable[[Run], None] | None = None,
        **settings: Any,
    ) -> Any:
        """Rerun one segment with boxes, points, and what was corrected by hand; locked slices stay as they are.

        Args:
            segmentationNode: Holds the segment.
            segment: Its ID, its name or its concept.
            roiNodes: Boxes; green ones hold the concept, red ones do not.
            volumeNode: The image; None takes the one that the segmentation was made on.
            pointNodes: Lists of points, positive or negative as boxes are.
            moreLikeThis: Add what resembles the segment, on all slices.
            progress: Receives `Progress`.
            cancel: Stops the call.
            callback: As for `segment`.
            settings: As for `segment`.

        Returns:
            The segmentation node, or with a callback the `Run`.

        Raises:
            InputError: If segment, boxes or points cannot be used.
        """
        run = self.startRefine(
            segmentationNode,
            segment,
            roiNodes,
            volumeNode,
            RunSettings(**settings),
            pointNodes,
            moreLikeThis,
        )
        return self._hand(run, segmentationNode, progress, cancel, callback)

    def segmentAll(
        self,
        volumeNodes: Sequence[slicer.vtkMRMLVolumeNode],
        concepts: str | Sequence[str],
        outputFolder: str | Path,
        *,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        resume: bool = False,
        **settings: Any,
    ) -> list[BatchResult]:
        """Segment volumes one after the other and write one ``.seg.nrrd`` for each; the scene keeps none of them.

        The code is that of ``medsam3 batch``: a journal, a table and a contact sheet lie in the folder too. A volume
        that fails is reported and the next one goes on.

        Args:
            volumeNodes: Volumes of the scene.
            concepts: Phrases.
            outputFolder: Made if it does not exist.
            progress: Receives the whole batch's `Progress`.
            cancel: Stops the batch; what was written stays.
            resume: Go on with the batch in the folder; volumes that are over are left out.
            settings: As for `segment`.

        Returns:
            One entry for each volume, in order.

        Raises:
            InputError: If the concepts or the folder cannot be used, or the folder holds a batch already and
                ``resume`` is not set; nothing was started then.
            Cancelled: If the batch was stopped.
        """
        return segmentNodes(
            self,
            volumeNodes,
            self.resolveConcepts(concepts),
            Path(outputFolder),
            RunSettings(**settings),
            progress,
            cancel,
            resume,
        )

    def infer(
        self,
        volumeNode: slicer.vtkMRMLVolumeNode,
        volume: Volume,
        concepts: Sequence[Concept],
        settings: RunSettings,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> list[Segmentation]:
        """Segment a volume that was read before, and write nothing to the scene: for batches.

        Raises:
            InputError, ModelError, ResourceError, WorkerError, Cancelled: As for `segment`.
        """
        self._checkReady(settings)
        found: list[Segmentation] = []

        def steps(work: Work) -> Steps:
            session = yield from self._newSession(work, volumeNode, lambda: volume, settings)
            try:
                found.extend((yield from _ask(work, session, concepts, (), settings, work.report)))
            finally:
                session.close()

        title = ", ".join(concept.phrase for concept in concepts)
        self._hand(self._begin(Run(steps, title), volumeNode, None), None, progress, cancel, None)
        return found

    # For the panel --------------------------------------------------------------------------------------------------

    def start(
        self,
        volumeNode: slicer.vtkMRMLVolumeNode,
        concepts: str | Sequence[str | Concept],
        segmentationNode: slicer.vtkMRMLSegmentationNode | None = None,
        settings: RunSettings | None = None,
        roiNodes: Sequence[slicer.vtkMRMLMarkupsROINode] = (),
    ) -> Run:
        """Begin a run and return at once; bad input raises here, before anything starts.

        Raises:
            InputError: Volume, concepts, boxes or settings cannot be used, or another run is going on.
        """
        settings = settings or RunSettings()
        self._checkReady(settings)
        reader = volumeReader(self.scene, volumeNode)
        asked = self.resolveConcepts(concepts)
        boxes = self._boxes(roiNodes, volumeNode)
        title = ", ".join(concept.phrase for concept in asked)
        if settings.allFrames:
            browser = sequences.browserOf(self.scene, volumeNode)
            if browser is None:
                raise InputError(
                    f"{volumeNode.GetName()} is not part of a sequence; switch 'all frames' off."
                )

            def steps(work: Work) -> Steps:
                return self._sequenceSteps(
                    work, browser, volumeNode, asked, segmentationNode, settings, boxes
                )
        else:

            def steps(work: Work) -> Steps:
                return self._segmentSteps(work, volumeNode, reader, asked, segmentationNode, settings, boxes)

        return self._begin(Run(steps, title), volumeNode, segmentationNode)

    def startRefine(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        segment: str,
        roiNodes: Sequence[slicer.vtkMRMLMarkupsROINode] = (),
        volumeNode: slicer.vtkMRMLVolumeNode | None = None,
        settings: RunSettings | None = None,
        pointNodes: Sequence[slicer.vtkMRMLMarkupsFiducialNode] = (),
        moreLikeThis: bool = False,
    ) -> Run:
        """Begin a rerun of one segment and return at once; raises as `refine`."""
        settings = settings or RunSettings()
        self._checkReady(settings)
        segmentId = segments.findSegment(segmentationNode, segment)
        image = volumeNode or self.volumeOf(segmentationNode)
        if image is None:
            raise InputError(f"The image of {segmentationNode.GetName()} is not known; choose the volume.")
        reader = volumeReader(self.scene, image)
        marks = self.refinement.marks(roiNodes, pointNodes, image, moreLikeThis)
        self.refinement.checkSomething(segmentationNode, segmentId, image, marks)
        self.refinement.adopt(segmentationNode, segmentId, [*roiNodes, *pointNodes], image)

        def steps(work: Work) -> Steps:
            return self._refineSteps(work, image, reader, segmentationNode, segmentId, settings, marks)

        return self._begin(Run(steps, f"refining {segment}"), image, segmentationNode)

    def startWith(
        self,
        volumeNode: slicer.vtkMRMLVolumeNode,
        find: Callable[[Work, Any], Generator[None, None, list[Segmentation]]],
        title: str,
        segmentationNode: slicer.vtkMRMLSegmentationNode | None = None,
        settings: RunSettings | None = None,
        segmentIds: Sequence[str] = (),
    ) -> Run:
        """Begin a run whose results another room finds, such as the agent, and return at once.

        Args:
            volumeNode: The image.
            find: Given the run's work and the steps that open the image on the worker; yields whenever the window may
                repaint, and returns what is to be written.
            title: For the status line.
            segmentationNode: Where the segments go.
            settings: As for `start`.
            segmentIds: Segments to replace, one a result; none makes new ones.

        Raises:
            InputError: As `start`.
        """
        settings = settings or RunSettings()
        self._checkReady(settings)
        reader = volumeReader(self.scene, volumeNode)

        def steps(work: Work) -> Steps:
            work.state = State.RUNNING
            work.results = yield from find(work, self._session(work, volumeNode, reader, settings))
            yield
            yield from self._writeSteps(work, segmentationNode, volumeNode, settings, segmentIds)

        return self._begin(Run(steps, title), volumeNode, segmentationNode)

    def tick(self) -> None:
        """Deliver what the worker said and go on with the run; the ticker calls this."""
        if self._client is not None:
            self._client.poll()
        if self.run is not None and self.run.step():
            self._ticker.stop()

    def cancel(self) -> None:
        """Stop the run that is going on, if any."""
        if self.run is not None:
            self.run.cancel()

    @property
    def isBusy(self) -> bool:
        """Whether a run is going on."""
        return self.run is not None and not self.run.isOver

    @property
    def workerPlace(self) -> str:
        """Where the worker computes, in words; empty while there is none."""
        return self._setup.place if self._setup else ""

    @property
    def workerLog(self) -> str:
        """The worker's last words, for a report."""
        return self._client.log if self._client is not None else ""

    def resolveConcepts(self, concepts: str | Sequence[str | Concept]) -> list[Concept]:
        """Phrases as concepts, each once.

        Raises:
            PromptError: If there is none or one cannot be used.
        """
        texts = [concepts] if isinstance(concepts, str) else list(concepts)
        found = [text if isinstance(text, Concept) else resolve(text) for text in texts if text]
        if not found:
            raise PromptError("There is no concept; type one, for example liver.")
        return list({concept.phrase: concept for concept in found}.values())

    def volumeOf(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLVolumeNode | None:
        """The image that a segmentation was made on."""
        return segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())

    def releaseMemory(self) -> bool:
        """Let the worker forget features and models; the next run loads them again. False if there is no worker."""
        if self._client is None or not self._client.running:
            return False
        self._client.submit_release("model")
        return True

    def close(self) -> None:
        """End everything: the run, the worker, the observations. For the end of the application and of tests."""
        if self.run is not None:
            self.run.abandon("Slicer is closing.")
        self._ticker.stop()
        self.removeObservers()
        self._closeClient()
        self._editorLogic.SetSegmentEditorNode(None)

    # Driving a run --------------------------------------------------------------------------------------------------

    def _begin(
        self, run: Run, volumeNode: slicer.vtkMRMLNode, segmentationNode: slicer.vtkMRMLNode | None
    ) -> Run:
        self._busyWith = {node.GetID() for node in (volumeNode, segmentationNode) if node is not None}
        self.run = run
        self._ticker.start(self.tick)
        self.runStarted.emit(run)
        return run

    def _hand(
        self,
        run: Run,
        segmentationNode: Any,
        progress: ProgressCallback | None,
        cancel: CancelToken | None,
        callback: Callable[[Run], None] | None,
    ) -> Any:
        if progress is not None:
            run.progressed.connect(progress)
        if callback is not None:
            run.ended.connect(callback)
            return run
        self.drive(run, cancel)
        if run.error is not None:
            raise run.error
        return run.segmentationNode or segmentationNode

    def drive(self, run: Run, cancel: CancelToken | None = None) -> None:
        """Stay here until the run is over; the window stays alive meanwhile."""
        self._ticker.stop()
        while not run.isOver:
            if cancel is not None and cancel.cancelled:
                run.cancel()
            self.tick()
            self._pump()
            if not run.isOver:
                time.sleep(INTERVAL_MS / 4000.0)

    # The steps of runs ----------------------------------------------------------------------------------------------

    def _segmentSteps(
        self,
        work: Work,
        volumeNode: slicer.vtkMRMLVolumeNode,
        reader: Callable[[], Any],
        concepts: Sequence[Concept],
        segmentationNode: slicer.vtkMRMLSegmentationNode | None,
        settings: RunSettings,
        boxes: Sequence[Box],
    ) -> Steps:
        session = yield from self._session(work, volumeNode, reader, settings)
        work.results = yield from _ask(work, session, concepts, boxes, settings, work.report)
        yield
        yield from self._writeSteps(work, segmentationNode, volumeNode, settings)

    def _refineSteps(
        self,
        work: Work,
        volumeNode: slicer.vtkMRMLVolumeNode,
        reader: Callable[[], Any],
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        settings: RunSettings,
        marks: Marks,
    ) -> Steps:
        session = yield from self._session(work, volumeNode, reader, settings)
        previous, written = self.refinement.previous(segmentationNode, segmentId, volumeNode)
        options = yield from self._handEdits(work, previous, written)
        if options:
            self.refinement.revisions.add(
                segmentationNode,
                segmentId,
                previous,
                "edited by hand",
                readDrawing(segmentationNode.GetSegmentation().GetSegment(segmentId)),
            )
        previous = replace(
            previous,
            boxes=tuple(box for box in previous.boxes if box in marks.boxes),
            points=tuple(point for point in previous.points if point in marks.points),
        )
        new = marks.newSince(previous)
        if locked := self.refinement.lockedSlices(segmentationNode, segmentId):
            options["locked_slices"] = list(locked)
        if new.points:
            options["points"] = list(new.points)
        if new.moreLikeThis:
            options["more_like_this"] = True
        pending = session.submit_refine(previous, list(new.boxes), progress=work.report, **options)
        work.results = [(yield from waitFor(work, pending))]
        yield
        yield from self._writeSteps(
            work, segmentationNode, volumeNode, settings, [segmentId], marks.describe()
        )

    def _sequenceSteps(
        self,
        work: Work,
        browser: slicer.vtkMRMLSequenceBrowserNode,
        volumeNode: slicer.vtkMRMLVolumeNode,
        concepts: Sequence[Concept],
        segmentationNode: slicer.vtkMRMLSegmentationNode | None,
        settings: RunSettings,
        boxes: Sequence[Box],
    ) -> Steps:
        """Every frame; nothing is written before the last one is there."""
        frames = list(sequences.frames(browser, volumeNode))
        found: list[list[Segmentation]] = []
        for frame in frames:
            report = _share(work.report, frame.number, len(frames))
            reader = volumeReader(self.scene, frame.volumeNode)
            session = yield from self._newSession(work, frame.volumeNode, reader, settings)
            try:
                found.append((yield from _ask(work, session, concepts, boxes, settings, report)))
            finally:
                session.close()
        if settings.numberObjects:
            found = yield from waitFor(work, InThread(lambda: number_objects(found)))
        work.results = [result for results in found for result in results]
        work.state = State.WRITING
        if all(result.empty for result in work.results):
            return
        self._prepareEditor(settings)
        target = sequences.FrameTarget(self.scene, browser, volumeNode, segmentationNode, self.writer)
        try:
            for frame, results in zip(frames, found, strict=True):
                for written in target.writeSteps(frame, results):
                    work.written.append(written)
                    yield
                yield
        except BaseException:  # also when the scene is closed meanwhile: what was half done must not stay
            target.discard()
            raise
        work.segmentationNode = target.show(self._sequencesLogic)

    def _session(
        self,
        work: Work,
        volumeNode: slicer.vtkMRMLVolumeNode,
        reader: Callable[[], Any],
        settings: RunSettings,
    ) -> Generator[None, None, Any]:
        """The session whose features are there already, or a new one."""
        key = (
            volumeNode.GetID(),
            contentStamp(volumeNode),
            settings.model,
            settings.device,
            settings.workerCommand,
            tuple(sorted(settings.openOptions().items())),
        )
        work.state = State.RUNNING
        if self._open is not None and self._open.key == key:
            return self._open.session
        self._closeVolume()
        session = yield from self._newSession(work, volumeNode, reader, settings)
        self._open = _OpenVolume(key, volumeNode.GetID(), session)
        return session

    def _newSession(
        self,
        work: Work,
        volumeNode: slicer.vtkMRMLVolumeNode,
        reader: Callable[[], Any],
        settings: RunSettings,
    ) -> Generator[None, None, Any]:
        work.state = State.RUNNING
        client = self._clientFor(settings)
        if not client.running:
            work.report(Progress("starting the worker", 0, 0, 0.0))
        volume = yield from waitFor(work, InThread(reader))
        return client.session(
            volume,
            model=settings.model,
            device=settings.device.value,
            revision=lambda: contentStamp(volumeNode),
            **settings.openOptions(),
        )

    def _writeSteps(
        self,
        work: Work,
        segmentationNode: slicer.vtkMRMLSegmentationNode | None,
        volumeNode: slicer.vtkMRMLVolumeNode,
        settings: RunSettings,
        segmentIds: Sequence[str] = (),
        what: str = "text",
    ) -> Steps:
        work.state = State.WRITING
        if not segmentIds and all(result.empty for result in work.results):
            return
        results = work.results
        ready = yield from waitFor(work, InThread(lambda: [segments.makeReady(r) for r in results]))
        self._prepareEditor(settings)
        node = segmentationNode or self.writer.createNode(volumeNode)
        written = self.writer.writeSteps(node, volumeNode, results, segmentIds, ready)
        try:
            for segment in written:
                work.written.append(segment)
                yield
        except MedSAM3Error:
            if segmentationNode is None:
                hierarchy.removeNode(self.scene, node)
            raise
        work.segmentationNode = node
        self._remember(work, node, segmentIds, what)
        if settings.show3D:
            yield from surfaces.surfaceSteps(node)

    def _remember(
        self, work: Work, node: slicer.vtkMRMLSegmentationNode, segmentIds: Sequence[str], what: str
    ) -> None:
        results = work.results if segmentIds else [result for result in work.results if not result.empty]
        for segment, result in zip(work.written, results, strict=True):
            self.refinement.remember(node, segment.segmentId, result, what)

    def _handEdits(
        self, work: Work, previous: Segmentation, written: Segmentation | None
    ) -> Generator[None, None, dict[str, Any]]:
        """Slices that were corrected by hand since the last run are anchors, as far as that run is remembered."""
        if written is None:
            return {}
        edited = yield from waitFor(work, InThread(lambda: segments.editedSlices(written, previous)))
        return {"edited_slices": edited} if edited else {}

    # Inside ---------------------------------------------------------------------------------------------------------

    def _checkReady(self, settings: RunSettings) -> None:
        if self.isBusy:
            raise InputError("A run is going on; wait for it or cancel it first.")
        problems = settings.validate()
        if problems:
            raise InputError(next(iter(problems.values())))
        self._clientFor(settings)

    def _boxes(
        self, roiNodes: Sequence[slicer.vtkMRMLMarkupsROINode], volumeNode: slicer.vtkMRMLVolumeNode
    ) -> list[Box]:
        return [boxAdapter.boxFromROI(node, volumeNode) for node in roiNodes if boxAdapter.isEnabled(node)]

    def _clientFor(self, settings: RunSettings) -> Any:
        setup = workerSetup(settings.workerCommand, self._startupEnvironment)
        if self._client is None or self._setup is None or setup.command != self._setup.command:
            self._closeClient(wait=False)
            self._setup = setup
            self._client = self._clientFactory(setup, self.workerSaid.emit, lambda text: self.answer(text))
        return self._client

    def _closeClient(self, wait: bool = True) -> None:
        """End the worker; without waiting for it, which takes seconds with a large model, while the window lives on."""
        self._closeVolume()
        client, self._client = self._client, None
        if client is not None and wait:
            client.close()
        elif client is not None:
            threading.Thread(target=client.close, name="medsam3-close", daemon=True).start()

    def _closeVolume(self) -> None:
        if self._open is not None:
            self._open.session.close()
        self._open = None

    def _prepareEditor(self, settings: RunSettings) -> None:
        """Overwriting and masking as asked for; the segment editor's own only if the user said so."""
        own = self._editorLogic.GetSegmentEditorNode()
        theirs = self.scene.GetSingletonNode(SEGMENT_EDITOR_TAG, "vtkMRMLSegmentEditorNode")
        if settings.overlap is Overlap.EDITOR and theirs is not None:
            _copyMasking(theirs, own)
            return
        _copyMasking(slicer.vtkMRMLSegmentEditorNode(), own)
        allow = settings.overlap is not Overlap.REPLACE
        own.SetOverwriteMode(own.OverwriteNone if allow else own.OverwriteAllSegments)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeRemoved(self, caller: Any, event: str, node: slicer.vtkMRMLNode) -> None:
        if node is None or node.GetID() is None:
            return
        nodeId = node.GetID()
        if self.isBusy and self.run is not None and nodeId in self._busyWith:
            self.run.abandon(f"{node.GetName()} was deleted; the run was stopped and nothing was changed.")
            self._ticker.stop()
        if self._open is not None and self._open.volumeId == nodeId:
            self._closeVolume()
        self.refinement.forgetNode(nodeId)

    def _onSceneClose(self, caller: Any, event: str) -> None:
        if self.run is not None:
            self.run.abandon("The scene was closed; the run was stopped.")
        self._ticker.stop()
        self._closeVolume()
        self.refinement.forgetAll()


def _ask(
    work: Work,
    session: Any,
    concepts: Sequence[Concept],
    boxes: Sequence[Box],
    settings: RunSettings,
    report: ProgressCallback,
) -> Generator[None, None, list[Segmentation]]:
    """All concepts on one set of features; with boxes one after the other, each with the same boxes."""
    options = settings.runOptions()
    if not boxes:
        pending = session.submit_segment_many(list(concepts), progress=report, **options)
        return (yield from waitFor(work, pending))
    results = []
    for n, concept in enumerate(concepts):
        part = _share(report, n, len(concepts))
        pending = session.submit_segment(concept, boxes, progress=part, **options)
        results.append((yield from waitFor(work, pending)))
    return results


def _share(progress: ProgressCallback | None, part: int, parts: int) -> ProgressCallback:
    """Progress of one part of a whole as the whole's."""

    def report(value: Progress) -> None:
        if progress is not None:
            fraction = (part + value.fraction) / parts
            left = None if value.seconds_left is None else value.seconds_left if parts == 1 else None
            progress(Progress(value.stage, value.step, value.total, fraction, left))

    return report


def _editorLogic(scene: slicer.vtkMRMLScene) -> slicer.vtkSlicerSegmentEditorLogic:
    """A segment editor logic on a parameter node of this module's own, so that the user's editor stays as it is."""
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(scene)
    node = slicer.vtkMRMLSegmentEditorNode()
    node.SetSingletonTag(EDITOR_TAG)
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
    logic.SetSegmentEditorNode(scene.AddNode(node))
    return logic


def _copyMasking(source: slicer.vtkMRMLSegmentEditorNode, target: slicer.vtkMRMLSegmentEditorNode) -> None:
    target.SetOverwriteMode(source.GetOverwriteMode())
    target.SetMaskMode(source.GetMaskMode())
    target.SetMaskSegmentID(source.GetMaskSegmentID())
    target.SetSourceVolumeIntensityMask(source.GetSourceVolumeIntensityMask())
    target.SetSourceVolumeIntensityMaskRange(*source.GetSourceVolumeIntensityMaskRange())
