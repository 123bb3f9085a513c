"""Volume node, typed text, button, a worker process, segment in the scene, picture from Slicer's slice view."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("PySide6", reason="PySide6 is not installed")

from mrml_scene import phantom
from panel_scene import ROOT, Opened

from MedSAM3Core.worker import WorkerClient
from MedSAM3SlicerLib.adapter import provenance
from MedSAM3SlicerLib.adapter.segments import readMask
from MedSAM3SlicerLib.runs import State

DOUBLE = f"{sys.executable} {Path(__file__).with_name('threshold_worker.py')}"
DEMO = ROOT / "Resources" / "models" / "demo"


def client(setup, onEvent, onQuestion):
    return WorkerClient(setup.command, setup.env, onEvent, on_question=onQuestion)


@pytest.fixture
def opened():
    panel = Opened(client)
    panel.ui.workerLineEdit.text = DOUBLE
    yield panel
    panel.close()


@pytest.fixture
def ct(opened):
    node = opened.application.addVolume(phantom((20, 40, 48)), spacing=(1, 1, 3), name="CT")
    opened.ui.inputSelector.setCurrentNode(node)
    return node


def mask(node, volumeNode):
    extent, crop = readMask(node, node.GetSegmentation().GetNthSegmentID(0), volumeNode)
    full = np.zeros(volumeNode.GetImageData().GetDimensions()[::-1], bool)
    full[extent.slices] = crop
    return full


def isOver(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_typed_text_becomes_a_segment_through_a_process(opened, ct):
    opened.type("Liver")
    opened.press(opened.ui.segmentButton)
    run = opened.wait()
    assert run.state is State.FINISHED, run.error
    node = opened.ui.segmentationSelector.currentNode()
    np.testing.assert_array_equal(mask(node, ct), phantom((20, 40, 48)) > 0)
    segment = node.GetSegmentation().GetNthSegment(0)
    assert provenance.readProvenance(segment).model == "threshold double"
    assert "Found in" in opened.ui.statusLabel.text


def test_a_second_run_needs_no_new_process(opened, ct):
    opened.type("Liver")
    opened.press(opened.ui.segmentButton)
    opened.wait()
    pid = opened.logic._client.pid
    opened.press(opened.ui.segmentButton)
    opened.wait()
    assert opened.logic._client.pid == pid


def test_a_worker_that_dies_costs_nothing_and_comes_back(opened, ct):
    opened.type("die")
    opened.press(opened.ui.segmentButton)
    run = opened.wait()
    assert run.state is State.FAILED
    assert opened.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert "Try again" in opened.ui.statusLabel.text
    opened.panel.conceptField.setPhrases(["liver"])
    opened.press(opened.ui.segmentButton)
    assert opened.wait().state is State.FINISHED


def test_cancel_reaches_the_process(opened, ct):
    opened.type("endless")
    opened.press(opened.ui.segmentButton)
    opened.until(lambda: "of 20" in opened.ui.stageLabel.text)
    opened.press(opened.ui.cancelButton)
    run = opened.wait()
    assert run.state is State.CANCELLED
    assert opened.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_closing_the_panel_ends_the_process():
    opened = Opened(client)
    opened.ui.workerLineEdit.text = DOUBLE
    node = opened.application.addVolume(phantom((8, 16, 16)))
    opened.ui.inputSelector.setCurrentNode(node)
    opened.type("liver")
    opened.press(opened.ui.segmentButton)
    opened.wait()
    pid = opened.logic._client.pid
    opened.close()
    opened.until(lambda: isOver(pid))


def test_the_result_shows_in_slicers_slice_view(opened, ct):
    pytest.importorskip("PIL")
    from rendering import SliceView

    opened.type("Liver")
    opened.press(opened.ui.segmentButton)
    opened.wait()
    view = SliceView(opened.application, ct, size=(160, 160))
    node = opened.ui.segmentationSelector.currentNode()
    view.offset(node.GetSegmentCenterRAS(node.GetSegmentation().GetNthSegmentID(0)))
    picture = view.picture().astype(int)
    coloured = np.abs(picture[..., 0] - picture[..., 2]) > 20
    assert coloured.sum() > 200
    node.GetDisplayNode().SetVisibility(False)
    grey = view.picture().astype(int)
    assert (np.abs(grey[..., 0] - grey[..., 2]) > 20).sum() == 0


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model is not there yet")
def test_the_demo_model_segments_the_sample_ct(opened):
    from sample_volume import loadSample

    from MedSAM3SlicerLib.sampledata import samples

    sample = samples()[0]
    node = loadSample(opened.application, sample)
    opened.ui.workerLineEdit.text = ""
    opened.ui.inputSelector.setCurrentNode(node)
    opened.type(sample.concepts[0])
    opened.press(opened.ui.segmentButton)
    run = opened.wait(900)  # a real model on a machine that does other things too
    assert run.state is State.FINISHED, run.error
    segment = run.segmentationNode.GetSegmentation().GetNthSegment(0)
    made = provenance.readProvenance(segment)
    assert made.model == "demo"
    assert len(made.model_hash) == 64
    found = mask(run.segmentationNode, node)
    assert 0 < found.sum() < found.size / 4
