"""The module's shell as Slicer would start it, over the doubles of `pythonqt`."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("PySide6", reason="PySide6 is not installed")

import pythonqt
import slicer
from mrml_scene import Application, phantom
from panel_scene import ROOT

from MedSAM3SlicerLib import sampledata


@pytest.fixture
def module(monkeypatch):
    """The module file, imported in an application that has a scene and the logics."""
    pythonqt.install()
    application = Application()
    logics = types.SimpleNamespace(
        sequences=types.SimpleNamespace(logic=lambda: application.sequences),
        terminologies=types.SimpleNamespace(logic=lambda: application.terminologies),
    )
    monkeypatch.setattr(slicer, "mrmlScene", application.scene, raising=False)
    monkeypatch.setattr(slicer, "modules", logics, raising=False)
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: dict(os.environ))
    monkeypatch.setattr(slicer, "app", pythonqt._App())
    sys.modules.pop("MedSAM3Slicer", None)
    import MedSAM3Slicer

    MedSAM3Slicer.application = application
    yield MedSAM3Slicer
    application.close()


@pytest.fixture
def widget(module):
    made = module.MedSAM3SlicerWidget()
    made.setup()
    yield made
    made.cleanup()


def test_the_module_describes_itself_and_starts_nothing(module):
    parent = types.SimpleNamespace()
    module.MedSAM3Slicer(parent)
    assert parent.title == "MedSAM3"
    assert "Not for clinical use" in parent.helpText
    assert slicer.app.started == [module.onStartupCompleted]


def test_start_up_loads_the_terminology_and_offers_the_samples(module, monkeypatch):
    registered = []

    class Logic:
        registerCustomSampleDataCategory = staticmethod(lambda name, title: registered.append(name))
        registerCustomSampleDataSource = staticmethod(lambda **options: registered.append(options))

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=Logic))
    module.onStartupCompleted()
    from MedSAM3Core.prompts import TERMINOLOGY_CONTEXT
    from MedSAM3SlicerLib.terminology import loadedTerminologies

    assert TERMINOLOGY_CONTEXT in loadedTerminologies(module.application.terminologies)
    assert registered[0] == "MedSAM3"
    assert [entry["sampleName"] for entry in registered[1:]] == [s.title for s in sampledata.samples()]
    for entry in registered[1:]:
        assert Path(entry["thumbnailFileName"]).is_file()


def test_a_sample_is_loaded_from_the_extension_itself(monkeypatch):
    loaded = []
    monkeypatch.setattr(slicer.util, "loadVolume", lambda path, properties: loaded.append((path, properties)))
    sampledata.load(sampledata.samples()[0])
    ((path, properties),) = loaded
    assert Path(path).is_relative_to(ROOT / "Resources")
    assert properties == {"name": "Head and neck CT"}


def test_the_widget_opens_on_the_first_volume(module):
    module.application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "without voxels")
    node = module.application.addVolume(phantom((4, 8, 8)), name="first")
    widget = module.MedSAM3SlicerWidget()
    widget.setup()
    assert widget.panel.ui.inputSelector.currentNode() is node
    assert widget.logic.segmentation is widget.panel.logic
    widget.cleanup()


def test_closing_the_scene_gives_the_panel_new_parameters(module, widget):
    widget.panel.conceptField.setPhrases(["liver"])
    module.application.scene.Clear(0)
    assert widget.panel._parameters is not None
    node = module.application.addVolume(phantom((4, 8, 8)), name="second")
    widget.panel.ui.inputSelector.setCurrentNode(node)
    assert widget.logic.getParameterNode().inputVolume is node


def test_entering_again_keeps_the_choices(module, widget):
    widget.panel.ui.windowLineEdit.text = "lung"
    widget.exit()
    widget.enter()
    assert widget.panel.ui.windowLineEdit.text == "lung"


def test_quitting_ends_everything_once(module):
    widget = module.MedSAM3SlicerWidget()
    widget.setup()
    (quit_,) = slicer.app.quitting
    quit_()
    widget.cleanup()
    assert widget.panel is None


def test_the_console_reaches_every_call(module, widget, monkeypatch):
    calls = []
    for name in ("segment", "segmentAll", "refine"):
        monkeypatch.setattr(widget.logic.segmentation, name, lambda *a, n=name, **k: calls.append((n, a, k)))
    widget.logic.segment("volume", ["liver"], model="demo")
    widget.logic.segmentAll(["volume"], ["liver"], "folder")
    widget.logic.refine("node", "liver", roiNodes=["roi"])
    assert calls == [
        ("segment", ("volume", ["liver"], None), {"model": "demo"}),
        ("segmentAll", (["volume"], ["liver"], "folder"), {}),
        ("refine", ("node", "liver", ["roi"], None), {}),
    ]


def test_the_library_is_found_in_a_checkout(module, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module.findCore()
    assert sys.path[-1] == str(ROOT)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="they are immortal")
@pytest.mark.parametrize("value", [None, True, False])
def test_the_double_cannot_use_up_what_pyside_does_not_count(value):
    assert sys.getrefcount(value) > pythonqt.LENT // 2
