"""Puts the pieces together inside Slicer: the only room that asks ``slicer.app`` and ``slicer.modules``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer

from MedSAM3Core.worker import WorkerClient
from MedSAM3SlicerLib.adapter.history import EditorWidgetHistory, UndoHistory
from MedSAM3SlicerLib.installation import Installer, pytorchExtension
from MedSAM3SlicerLib.logic import SegmentationLogic
from MedSAM3SlicerLib.panel import Desktop
from MedSAM3SlicerLib.ticker import QtTicker
from MedSAM3SlicerLib.workers import WorkerSetup


def makeLogic(scene: slicer.vtkMRMLScene) -> SegmentationLogic:
    """The logic with Slicer's own logics, undo stack and event loop."""
    return SegmentationLogic(
        scene,
        makeClient,
        history=makeHistory(),
        sequencesLogic=_moduleLogic("sequences"),
        ticker=QtTicker(),
        pump=slicer.app.processEvents,
        startupEnvironment=slicer.util.startupEnvironment(),
    )


def makeClient(setup: WorkerSetup, onEvent: Any, onQuestion: Any) -> WorkerClient:
    """A client for the worker that the setup describes; nothing is started before the first request."""
    return WorkerClient(setup.command, setup.env, onEvent, on_question=onQuestion)


def makeHistory() -> UndoHistory | None:
    """The segment editor's own undo stack where the application has a segment editor, else None."""
    module = getattr(slicer.modules, "segmenteditor", None)
    widget = module.widgetRepresentation() if module is not None else None
    editor = getattr(widget.self(), "editor", None) if widget is not None else None
    return EditorWidgetHistory(editor) if editor is not None else None


def makeInstaller(requirements: Path) -> Installer:
    """The installer for this Slicer's Python."""
    return Installer(
        requirements,
        startupEnvironment=slicer.util.startupEnvironment(),
        torchInstaller=pytorchExtension(),
    )


def makeDesktop() -> Desktop:
    """Slicer's settings, clipboard, file dialogs and segment editor."""
    return Desktop(
        settings=slicer.app.userSettings(),
        copy=lambda text: slicer.app.clipboard().setText(text),
        chooseFolder=lambda: _path(qt.QFileDialog.getExistingDirectory()),
        chooseFile=lambda: _path(qt.QFileDialog.getOpenFileName()),
        ask=slicer.util.confirmYesNoDisplay,
        editByHand=editByHand,
    )


def editByHand(segmentationNode: slicer.vtkMRMLSegmentationNode, volumeNode: Any) -> None:
    """Show the segment editor on a segmentation and its image."""
    slicer.util.selectModule("SegmentEditor")
    editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
    editor.setSegmentationNode(segmentationNode)
    if volumeNode is not None:
        editor.setSourceVolumeNode(volumeNode)


def _moduleLogic(name: str) -> Any:
    module = getattr(slicer.modules, name, None)
    return module.logic() if module is not None else None


def _path(chosen: Any) -> Path | None:
    """What a file dialog returned (Qt for Python gives the filter too), None if it was cancelled."""
    text = chosen[0] if isinstance(chosen, tuple) else chosen
    return Path(text) if text else None
