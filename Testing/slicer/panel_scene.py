"""The module as Slicer would open it, over a real scene: `open_module` gives its widget, and `Clock` watches the event
loop.
"""

from __future__ import annotations

import time
from pathlib import Path

import pythonqt
import slicer
from mrml_scene import Application

pythonqt.install()

from PySide6 import QtCore, QtWidgets  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


class Opened:
    """The opened panel with what a test needs of its surroundings."""

    def __init__(self, clientFactory, run=None) -> None:
        from MedSAM3SlicerLib.installation import Installer
        from MedSAM3SlicerLib.logic import SegmentationLogic
        from MedSAM3SlicerLib.panel import Desktop, Panel
        from MedSAM3SlicerLib.parameternode import PanelParameters
        from MedSAM3SlicerLib.ticker import QtTicker

        self.application = Application()
        self.scene = self.application.scene
        slicer.mrmlScene = self.scene
        self.copied, self.edited, self.answers = [], [], True
        self._modulePanel = None
        self.settings = Settings()
        self.widget = slicer.util.loadUI(str(ROOT / "MedSAM3Slicer/Resources/UI/MedSAM3Slicer.ui"))
        self.widget.setMRMLScene(self.scene)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.logic = SegmentationLogic(
            self.scene, clientFactory, sequencesLogic=self.application.sequences, ticker=QtTicker()
        )
        self.installer = Installer(ROOT / "MedSAM3Slicer/Resources/requirements.txt", run=run or NoCommand)
        desktop = Desktop(
            settings=self.settings,
            copy=self.copied.append,
            chooseFolder=lambda: None,
            chooseFile=lambda: None,
            ask=lambda question: self.answers,
            editByHand=lambda *nodes: self.edited.append(nodes),
        )
        self.panel = Panel(self.widget, self.ui, self.logic, self.installer, desktop)
        self.parameterNode = self.scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "MedSAM3Slicer")
        self.panel.setParameters(PanelParameters(self.parameterNode))
        self.widget.resize(460, 860)
        self.widget.show()
        pythonqt.process(0)

    def type(self, text: str) -> None:
        """Type into the concept line and press Enter."""
        self.ui.conceptLineEdit.text = text
        self.ui.conceptLineEdit.returnPressed.emit()

    def press(self, button) -> None:
        """Click a button."""
        button.click()
        pythonqt.process(0)

    def until(self, condition, seconds: float = 60.0) -> None:
        """Let the event loop run until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            pythonqt.process(5)

    def wait(self, seconds: float = 60.0):
        """Let the event loop run until the run is over."""
        deadline = time.monotonic() + seconds
        while self.logic.isBusy and time.monotonic() < deadline:
            pythonqt.process(5)
        pythonqt.process(80)
        assert not self.logic.isBusy, "the run did not end"
        return self.logic.run

    def putIntoModulePanel(self, width: int, height: int) -> None:
        """Put the widget where Slicer puts a module: into a resizable scroll area without a horizontal bar."""
        self._modulePanel = QtWidgets.QScrollArea()
        self._modulePanel.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarAlwaysOff)
        self._modulePanel.setWidgetResizable(True)
        self._modulePanel.setWidget(self.widget)
        self._modulePanel.resize(width, height)
        self._modulePanel.show()
        pythonqt.process(50)

    def close(self) -> None:
        self.panel.close()
        if self._modulePanel is not None:
            self._modulePanel.takeWidget()
        self.widget.close()
        self.application.close()


class Settings:
    """Doubles a ``QSettings``: values by name."""

    def __init__(self):
        self.values = {}

    def value(self, name, default=None):
        return self.values.get(name, default)

    def setValue(self, name, value):
        self.values[name] = value


class NoCommand:
    """Doubles `BackgroundCommand`: a command that prints what a complete installation prints."""

    done = True
    log = ""

    def __init__(self, command, env=None, onLine=None):
        self.command = command

    def result(self, timeout=None):
        import json

        from MedSAM3Core.version import __version__

        if "info" in self.command:
            licence = {
                "name": "SAM License",
                "url": "https://example.org/licence",
                "note": "Ask before you publish.",
            }
            return json.dumps({"name": self.command[-2], "card": {"licence": licence}})
        if "models" in self.command:
            demo = {"name": "demo", "title": "Demonstration model", "installed": True, "bytes": 9_000_000}
            other = {
                "name": "medsam3-v1",
                "title": "MedSAM3 of its paper",
                "installed": False,
                "bytes": 3_450_000_000,
            }
            demo |= {"licence": "Apache-2.0", "kind": "shipped"}
            other |= {"licence": "SAM License", "kind": "lora"}
            return json.dumps({"home": "", "models": [other, demo]})
        names = {
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "safetensors": "0.8.0",
            "huggingface_hub": "2.4.0",
        }
        names |= {"pydantic": "2.14.3", "PyYAML": "6.0.3", "platformdirs": "4.14.7", "psutil": "7.2.2"}
        names |= {"typer": "0.30", "rich": "15.0", "zstandard": "0.25", "Jinja2": "3.1.6"}
        torch = {"loads": True, "cuda": False, "device": "", "build": "cpu"}
        document = {
            "python": "3.12.10",
            "versions": names,
            "leftovers": [],
            "torch": torch,
            "core": __version__,
        }
        return json.dumps(document)

    def cancel(self):
        """Nothing runs."""


class Clock(QtCore.QObject):
    """Measures the longest time in which the event loop did not turn.

    Attributes:
        turns: How often it turned.
        longest: By the wall clock, in seconds; waiting for a busy machine's core is in it.
        longestBusy: What the window's own thread computed meanwhile, in seconds; no other process is in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.restart()
        self._timer = QtCore.QTimer(self)
        self._timer.timeout.connect(self._tick)
        self._timer.start(0)

    def _tick(self) -> None:
        now, busy = time.perf_counter(), time.thread_time()
        self.longest = max(self.longest, now - self._last)
        self.longestBusy = max(self.longestBusy, busy - self._lastBusy)
        self.turns += 1
        self._last, self._lastBusy = now, busy

    def restart(self) -> None:
        self.longest = self.longestBusy = 0.0
        self.turns = 0
        self._last, self._lastBusy = time.perf_counter(), time.thread_time()

    def stop(self) -> None:
        self._timer.stop()
