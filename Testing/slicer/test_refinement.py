from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from doubles import ThresholdClient
from mrml_scene import phantom

from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Box, Point
from MedSAM3SlicerLib.adapter import boxes, points, revisions
from MedSAM3SlicerLib.adapter.boxes import roiFromBox
from MedSAM3SlicerLib.adapter.drawing import Drawing, marksOf
from MedSAM3SlicerLib.adapter.segments import readMask
from MedSAM3SlicerLib.logic import SegmentationLogic

BOX = Box((1, 4), (1, 4), (2, 2))
OTHER = Box((20, 24), (1, 4), (3, 3))


@pytest.fixture
def client():
    return ThresholdClient()


@pytest.fixture
def logic(application, client):
    made = SegmentationLogic(application.scene, client, sequencesLogic=application.sequences)
    yield made
    made.close()


@pytest.fixture
def node(logic, ct):
    """A segmentation with one segment, made by text."""
    return logic.segment(ct, "liver")


def idOf(node):
    return node.GetSegmentation().GetNthSegmentID(0)


def drawn(node, volumeNode, n=0):
    extent, crop = readMask(node, node.GetSegmentation().GetNthSegmentID(n), volumeNode)
    full = np.zeros(volumeNode.GetImageData().GetDimensions()[::-1], bool)
    if extent:
        full[extent.slices] = crop
    return full


def rois(scene):
    return [
        scene.GetNthNodeByClass(n, "vtkMRMLMarkupsROINode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLMarkupsROINode"))
    ]


def editVoxel(node, ijk, value=0):
    image = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    image.SetScalarComponentFromDouble(*ijk, 0, value)
    image.Modified()


def addPoints(scene, ct, world, positive=True):
    found = points.addPointList(scene, ct, positive, "clicks")
    for position in world:
        found.AddControlPoint(vtk.vtkVector3d(*position))
    return found


def test_clicks_go_to_the_worker_as_voxels(logic, scene, ct, client, node):
    here = addPoints(scene, ct, [(10.2, 7.7, 12.1), (1, 2, 3)])
    notHere = addPoints(scene, ct, [(5, 6, 9)], positive=False)
    logic.refine(node, "liver", pointNodes=[here, notHere])
    expected = [Point(10, 8, 4), Point(1, 2, 1), Point(5, 6, 3, positive=False)]
    assert client.asked[-1][3]["points"] == expected
    assert client.asked[-1][2] == ()


def test_a_click_outside_the_image_is_refused(logic, scene, ct, node):
    with pytest.raises(PromptError, match="Point 2 of clicks lies outside"):
        logic.refine(node, "liver", pointNodes=[addPoints(scene, ct, [(1, 1, 1), (500, 0, 0)])])


def test_clicks_under_transforms_land_on_their_voxel(application, logic, scene, ct, client, node):
    matrix = np.eye(4)
    matrix[:3, 3] = (5, -3, 8)
    here = addPoints(scene, ct, [(10, 8, 12)])
    transform = application.addTransform(matrix)
    for moved in (ct, node, here):
        moved.SetAndObserveTransformNodeID(transform.GetID())
    assert points.pointsFromNode(here, ct) == [Point(10, 8, 4)]


def test_locked_slices_go_with_every_rerun_until_they_are_released(logic, scene, ct, client, node):
    logic.refinement.setLocked(node, idOf(node), [3, 5])
    roi = roiFromBox(scene, BOX, ct)
    logic.refine(node, "liver", [roi])
    assert client.asked[-1][3] == {"locked_slices": [3, 5]}
    logic.refinement.setLocked(node, idOf(node), [3], locked=False)
    logic.refine(node, "liver", [roi])
    assert client.asked[-1][3] == {"locked_slices": [5]}


def test_more_like_this_needs_no_box(logic, ct, client, node):
    logic.refine(node, "liver", moreLikeThis=True)
    assert client.asked[-1][3] == {"more_like_this": True}


def test_a_hand_edit_alone_can_be_rerun(logic, ct, client, node, ball):
    with pytest.raises(PromptError):
        logic.refine(node, "liver")
    k, j, i = (int(n) for n in np.argwhere(ball)[0])
    editVoxel(node, (i, j, k))
    logic.refine(node, "liver")
    assert client.asked[-1][3] == {"edited_slices": [k]}


def test_hand_edits_are_known_after_slicer_was_closed(application, logic, scene, ct, client, node, ball):
    """Another logic, as after a start: only the scene tells what the last run wrote."""
    k, j, i = (int(n) for n in np.argwhere(ball)[0])
    editVoxel(node, (i, j, k))
    another = SegmentationLogic(scene, client)
    another.refine(node, "liver", [roiFromBox(scene, BOX, ct)])
    assert client.asked[-1][3] == {"edited_slices": [k]}
    another.close()


def test_undo_and_redo_take_masks_boxes_and_locks_together(logic, scene, ct, node, ball):
    segmentId = idOf(node)
    logic.refinement.setLocked(node, segmentId, [7])
    roi = roiFromBox(scene, BOX, ct)
    placed = boxes.corners(roi)
    logic.refine(node, "liver", [roi])
    refined = drawn(node, ct)
    assert refined[2, 1:5, 1:5].all()

    logic.refinement.undo(node, ct)  # the rerun
    np.testing.assert_array_equal(drawn(node, ct), ball)
    assert len(rois(scene)) == 1
    logic.refinement.undo(node, ct)  # the box
    assert rois(scene) == []
    assert logic.refinement.lockedSlices(node, segmentId) == (7,)
    logic.refinement.undo(node, ct)  # the lock
    assert logic.refinement.lockedSlices(node, segmentId) == ()
    np.testing.assert_array_equal(drawn(node, ct), ball)

    for _ in range(3):
        logic.refinement.redo(node, ct)
    np.testing.assert_array_equal(drawn(node, ct), refined)
    assert logic.refinement.lockedSlices(node, segmentId) == (7,)
    (back,) = rois(scene)
    np.testing.assert_array_equal(boxes.corners(back), placed)
    assert boxes.ownerOf(back) == (node.GetID(), segmentId)


def test_the_segment_editors_own_undo_brings_a_deleted_box_back(logic, scene, ct, node):
    roi = roiFromBox(scene, BOX, ct)
    logic.refine(node, "liver", [roi])
    scene.RemoveNode(roi)
    assert logic.refinement.drawings.reconcile(node, ct)
    logic.writer.history.undo()  # as Ctrl+Z there does
    assert logic.refinement.drawings.reconcile(node, ct)
    assert len(rois(scene)) == 1
    assert not logic.refinement.drawings.reconcile(node, ct)


def test_a_run_after_an_undo_starts_from_what_is_shown(logic, scene, ct, client, node, ball):
    roi = roiFromBox(scene, BOX, ct)
    logic.refine(node, "liver", [roi])
    logic.refinement.undo(node, ct)
    logic.refine(node, "liver", [roiFromBox(scene, OTHER, ct)])
    previous = client.asked[-1][1]
    np.testing.assert_array_equal(previous.to_array(), ball)
    assert "edited_slices" not in client.asked[-1][3]


def test_fifty_steps_are_kept_and_no_more(logic, scene, ct, node):
    segmentId = idOf(node)
    for n in range(60):
        logic.refinement.setLocked(node, segmentId, [n % 20], locked=n // 20 % 2 == 0)
    steps = 0
    while logic.writer.history.canUndo and steps < 100:
        logic.refinement.undo(node, ct)
        steps += 1
    assert steps == 50


def test_every_rerun_is_a_revision_and_can_be_had_again(logic, scene, ct, client, node, ball):
    segmentId = idOf(node)
    roi = roiFromBox(scene, BOX, ct)
    logic.refine(node, "liver", [roi])
    refined = drawn(node, ct)
    logic.refine(node, "liver", [roi, roiFromBox(scene, OTHER, ct)])
    latest = drawn(node, ct)
    kept = logic.refinement.revisions.of(node, segmentId)
    assert [(r.number, r.what) for r in kept] == [(1, "text"), (2, "1 box"), (3, "2 boxes")]

    asked = len(client.asked)
    logic.refinement.restore(node, segmentId, 2, ct)
    np.testing.assert_array_equal(drawn(node, ct), refined)
    assert len(rois(scene)) == 1
    logic.refinement.restore(node, segmentId, 1, ct)
    np.testing.assert_array_equal(drawn(node, ct), ball)
    assert rois(scene) == []
    logic.refinement.undo(node, ct)
    logic.refinement.undo(node, ct)
    np.testing.assert_array_equal(drawn(node, ct), latest)
    assert len(rois(scene)) == 2
    assert len(client.asked) == asked
    with pytest.raises(PromptError, match="there are: 1, 2, 3"):
        logic.refinement.restore(node, segmentId, 9, ct)


def test_a_saved_scene_opens_where_it_was_left_without_a_model(tmp_path, logic, scene, ct, node, ball):
    """Revisions and boxes through a real MRML file; voxels of volumes and segmentations are files of their own."""
    logic.refine(node, "liver", [roiFromBox(scene, BOX, ct)])
    latest = drawn(node, ct)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    opened = slicer.vtkMRMLScene()
    for kind in ("vtkMRMLTextNode", "vtkMRMLMarkupsROINode", "vtkMRMLSegmentationNode"):
        opened.RegisterNodeClass(getattr(slicer, kind)())
    opened.SetURL(str(tmp_path / "scene.mrml"))
    opened.Import()
    again = opened.GetNodeByID(node.GetID())
    book = revisions.RevisionBook(opened)
    assert [revision.what for revision in book.of(again, idOf(node))] == ["text", "1 box"]
    result, drawing = book.read(book.of(again, idOf(node))[-1], ct)
    np.testing.assert_array_equal(result.to_array(), latest)
    (roi,) = rois(opened)
    assert boxes.ownerOf(roi) == (node.GetID(), idOf(node))
    assert [mark.id for mark in drawing.marks] == [roi.GetAttribute(boxes.ID_ATTRIBUTE)]


def test_old_revisions_go_when_there_are_too_many(logic, ct, node, monkeypatch):
    monkeypatch.setattr(revisions, "MOST_REVISIONS", 3)
    result = logic.refinement.lastWritten(node, idOf(node), ct)
    for n in range(5):
        logic.refinement.revisions.add(node, idOf(node), result, str(n))
    assert [r.what for r in logic.refinement.revisions.of(node, idOf(node))] == ["2", "3", "4"]
    monkeypatch.setattr(revisions, "MOST_BYTES", 1)
    logic.refinement.revisions.add(node, idOf(node), result, "last")
    assert [r.what for r in logic.refinement.revisions.of(node, idOf(node))] == ["last"]


def test_revisions_go_with_their_segmentation(logic, scene, ct, node):
    assert scene.GetNumberOfNodesByClass("vtkMRMLTextNode") == 1
    scene.RemoveNode(node)
    assert scene.GetNumberOfNodesByClass("vtkMRMLTextNode") == 0


def test_accept_ends_it(logic, scene, ct, client, node, ball):
    segmentId = idOf(node)
    roi = roiFromBox(scene, BOX, ct)
    logic.refinement.setLocked(node, segmentId, [4])
    logic.refine(node, "liver", [roi])
    done = drawn(node, ct)
    logic.refinement.accept(node, segmentId, ct)
    assert logic.refinement.isAccepted(node, segmentId)
    assert rois(scene) == []
    assert logic.refinement.lockedSlices(node, segmentId) == ()
    logic.segment(ct, "liver", node)
    assert node.GetSegmentation().GetNumberOfSegments() == 2
    np.testing.assert_array_equal(drawn(node, ct), done)
    logic.refinement.undo(node, ct)
    logic.refinement.undo(node, ct)
    assert not logic.refinement.isAccepted(node, segmentId)
    assert len(rois(scene)) == 1
    assert logic.refinement.lockedSlices(node, segmentId) == (4,)


def test_boxes_of_one_segment_are_not_anothers(logic, scene, ct, node):
    logic.segment(ct, "spleen", node)
    first, second = (node.GetSegmentation().GetNthSegmentID(n) for n in (0, 1))
    logic.refine(node, first, [roiFromBox(scene, BOX, ct)])
    logic.refine(node, second, [roiFromBox(scene, OTHER, ct)])
    assert len(marksOf(scene, node, first)) == len(marksOf(scene, node, second)) == 1


def test_a_drawing_survives_as_text():
    assert Drawing.parse(Drawing().text()) == Drawing()
    assert Drawing.parse(Drawing(locked=(1, 2)).text()) == Drawing(locked=(1, 2))


def test_the_phantom_is_what_these_tests_need():
    assert (phantom((20, 40, 48)) > 0)[2:4, 1:5, 1:5].sum() == 0
