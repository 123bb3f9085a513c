"""The agent's part of the panel: a scripted language model over real HTTP, a double of the worker, real Qt and MRML."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("PySide6", reason="PySide6 is not installed")
pytest.importorskip("openai", reason="the extra 'agent' is not installed")

import pythonqt
from doubles import ThresholdClient
from mrml_scene import phantom
from panel_scene import Clock, Opened

sys.path.append(str(Path(__file__).resolve().parents[1] / "agent"))
from chat_server import ChatServer, plan, verdict

from MedSAM3SlicerLib.runs import State

ACCEPT = verdict("accept", reason="It fits.")


@pytest.fixture
def opened():
    panel = Opened(ThresholdClient())
    node = panel.application.addVolume(phantom((20, 40, 48)), spacing=(1, 1, 3), name="Doe^Jane")
    panel.ui.inputSelector.setCurrentNode(node)
    yield panel
    panel.close()


def fill(opened, server, text="the liver", agree=True):
    ui = opened.panel.agentPage.ui
    ui.agentRequestEdit.text = text
    ui.agentEndpointEdit.text = server.url
    ui.agentModelEdit.text = "scripted"
    ui.agentConsentBox.checked = agree
    pythonqt.process(0)
    return ui


def segments(opened):
    node = opened.ui.segmentationSelector.currentNode()
    return node.GetSegmentation().GetNumberOfSegments() if node is not None else 0


def test_a_request_becomes_a_segment_with_its_rounds_listed(opened):
    said = verdict("too_small", {"action": "threshold", "value": 0.3}, reason="The edge is missing.")
    with ChatServer(
        plan("liver", questions=[{"kind": "volume", "target": 1, "of": None}]), said, ACCEPT
    ) as server:
        ui = fill(opened, server)
        opened.press(ui.agentRunButton)
        run = opened.wait()
    assert run.state is State.FINISHED, run.error
    assert segments(opened) == 1
    assert ui.agentTable.rowCount == 2
    assert "too small" in ui.agentTable.item(0, 2).text()
    assert "The edge is missing." in ui.agentTable.item(0, 2).text()
    assert "(used)" in ui.agentTable.item(1, 1).text()
    assert not ui.agentTable.item(0, 0).icon().isNull()
    assert "The liver has a volume of" in ui.agentStatusLabel.text
    made = [n for r in run._work.results for n in r.provenance.notices]
    assert any("judged by scripted" in n for n in made)
    assert "Doe" not in server.words()


def test_nothing_is_sent_without_consent(opened):
    with ChatServer(plan("liver"), ACCEPT) as server:
        ui = fill(opened, server, agree=False)
        opened.press(ui.agentRunButton)
        assert opened.logic.run is None
        assert "agree" in ui.agentStatusLabel.text
        assert server.requests == []


def test_what_leaves_is_shown_and_consent_does_not_outlive_a_change(opened):
    with ChatServer(ACCEPT) as server:
        ui = fill(opened, server)
        assert server.url in ui.agentDisclosureLabel.text
        assert "PNG" in ui.agentDisclosureLabel.text
        assert ui.agentConsentBox.checked
        ui.agentEndpointEdit.text = "https://elsewhere.example/v1"
        assert not ui.agentConsentBox.checked
        assert "another machine" in ui.agentDisclosureLabel.text
    other = opened.application.addVolume(phantom((4, 40, 48)), name="other")
    ui.agentConsentBox.checked = True
    opened.ui.inputSelector.setCurrentNode(other)
    pythonqt.process(0)
    assert not ui.agentConsentBox.checked


def test_neither_consent_nor_a_key_is_remembered(opened, monkeypatch):
    monkeypatch.setenv("MEDSAM3_AGENT_KEY", "sk-very-secret")
    with ChatServer(plan("liver"), ACCEPT) as server:
        ui = fill(opened, server)
        opened.press(ui.agentRunButton)
        opened.wait()
        opened.press(ui.agentCopyButton)
    assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    transcript = opened.copied[-1]
    assert json.loads(transcript)["rounds"][0]["verdict"] == "accept"
    kept = json.dumps({name: str(value) for name, value in opened.settings.values.items()})
    scene = "".join(opened.scene.GetNthNode(n).__str__() for n in range(opened.scene.GetNumberOfNodes()))
    assert "onsent" not in kept
    assert not any("sk-very-secret" in text for text in (transcript, kept, scene, opened.panel.report()))


def test_cancelling_while_the_language_model_is_silent_changes_nothing(opened):
    silent = threading.Event()
    with ChatServer(plan("liver"), lambda handler: silent.wait(300)) as server:
        ui = fill(opened, server)
        opened.press(ui.agentRunButton)
        opened.until(lambda: len(server.requests) == 2)
        clock = Clock()
        opened.until(lambda: clock.turns >= 20)
        opened.press(ui.agentCancelButton)
        run = opened.wait()
        clock.stop()
        silent.set()
    assert run.state is State.CANCELLED
    assert segments(opened) == 0


def test_a_round_can_be_used_while_the_next_one_is_tried(opened):
    silent = threading.Event()
    said = verdict("too_small", {"action": "threshold", "value": 0.3})
    with ChatServer(plan("liver"), said, lambda handler: silent.wait(300)) as server:
        ui = fill(opened, server)
        opened.press(ui.agentRunButton)
        opened.until(lambda: len(server.requests) == 3)
        ui.agentTable.setCurrentCell(0, 1)
        opened.press(ui.agentAcceptButton)
        run = opened.wait()
        silent.set()
    assert run.state is State.FINISHED, run.error
    assert segments(opened) == 1
    assert opened.panel.agentPage.logic.chosen == {1}


def test_another_round_can_be_used_afterwards_and_undone(opened):
    said = verdict("too_large", {"action": "slice_range", "first": 8, "last": 9})
    with ChatServer(plan("liver"), said, ACCEPT) as server:
        ui = fill(opened, server)
        opened.press(ui.agentRunButton)
        opened.wait()
        small = opened.panel.agentPage.logic.rounds[1].segmentation.voxels
        ui.agentTable.setCurrentCell(0, 1)
        opened.press(ui.agentAcceptButton)
        run = opened.wait()
        assert run.state is State.FINISHED, run.error
        assert segments(opened) == 1
        assert run._work.results[0].voxels > small
        opened.press(ui.agentUndoButton)
        run = opened.wait()
    assert run._work.results[0].voxels == small
    assert opened.panel.agentPage.logic.chosen == {2}


def test_an_endpoint_that_is_not_there_is_said_and_nothing_changes(opened):
    with ChatServer("x") as server:
        pass
    ui = fill(opened, server)
    opened.press(ui.agentRunButton)
    run = opened.wait()
    assert run.state is State.FAILED
    assert "cannot be reached" in ui.agentStatusLabel.text
    assert segments(opened) == 0


@pytest.mark.parametrize("width", [300, 360, 460])
def test_what_leaves_can_be_read_to_its_end_in_a_small_panel(opened, width):
    ui = opened.panel.agentPage.ui
    ui.agentCollapsibleButton.collapsed = False
    ui.agentEndpointEdit.text = "https://elsewhere.example/v1"
    ui.agentModelEdit.text = "scripted"
    opened.putIntoModulePanel(width, 500)
    label = ui.agentDisclosureLabel
    assert label.visible
    assert label.size.height() >= label.heightForWidth(label.width) > 5 * label.fontMetrics().height()
