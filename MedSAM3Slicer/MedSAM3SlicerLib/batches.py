"""Batches in Slicer: volume nodes as cases of `MedSAM3Core.batch`, with its journal, table and contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer

from MedSAM3Core.batch.cases import BatchSettings, Case, Outcome
from MedSAM3Core.batch.pipeline import process
from MedSAM3Core.batch.run import Tally, run_batch
from MedSAM3Core.batch.work import CaseWorker
from MedSAM3Core.errors import OutputError, VolumeError
from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume
from MedSAM3SlicerLib.adapter.volumes import volumeReader
from MedSAM3SlicerLib.parameter import RunSettings

if TYPE_CHECKING:
    from MedSAM3SlicerLib.logic import SegmentationLogic


@dataclass(frozen=True)
class BatchResult:
    """What became of one volume of a batch.

    Attributes:
        name: The volume's name.
        path: The file that was written, None if none was.
        found: Names of what was found.
        problem: One sentence if it failed, else empty.
        seconds: Time it took.
    """

    name: str
    path: Path | None
    found: tuple[str, ...] = ()
    problem: str = ""
    seconds: float = 0.0


class NodeWorker(CaseWorker):
    """The steps of a case whose image is a node: read beside the scene, inferred by the logic, written as any other.

    Args:
        logic: Segments.
        nodes: Case key to volume node.
        concepts: What to look for.
        run: Settings of the runs.
        settings: Settings of the batch.
        overall: Receives the runs' progress.
    """

    def __init__(
        self,
        logic: SegmentationLogic,
        nodes: Mapping[str, slicer.vtkMRMLVolumeNode],
        concepts: Sequence[Concept],
        run: RunSettings,
        settings: BatchSettings,
        overall: _Overall,
    ) -> None:
        super().__init__(None, settings)  # the logic takes the segmenter's place
        self._logic, self._nodes, self._concepts, self._run = logic, nodes, concepts, run
        self._overall = overall
        self._readers = {key: _reader(logic.scene, node) for key, node in nodes.items()}

    def _read(self, case: Case) -> Volume:
        return self._readers[case.key]()

    def _infer(self, case: Case, volume: Volume, cancel: CancelToken | None) -> list[Segmentation]:
        self._overall.begun += 1
        node, report = self._nodes[case.key], self._overall.within
        return self._logic.infer(node, volume, self._concepts, self._run, report, cancel)


class NodeEngine:
    """Runs cases on nodes; an `MedSAM3Core.batch.run.Engine`."""

    def __init__(self, worker: NodeWorker) -> None:
        self.worker = worker

    def identity(self) -> dict[str, Any]:
        """Nothing beyond the settings: the worker knows the weights."""
        return {}

    def run(
        self, cases: Sequence[Case], begin: Callable[[Case], None], cancel: CancelToken | None
    ) -> Iterator[Outcome]:
        """Run cases in their order."""
        for event in process(cases, self.worker, cancel):
            if isinstance(event, Case):
                begin(event)
            else:
                yield event


def segmentNodes(
    logic: SegmentationLogic,
    volumeNodes: Sequence[slicer.vtkMRMLVolumeNode],
    concepts: Sequence[Concept],
    outputFolder: Path,
    run: RunSettings,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
    resume: bool = False,
) -> list[BatchResult]:
    """See `SegmentationLogic.segmentAll`."""
    options = run.openOptions()
    settings = BatchSettings(
        outputFolder,
        ".seg.nrrd",
        run.model,
        options["axis"],
        options["window"],
        options["mode"],
        run.threshold,
    )
    _makeFolder(outputFolder)
    nodes = dict(zip(_keys(volumeNodes), volumeNodes, strict=True))
    phrases = tuple(concept.phrase for concept in concepts)
    cases = [Case(key, Path(node.GetName() or "volume"), phrases) for key, node in nodes.items()]
    overall = _Overall(len(cases), progress)
    engine = NodeEngine(NodeWorker(logic, nodes, concepts, run, settings, overall))
    summary = run_batch(cases, settings, engine, resume=resume, report=overall.between, cancel=cancel)
    return [_result(outcome, nodes[outcome.key], settings) for outcome in summary.outcomes]


class _Overall:
    """Progress of one volume as the whole batch's; ``begun`` counts the volumes whose inference has begun."""

    def __init__(self, count: int, progress: ProgressCallback | None) -> None:
        self._count, self._progress = count, progress
        self._tally = Tally(count)
        self.begun = 0

    def between(self, tally: Tally) -> None:
        """A volume begins or is over."""
        self._tally = tally
        self._say("volumes", tally.ended, self._count, 0.0)

    def within(self, value: Progress) -> None:
        """A volume goes on."""
        self._say(value.stage, value.step, value.total, value.fraction)

    def _say(self, stage: str, step: int, total: int, share: float) -> None:
        if self._progress is not None:
            before = max(self._tally.ended, self._tally.before + self.begun - 1)
            fraction = min(1.0, (before + share) / max(1, self._count))
            self._progress(Progress(stage, step, total, fraction, self._tally.seconds_left))


def _reader(scene: slicer.vtkMRMLScene, node: slicer.vtkMRMLVolumeNode) -> Callable[[], Volume]:
    """What reads a node beside the scene; a node that cannot be read says so when its turn has come."""
    try:
        return volumeReader(scene, node)
    except VolumeError as fault:
        sentence = fault

        def refuse() -> Volume:
            raise sentence

        return refuse


def _result(outcome: Outcome, node: slicer.vtkMRMLVolumeNode, settings: BatchSettings) -> BatchResult:
    return BatchResult(
        name=node.GetName(),
        path=settings.output / outcome.output if outcome.output else None,
        found=tuple(row["name"] for row in outcome.rows if row["found"]),
        problem=outcome.problem,
        seconds=sum(outcome.seconds.values()),
    )


def _keys(volumeNodes: Sequence[slicer.vtkMRMLVolumeNode]) -> list[str]:
    """A file name for each volume, each once, upper and lower case counted as one."""
    keys: list[str] = []
    taken: set[str] = set()
    for node in volumeNodes:
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in node.GetName() or "volume")
        names = [stem, *(f"{stem}_{n}" for n in range(2, len(keys) + 3))]
        keys.append(next(name for name in names if name.casefold() not in taken))
        taken.add(keys[-1].casefold())
    return keys


def _makeFolder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(
            f"The folder {folder} cannot be made ({fault.strerror}); choose another."
        ) from fault
