from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import slicer
from doubles import DyingClient, ThresholdClient
from mrml_scene import phantom, result

from MedSAM3Core.errors import (
    Cancelled,
    InputError,
    OutputError,
    PromptError,
    ResourceError,
    VolumeError,
    WorkerError,
)
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Box
from MedSAM3SlicerLib.adapter import provenance, sequences
from MedSAM3SlicerLib.adapter.boxes import roiFromBox, setEnabled
from MedSAM3SlicerLib.adapter.segments import readMask
from MedSAM3SlicerLib.logic import SegmentationLogic
from MedSAM3SlicerLib.parameter import RunSettings
from MedSAM3SlicerLib.runs import State


@pytest.fixture
def client():
    return ThresholdClient()


@pytest.fixture
def logic(application, client):
    made = SegmentationLogic(application.scene, client, sequencesLogic=application.sequences)
    yield made
    made.close()


def snapshot(scene, node=None):
    """Everything that a run without result must leave as it was."""
    ids = [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]
    segments = []
    if node is not None:
        segmentation = node.GetSegmentation()
        for n in range(segmentation.GetNumberOfSegments()):
            segment = segmentation.GetNthSegment(n)
            image = segment.GetRepresentation("Binary labelmap")
            segments.append((segment.GetName(), segment.GetMTime(), image.GetMTime(), image.GetExtent()))
    return ids, segments


def segmentNames(node):
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]


def drawn(node, volumeNode, n=0):
    extent, crop = readMask(node, node.GetSegmentation().GetNthSegmentID(n), volumeNode)
    full = np.zeros(volumeNode.GetImageData().GetDimensions()[::-1], bool)
    if extent:
        full[extent.slices] = crop
    return full


def test_a_script_gets_its_segments_back(logic, ct, ball):
    seen = []
    node = logic.segment(ct, ["Liver", "spleen"], progress=seen.append, model="demo")
    assert segmentNames(node) == [
        logic.resolveConcepts("liver")[0].name,
        logic.resolveConcepts("spleen")[0].name,
    ]
    np.testing.assert_array_equal(drawn(node, ct), ball)
    assert [round(p.fraction, 2) for p in seen] == [0.0, 0.33, 0.67]
    assert seen[0].stage == "starting the worker"


def test_the_same_concept_is_asked_once(logic, ct, client):
    logic.segment(ct, ["liver", "Liver", " liver "])
    assert client.asked[-1][1] == ["liver"]


def test_features_are_used_again_until_something_changes(logic, ct, client):
    node = logic.segment(ct, "liver")
    logic.segment(ct, "spleen", node)
    assert len(client.sessions) == 1
    logic.segment(ct, "spleen", node, thorough=True)
    assert len(client.sessions) == 2
    assert client.sessions[0].closed
    ct.SetSpacing(1.5, 1.5, 3)
    logic.segment(ct, "liver", thorough=True)
    assert len(client.sessions) == 3


def test_settings_reach_the_worker(logic, ct, client):
    logic.segment(
        ct, "liver", axis="coronal", window="lung", threshold=0.4, device="cpu", memoryGb=2, model="demo"
    )
    session = client.sessions[-1]
    assert session.options == {
        "axis": "coronal", "window": "lung", "mode": "recommended", "host_bytes": 2_000_000_000
    }  # fmt: skip
    assert session.device == "cpu"
    assert client.asked[-1][2] == {"threshold": 0.4}


def test_nothing_found_adds_nothing(logic, scene, ct):
    before = snapshot(scene)
    assert logic.segment(ct, "nowhere") is None
    assert snapshot(scene) == before
    assert logic.run.outcome.missing == ("nowhere",)


@pytest.mark.parametrize(
    ("concepts", "kind", "sentence"),
    [([], PromptError, "no concept"), (["  "], PromptError, "(?i)concept|phrase")],
)
def test_bad_concepts_are_refused_before_anything_starts(logic, scene, ct, client, concepts, kind, sentence):
    before = snapshot(scene)
    with pytest.raises(kind, match=sentence):
        logic.segment(ct, concepts)
    assert snapshot(scene) == before
    assert client.sessions == []


def test_bad_settings_are_refused_in_a_sentence(logic, ct):
    with pytest.raises(InputError, match="enter a number between 0 and 1"):
        logic.segment(ct, "liver", threshold=3)
    with pytest.raises(InputError, match="The axis is 'oblique'; expected one of auto, axial"):
        logic.segment(ct, "liver", axis="oblique")
    with pytest.raises(VolumeError, match="Choose a volume"):
        logic.segment(None, "liver")
    with pytest.raises(WorkerError, match="is no program on this computer"):
        logic.segment(ct, "liver", workerCommand="no-such-program worker")


@pytest.mark.parametrize(
    "fault", [ResourceError("Memory ran out."), WorkerError("Died."), RuntimeError("bug")]
)
def test_a_failed_run_leaves_everything_as_it_was(logic, scene, ct, client, fault):
    node = logic.segment(ct, "liver")
    logic.writer.history.undo()
    logic.writer.history.redo()
    client.fault = fault
    before = snapshot(scene, node)
    undoable = (logic.writer.history.canUndo, logic.writer.history.canRedo)
    with pytest.raises(type(fault)):
        logic.segment(ct, "spleen", node)
    assert snapshot(scene, node) == before
    assert (logic.writer.history.canUndo, logic.writer.history.canRedo) == undoable
    assert logic.run.state is State.FAILED


def test_a_cancelled_run_leaves_everything_as_it_was(logic, scene, ct):
    node = logic.segment(ct, "liver")
    before = snapshot(scene, node)
    run = logic.start(ct, "spleen", node)
    logic.tick()
    run.cancel()
    logic.drive(run)
    assert run.state is State.CANCELLED
    assert str(run.error) == "Cancelled; nothing was changed."
    assert snapshot(scene, node) == before
    logic.writer.history.undo()
    assert segmentNames(node) == []


def test_a_token_cancels_a_script(logic, scene, ct):
    token = CancelToken()
    before = snapshot(scene)
    with pytest.raises(Cancelled):
        logic.segment(ct, "liver", cancel=token, progress=lambda _: token.cancel())
    assert snapshot(scene) == before


def test_cancelling_before_the_first_step_and_after_the_last_is_harmless(logic, scene, ct):
    run = logic.start(ct, "liver")
    run.cancel()
    logic.drive(run)
    assert run.state is State.CANCELLED
    run = logic.start(ct, "liver")
    logic.drive(run)
    run.cancel()
    assert run.state is State.FINISHED


def test_a_second_run_waits_its_turn(logic, ct):
    run = logic.start(ct, "liver")
    with pytest.raises(InputError, match="A run is going on"):
        logic.start(ct, "spleen")
    logic.drive(run)
    assert logic.segment(ct, "spleen") is not None


def test_closing_the_scene_in_the_middle_is_clean(logic, scene, ct, client):
    run = logic.start(ct, "liver")
    logic.tick()
    logic.tick()
    scene.Clear(0)
    assert run.state is State.CANCELLED
    assert "scene was closed" in str(run.error)
    logic.tick()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert client.sessions == [] or client.sessions[-1].closed


def test_after_closing_the_scene_the_logic_works_again(application, logic, scene, ct, ball):
    logic.segment(ct, "liver")
    scene.Clear(0)
    again = application.addVolume(phantom((20, 40, 48)), name="again")
    node = logic.segment(again, "liver")
    np.testing.assert_array_equal(drawn(node, again), ball)


@pytest.mark.parametrize("which", ["volume", "segmentation"])
def test_deleting_a_node_in_the_middle_is_clean(logic, scene, ct, which):
    node = logic.segment(ct, "liver")
    run = logic.start(ct, "spleen", node)
    logic.tick()
    scene.RemoveNode(ct if which == "volume" else node)
    assert run.state is State.CANCELLED
    assert "was deleted" in str(run.error)
    logic.tick()
    if which == "volume":
        assert segmentNames(node) == [logic.resolveConcepts("liver")[0].name]


def test_changing_the_volume_in_the_middle_drops_the_result(logic, scene, ct):
    run = logic.start(ct, "liver")
    while logic.run.pending is None or not hasattr(logic.run.pending, "advance"):
        logic.tick()
    ct.SetSpacing(2, 2, 2)
    logic.drive(run)
    assert run.state is State.CANCELLED
    assert "changed while the run was going" in str(run.error)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_quitting_in_the_middle_ends_the_worker(application, client):
    logic = SegmentationLogic(application.scene, client)
    volume = application.addVolume(phantom((4, 8, 8)))
    run = logic.start(volume, "liver")
    logic.tick()
    logic.close()
    assert run.isOver
    assert client.closed


def test_a_dead_worker_costs_no_segment(application, scene, ct):
    logic = SegmentationLogic(scene, DyingClient())
    with pytest.raises(WorkerError, match="Try again"):
        logic.segment(ct, "liver")
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    logic.close()


def test_a_callback_gets_the_run(logic, ct):
    ended = []
    run = logic.segment(ct, "liver", callback=ended.append)
    assert ended == []
    while not run.isOver:
        logic.tick()
    assert ended == [run]
    assert run.outcome.written[0].score == pytest.approx(0.87)
    assert run.segmentationNode is not None


def test_refining_uses_the_last_result_and_the_new_box_only(logic, scene, ct, client, ball):
    node = logic.segment(ct, "liver")
    roi = roiFromBox(scene, Box((1, 4), (1, 4), (2, 3)), ct)
    off = roiFromBox(scene, Box((8, 9), (1, 4), (2, 3)), ct)
    setEnabled(off, False)
    logic.refine(node, "liver", [roi, off])
    expected = ball.copy()
    expected[2:4, 1:5, 1:5] = True
    np.testing.assert_array_equal(drawn(node, ct), expected)
    assert client.asked[-1][2] == (Box((1, 4), (1, 4), (2, 3)),)
    second = roiFromBox(scene, Box((20, 24), (1, 4), (2, 3), positive=False), ct)
    logic.refine(node, "liver", [roi, second])
    assert client.asked[-1][2] == (Box((20, 24), (1, 4), (2, 3), positive=False),)
    assert len(segmentNames(node)) == 1


def test_refining_after_a_hand_edit_keeps_the_edit(logic, scene, ct, client, ball):
    node = logic.segment(ct, "liver")
    segment = node.GetSegmentation().GetNthSegment(0)
    k, j, i = (int(n) for n in np.argwhere(ball)[0])
    image = segment.GetRepresentation("Binary labelmap")
    image.SetScalarComponentFromDouble(i, j, k, 0, 0)
    image.Modified()
    logic.refine(node, "liver", [roiFromBox(scene, Box((1, 2), (1, 2), (1, 1)), ct)])
    previous = client.asked[-1][1]
    assert not previous.to_array()[k, j, i]
    assert client.asked[-1][3] == {"edited_slices": [k]}


def test_a_hand_edit_is_refined_under_a_transform_too(application, logic, scene, ct, client, ball):
    matrix = np.eye(4)
    matrix[:3, 3] = (5, -3, 8)
    ct.SetAndObserveTransformNodeID(application.addTransform(matrix).GetID())
    node = logic.segment(ct, "liver")
    k, j, i = (int(n) for n in np.argwhere(ball)[0])
    image = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    image.SetScalarComponentFromDouble(i, j, k, 0, 0)
    image.Modified()
    logic.refine(node, "liver", [roiFromBox(scene, Box((1, 2), (1, 2), (1, 1)), ct)])
    assert client.asked[-1][3] == {"edited_slices": [k]}
    assert not drawn(node, ct)[k, j, i]


@pytest.mark.parametrize(
    ("axis", "slices"), [("axial (grid axis k)", [3]), ("coronal (grid axis j)", [5]), ("", [3])]
)
def test_edited_slices_are_counted_along_the_slicing_axis(ct, ball, axis, slices):
    from dataclasses import replace

    from MedSAM3SlicerLib.adapter.segments import editedSlices

    written = result(ct, ball)
    written = replace(written, provenance=replace(written.provenance, axis=axis))
    mask = ball.copy()
    mask[3, 5, 7] = ~mask[3, 5, 7]
    assert editedSlices(written, result(ct, mask)) == slices
    assert editedSlices(written, result(ct, ball)) == []


def test_a_box_that_was_deleted_counts_no_more(logic, scene, ct, client):
    node = logic.segment(ct, "liver")
    first = roiFromBox(scene, Box((1, 4), (1, 4), (2, 3)), ct)
    logic.refine(node, "liver", [first])
    scene.RemoveNode(first)
    logic.refine(node, "liver", [roiFromBox(scene, Box((8, 9), (8, 9), (2, 2)), ct)])
    assert client.asked[-1][1].boxes == ()


def test_refining_without_a_box_is_refused(logic, ct):
    node = logic.segment(ct, "liver")
    with pytest.raises(PromptError, match="draw one on the image"):
        logic.refine(node, "liver", [])


def test_boxes_go_with_every_concept(logic, scene, ct, client):
    box = Box((1, 4), (1, 4), (2, 3))
    logic.segment(ct, ["liver", "spleen"], roiNodes=[roiFromBox(scene, box, ct)])
    assert [entry[1:3] for entry in client.asked] == [("liver", (box,)), ("spleen", (box,))]


def test_a_batch_writes_one_file_a_volume_and_leaves_the_scene_alone(application, logic, scene, ct, tmp_path):
    other = application.addVolume(phantom((6, 10, 12)), name="CT")
    broken = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "broken")
    before = snapshot(scene)
    seen = []
    results = logic.segmentAll([ct, broken, other], ["liver"], tmp_path / "out", progress=seen.append)
    assert [r.path.name if r.path else None for r in results] == ["CT.seg.nrrd", None, "CT_2.seg.nrrd"]
    assert "holds no voxels" in results[1].problem
    assert snapshot(scene) == before
    assert max(p.fraction for p in seen) <= 1.0
    again = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "again")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(results[0].path))
    assert storage.ReadData(again)
    assert provenance.readProvenance(again.GetSegmentation().GetNthSegment(0)).concept == "liver"


def test_a_batch_goes_on_where_it_stopped(logic, ct, client, tmp_path):
    logic.segmentAll([ct], "liver", tmp_path)
    asked = len(client.asked)
    assert logic.segmentAll([ct], "liver", tmp_path, resume=True)[0].path.exists()
    assert len(client.asked) == asked


def test_a_folder_that_cannot_be_made_is_refused(logic, ct, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be made"):
        logic.segmentAll([ct], "liver", tmp_path / "file" / "out")


@pytest.fixture
def beating(application, scene):
    """A browser of three frames, and the volume that shows the current one."""
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "heart")
    for n in range(3):
        frame = application.addVolume(np.roll(phantom((6, 20, 24)), n, axis=2), name=f"frame{n}")
        sequence.SetDataNodeAtValue(frame, str(n))
        scene.RemoveNode(frame)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    application.sequences.UpdateProxyNodesFromSequences(browser)
    return browser, browser.GetProxyNode(sequence)


def heart(number):
    return np.roll(phantom((6, 20, 24)) > 0, number, axis=2)


def show(application, browser, number):
    browser.SetSelectedItemNumber(number)
    application.sequences.UpdateProxyNodesFromSequences(browser)


def test_all_frames_of_a_sequence(application, logic, scene, beating):
    browser, volume = beating
    node = logic.segment(volume, "heart", allFrames=True)
    assert not node.GetHideFromEditors()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert scene.GetNumberOfNodesByClass("vtkMRMLSequenceNode") == 2
    segmentations = scene.GetNthNodeByClass(1, "vtkMRMLSequenceNode")
    assert segmentations.GetNumberOfDataNodes() == 3
    assert browser.GetProxyNode(segmentations) is node
    for n in range(3):
        show(application, browser, n)
        np.testing.assert_array_equal(drawn(node, volume), heart(n))
    assert len(logic.run.outcome.written) == 3


def test_a_users_segments_stay_whole_in_every_frame(application, logic, scene, beating):
    browser, volume = beating
    node = logic.writer.createNode(volume)
    drawing = np.zeros((6, 20, 24), bool)
    drawing[1:3, 2:5, 2:5] = True
    logic.writer.write(node, volume, [result(volume, drawing, "drawing")])
    logic.segment(volume, "heart", node, allFrames=True)
    for n in range(3):
        show(application, browser, n)
        assert segmentNames(node) == ["Drawing", "Heart"]
        np.testing.assert_array_equal(drawn(node, volume), drawing)
        np.testing.assert_array_equal(drawn(node, volume, 1), heart(n))


def test_a_second_concept_joins_the_first_in_every_frame(application, logic, scene, beating):
    browser, volume = beating
    node = logic.segment(volume, "heart", allFrames=True)
    assert logic.segment(volume, "aorta", node, allFrames=True) is node
    assert scene.GetNumberOfNodesByClass("vtkMRMLSequenceNode") == 2
    for n in range(3):
        show(application, browser, n)
        assert segmentNames(node) == ["Heart", "Aorta"]
        np.testing.assert_array_equal(drawn(node, volume, 1), heart(n))


def test_frames_that_cannot_be_written_change_nothing(logic, scene, beating, monkeypatch):
    _, volume = beating
    node = logic.writer.createNode(volume)
    logic.writer.write(node, volume, [result(volume, heart(0), "drawing")])
    before = snapshot(scene, node)
    stored = sequences.storeFrame

    def full(sequence, segmentationNode, frame):
        if frame.number == 2:
            raise OutputError("The third frame does not fit.")
        stored(sequence, segmentationNode, frame)

    monkeypatch.setattr(sequences, "storeFrame", full)
    with pytest.raises(OutputError, match="third frame"):
        logic.segment(volume, "heart", node, allFrames=True)
    assert snapshot(scene, node) == before


def test_a_concept_found_in_one_frame_is_not_missing(application, logic, scene, beating, client):
    _, volume = beating
    logic.segment(volume, ["heart", "nowhere"], allFrames=True)
    assert logic.run.outcome.missing == ("nowhere",)


def test_another_worker_command_does_not_wait_for_the_old_worker(logic, ct, client):
    logic.segment(ct, "liver")
    closing, mayClose, closed = threading.Event(), threading.Event(), []

    def close():
        closing.set()
        closed.append(mayClose.wait(60))

    client.close = close
    logic.start(ct, "liver", settings=RunSettings(workerCommand=f"{sys.executable} -m other"))
    assert closed == []
    assert closing.wait(60)
    mayClose.set()


def test_memory_is_given_back_by_a_worker_that_runs(logic, ct, client):
    assert not logic.releaseMemory()
    logic.segment(ct, "liver")
    assert logic.releaseMemory()
    assert client.released == ["model"]


def test_all_frames_of_a_plain_volume_are_refused(logic, ct):
    with pytest.raises(InputError, match="not part of a sequence"):
        logic.segment(ct, "liver", allFrames=True)


def test_masks_of_the_segment_editor_count_only_when_asked(application, logic, scene, ct, ball):
    editor = application.editorNode
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(5000, 6000)
    node = logic.segment(ct, "liver")
    assert drawn(node, ct).sum() == ball.sum()
    masked = logic.segment(ct, "liver", overlap="editor")
    assert drawn(masked, ct).sum() == 0


def test_settings_say_what_is_wrong_with_them():
    problems = RunSettings(model=" ", threshold=2.0, memoryGb=-1, window="purple").validate()
    assert sorted(problems) == ["memoryGb", "model", "threshold", "window"]
    assert all(problem.endswith(".") for problem in problems.values())
    assert RunSettings(window="400, 50").validate() == {}


def test_the_worker_speaks_through_a_signal(logic, ct, client):
    heard = []
    logic.workerSaid.connect(heard.append)
    logic.segment(ct, "liver")
    client.tell("an event")
    assert heard == ["an event"]
    logic.answer = lambda question: question == "Go on?"
    assert client.ask("Go on?")
