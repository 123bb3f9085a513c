from __future__ import annotations

import numpy as np
import pytest
import vtk
from mrml_scene import phantom, rotation

from MedSAM3Core.errors import VolumeError
from MedSAM3SlicerLib.adapter.volumes import contentStamp, readVolume, volumeProblem


def test_a_scalar_volume_keeps_its_voxels_and_its_place(scene, ct):
    volume = readVolume(scene, ct)
    assert volume.array.shape == (20, 40, 48)
    np.testing.assert_array_equal(volume.array, phantom((20, 40, 48)))
    np.testing.assert_allclose(volume.geometry.spacing, (1, 1, 3))
    assert volume.name == "CT"
    assert volume.modality == "CT"


def test_the_voxels_are_not_copied(scene, ct):
    scalars = ct.GetImageData().GetPointData().GetScalars()
    before = readVolume(scene, ct).array[3, 4, 5]
    scalars.SetTuple1(3 * 40 * 48 + 4 * 48 + 5, before + 7)
    assert readVolume(scene, ct).array[3, 4, 5] == before + 7


def test_a_tilted_left_handed_volume_keeps_its_affine(application):
    directions = rotation(0, 25) @ np.diag([1.0, 1.0, -1.0])
    node = application.addVolume(phantom((6, 8, 10)), (0.7, 0.7, 2.5), (10, -20, 30), directions)
    affine = readVolume(application.scene, node).geometry.ijk_to_ras
    np.testing.assert_allclose(affine[:3, :3], directions @ np.diag([0.7, 0.7, 2.5]), atol=1e-12)
    np.testing.assert_allclose(affine[:3, 3], (10, -20, 30))
    assert np.linalg.det(affine[:3, :3]) < 0


def test_linear_transforms_move_the_grid_into_the_world(application, ct):
    outer, inner = np.eye(4), np.eye(4)
    outer[:3, :3], outer[:3, 3] = rotation(2, 90), (5, 6, 7)
    inner[:3, 3] = (1, 2, 3)
    first, second = application.addTransform(outer), application.addTransform(inner)
    second.SetAndObserveTransformNodeID(first.GetID())
    own = readVolume(application.scene, ct).geometry.ijk_to_ras
    ct.SetAndObserveTransformNodeID(second.GetID())
    world = readVolume(application.scene, ct).geometry.ijk_to_ras
    np.testing.assert_allclose(world, outer @ inner @ own, atol=1e-12)


def test_under_a_bending_transform_the_grid_is_the_volumes_own(application, ct):
    own = readVolume(application.scene, ct).geometry.ijk_to_ras
    ct.SetAndObserveTransformNodeID(application.addBendingTransform().GetID())
    np.testing.assert_allclose(readVolume(application.scene, ct).geometry.ijk_to_ras, own)


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_images_lose_only_their_alpha(application, rng, channels):
    pixels = rng.integers(0, 255, (1, 30, 20, channels), np.uint8)
    node = application.addVolume(pixels, name="photo")
    volume = readVolume(application.scene, node)
    assert volume.is_rgb
    assert volume.is_2d
    np.testing.assert_array_equal(volume.array, pixels[..., :3])


def test_16_bit_colours_become_8_bit(application):
    node = application.addVolume(np.full((1, 4, 4, 3), 0xABCD, np.uint16))
    assert readVolume(application.scene, node).array.max() == 0xAB


def test_three_columns_are_not_taken_for_colours(application):
    node = application.addVolume(np.zeros((4, 5, 3), np.uint8) + np.arange(3, dtype=np.uint8))
    assert readVolume(application.scene, node).array.shape == (4, 5, 3)


def test_the_modality_comes_from_dicom(application, ct):
    from MedSAM3SlicerLib.adapter.hierarchy import itemOf

    hierarchy = application.scene.GetSubjectHierarchyNode()
    hierarchy.SetItemAttribute(itemOf(application.scene, ct), "DICOM.Modality", "DX")
    assert readVolume(application.scene, ct).modality == "XR"


def test_what_cannot_be_segmented_is_said_in_a_sentence(application):
    labelmap = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    empty = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    field = application.addVolume(np.zeros((2, 3, 4, 3), np.float32), name="displacement")
    assert volumeProblem(None) == "Choose a volume to segment."
    assert "labels is a labelmap" in volumeProblem(labelmap)
    assert "nothing holds no voxels" in volumeProblem(empty)
    assert "displacement has 3 components of type float" in volumeProblem(field)
    with pytest.raises(VolumeError, match="holds no voxels"):
        readVolume(application.scene, empty)


def test_the_stamp_changes_with_voxels_geometry_and_transform(application, ct):
    stamps = [contentStamp(ct)]
    assert contentStamp(ct) == stamps[0]
    ct.GetImageData().GetPointData().GetScalars().SetTuple1(0, 5)
    ct.GetImageData().Modified()
    stamps.append(contentStamp(ct))
    ct.SetSpacing(2, 2, 2)
    stamps.append(contentStamp(ct))
    transform = application.addTransform(np.eye(4))
    ct.SetAndObserveTransformNodeID(transform.GetID())
    stamps.append(contentStamp(ct))
    moved = vtk.vtkMatrix4x4()
    moved.SetElement(0, 3, 4.0)
    transform.SetMatrixTransformToParent(moved)
    stamps.append(contentStamp(ct))
    assert len(set(stamps)) == 5


def test_window_level_leaves_the_stamp_alone(ct):
    before = contentStamp(ct)
    ct.GetDisplayNode().SetAutoWindowLevel(False)
    ct.GetDisplayNode().SetWindowLevel(400, 40)
    assert contentStamp(ct) == before
