"""Fine-tuning from the panel: accepted segments become a training set, a run in the worker's Python makes a model of
it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import Cancelled, InputError, MedSAM3Error
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.training.corrections import safe_name, write_case, write_recipe
from MedSAM3Core.training.curves import Point, read_curves
from MedSAM3SlicerLib.adapter.provenance import getTag
from MedSAM3SlicerLib.adapter.segments import readSegmentation
from MedSAM3SlicerLib.adapter.volumes import readVolume
from MedSAM3SlicerLib.processes import BackgroundCommand
from MedSAM3SlicerLib.signals import Signal
from MedSAM3SlicerLib.workers import workerSetup

STATUS_TAG = "Segmentation.Status"
ACCEPTED = "completed"
"""The segment editor's own status of a segment that is finished; a click on the flag in the segments table sets it."""

FEWEST_STEPS = 10


@dataclass(frozen=True)
class FineTuneSettings:
    """What the page holds.

    Attributes:
        name: Of the model that comes out.
        base: The model that was corrected.
        method: "frozen", "lora", "full" or "tracker".
        steps: Optimiser steps.
        everySegment: Export all segments, not only those marked completed.
        folder: Where cases, checkpoints and the model go.
        workerText: The panel's worker field, whose Python trains.
    """

    name: str
    base: str
    method: str
    steps: int
    everySegment: bool
    folder: str
    workerText: str = ""

    def validate(self) -> str:
        """A sentence about what is wrong, or an empty string."""
        if not self.name or safe_name(self.name).lower() != self.name:
            return _("Give the model a name of small letters, digits and dashes, for example my-liver.")
        if not self.folder:
            return _("Choose a folder for the training data and the model.")
        if self.steps < FEWEST_STEPS:
            return _("Train at least {count} steps.").format(count=FEWEST_STEPS)
        return ""


@dataclass
class FineTuneLogic:
    """Exports, starts, watches and stops.

    Attributes:
        scene: Where the corrections are.
        startupEnvironment: Environment for another Python than Slicer's.
        run: Starts a command in the background; replaced in tests.
        changed: Something about the run changed.
    """

    scene: slicer.vtkMRMLScene
    startupEnvironment: Mapping[str, str] | None = None
    run: Callable[..., Any] = BackgroundCommand
    changed: Signal = field(default_factory=Signal)
    sentence: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    _command: Any = None
    _folder: Path | None = None

    @property
    def isBusy(self) -> bool:
        """Whether a run is going on."""
        return self._command is not None

    @property
    def points(self) -> list[Point]:
        """The curves so far."""
        return read_curves(self._folder) if self._folder is not None else []

    def start(self, settings: FineTuneSettings) -> None:
        """Export the accepted segments and start the run.

        Raises:
            InputError: If nothing is accepted, or a setting cannot be used.
            OutputError: If the folder cannot be written.
            WorkerError: If the worker's program does not exist.
        """
        if self.isBusy:
            return
        if problem := settings.validate():
            raise InputError(problem)
        python = _python(settings.workerText, self.startupEnvironment)
        folder = Path(settings.folder) / settings.name
        patients = self.export(folder / "cases", settings.everySegment)
        recipe = write_recipe(
            folder / "run",
            folder / "cases",
            settings.name,
            settings.base,
            settings.method,  # type: ignore[arg-type]
            settings.steps,
            patients > 1,
        )
        self._folder, self.result = folder / "run", {}
        words = ("-m", "MedSAM3Core.cli", "finetune", str(recipe), "--json")
        self._command = self.run((python[0], *words), python[1])
        sentence = _("Training on {count} patients...") if patients > 1 else _("Training on one patient...")
        self._say(sentence.format(count=patients))

    def export(self, folder: Path, everySegment: bool) -> int:
        """Write every segmentation with accepted segments; an earlier export into the folder is replaced.

        Returns:
            The number of patients.

        Raises:
            InputError: If no segment is accepted.
        """
        cases = [
            (node, accepted, volume)
            for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode", self.scene)
            if (accepted := acceptedSegments(node, everySegment))
            and (volume := node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())) is not None
        ]
        if not cases:
            raise InputError(
                _(
                    "No segment is marked as completed; click the flag of those that are right, or take all segments."
                )
            )
        shutil.rmtree(folder, ignore_errors=True)
        patients = set()
        for node, accepted, volumeNode in cases:
            patient = patientOf(self.scene, volumeNode)
            segments = [_segment(node, segmentId, volumeNode) for segmentId in accepted]
            write_case(folder, patient, readVolume(self.scene, volumeNode), segments)
            patients.add(safe_name(patient))
        return len(patients)

    def tick(self) -> None:
        """Look whether the run is over."""
        command = self._command
        if command is None:
            return
        if command.done:
            self._command = None
            self._finish(command)
        self.changed.emit()

    def cancel(self) -> None:
        """Stop the run; started again with the same settings and segments it goes on."""
        if self._command is not None:
            self._command.cancel()

    def _finish(self, command: Any) -> None:
        try:
            self.result = json.loads(command.result())
        except Cancelled:
            self._say(_("Stopped."))
        except MedSAM3Error as fault:
            self._say(str(fault))
        except ValueError:
            self._say(
                _("The run ended without a result; see its folder {folder}.").format(folder=self._folder)
            )
        else:
            dice = self.result.get("validation_dice")
            figure = (
                _("validation Dice {dice:.3f}").format(dice=dice) if dice is not None else _("not validated")
            )
            self._say(
                _("The model {name} is ready ({figure}) and can be chosen above.").format(
                    name=self.result["name"], figure=figure
                )
            )

    def _say(self, sentence: str) -> None:
        self.sentence = sentence
        self.changed.emit()


def acceptedSegments(node: slicer.vtkMRMLSegmentationNode, everySegment: bool) -> list[str]:
    """Ids of the segments that are marked completed, or of all that hold a voxel."""
    segmentation = node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    return [one for one in ids if everySegment or statusOf(segmentation.GetSegment(one)) == ACCEPTED]


def statusOf(segment: slicer.vtkSegment) -> str:
    """The segment editor's status: "notstarted", "inprogress", "completed" or "flagged"; empty where it has none."""
    return getTag(segment, STATUS_TAG)


def patientOf(scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode) -> str:
    """The patient under whom the volume lies in the subject hierarchy; the volume's own name where there is none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(volumeNode) if hierarchy is not None else 0
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    patient = hierarchy.GetItemAncestorAtLevel(item, level) if item else 0
    return hierarchy.GetItemName(patient) if patient else volumeNode.GetName()


def _segment(
    node: slicer.vtkMRMLSegmentationNode, segmentId: str, volumeNode: slicer.vtkMRMLVolumeNode
) -> Segmentation:
    name = node.GetSegmentation().GetSegment(segmentId).GetName()
    return readSegmentation(node, segmentId, volumeNode, resolve(name))


def _python(text: str, environment: Mapping[str, str] | None) -> tuple[str, Mapping[str, str] | None]:
    """Interpreter and environment of the worker.

    Raises:
        InputError: If the worker runs on another machine, where the corrections are not.
        WorkerError: If its program does not exist.
    """
    setup = workerSetup(text, environment)
    if setup.command[1:2] != ("-m",):
        raise InputError(
            _(
                "Fine-tuning needs a Python on this computer, but the worker is started by {command!r}."
            ).format(command=setup.command[0])
        )
    return setup.command[0], setup.env
