"""The agent's part of the panel: one line for the request, what leaves, and the rounds as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedSAM3Core.agent.disclosure import ImageKind, disclose
from MedSAM3Core.agent.facts import Round
from MedSAM3Core.errors import Cancelled, MedSAM3Error
from MedSAM3SlicerLib.adapter.volumes import volumeProblem
from MedSAM3SlicerLib.agentlogic import PICTURES, AgentLogic, AgentSettings
from MedSAM3SlicerLib.runs import Run, State

UI_FILE = Path(__file__).resolve().parent.parent / "Resources" / "UI" / "Agent.ui"
ENDPOINT_SETTING, MODEL_SETTING = "MedSAM3/AgentEndpoint", "MedSAM3/AgentModel"
THUMBNAIL = 84
"""Pixels of a picture in the list of rounds."""
PICTURE, TRIED, SAID = range(3)


class AgentPage:
    """Shows an `AgentLogic` under the rest of the panel.

    Args:
        parent: The panel's widget, whose layout gets the page.
        logic: Does the work.
        settings: A ``QSettings`` that remembers endpoint and model, never consent or keys.
        choices: The panel's image, segmentation and run settings as they are now.
        copy: Puts text on the clipboard.
    """

    def __init__(
        self,
        parent: Any,
        logic: AgentLogic,
        settings: Any,
        choices: Callable[[], tuple[Any, Any, Any]],
        copy: Callable[[str], None],
    ) -> None:
        self.logic = logic
        self._settings, self._choices, self._copy = settings, choices, copy
        self.widget = slicer.util.loadUI(str(UI_FILE))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        parent.layout().addWidget(self.widget)
        self._shown: list[int] = []
        self._agreedTo: tuple[Any, ...] | None = None
        self._prepareTable()
        ui = self.ui
        ui.agentEndpointEdit.text = str(settings.value(ENDPOINT_SETTING, "") or "")
        ui.agentModelEdit.text = str(settings.value(MODEL_SETTING, "") or "")
        for button, slot in (
            (ui.agentRunButton, self.start),
            (ui.agentCancelButton, self.logic.cancel),
            (ui.agentAcceptButton, lambda: self._withSelected(self.logic.accept)),
            (ui.agentUndoButton, lambda: self._withSelected(self.logic.discard)),
            (ui.agentCopyButton, lambda: self._copy(self.logic.document())),
        ):
            button.connect("clicked(bool)", lambda *_, slot=slot: slot())
        for field in (ui.agentRequestEdit, ui.agentEndpointEdit, ui.agentModelEdit):
            field.connect("textChanged(QString)", lambda *_: self.showDisclosure())
        ui.agentRequestEdit.connect("returnPressed()", lambda: self.start())
        ui.agentPicturesBox.connect("toggled(bool)", lambda *_: self.showDisclosure())
        ui.agentConsentBox.connect("toggled(bool)", self._onConsent)
        logic.changed.connect(self.refresh)
        self.showDisclosure()
        self.refresh()

    def start(self) -> Run | None:
        """Ask with what the page shows; says under the buttons what is wrong."""
        volumeNode, segmentationNode, runSettings = self._choices()
        problem = volumeProblem(volumeNode)
        if problem:
            self._say(problem)
            return None
        self.showDisclosure()  # the image may have changed since the user agreed
        try:
            run = self.logic.start(volumeNode, self.settings(), runSettings, segmentationNode)
        except MedSAM3Error as fault:
            self._say(str(fault))
            return None
        self._settings.setValue(ENDPOINT_SETTING, self.ui.agentEndpointEdit.text.strip())
        self._settings.setValue(MODEL_SETTING, self.ui.agentModelEdit.text.strip())
        self._say(_("Planning..."))
        run.progressed.connect(lambda progress: self._say(_("Now: {stage}").format(stage=progress.stage)))
        run.ended.connect(self._onEnded)
        self.refresh()
        return run

    def settings(self) -> AgentSettings:
        """What the page holds."""
        ui = self.ui
        return AgentSettings(
            request=ui.agentRequestEdit.text,
            endpoint=ui.agentEndpointEdit.text.strip(),
            model=ui.agentModelEdit.text.strip(),
            rounds=ui.agentRoundsBox.value,
            pictures=bool(ui.agentPicturesBox.checked),
            consent=bool(ui.agentConsentBox.checked),
        )

    def showDisclosure(self) -> None:
        """Say what would leave; consent given to something else is taken back."""
        volumeNode = self._choices()[0]
        settings = self.settings()
        about = (
            settings.endpoint,
            settings.model,
            settings.pictures,
            volumeNode.GetID() if volumeNode is not None else None,
        )
        if self._agreedTo is not None and about != self._agreedTo:
            self.ui.agentConsentBox.checked = False
        try:
            place = settings.place()
        except MedSAM3Error:
            self.ui.agentDisclosureLabel.text = _(
                "Nothing leaves this computer unless you give an endpoint and agree."
            )
            return
        kind = imageKind(volumeNode)
        told = disclose(place, settings.request.strip() or "...", kind, settings.rounds, PICTURES)
        self.ui.agentDisclosureLabel.text = "\n".join(told.lines())

    def refresh(self) -> None:
        """Show the rounds and what can be done with them."""
        rounds = self.logic.rounds
        table = self.ui.agentTable
        table.setRowCount(len(rounds))
        for row, one in enumerate(rounds):
            self._fillRow(row, one)
        self._shown = [one.number for one in rounds]
        if rounds and (self.logic.isBusy or table.currentRow() < 0):
            table.setCurrentCell(len(rounds) - 1, TRIED)
        busy = self.logic.isBusy
        self.ui.agentRunButton.enabled = not busy and not self.logic.logic.isBusy
        self.ui.agentCancelButton.enabled = busy
        for button in (self.ui.agentAcceptButton, self.ui.agentUndoButton, self.ui.agentCopyButton):
            button.enabled = bool(rounds)

    def _prepareTable(self) -> None:
        table = self.ui.agentTable
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels([_("Round"), _("Tried"), _("Verdict")])
        table.verticalHeader().hide()
        table.setIconSize(qt.QSize(THUMBNAIL, THUMBNAIL))
        table.setColumnWidth(PICTURE, THUMBNAIL + 36)
        table.horizontalHeader().setSectionResizeMode(SAID, qt.QHeaderView.Stretch)
        table.setWordWrap(True)

    def _fillRow(self, row: int, one: Round) -> None:
        taken = _(" (used)") if one.number in self.logic.chosen else ""
        texts = {
            PICTURE: str(one.number),
            TRIED: f"{one.segmentation.concept.phrase}{taken}\n{one.attempt.describe()}",
            SAID: f"{one.judgement.verdict.words}, {one.score:.2f}\n{one.judgement.reason}",
        }
        table = self.ui.agentTable
        for column, text in texts.items():
            item = table.item(row, column)
            if item is None:
                item = qt.QTableWidgetItem()
                table.setItem(row, column, item)
                if column == PICTURE:
                    item.setIcon(_thumbnail(one))
            item.setText(text)
            item.setToolTip(text)
        table.setRowHeight(row, THUMBNAIL + 8)

    def _withSelected(self, slot: Callable[[int], None]) -> None:
        row = self.ui.agentTable.currentRow()
        if 0 <= row < len(self._shown):
            try:
                slot(self._shown[row])
            except MedSAM3Error as fault:
                self._say(str(fault))

    def _onConsent(self, given: bool) -> None:
        settings, volumeNode = self.settings(), self._choices()[0]
        where = (settings.endpoint, settings.model, settings.pictures)
        self._agreedTo = (*where, volumeNode.GetID() if volumeNode is not None else None) if given else None

    def _onEnded(self, run: Run) -> None:
        outcome = self.logic.outcome
        if run.state is State.FINISHED and outcome is not None:
            said = [answer.sentence for answer in outcome.answers] + list(outcome.notices)
            self._say("\n".join(said) or _("Done."))
        elif isinstance(run.error, Cancelled):
            self._say(str(run.error))
        elif run.error is not None:
            self._say(str(run.error) if isinstance(run.error, MedSAM3Error) else _("Failed; see the report."))
        self.refresh()

    def _say(self, sentence: str) -> None:
        self.ui.agentStatusLabel.text = sentence


def imageKind(volumeNode: Any) -> ImageKind:
    """What a volume node tells of its image without reading it."""
    image = volumeNode.GetImageData() if volumeNode is not None else None
    if image is None:
        return ImageKind()
    return ImageKind(is_2d=1 in image.GetDimensions(), is_rgb=image.GetNumberOfScalarComponents() > 1)


def _thumbnail(one: Round) -> Any:
    """The middle picture of a round."""
    pixmap = qt.QPixmap()
    if one.pictures:
        pixmap.loadFromData(qt.QByteArray(one.pictures[len(one.pictures) // 2].png))
    return qt.QIcon(pixmap)
