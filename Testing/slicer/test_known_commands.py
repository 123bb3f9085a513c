"""A scene from elsewhere names a program as its worker: it is not started before the user has agreed."""

from __future__ import annotations

import pytest

pytest.importorskip("PySide6", reason="PySide6 is not installed")

from doubles import ThresholdClient
from mrml_scene import phantom
from panel_scene import Opened

from MedSAM3SlicerLib.adapter.provenance import SCORE_TAG, describe, readProvenance, scoreOf, setTag
from MedSAM3SlicerLib.knowncommands import KnownCommands
from MedSAM3SlicerLib.runs import State

FOREIGN = "/bin/sh -c 'touch /tmp/owned'"


@pytest.fixture
def client():
    return ThresholdClient()


@pytest.fixture
def opened(client):
    panel = Opened(client)
    panel.asked = []
    panel.panel.commands = KnownCommands(
        panel.settings, lambda text: panel.asked.append(text) or panel.answers
    )
    node = panel.application.addVolume(phantom((6, 16, 16)), name="CT")
    panel.ui.inputSelector.setCurrentNode(node)
    yield panel
    panel.close()


def load_foreign_scene(opened):
    """What a loaded scene does to the panel's own parameter node."""
    opened.panel._parameters.workerCommand = FOREIGN


def test_opening_and_looking_at_a_scene_starts_nothing(opened, client):
    load_foreign_scene(opened)
    opened.panel.checkSetup()
    assert opened.installer.workerText == ""
    assert opened.asked == []
    assert opened.panel._agentChoices()[2].workerCommand == ""


def test_a_no_starts_nothing_and_empties_the_field(opened, client):
    load_foreign_scene(opened)
    opened.answers = False
    opened.type("liver")
    opened.press(opened.ui.segmentButton)
    assert len(opened.asked) == 1
    assert FOREIGN in opened.asked[0]
    assert client.sessions == []
    assert not hasattr(client, "setup")
    assert opened.panel._parameters.workerCommand == ""
    assert "was not started" in opened.ui.workerProblem.text


def test_a_yes_counts_from_then_on(opened, client):
    command = "python3 -m MedSAM3Core.worker"
    opened.panel._parameters.workerCommand = command
    opened.type("liver")
    for _ in range(2):
        opened.press(opened.ui.segmentButton)
        assert opened.wait().state is State.FINISHED
    assert len(opened.asked) == 1
    again = KnownCommands(opened.settings, pytest.fail)
    assert again.allows(command)
    assert not again.knows(command + " --more")


def test_tags_of_a_scene_are_plain_values(opened, client):
    """Provenance that somebody wrote by hand: damaged or hostile text is as good as none."""
    opened.type("liver")
    opened.press(opened.ui.segmentButton)
    opened.wait()
    segmentation = opened.ui.segmentationSelector.currentNode().GetSegmentation()
    segment = segmentation.GetNthSegment(0)
    before = readProvenance(segment)
    assert before is not None
    hostile = (
        "{",
        "[" * 100_000,
        "__import__('os').system('true')",
        "5",
        "null",
        '{"a": []}',
        '[{"a": 1}]',
        "nan",
    )
    for name in ("Thresholds", "Prompts", "Boxes", "Notices", "Points", "ModelHash"):
        for text in hostile:
            setTag(segment, f"MedSAM3.{name}", text)
            made = readProvenance(segment)
            assert isinstance(made.thresholds, dict)
            assert all(isinstance(one, str) for one in (*made.prompts, *made.boxes, *made.notices))
            assert describe(segment)
    for text in hostile[:-1]:
        setTag(segment, SCORE_TAG, text)
        assert scoreOf(segment) in (None, 5.0)
