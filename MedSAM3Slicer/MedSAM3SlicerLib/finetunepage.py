"""The part of the panel that makes a model of the user's corrections: a form, two buttons, two curves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedSAM3Core.errors import MedSAM3Error
from MedSAM3Core.training.curves import draw_curves
from MedSAM3SlicerLib.finetunelogic import FineTuneLogic, FineTuneSettings

UI_FILE = Path(__file__).resolve().parent.parent / "Resources" / "UI" / "FineTune.ui"
INTERVAL_MS = 1000
FOLDER_SETTING = "MedSAM3/FineTuneFolder"


class FineTunePage:
    """Shows a `FineTuneLogic` under the rest of the panel.

    Args:
        parent: The panel's widget, whose layout gets the page.
        logic: Does the work.
        settings: A ``QSettings`` that remembers the folder.
        chooseFolder: Asks the user for a folder; None if the user chose none.
        choices: The panel's model and worker field as they are now.
        onModel: Called when a new model is ready.
    """

    def __init__(
        self,
        parent: Any,
        logic: FineTuneLogic,
        settings: Any,
        chooseFolder: Callable[[], Path | None],
        choices: Callable[[], tuple[str, str]],
        onModel: Callable[[], None],
    ) -> None:
        self.logic = logic
        self._settings, self._chooseFolder = settings, chooseFolder
        self._choices, self._onModel = choices, onModel
        self.widget = slicer.util.loadUI(str(UI_FILE))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        parent.layout().addWidget(self.widget)
        self._picture = Path(tempfile.mkdtemp(prefix="medsam3-")) / "curves.png"
        self.ui.fineTuneFolderEdit.text = str(settings.value(FOLDER_SETTING, "") or "")
        self.ui.fineTuneButton.connect("clicked(bool)", lambda *_: self.start())
        self.ui.fineTuneStopButton.connect("clicked(bool)", lambda *_: self.logic.cancel())
        self.ui.fineTuneFolderButton.connect("clicked(bool)", lambda *_: self._onFolder())
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.connect("timeout()", self.tick)
        logic.changed.connect(self.refresh)
        self.refresh()

    def start(self) -> None:
        """Export and train with what the page shows; says under the buttons what is wrong."""
        ui = self.ui
        base, worker = self._choices()
        settings = FineTuneSettings(
            name=ui.fineTuneNameEdit.text.strip(),
            base=base,
            method=ui.fineTuneMethodBox.currentText,
            steps=ui.fineTuneStepsBox.value,
            everySegment=ui.fineTuneEveryBox.checked,
            folder=ui.fineTuneFolderEdit.text.strip(),
            workerText=worker,
        )
        ui.fineTuneStatusLabel.text = _("Exporting...")
        try:
            self.logic.start(settings)
        except MedSAM3Error as fault:
            ui.fineTuneStatusLabel.text = str(fault)
            return
        self._settings.setValue(FOLDER_SETTING, settings.folder)
        self._timer.start()

    def tick(self) -> None:
        """Look how far the run is."""
        self.logic.tick()
        if not self.logic.isBusy:
            self._timer.stop()
            if self.logic.result:
                self._onModel()

    def refresh(self) -> None:
        """Show what the logic knows now."""
        busy = self.logic.isBusy
        self.ui.fineTuneButton.enabled = not busy
        self.ui.fineTuneStopButton.enabled = busy
        points = self.logic.points
        words = [self.logic.sentence]
        if busy and points:
            words.append(_("Step {step}.").format(step=points[-1].step))
        self.ui.fineTuneStatusLabel.text = " ".join(word for word in words if word)
        self.ui.fineTuneCurvesLabel.setVisible(bool(points))
        if points:
            draw_curves(points).save(self._picture)
            self.ui.fineTuneCurvesLabel.setPixmap(qt.QPixmap(str(self._picture)))

    def close(self) -> None:
        """Stop watching, and the run; its checkpoints stay."""
        self._timer.stop()
        self.logic.changed.disconnect(self.refresh)
        self.logic.cancel()
        self._picture.unlink(missing_ok=True)
        self._picture.parent.rmdir()

    def _onFolder(self) -> None:
        folder = self._chooseFolder()
        if folder is not None:
            self.ui.fineTuneFolderEdit.text = str(folder)
