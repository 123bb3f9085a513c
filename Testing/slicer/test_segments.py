from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer.util
import vtk
from mrml_scene import Application, phantom, result, rotation

from MedSAM3Core.errors import OutputError
from MedSAM3Core.prompts import Code, Coding, Concept
from MedSAM3SlicerLib.adapter import hierarchy, provenance
from MedSAM3SlicerLib.adapter.history import LogicHistory
from MedSAM3SlicerLib.adapter.segments import (
    SegmentWriter,
    editedByHand,
    findSegment,
    readMask,
    readSegmentation,
    volumeMlOf,
)
from MedSAM3SlicerLib.terminology import terminologyOf

LEFT_KIDNEY = Concept(
    "Kidney left", "left kidney", ("left kidney",), "left kidney", "64033007", (185, 102, 83),
    coding=Coding(
        Code("123037004", "Anatomical Structure"), Code("64033007", "Kidney"), Code("7771000", "Left")
    ),
)  # fmt: skip


@pytest.fixture
def writer(application):
    return SegmentWriter(application.scene, application.editorLogic, LogicHistory(application.editorLogic))


def whole(node, segmentId, volumeNode):
    """The segment on the volume's grid, bool (slices, rows, columns)."""
    extent, crop = readMask(node, segmentId, volumeNode)
    full = np.zeros(volumeNode.GetImageData().GetDimensions()[::-1], bool)
    if extent is not None:
        full[extent.slices] = crop
    return full


def test_a_segment_is_exactly_the_mask(writer, ct, ball):
    node = writer.createNode(ct)
    (written,) = writer.write(node, ct, [result(ct, ball)])
    np.testing.assert_array_equal(whole(node, written.segmentId, ct), ball)
    assert written.volumeMl == pytest.approx(ball.sum() * 3 / 1000)
    assert volumeMlOf(node, written.segmentId) == pytest.approx(written.volumeMl)
    assert not written.replaced


@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("handed", [1.0, -1.0])
@pytest.mark.parametrize("moved", [False, True])
def test_masks_return_to_their_voxels_however_the_volume_lies(rng, degrees, handed, moved):
    application = Application()
    directions = rotation(0, degrees) @ np.diag([1, 1, handed])
    ct = application.addVolume(phantom((12, 20, 24)), (0.7, 0.9, 2.5), (5, -90, 12), directions)
    if moved:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation(1, 40), (1, 2, 3)
        ct.SetAndObserveTransformNodeID(application.addTransform(matrix).GetID())
    writer = SegmentWriter(application.scene, application.editorLogic, LogicHistory(application.editorLogic))
    mask = np.zeros((12, 20, 24), bool)
    mask[2:9, 3:17, 5:20] = rng.random((7, 14, 15)) < 0.4
    node = writer.createNode(ct)
    (written,) = writer.write(node, ct, [result(ct, mask)])
    np.testing.assert_array_equal(whole(node, written.segmentId, ct), mask)
    assert node.GetTransformNodeID() == ct.GetTransformNodeID()


def test_a_2d_colour_image_gets_a_segment(application, writer):
    photo = application.addVolume(np.zeros((1, 30, 20, 3), np.uint8), name="photo")
    mask = np.zeros((1, 30, 20), bool)
    mask[0, 4:9, 5:11] = True
    node = writer.createNode(photo)
    (written,) = writer.write(node, photo, [result(photo, mask)])
    np.testing.assert_array_equal(whole(node, written.segmentId, photo), mask)


def test_a_segmentation_elsewhere_is_written_in_its_own_place(application, writer, ct, ball):
    """The user chose a segmentation that is not under the volume's transform: the segment must lie on the image in the
    world.
    """
    matrix = np.eye(4)
    matrix[:3, 3] = (6, 0, 3)
    node = writer.createNode(ct)
    ct.SetAndObserveTransformNodeID(application.addTransform(matrix).GetID())
    (written,) = writer.write(node, ct, [result(ct, ball)])
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(written.segmentId, image)
    k, j, i = np.argwhere(ball).min(axis=0)
    assert image.GetExtent()[0::2] == (i + 6, j, k + 1)
    np.testing.assert_array_equal(whole(node, written.segmentId, ct), ball)
    assert not editedByHand(node, written.segmentId, ct)


def test_a_segmentation_under_a_bending_transform_is_refused_untouched(application, writer, ct, ball):
    node = writer.createNode(ct)
    node.SetAndObserveTransformNodeID(application.addBendingTransform().GetID())
    with pytest.raises(Exception, match="non-linear transform bend"):
        writer.write(node, ct, [result(ct, ball)])
    assert node.GetSegmentation().GetNumberOfSegments() == 0
    assert not writer.history.canUndo


def test_names_colours_codes_and_tags(writer, ct, ball):
    node = writer.createNode(ct)
    (written,) = writer.write(node, ct, [result(ct, ball, concept=LEFT_KIDNEY)])
    segment = node.GetSegmentation().GetSegment(written.segmentId)
    assert segment.GetName() == "left kidney"
    assert segment.GetColor() == pytest.approx([185 / 255, 102 / 255, 83 / 255])
    assert "~SCT^64033007^Kidney~SCT^7771000^Left~" in terminologyOf(segment)
    entry = slicer.vtkSlicerTerminologyEntry()
    assert slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(terminologyOf(segment), entry)
    assert entry.GetTypeModifierObject().GetCodeMeaning() == "Left"
    assert provenance.getTag(segment, "MedSAM3.Model") == "demo"
    assert provenance.getTag(segment, "MedSAM3.ModelHash") == "ab" * 32


def test_provenance_survives_a_file(application, writer, ct, ball, tmp_path):
    node = writer.createNode(ct)
    (written,) = writer.write(node, ct, [result(ct, ball, concept=LEFT_KIDNEY)])
    made = provenance.readProvenance(node.GetSegmentation().GetSegment(written.segmentId))
    storage = slicer.vtkMRMLSegmentationStorageNode()
    application.scene.AddNode(storage)
    storage.SetFileName(str(tmp_path / "x.seg.nrrd"))
    assert storage.WriteData(node)
    again = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "again")
    assert storage.ReadData(again)
    segment = again.GetSegmentation().GetNthSegment(0)
    assert provenance.readProvenance(segment) == made
    assert made.prompts[1] == "ball|balls"
    assert provenance.scoreOf(segment) == pytest.approx(0.9)
    np.testing.assert_array_equal(whole(again, again.GetSegmentation().GetNthSegmentID(0), ct), ball)
    assert "SCT^64033007^Kidney" in terminologyOf(segment)


def test_overlapping_segments_keep_their_neighbours(writer, ct, ball):
    node = writer.createNode(ct)
    first, second = writer.write(node, ct, [result(ct, ball, "ball"), result(ct, ball, "lesion")])
    np.testing.assert_array_equal(whole(node, first.segmentId, ct), ball)
    np.testing.assert_array_equal(whole(node, second.segmentId, ct), ball)


def test_overwriting_cuts_out_of_neighbours_when_the_user_wants_it(application, writer, ct, ball):
    node = writer.createNode(ct)
    part = ball.copy()
    part[:, :, : int(np.argwhere(ball)[:, 2].mean())] = False
    first, *_ = writer.write(node, ct, [result(ct, ball, "ball")])
    application.editorNode.SetOverwriteMode(application.editorNode.OverwriteAllSegments)
    second, *_ = writer.write(node, ct, [result(ct, part, "lesion")])
    np.testing.assert_array_equal(whole(node, second.segmentId, ct), part)
    np.testing.assert_array_equal(whole(node, first.segmentId, ct), ball & ~part)


def test_masks_of_the_segment_editor_are_honoured(application, writer, ct, ball):
    node = writer.createNode(ct)
    part = ball.copy()
    part[: int(np.argwhere(ball)[:, 0].mean())] = False
    inside, *_ = writer.write(node, ct, [result(ct, part, "lung")])
    application.editorNode.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    application.editorNode.SetMaskSegmentID(inside.segmentId)
    masked, *_ = writer.write(node, ct, [result(ct, ball, "nodule")])
    np.testing.assert_array_equal(whole(node, masked.segmentId, ct), part)
    assert not editedByHand(node, masked.segmentId, ct)


def test_the_intensity_mask_is_honoured(application, writer, ct, ball):
    node = writer.createNode(ct)
    application.editorNode.SetSourceVolumeIntensityMask(True)
    application.editorNode.SetSourceVolumeIntensityMaskRange(0, 3000)
    everywhere = np.ones_like(ball)
    written, *_ = writer.write(node, ct, [result(ct, everywhere, "body")])
    np.testing.assert_array_equal(whole(node, written.segmentId, ct), ball)


def test_undo_takes_the_whole_run_back_and_redo_brings_it_again(writer, ct, ball):
    node = writer.createNode(ct)
    first, *_ = writer.write(node, ct, [result(ct, ball, "ball")])
    writer.write(node, ct, [result(ct, ~ball, "air"), result(ct, ball[::-1], "mirror")])
    assert node.GetSegmentation().GetNumberOfSegments() == 3
    writer.history.undo()
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    np.testing.assert_array_equal(whole(node, first.segmentId, ct), ball)
    writer.history.redo()
    assert node.GetSegmentation().GetNumberOfSegments() == 3


def test_a_rerun_replaces_its_own_segment(writer, ct, ball):
    node = writer.createNode(ct)
    first, *_ = writer.write(node, ct, [result(ct, ball)])
    second, *_ = writer.write(node, ct, [result(ct, ball[:, ::-1])])
    assert second.replaced
    assert second.segmentId == first.segmentId
    np.testing.assert_array_equal(whole(node, first.segmentId, ct), ball[:, ::-1])
    writer.history.undo()
    np.testing.assert_array_equal(whole(node, first.segmentId, ct), ball)


def test_a_rerun_never_overwrites_a_hand_edit(writer, ct, ball):
    node = writer.createNode(ct)
    first, *_ = writer.write(node, ct, [result(ct, ball)])
    image = node.GetSegmentation().GetSegment(first.segmentId).GetRepresentation("Binary labelmap")
    k, j, i = np.argwhere(ball)[0]
    image.SetScalarComponentFromDouble(int(i), int(j), int(k), 0, 0)
    image.Modified()
    edited = whole(node, first.segmentId, ct)
    assert edited.sum() == ball.sum() - 1
    second, *_ = writer.write(node, ct, [result(ct, ball)])
    assert second.segmentId != first.segmentId
    assert second.name == "Ball 2"
    np.testing.assert_array_equal(whole(node, first.segmentId, ct), edited)


def test_a_refinement_replaces_the_segment_it_refines(writer, ct, ball):
    node = writer.createNode(ct)
    first, *_ = writer.write(node, ct, [result(ct, ball)])
    refined, *_ = writer.write(node, ct, [result(ct, ~ball)], [first.segmentId])
    assert refined.segmentId == first.segmentId
    segment = node.GetSegmentation().GetSegment(first.segmentId)
    assert provenance.getTag(segment, provenance.REVISION_TAG) == "2"


def test_nothing_found_makes_no_segment_and_no_undo_state(writer, ct, ball):
    node = writer.createNode(ct)
    assert writer.write(node, ct, [result(ct, np.zeros_like(ball))]) == []
    assert node.GetSegmentation().GetNumberOfSegments() == 0
    assert not writer.history.canUndo


def test_a_refinement_to_nothing_empties_the_segment(writer, ct, ball):
    node = writer.createNode(ct)
    first, *_ = writer.write(node, ct, [result(ct, ball)])
    writer.write(node, ct, [result(ct, np.zeros_like(ball))], [first.segmentId])
    assert not whole(node, first.segmentId, ct).any()
    writer.history.undo()
    np.testing.assert_array_equal(whole(node, first.segmentId, ct), ball)


def test_a_result_of_another_grid_changes_nothing(application, writer, ct, ball):
    node = writer.createNode(ct)
    writer.write(node, ct, [result(ct, ball)])
    other = application.addVolume(phantom((5, 6, 7)))
    wrong = result(other, phantom((5, 6, 7)) > 0, "wrong")
    before = node.GetSegmentation().GetMTime()
    with pytest.raises(OutputError, match="changed during the run"):
        writer.write(node, ct, [result(ct, ball, "right"), wrong])
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    assert node.GetSegmentation().GetMTime() == before


def test_a_segment_comes_back_as_a_segmentation(writer, ct, ball):
    node = writer.createNode(ct)
    made = result(ct, ball)
    (written,) = writer.write(node, ct, [made])
    read = readSegmentation(node, written.segmentId, ct, made.concept)
    np.testing.assert_array_equal(read.to_array(), ball)
    assert read.extent == made.extent
    assert read.boxes[0].k == (3, 3)
    assert read.provenance == made.provenance


def test_segments_are_found_by_name_phrase_or_id(writer, ct, ball):
    node = writer.createNode(ct)
    (written,) = writer.write(node, ct, [result(ct, ball, concept=LEFT_KIDNEY)])
    for text in ("left kidney", "Left Kidney", written.segmentId):
        assert findSegment(node, text) == written.segmentId
    with pytest.raises(OutputError, match="has no segment 'spleen'; it has: left kidney"):
        findSegment(node, "spleen")


def test_the_segmentation_stands_in_the_volumes_study(application, writer, ct):
    tree = application.scene.GetSubjectHierarchyNode()
    study = tree.CreateStudyItem(tree.GetSceneItemID(), "Study of Monday")
    tree.SetItemParent(hierarchy.itemOf(application.scene, ct), study)
    node = writer.createNode(ct)
    assert tree.GetItemParent(tree.GetItemByDataNode(node)) == study


def test_the_geometry_is_the_volumes_own(writer, ct):
    node = writer.createNode(ct)
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    text = node.GetSegmentation().GetConversionParameter(name)
    image = slicer.vtkOrientedImageData()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image, False)
    matrix, expected = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    ct.GetIJKToRASMatrix(expected)
    assert slicer.util.arrayFromVTKMatrix(matrix) == pytest.approx(slicer.util.arrayFromVTKMatrix(expected))
    assert image.GetDimensions() == (48, 40, 20)
