from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PySide6", reason="PySide6 is not installed")

import pythonqt
import vtk
from doubles import ThresholdClient
from mrml_scene import phantom
from panel_scene import Opened

from MedSAM3Core.prompts import Box, Point
from MedSAM3SlicerLib.adapter.boxes import ownerOf, roiFromBox
from MedSAM3SlicerLib.adapter.segments import readMask
from MedSAM3SlicerLib.adapter.shownslice import shownSlice


@pytest.fixture
def client():
    return ThresholdClient()


@pytest.fixture
def opened(client):
    panel = Opened(client)
    yield panel
    panel.close()


@pytest.fixture
def ct(opened):
    node = opened.application.addVolume(phantom((20, 40, 48)), spacing=(1, 1, 3), name="CT")
    opened.ui.inputSelector.setCurrentNode(node)
    return node


@pytest.fixture
def node(opened, ct):
    """A segmentation with one segment, which is selected."""
    opened.type("liver")
    opened.press(opened.ui.segmentButton)
    opened.wait()
    pythonqt.process(100)
    return opened.ui.segmentationSelector.currentNode()


def axialView(scene, mm):
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    view.SetSliceOffset(mm)
    return view


def table(opened):
    box = opened.ui.boxTable
    return [[box.item(r, c).text() for c in range(box.columnCount)] for r in range(box.rowCount)]


def voxels(node, ct):
    return int(readMask(node, node.GetSegmentation().GetNthSegmentID(0), ct)[1].sum())


def test_points_are_clicked_listed_and_used(opened, ct, node, client):
    page = opened.panel.refinePage.ui
    assert not opened.ui.refineButton.enabled
    opened.press(page.addPointButton)
    interaction = opened.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    assert interaction.GetPlaceModePersistence() == 1
    clicked = opened.scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    for position in ((10, 8, 12), (1, 2, 3)):
        clicked.AddControlPoint(vtk.vtkVector3d(*position))
    opened.press(page.addPointButton)  # goes on with the same list
    assert opened.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 1
    pythonqt.process(80)
    assert table(opened) == [["Points", "in it", "2 points"]]
    assert ownerOf(clicked) == (node.GetID(), node.GetSegmentation().GetNthSegmentID(0))
    opened.press(opened.ui.refineButton)
    opened.wait()
    assert client.asked[-1][3]["points"] == [Point(10, 8, 4), Point(1, 2, 1)]


def test_the_shown_slice_is_locked_and_released(opened, ct, node, client):
    page = opened.panel.refinePage.ui
    opened.press(page.lockSliceButton)
    assert "No slice view" in opened.ui.statusLabel.text
    axialView(opened.scene, 12.5)
    opened.press(page.lockSliceButton)
    assert page.lockedLabel.text == "Locked: 4"
    opened.press(page.moreLikeThisButton)
    opened.wait()
    assert client.asked[-1][3] == {"locked_slices": [4], "more_like_this": True}
    opened.press(page.lockSliceButton)
    assert page.lockedLabel.text == ""
    opened.press(opened.ui.undoButton)
    assert page.lockedLabel.text == "Locked: 4"


def test_a_box_is_an_undo_step_once_it_has_settled(opened, ct, node):
    roi = roiFromBox(opened.scene, Box((1, 4), (1, 4), (2, 2)), ct)
    from MedSAM3SlicerLib.adapter.boxes import belongTo

    belongTo(roi, node, node.GetSegmentation().GetNthSegmentID(0))
    pythonqt.process(500)
    opened.press(opened.ui.undoButton)
    pythonqt.process(80)
    assert table(opened) == []
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    opened.press(opened.ui.redoButton)
    pythonqt.process(80)
    assert [row[2] for row in table(opened)] == ["2"]


def test_a_revision_is_chosen_and_brought_back(opened, ct, node, client):
    before = voxels(node, ct)
    roiFromBox(opened.scene, Box((1, 4), (1, 4), (2, 2)), ct)
    pythonqt.process(80)
    opened.press(opened.ui.refineButton)
    opened.wait()
    assert voxels(node, ct) == before + 16
    page = opened.panel.refinePage.ui
    assert [page.revisionComboBox.itemText(n).split(" ")[1] for n in (0, 1)] == ["1", "text"]
    page.revisionComboBox.setCurrentIndex(1)
    asked = len(client.asked)
    opened.press(page.restoreButton)
    assert voxels(node, ct) == before
    assert len(client.asked) == asked
    assert "Revision 1 is back" in opened.ui.statusLabel.text
    opened.press(opened.ui.undoButton)
    assert voxels(node, ct) == before + 16


def test_accept_is_a_switch(opened, ct, node):
    page = opened.panel.refinePage.ui
    opened.press(page.acceptButton)
    assert page.acceptButton.checked
    opened.press(opened.ui.segmentButton)
    opened.wait()
    assert node.GetSegmentation().GetNumberOfSegments() == 2
    opened.panel.segmentTable.select(node.GetSegmentation().GetNthSegmentID(0))
    opened.panel.refinePage.refresh()
    opened.press(page.acceptButton)
    assert not page.acceptButton.checked


def test_the_shown_slice_of_a_turned_image_is_found(opened):
    turned = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])  # i runs along y, j along z, k along x
    volume = opened.application.addVolume(
        phantom((20, 40, 48)), (1, 2, 3), (5, 0, 0), directions=turned, name="turned"
    )
    assert shownSlice(opened.scene, volume, 2) is None
    view = axialView(opened.scene, 21.9)
    assert shownSlice(opened.scene, volume, 1) == 11
    view.SetSliceOffset(500.0)
    assert shownSlice(opened.scene, volume, 1) is None
