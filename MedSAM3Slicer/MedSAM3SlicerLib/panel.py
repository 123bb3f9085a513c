"""The panel: connects the widgets of ``MedSAM3Slicer.ui`` with the logic, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MedSAM3Core import concepts
from MedSAM3Core.errors import Cancelled, InputError, MedSAM3Error
from MedSAM3Core.progress import Progress
from MedSAM3SlicerLib import wording
from MedSAM3SlicerLib.adapter import sequences, views
from MedSAM3SlicerLib.adapter.volumes import volumeProblem
from MedSAM3SlicerLib.agentlogic import AgentLogic
from MedSAM3SlicerLib.agentpanel import AgentPage
from MedSAM3SlicerLib.boxtable import BoxTable
from MedSAM3SlicerLib.conceptfield import ConceptField
from MedSAM3SlicerLib.finetunelogic import FineTuneLogic
from MedSAM3SlicerLib.finetunepage import FineTunePage
from MedSAM3SlicerLib.installation import Installer
from MedSAM3SlicerLib.knowncommands import KnownCommands
from MedSAM3SlicerLib.logic import SegmentationLogic
from MedSAM3SlicerLib.parameternode import settingsOf
from MedSAM3SlicerLib.problems import ProblemLabels, fieldOf
from MedSAM3SlicerLib.refinepage import RefinePage
from MedSAM3SlicerLib.runs import Run, State
from MedSAM3SlicerLib.segmenttable import SegmentTable
from MedSAM3SlicerLib.setuppage import SetupPage
from MedSAM3SlicerLib.surfacemaker import SurfaceMaker

SETUP_INTERVAL_MS = 100


@dataclass(frozen=True)
class Desktop:
    """What the panel needs of the application around it; replaced in tests.

    Attributes:
        settings: A ``QSettings``.
        copy: Puts text on the clipboard.
        chooseFolder: Asks for a folder; None if the user chose none.
        chooseFile: Asks for a file.
        ask: Asks yes or no (the worker's questions).
        editByHand: Opens the segment editor on a segmentation and its image.
    """

    settings: Any
    copy: Callable[[str], None]
    chooseFolder: Callable[[], Path | None]
    chooseFile: Callable[[], Path | None]
    ask: Callable[[str], bool]
    editByHand: Callable[[Any, Any], None]


class Panel(VTKObservationMixin):
    """The whole panel.

    Args:
        widget: The loaded ``.ui``.
        ui: Its children by name.
        logic: Does the work.
        installer: Checks and installs.
        desktop: The application around the panel.
    """

    def __init__(
        self, widget: Any, ui: Any, logic: SegmentationLogic, installer: Installer, desktop: Desktop
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.widget = widget
        self.ui = ui
        self.logic = logic
        self.installer = installer
        self.desktop = desktop
        self.commands = KnownCommands(desktop.settings, desktop.ask)
        self._parameters: Any = None  # PanelParameters, whose wrapper types do not show
        self._guiTag: Any = None
        self._run: Run | None = None
        self._refining = False
        self._needed: dict[str, tuple[int, int | None]] = {}  # device: bytes needed and free
        self._shortcuts: list[Any] = []
        self.problems = ProblemLabels(
            {
                "input": ui.inputProblem,
                "concept": ui.conceptProblem,
                "segmentation": ui.segmentationProblem,
                "model": ui.modelProblem,
                "window": ui.windowProblem,
                "workerCommand": ui.workerProblem,
                "box": ui.boxProblem,
                "setup": ui.setupProblem,
            }
        )
        self.conceptField = ConceptField(
            ui, concepts.resolve, concepts.complete, concepts.split_concepts, desktop.settings
        )
        self.segmentTable = SegmentTable(ui, logic.scene)
        self.boxTable = BoxTable(ui, logic.scene)
        self.refinePage = RefinePage(
            ui.refineCollapsibleButton.layout(),
            logic,
            self.boxTable,
            self._refineChoices,
            lambda: self.refine(moreLikeThis=True),
            lambda sentence: self._say(sentence),
        )
        self.surfaces = SurfaceMaker()
        self.setupPage = SetupPage(
            ui,
            installer,
            desktop.chooseFolder,
            desktop.chooseFile,
            lambda sentence: self.problems.show("setup", sentence),
        )
        self.fineTunePage = FineTunePage(
            ui.pagesWidget,
            FineTuneLogic(logic.scene, installer.startupEnvironment),
            desktop.settings,
            desktop.chooseFolder,
            lambda: (
                self._parameters.model,
                self._parameters.workerCommand if self._mayStartWorker() else "",
            ),
            installer.refreshModels,
        )
        self.agentPage = AgentPage(
            ui.pagesWidget, AgentLogic(logic), desktop.settings, self._agentChoices, desktop.copy
        )
        self._setupTimer = qt.QTimer()
        self._setupTimer.setInterval(SETUP_INTERVAL_MS)
        self._setupTimer.connect("timeout()", self._tickSetup)
        self._connect()

    # Life -----------------------------------------------------------------------------------------------------------

    def setParameters(self, parameters: Any) -> None:
        """Show and keep other `PanelParameters`; None while a scene is being closed."""
        if self._parameters is not None:
            self._parameters.disconnectGui(self._guiTag)
        self._parameters = parameters
        if parameters is None:
            self.segmentTable.setNode(None)
            self.boxTable.setVolume(None)
            return
        self._guiTag = parameters.connectGui(self.ui)
        self.conceptField.setPhrases([line for line in parameters.concepts.split("\n") if line])
        self._fillModels()
        self._onInputChanged()
        self._onSegmentationChanged()

    def checkSetup(self) -> None:
        """Look in the background at what is there."""
        command = self._parameters.workerCommand if self._parameters else ""
        self.installer.workerText = command if self.commands.knows(command) else ""
        self.setupPage.check()

    def close(self) -> None:
        """End the run, the worker and every observation."""
        self.setParameters(None)
        self._setupTimer.stop()
        self.installer.cancel()
        self.segmentTable.close()
        self.boxTable.close()
        self.refinePage.close()
        self.fineTunePage.close()
        self.surfaces.close()
        self.logic.close()
        self.removeObservers()

    # Buttons --------------------------------------------------------------------------------------------------------

    def segment(self) -> Run | None:
        """Start a run with what the panel shows; None if something is wrong, which is then said beside its field."""
        if not self._isReady():
            return None
        parameters = self._parameters
        self._refining = False

        def start() -> Run:
            return self.logic.start(
                parameters.inputVolume,
                self.conceptField.concepts,
                parameters.segmentation,
                settingsOf(parameters),
            )

        run = self._try(start)
        if run is not None:
            self.conceptField.remember()
            views.showVolume(self.logic.scene, parameters.inputVolume)
        return run

    def refine(self, moreLikeThis: bool = False) -> Run | None:
        """Run the selected segment again with the boxes and points that are switched on."""
        parameters = self._parameters
        if parameters is None or self.logic.isBusy:
            return None
        self.problems.clear()
        self._refining = True
        segmentId = self.segmentTable.selectedId
        if parameters.segmentation is None or not segmentId:
            self.problems.show("box", _("Select the segment to improve in the table above."))
            return None
        if not self._mayStartWorker():
            return None

        def start() -> Run:
            return self.logic.startRefine(
                parameters.segmentation,
                segmentId,
                self.boxTable.enabledNodes,
                parameters.inputVolume,
                settingsOf(parameters),
                self.boxTable.enabledPointNodes,
                moreLikeThis,
            )

        return self._try(start)

    def cancel(self) -> None:
        """Stop the run."""
        if self.logic.isBusy:
            self.logic.cancel()
            self.ui.cancelButton.enabled = False
            self.ui.stageLabel.text = _("Stopping...")

    def undo(self) -> None:
        """Take the segmentation's last change back."""
        if self.logic.isBusy:
            return
        volumeNode, node, _segmentId = self._refineChoices()
        self.logic.refinement.undo(node, volumeNode)
        self.refinePage.refresh()
        self._updateButtons()

    def redo(self) -> None:
        """Bring it again."""
        if self.logic.isBusy:
            return
        volumeNode, node, _segmentId = self._refineChoices()
        self.logic.refinement.redo(node, volumeNode)
        self.refinePage.refresh()
        self._updateButtons()

    def editByHand(self) -> None:
        """Open the segment editor on what the panel shows."""
        if self._parameters is not None and self._parameters.segmentation is not None:
            self.desktop.editByHand(self._parameters.segmentation, self._parameters.inputVolume)

    def releaseMemory(self) -> None:
        """Give the worker's memory back, and say so."""
        if self.logic.releaseMemory():
            self._say(_("The memory was given back; the next run loads the model again."))
        else:
            self._say(_("Nothing is held: no worker is running."))

    def copyReport(self) -> None:
        """Put the details of the last run on the clipboard."""
        self.desktop.copy(self.report())

    def report(self) -> str:
        """The details of the last run, for an e-mail or a bug report."""
        facts: dict[str, object] = {"worker": self.logic.workerPlace or "not started"}
        if self._parameters is not None:
            facts["settings"] = settingsOf(self._parameters)
            facts["concepts"] = self.conceptField.phrases
        return wording.report(self._run, facts, self.logic.workerLog, self.installer.report())

    # Inside ---------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        ui = self.ui
        for button, slot in (
            (ui.segmentButton, self.segment),
            (ui.cancelButton, self.cancel),
            (ui.refineButton, self.refine),
            (ui.undoButton, self.undo),
            (ui.redoButton, self.redo),
            (ui.editButton, self.editByHand),
            (ui.reportButton, self.copyReport),
            (ui.releaseButton, self.releaseMemory),
        ):
            button.connect("clicked(bool)", lambda *_, slot=slot: slot())
        for keys, slot in (
            ("Ctrl+Return", self.segment),
            ("Ctrl+Shift+Return", self.refine),
            ("Esc", self.cancel),
            ("Ctrl+B", lambda: self.boxTable.add(True)),
            ("Ctrl+Shift+B", lambda: self.boxTable.add(False)),
            ("Ctrl+P", lambda: self.boxTable.addPoints(True)),
            ("Ctrl+Shift+P", lambda: self.boxTable.addPoints(False)),
            ("Ctrl+L", self.refinePage.toggleLock),
            ("Ctrl+Z", self.undo),
            ("Ctrl+Y", self.redo),
        ):
            self._addShortcut(keys, slot, self.widget)
        self._addShortcut("Del", self.boxTable.deleteSelected, ui.boxTable)
        self._addShortcut("Alt+Down", self.conceptField.showHistory, ui.conceptLineEdit)
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda *_: self._onInputChanged())
        ui.segmentationSelector.connect(
            "currentNodeChanged(vtkMRMLNode*)", lambda *_: self._onSegmentationChanged()
        )
        ui.modelComboBox.connect("currentIndexChanged(int)", lambda *_: self._onModelChanged())
        ui.show3DCheckBox.connect("toggled(bool)", self._onShow3D)
        ui.workerLineEdit.connect("editingFinished()", self._onWorkerChanged)
        self.conceptField.changed.connect(self._onConceptsChanged)
        self.conceptField.refused.connect(lambda sentence: self.problems.show("concept", sentence))
        self.segmentTable.changed.connect(self.refinePage.refresh)
        self.segmentTable.changed.connect(self._updateButtons)
        self.boxTable.changed.connect(self._updateButtons)
        self.logic.runStarted.connect(self._onRunStarted)
        self.logic.workerSaid.connect(self._onWorkerSaid)
        self.logic.answer = self.desktop.ask
        self.installer.changed.connect(self._fillModels)
        self.installer.queued.connect(self._setupTimer.start)

    def _addShortcut(self, keys: str, slot: Callable[[], Any], widget: Any) -> None:
        """A key that works while the focus is in the widget; its field's tool tip names it."""
        shortcut = qt.QShortcut(qt.QKeySequence(keys), widget)
        shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
        shortcut.connect("activated()", lambda: slot())
        self._shortcuts.append(shortcut)

    def _agentChoices(self) -> tuple[Any, Any, Any]:
        """Image, segmentation and run settings for the agent."""
        shown = self._parameters
        if shown is None:
            return None, None, None
        settings = settingsOf(shown)
        if not self.commands.knows(settings.workerCommand):
            settings = replace(settings, workerCommand="")
        return self.ui.inputSelector.currentNode(), shown.segmentation, settings

    def _isReady(self) -> bool:
        """Whether a run may start; says beside each field what is wrong with it."""
        if self._parameters is None or self.logic.isBusy:
            return False
        self.problems.clear()
        problem = volumeProblem(self._parameters.inputVolume)
        self.problems.show("input", problem)
        complete = self.conceptField.takeLine()
        if complete and not self.conceptField.concepts:
            self.problems.show("concept", _("Type what to find, for example liver."))
        try:
            wrong = settingsOf(self._parameters).validate()
        except InputError as fault:
            wrong = {"model": str(fault)}
        for field, sentence in wrong.items():
            self._showProblem(field, sentence)
        if problem or wrong or not complete or not self.conceptField.concepts:
            return False
        return self._mayStartWorker()

    def _mayStartWorker(self) -> bool:
        """Whether the worker that the scene names may be started; takes it out of the field if not."""
        if self.commands.allows(self._parameters.workerCommand):
            return True
        self._parameters.workerCommand = ""
        self._showProblem(
            "workerCommand", _("The worker was not started; Slicer's own Python is used next time.")
        )
        return False

    def _try(self, start: Callable[[], Run]) -> Run | None:
        try:
            return start()
        except MedSAM3Error as fault:
            field = fieldOf(fault, self._refining)
            if type(fault).__name__ == "WorkerError":
                field = "workerCommand"
                self.ui.advancedCollapsibleButton.collapsed = False
            self._showProblem(field, str(fault))
            return None

    def _showProblem(self, field: str, sentence: str) -> None:
        if field in ("window", "workerCommand", "threshold", "memoryGb"):
            self.ui.advancedCollapsibleButton.collapsed = False
        if not self.problems.show(field, sentence):
            self._say(sentence, bad=True)

    def _say(self, sentence: str, bad: bool = False) -> None:
        self.ui.statusLabel.text = sentence
        self.ui.statusLabel.styleSheet = "color: #b3261e;" if bad else ""

    def _onRunStarted(self, run: Run) -> None:
        self._run = run
        run.progressed.connect(self._onProgress)
        run.ended.connect(self._onRunEnded)
        self.ui.progressBar.setRange(0, 0)
        self.ui.stageLabel.text = _("Starting...")
        self._needed = {}
        self._say(self._looking(run))
        self._updateButtons()

    def _looking(self, run: Run) -> str:
        sentence = _("Looking for {what}. You can go on working meanwhile.").format(what=run.title)
        return " ".join(part for part in (sentence, wording.need(self._needed)) if part)

    def _onProgress(self, progress: Progress) -> None:
        if progress.fraction > 0:
            self.ui.progressBar.setRange(0, 1000)
            self.ui.progressBar.setValue(round(1000 * progress.fraction))
        self.ui.stageLabel.text = wording.stage(progress)

    def _onRunEnded(self, run: Run) -> None:
        self.ui.progressBar.setRange(0, 1000)
        self.ui.progressBar.setValue(1000 if run.state is State.FINISHED else 0)
        self.ui.stageLabel.text = ""
        if run.error is None:
            self._showResult(run)
        elif isinstance(run.error, Cancelled):
            self._say(str(run.error))
        else:
            field = fieldOf(run.error, self._refining)
            self.problems.show(field, wording.failure(run.error))
            self._say(wording.failure(run.error), bad=True)
        self._updateButtons()

    def _showResult(self, run: Run) -> None:
        self._say(wording.outcome(run.outcome))
        if run.segmentationNode is None or self._parameters is None:
            return
        self._parameters.segmentation = run.segmentationNode
        self.segmentTable.setNode(run.segmentationNode)
        self.segmentTable.refresh()
        if run.outcome.written:
            first = run.outcome.written[0].segmentId
            self.segmentTable.select(first)
            if not self._refining:  # who corrects a slice goes on looking at it
                views.jumpToSegment(self.logic.scene, run.segmentationNode, first)

    def _onWorkerSaid(self, event: Any) -> None:
        """Sentences for the user (what a run will need, that memory ran short) go to the status line."""
        needed, free = getattr(event, "need", 0), getattr(event, "free", None)
        sentence = getattr(event, "sentence", "") or wording.memory(needed, free)
        if sentence:
            self._say(sentence)
        elif needed and self._run is not None and self.logic.isBusy:
            self._needed[event.device] = (needed, free)
            self._say(self._looking(self._run))

    def _onInputChanged(self) -> None:
        node = self.ui.inputSelector.currentNode()
        self.problems.show("input", volumeProblem(node) if node is not None else "")
        inSequence = node is not None and sequences.browserOf(self.logic.scene, node) is not None
        self.ui.allFramesCheckBox.setVisible(inSequence)
        if not inSequence:
            self.ui.allFramesCheckBox.checked = False
        self.boxTable.setVolume(node)
        self.agentPage.showDisclosure()
        self._updateButtons()

    def _onSegmentationChanged(self) -> None:
        node = self.ui.segmentationSelector.currentNode()
        self.problems.show("segmentation", "")
        self.segmentTable.setNode(node)
        self._updateButtons()

    def _onConceptsChanged(self) -> None:
        self.problems.show("concept", "")
        if self._parameters is not None:
            self._parameters.concepts = "\n".join(self.conceptField.phrases)
        self._updateButtons()

    def _onShow3D(self, shown: bool) -> None:
        node = self.ui.segmentationSelector.currentNode()
        if shown:
            self.surfaces.show(node)
        else:
            self.surfaces.hide(node)

    def _onWorkerChanged(self) -> None:
        self.problems.show("workerCommand", "")
        if self._parameters is not None:
            self._mayStartWorker()
        self.checkSetup()

    def _fillModels(self) -> None:
        combo = self.ui.modelComboBox
        wanted = self._parameters.model if self._parameters is not None else "demo"
        names = [combo.itemData(n) for n in range(combo.count)]
        models = self.installer.models
        if names != [model.name for model in models]:
            combo.blockSignals(True)
            combo.clear()
            for model in models:
                combo.addItem(
                    model.name if model.installed else _("{name} (not downloaded)").format(name=model.name),
                    model.name,
                )
            combo.blockSignals(False)
        index = next((n for n, model in enumerate(models) if model.name == wanted), 0)
        combo.setCurrentIndex(index)
        self._onModelChanged()

    def _onModelChanged(self) -> None:
        models = self.installer.models
        index = self.ui.modelComboBox.currentIndex
        if not 0 <= index < len(models):
            return
        model = models[index]
        warning = _("Not for clinical use.")
        self.ui.modelInfoLabel.text = f"{model.title.rstrip('.')}. {warning}" if model.title else warning
        missing = _("{name} is not downloaded yet; see Set-up below.").format(name=model.name)
        self.problems.show("model", "" if model.installed else missing)
        if self._parameters is not None and self._parameters.model != model.name:
            self._parameters.model = model.name

    def _tickSetup(self) -> None:
        self.installer.tick()
        if not self.installer.isBusy:
            self._setupTimer.stop()
            self.setupPage.refresh()

    def _refineChoices(self) -> tuple[Any, Any, str]:
        """Image, segmentation and selected segment."""
        if self._parameters is None:
            return None, None, ""
        return self._parameters.inputVolume, self._parameters.segmentation, self.segmentTable.selectedId

    def _hasSomethingToImproveWith(self) -> bool:
        """Boxes or points that are switched on, or a segment that may have been corrected by hand."""
        if self.boxTable.enabledNodes or self.boxTable.enabledPointNodes:
            return True
        _volumeNode, node, segmentId = self._refineChoices()
        return node is not None and self.logic.writer.isTouched(node, segmentId)

    def _updateButtons(self) -> None:
        ui, busy = self.ui, self.logic.isBusy
        ui.segmentButton.enabled = ui.releaseButton.enabled = not busy
        ui.cancelButton.enabled = busy
        ui.refineButton.enabled = (
            not busy and bool(self.segmentTable.selectedId) and self._hasSomethingToImproveWith()
        )
        hasVolume = ui.inputSelector.currentNode() is not None
        ui.addBoxButton.enabled = ui.addNegativeBoxButton.enabled = hasVolume
        ui.undoButton.enabled = not busy and self.logic.writer.history.canUndo
        ui.redoButton.enabled = not busy and self.logic.writer.history.canRedo
        ui.editButton.enabled = ui.segmentationSelector.currentNode() is not None
