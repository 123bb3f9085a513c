"""The Set-up part of the panel: a sentence per problem, one button that says what it will do, and the models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from MedSAM3Core.errors import InputError
from MedSAM3SlicerLib.installation import Installer, ModelEntry


class SetupPage:
    """Shows an `Installer`.

    Args:
        ui: The panel's widgets.
        installer: Checks and installs.
        chooseFolder: Asks the user for a folder; None if the user chose none.
        chooseFile: Asks the user for a file.
        showProblem: Shows a sentence under the page.
    """

    def __init__(
        self,
        ui: Any,
        installer: Installer,
        chooseFolder: Callable[[], Path | None],
        chooseFile: Callable[[], Path | None],
        showProblem: Callable[[str], Any],
    ) -> None:
        self.ui = ui
        self._installer = installer
        self._chooseFolder, self._chooseFile = chooseFolder, chooseFile
        self._showProblem = showProblem
        self._rows: list[ModelEntry] = []
        ui.setupNoticeButton.connect("clicked(bool)", lambda *_: self.open())
        ui.checkButton.connect("clicked(bool)", lambda *_: self.check())
        ui.installButton.connect("clicked(bool)", lambda *_: self._onInstall())
        ui.offlineButton.connect("clicked(bool)", lambda *_: self._onOffline())
        ui.downloadButton.connect("clicked(bool)", lambda *_: self._onDownload())
        ui.importButton.connect("clicked(bool)", lambda *_: self._onImport())
        ui.removeButton.connect("clicked(bool)", lambda *_: self._onRemove())
        ui.licenceCheckBox.connect("toggled(bool)", lambda *_: self._updateButtons())
        ui.modelsTable.connect("itemSelectionChanged()", self._onModelSelected)
        ui.modelsTable.setColumnCount(3)
        ui.modelsTable.setHorizontalHeaderLabels([_("Model"), _("State"), _("Licence")])
        ui.modelsTable.verticalHeader().hide()
        ui.modelsTable.setWordWrap(False)
        ui.modelsTable.horizontalHeader().setStretchLastSection(True)
        for column, width in enumerate((110, 150)):
            ui.modelsTable.setColumnWidth(column, width)
        installer.changed.connect(self.refresh)
        installer.said.connect(self._onSaid)
        installer.failed.connect(self._onFailed)
        self.refresh()

    def open(self) -> None:
        """Unfold the page."""
        self.ui.setupCollapsibleButton.collapsed = False

    def check(self) -> None:
        """Look at what is there."""
        self._showProblem("")
        self._installer.check()
        self._updateButtons()

    @property
    def selected(self) -> ModelEntry | None:
        """The model whose row is selected."""
        row = self.ui.modelsTable.currentRow()
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def refresh(self) -> None:
        """Show what the installer knows now."""
        findings = self._installer.findings
        plan = self._installer.plan()
        lines = (
            [*findings.problems, plan] if findings.problems else [findings.summary or _("Not checked yet.")]
        )
        self.ui.setupLabel.text = "\n".join(line for line in lines if line)
        self.ui.setupNotice.setVisible(bool(findings.problems))
        if findings.problems:
            self.ui.setupNoticeLabel.text = _("Before the first run: {what}").format(
                what=plan or findings.problems[0]
            )
        self.ui.installButton.text = _("Repair") if findings.repair else _("Install")
        self._fillModels()
        self._showCard()
        self._updateButtons()

    def _fillModels(self) -> None:
        if self._rows == list(self._installer.models):
            return
        self._rows = list(self._installer.models)
        table = self.ui.modelsTable
        table.setRowCount(len(self._rows))
        for row, model in enumerate(self._rows):
            for column, text in enumerate((model.name, stateOf(model), model.licence)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(model.title)
                table.setItem(row, column, item)

    def _updateButtons(self) -> None:
        busy, model = self._installer.isBusy, self.selected
        findings = self._installer.findings
        something = bool(findings.missing or findings.repair)
        for button in (self.ui.installButton, self.ui.offlineButton):
            button.enabled = something and not busy
        self.ui.installButton.toolTip = self._installer.plan() or _("Nothing is missing.")
        self.ui.checkButton.enabled = not busy
        downloadable = model is not None and not model.installed and findings.ready
        self.ui.licenceCheckBox.enabled = downloadable and not busy
        self.ui.downloadButton.enabled = downloadable and self.ui.licenceCheckBox.checked and not busy
        self.ui.importButton.enabled = downloadable and not busy
        self.ui.removeButton.enabled = (
            model is not None and model.installed and model.kind != "shipped" and not busy
        )

    def _onModelSelected(self) -> None:
        model = self.selected
        self.ui.licenceCheckBox.checked = False
        if model is not None and self._installer.findings.ready:
            self._installer.describe(model.name)
        self._showCard()
        self._updateButtons()

    def _showCard(self) -> None:
        """The selected model's licence, with a link as soon as its card is here."""
        model = self.selected
        if model is None:
            self.ui.licenceLabel.text = ""
            return
        licence = self._installer.cards.get(model.name, {}).get("licence", {})
        name, url = model.licence or _("not stated"), licence.get("url", "")
        link = f'<a href="{url}">{name}</a>' if url else name
        text = _("{title}. Licence of the weights: {licence}.").format(
            title=model.title.rstrip("."), licence=link
        )
        self.ui.licenceLabel.text = f"{text} {licence.get('note', '')}".strip()

    def _onInstall(self) -> None:
        self._try(self._installer.install)

    def _onOffline(self) -> None:
        folder = self._chooseFolder()
        if folder is not None:
            self._try(lambda: self._installer.install(folder))

    def _onDownload(self) -> None:
        model = self.selected
        if model is not None:
            self._try(lambda: self._installer.download(model.name, self.ui.licenceCheckBox.checked))

    def _onImport(self) -> None:
        model, path = self.selected, self._chooseFile()
        if model is not None and path is not None:
            accepted = self.ui.licenceCheckBox.checked
            self._try(lambda: self._installer.importModel(model.name, path, accepted))

    def _onRemove(self) -> None:
        model = self.selected
        if model is not None:
            self._try(lambda: self._installer.remove(model.name))

    def _try(self, call: Callable[[], None]) -> None:
        self._showProblem("")
        try:
            call()
        except InputError as fault:
            self._showProblem(str(fault))
        self._updateButtons()

    def _onSaid(self, text: str) -> None:
        self.ui.setupLabel.text = text

    def _onFailed(self, sentence: str) -> None:
        self._showProblem(sentence)


def stateOf(model: ModelEntry) -> str:
    """Whether a model can be used now, or how large its download is."""
    if model.installed:
        return _("ready")
    size = f"{model.size / 1e6:,.0f}".replace(",", " ")
    return _("{size} MB to download").format(size=size) if model.size else _("not downloaded")
