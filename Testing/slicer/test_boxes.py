from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrml_scene import Application, phantom, rotation

from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Box
from MedSAM3SlicerLib.adapter import boxes
from MedSAM3SlicerLib.adapter.boxes import boxFromPoints, boxFromROI, corners, roiFromBox


def test_a_roi_on_voxel_faces_gives_exactly_those_voxels(application):
    node = application.addVolume(phantom((10, 20, 30)), (2.0, 1.0, 3.0))
    roi = application.addROI(centre=(2 * 7, 6.5, 3 * 4), size=(2 * 5, 4, 3 * 3))
    assert boxFromROI(roi, node) == Box((5, 9), (5, 8), (3, 5))


def test_a_thin_roi_is_one_slice(application, ct):
    roi = application.addROI(centre=(20, 20, 3 * 7 + 0.4), size=(10, 10, 0.01))
    assert boxFromROI(roi, ct).k == (7, 7)


def test_all_eight_corners_count_on_a_tilted_volume(application):
    """Two opposite corners give 12.8 slices here, eight give 35.4 (measured in peers, facts of the project)."""
    node = application.addVolume(phantom((80, 80, 80)), directions=rotation(0, 25))
    centre = (np.array([39.5, 39.5, 39.5]) @ rotation(0, 25).T).tolist()
    roi = application.addROI(centre, size=(20, 40, 20))
    depth = 40 * np.sin(np.radians(25)) + 20 * np.cos(np.radians(25))
    box = boxFromROI(roi, node)
    assert box.k[1] - box.k[0] + 1 == pytest.approx(depth, abs=2)
    two = np.array([corners(roi)[0], corners(roi)[-1]]) @ rotation(0, 25)
    assert abs(two[1, 2] - two[0, 2]) < 0.2 * depth + 3


def test_a_turned_roi_is_not_blown_up_twice(application, ct):
    turned = application.addROI((20, 20, 30), (12, 6, 6), rotation(2, 45))
    box = boxFromROI(turned, ct)
    half = (6 + 3) / np.sqrt(2)
    assert box.i == (round(20 - half), round(20 + half))


def test_transforms_of_roi_and_volume_both_count(application, ct):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(2, 90), (100, 50, -20)
    plain = boxFromROI(application.addROI((20, 15, 30), (10, 6, 9)), ct)
    transform = application.addTransform(matrix)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    roi = application.addROI((20, 15, 30), (10, 6, 9))
    roi.SetAndObserveTransformNodeID(transform.GetID())
    assert boxFromROI(roi, ct) == plain
    with pytest.raises(PromptError, match="outside the volume CT"):
        boxFromROI(application.addROI((20, 15, 30), (10, 6, 9), name="far"), ct)


def test_a_bending_transform_of_the_volume_is_undone(application, ct):
    plain = boxFromROI(application.addROI((10, 10, 10), (6, 6, 6)), ct)
    ct.SetAndObserveTransformNodeID(application.addBendingTransform().GetID())
    moved = boxFromROI(application.addROI((10, 10, 10), (6, 6, 6)), ct)
    assert moved != plain
    assert abs(moved.i[0] - plain.i[0]) <= 8


def test_a_roi_reaching_out_is_cut_and_one_outside_is_refused(application, ct):
    assert boxFromROI(application.addROI((0, 0, 0), (10, 10, 10)), ct) == Box((0, 5), (0, 5), (0, 2))
    with pytest.raises(PromptError, match="draw it on the image"):
        boxFromROI(application.addROI((-50, 0, 0), (10, 10, 10)), ct)


def test_a_roi_that_is_not_placed_is_refused(application, ct):
    roi = application.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    with pytest.raises(PromptError, match="not placed yet"):
        boxFromROI(roi, ct)


def test_two_clicks_on_a_slice_make_a_box_on_it(ct):
    assert boxFromPoints([[5, 30, 21], [15.2, 8, 21]], ct, positive=False) == Box(
        (5, 15), (8, 30), (7, 7), False
    )


@settings(max_examples=40)
@given(
    low=st.tuples(*[st.integers(0, 9)] * 3),
    size=st.tuples(*[st.integers(1, 10)] * 3),
    degrees=st.floats(-180, 180),
    handed=st.sampled_from([1.0, -1.0]),
    positive=st.booleans(),
)
def test_a_box_comes_back_from_its_roi(low, size, degrees, handed, positive):
    application = Application()
    directions = rotation(0, degrees) @ rotation(2, degrees / 2) @ np.diag([1, handed, 1])
    node = application.addVolume(phantom((20, 20, 20)), (0.6, 0.8, 2.5), (7, -300, 40), directions)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(1, degrees / 3), (10, 20, 30)
    node.SetAndObserveTransformNodeID(application.addTransform(matrix).GetID())
    box = Box(*((a, a + n - 1) for a, n in zip(low, size, strict=True)), positive=positive)
    roi = roiFromBox(application.scene, box, node)
    assert boxFromROI(roi, node) == box
    np.testing.assert_allclose(np.sort(corners(roi), 0), np.sort(boxes.boxOutline(box, node), 0), atol=1e-4)


def test_sign_and_switch_are_saved_with_the_scene(application, ct, tmp_path):
    roi = roiFromBox(application.scene, Box((1, 5), (2, 6), (3, 3), positive=False), ct, "kept")
    boxes.setEnabled(roi, False)
    path = tmp_path / "scene.mrml"
    application.scene.SetURL(str(path))
    application.scene.Commit()
    application.scene.Clear(0)
    application.scene.Connect()
    restored = application.scene.GetFirstNodeByName("kept")
    assert not boxes.isPositive(restored)
    assert not boxes.isEnabled(restored)
