from __future__ import annotations

import numpy as np
import pytest
from mrml_scene import phantom, result

from MedSAM3SlicerLib.adapter import sequences
from MedSAM3SlicerLib.adapter.history import LogicHistory
from MedSAM3SlicerLib.adapter.segments import SegmentWriter, readMask


@pytest.fixture
def beating(application):
    """A sequence of three frames with its browser and the volume that shows the current one."""
    scene = application.scene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "heart")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for n in range(3):
        frame = application.addVolume(np.roll(phantom((6, 20, 24)), n, axis=2), name=f"frame{n}")
        sequence.SetDataNodeAtValue(frame, str(n / 10))
        scene.RemoveNode(frame)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    application.sequences.UpdateProxyNodesFromSequences(browser)
    return browser, browser.GetProxyNode(sequence)


def test_a_plain_volume_has_no_browser(scene, ct):
    assert sequences.browserOf(scene, ct) is None


def test_frames_come_in_order_and_the_view_stays(scene, beating):
    browser, volume = beating
    assert sequences.browserOf(scene, volume) is browser
    browser.SetSelectedItemNumber(1)
    found = list(sequences.frames(browser, volume))
    assert [frame.indexValue for frame in found] == ["0.0", "0.1", "0.2"]
    assert browser.GetSelectedItemNumber() == 1
    first = np.array(
        [frame.volumeNode.GetImageData().GetScalarComponentAsDouble(14, 8, 3, 0) for frame in found]
    )
    assert first.tolist() == [60.0, 60.0, 60.0]


def test_segmentations_follow_the_browser(application, beating):
    browser, volume = beating
    writer = SegmentWriter(application.scene, application.editorLogic, LogicHistory(application.editorLogic))
    target = sequences.FrameTarget(application.scene, browser, volume, None, writer)
    masks = {}
    for frame in sequences.frames(browser, volume):
        mask = np.roll(phantom((6, 20, 24)) > 0, frame.number, axis=2)
        list(target.writeSteps(frame, [result(frame.volumeNode, mask)]))
        masks[frame.number] = mask
    shown = target.show(application.sequences)
    sequence = browser.GetSequenceNode(shown)
    for number, mask in masks.items():
        browser.SetSelectedItemNumber(number)
        application.sequences.UpdateProxyNodesFromSequences(browser)
        extent, crop = readMask(shown, shown.GetSegmentation().GetNthSegmentID(0), volume)
        np.testing.assert_array_equal(crop, mask[extent.slices])
    assert sequence.GetIndexUnit() == "s"
