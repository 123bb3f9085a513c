"""Fine-tuning from the panel, on a real scene: what is exported, what is started, what is shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("PySide6", reason="PySide6 is not installed")

import pythonqt
import slicer
from doubles import ThresholdClient
from mrml_scene import phantom
from panel_scene import Opened

from MedSAM3Core.errors import Cancelled, InputError, WorkerError
from MedSAM3Core.evaluation.datasets import read_dataset
from MedSAM3Core.training.curves import CurveWriter, draw_curves, read_curves
from MedSAM3Core.training.recipe import read_recipe
from MedSAM3SlicerLib.finetunelogic import ACCEPTED, STATUS_TAG, FineTuneLogic, FineTuneSettings, patientOf

STARTED: list = []


class Command:
    """Doubles `BackgroundCommand`: what it was started with, and an end when it is told."""

    def __init__(self, command, env=None):
        self.command, self.env = command, env
        self.done, self.cancelled, self.answer = False, False, {}
        STARTED.append(self)

    def result(self, timeout=None):
        if self.cancelled:
            raise Cancelled("Stopped.")
        if isinstance(self.answer, Exception):
            raise self.answer
        return json.dumps(self.answer)

    def cancel(self):
        self.cancelled = self.done = True


@pytest.fixture
def opened():
    panel = Opened(ThresholdClient())
    STARTED.clear()
    panel.panel.fineTunePage.logic.run = Command
    yield panel
    panel.close()


@pytest.fixture
def page(opened):
    return opened.panel.fineTunePage


def segmented(opened, name, accept=("Liver",)):
    """A CT with two segments made by the panel."""
    node = opened.application.addVolume(phantom((20, 40, 48)), spacing=(1, 1, 3), name=name)
    segmentation = opened.logic.segment(node, ["liver", "spleen"])
    for n in range(segmentation.GetSegmentation().GetNumberOfSegments()):
        segment = segmentation.GetSegmentation().GetNthSegment(n)
        if segment.GetName() in accept:
            segment.SetTag(STATUS_TAG, ACCEPTED)
    return node, segmentation


def settings(where, **changes):
    values = {"name": "mine", "base": "demo", "method": "frozen", "steps": 50, "everySegment": False}
    return FineTuneSettings(**values | {"folder": str(where)} | changes)


def test_accepted_segments_become_a_training_set_on_the_images_own_grid(opened, page, tmp_path):
    for name in ("first", "second"):
        segmented(opened, name)
    page.logic.start(settings(tmp_path))
    cases = read_dataset(tmp_path / "mine/cases").cases
    assert [case.patient for case in cases] == ["first", "second"]
    volume = cases[0].read()
    masks = cases[0].read_references(volume)
    assert list(masks) == ["liver"]
    np.testing.assert_array_equal(volume.array, phantom((20, 40, 48)))
    assert volume.geometry.spacing == pytest.approx((1, 1, 3))
    np.testing.assert_array_equal(masks["liver"], phantom((20, 40, 48)) > 0)


def test_the_run_is_a_command_in_the_workers_python_with_a_recipe_that_is_valid(opened, page, tmp_path):
    for name in ("first", "second"):
        segmented(opened, name)
    page.logic.start(settings(tmp_path, method="lora"))
    (command,) = STARTED
    assert command.command[1:4] == ("-m", "MedSAM3Core.cli", "finetune")
    recipe = read_recipe(tmp_path / "mine/run/recipe.yaml")
    assert (recipe.base, recipe.method, recipe.steps, recipe.register_model) == ("demo", "lora", 50, True)
    assert recipe.validation.share > 0


def test_one_patient_is_trained_without_looking(opened, page, tmp_path):
    segmented(opened, "only")
    page.logic.start(settings(tmp_path))
    assert read_recipe(tmp_path / "mine/run/recipe.yaml").validation.share == 0


def test_nothing_accepted_is_said_and_all_can_be_taken(opened, page, tmp_path):
    segmented(opened, "first", accept=())
    with pytest.raises(InputError, match="No segment is marked as completed"):
        page.logic.start(settings(tmp_path))
    page.logic.start(settings(tmp_path, everySegment=True))
    (case,) = read_dataset(tmp_path / "mine/cases").cases
    assert set(case.references) == {"liver", "spleen"}


def test_images_of_one_patient_share_a_folder(opened):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(opened.scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe, Jane")
    level = slicer.vtkMRMLSubjectHierarchyConstants
    hierarchy.SetItemAttribute(
        patient, level.GetSubjectHierarchyLevelAttributeName(), level.GetDICOMLevelPatient()
    )
    for name in ("before", "after"):
        node = opened.application.addVolume(phantom((4, 8, 8)), name=name)
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(patient, node)
        hierarchy.SetItemParent(item, patient)
        assert patientOf(opened.scene, node) == "Doe, Jane"
    loose = opened.application.addVolume(phantom((4, 8, 8)), name="loose")
    assert patientOf(opened.scene, loose) == "loose"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "My Model"}, "small letters"),
        ({"folder": ""}, "Choose a folder"),
        ({"steps": 1}, "at least 10 steps"),
        ({"workerText": "ssh host medsam3 worker"}, "this computer"),
    ],
    ids=["name", "folder", "steps", "worker"],
)
def test_settings_that_cannot_be_used_are_one_sentence(
    opened, page, tmp_path, changes, sentence, monkeypatch
):
    monkeypatch.setattr("MedSAM3SlicerLib.workers.shutil.which", lambda name: f"/usr/bin/{name}")
    segmented(opened, "first")
    with pytest.raises(InputError, match=sentence):
        page.logic.start(settings(tmp_path, **changes))
    assert STARTED == []


def test_the_page_shows_curves_and_the_new_model(opened, page, tmp_path):
    for name in ("first", "second"):
        segmented(opened, name)
    page.ui.fineTuneFolderEdit.text = str(tmp_path)
    page.ui.fineTuneNameEdit.text = "mine"
    opened.press(page.ui.fineTuneButton)
    assert not page.ui.fineTuneButton.enabled
    assert page.ui.fineTuneStopButton.enabled
    assert opened.settings.values["MedSAM3/FineTuneFolder"] == str(tmp_path)
    curves = CurveWriter(tmp_path / "mine/run")
    for step in range(5, 30, 5):
        curves.write(step, step, "train", {"loss": 2 - step / 30})
    curves.write(25, 25, "validation", {"dice": 0.4, "dice/liver": 0.4})
    page.tick()
    assert "Step 25" in page.ui.fineTuneStatusLabel.text
    assert not page.ui.fineTuneCurvesLabel.pixmap.isNull()
    (command,) = STARTED
    command.done, command.answer = True, {"name": "mine", "validation_dice": 0.4}
    page.tick()
    pythonqt.process(0)
    assert "The model mine is ready (validation Dice 0.400)" in page.ui.fineTuneStatusLabel.text
    assert page.ui.fineTuneButton.enabled


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_a_run_that_does_not_end_well_says_so(opened, page, tmp_path, how):
    segmented(opened, "first")
    page.logic.start(settings(tmp_path))
    (command,) = STARTED
    if how == "stopped":
        opened.press(page.ui.fineTuneStopButton)
    else:
        command.done, command.answer = True, WorkerError("python failed (Memory ran out).", "See the report.")
    page.tick()
    text = page.ui.fineTuneStatusLabel.text
    assert ("Stopped." if how == "stopped" else "Memory ran out") in text
    assert page.logic.result == {}


def test_a_program_that_a_scene_names_is_asked_about_first(opened, page, tmp_path):
    segmented(opened, "first")
    page.ui.fineTuneFolderEdit.text = str(tmp_path)
    opened.panel._parameters.workerCommand = "/somebody/elses/python"
    opened.answers = False
    opened.press(page.ui.fineTuneButton)
    assert all("/somebody/elses/python" not in one.command for one in STARTED)


def test_what_is_wrong_is_said_on_the_page(opened, page):
    opened.press(page.ui.fineTuneButton)
    assert page.ui.fineTuneStatusLabel.text
    assert not page.logic.isBusy


def test_curves_of_an_empty_run_can_be_drawn(tmp_path):
    assert read_curves(tmp_path) == []
    assert draw_curves([]).size == (440, 150)


def test_a_logic_without_a_run_has_no_curves(opened):
    assert FineTuneLogic(opened.scene).points == []
