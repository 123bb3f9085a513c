"""A sequence in, a sequence of numbered objects out, in step with its browser."""

from __future__ import annotations

import numpy as np
from doubles import ThresholdClient

from MedSAM3SlicerLib.adapter.segments import readMask
from MedSAM3SlicerLib.logic import SegmentationLogic


def picture(t: int, right: bool = True) -> np.ndarray:
    """Two blocks that move apart; the double of the model finds what is above 0."""
    array = np.zeros((4, 20, 40), np.int16)
    array[1:3, 5:11, 8 - t : 14 - t] = 60
    if right:
        array[1:3, 5:11, 24 + t : 30 + t] = 60
    return array


def test_objects_keep_their_numbers_in_step_with_the_browser(application):
    scene = application.scene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "film")
    for t in range(4):
        frame = application.addVolume(picture(t, right=t != 2), name=f"frame{t}")
        sequence.SetDataNodeAtValue(frame, str(t / 10))
        scene.RemoveNode(frame)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    application.sequences.UpdateProxyNodesFromSequences(browser)
    volume = browser.GetProxyNode(sequence)
    logic = SegmentationLogic(scene, ThresholdClient(), sequencesLogic=application.sequences)
    try:
        node = logic.segment(volume, "polyp", allFrames=True, numberObjects=True)
        for t in range(4):
            browser.SetSelectedItemNumber(t)
            application.sequences.UpdateProxyNodesFromSequences(browser)
            segmentation = node.GetSegmentation()
            left = {}
            for n in range(segmentation.GetNumberOfSegments()):
                extent, crop = readMask(node, segmentation.GetNthSegmentID(n), volume)
                if crop.any():
                    left[segmentation.GetNthSegment(n).GetName()] = extent.i[0]
            assert left == {"Polyp 1": 8 - t} | ({"Polyp 2": 24 + t} if t != 2 else {})
    finally:
        logic.close()
