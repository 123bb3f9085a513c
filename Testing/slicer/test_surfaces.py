from __future__ import annotations

import numpy as np
from mrml_scene import result
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM3SlicerLib.adapter.history import LogicHistory
from MedSAM3SlicerLib.adapter.segments import SegmentWriter
from MedSAM3SlicerLib.adapter.surfaces import CLOSED_SURFACE, hideSurfaces, surfaceSteps


def written(application, ct, masks):
    writer = SegmentWriter(application.scene, application.editorLogic, LogicHistory(application.editorLogic))
    node = writer.createNode(ct)
    writer.write(node, ct, [result(ct, mask, f"part {n}") for n, mask in enumerate(masks)])
    return node


def points(node):
    segmentation = node.GetSegmentation()
    surfaces = [segmentation.GetNthSegment(n).GetRepresentation(CLOSED_SURFACE) for n in range(2)]
    return [vtk_to_numpy(surface.GetPoints().GetData()) for surface in surfaces]


def test_surfaces_made_step_by_step_are_slicers_own(application, ct, ball):
    masks = [ball, np.roll(ball, 4, axis=1)]
    ours, theirs = written(application, ct, masks), written(application, ct, masks)
    theirs.GetSegmentation().SetConversionParameter("Smoothing factor", "0.8")
    ours.GetSegmentation().SetConversionParameter("Smoothing factor", "0.8")
    theirs.CreateClosedSurfaceRepresentation()
    steps = surfaceSteps(ours)
    next(steps)
    assert ours.GetSegmentation().GetNthSegment(0).GetRepresentation(CLOSED_SURFACE) is not None
    assert ours.GetSegmentation().GetNthSegment(1).GetRepresentation(CLOSED_SURFACE) is None
    list(steps)
    for mine, slicers in zip(points(ours), points(theirs), strict=True):
        np.testing.assert_array_equal(mine, slicers)


def test_segments_that_share_a_labelmap_have_their_own_surface(application, ct, ball):
    node = written(application, ct, [ball, np.roll(ball, 20, axis=2) & ~ball])
    node.GetSegmentation().CollapseBinaryLabelmaps()
    list(surfaceSteps(node))
    first, second = points(node)
    assert abs(first.mean(0) - second.mean(0)).max() > 3


def test_an_empty_segment_and_a_second_time_are_harmless(application, ct, ball):
    node = written(application, ct, [ball])
    node.GetSegmentation().AddEmptySegment("empty")
    list(surfaceSteps(node))
    assert len(list(surfaceSteps(node))) <= 1
    hideSurfaces(node)
    assert node.GetSegmentation().GetNthSegment(0).GetRepresentation(CLOSED_SURFACE) is None
