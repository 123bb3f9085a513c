"""Moving the slice views and placing boxes in them; what the user sees while working."""

from __future__ import annotations

from collections.abc import Sequence

import slicer

from MedSAM3SlicerLib.adapter import boxes


def showVolume(scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode) -> None:
    """Show the image behind everything in all slice views."""
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
        composite = scene.GetNthNodeByClass(n, "vtkMRMLSliceCompositeNode")
        composite.SetBackgroundVolumeID(volumeNode.GetID())


def jumpTo(scene: slicer.vtkMRMLScene, pointWorld: Sequence[float]) -> None:
    """Scroll all slice views to a point of world RAS in mm, without panning them."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *pointWorld, slicer.vtkMRMLSliceNode.OffsetJumpSlice)


def jumpToSegment(
    scene: slicer.vtkMRMLScene, segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str
) -> bool:
    """Scroll all slice views to the segment's middle; returns whether it has one."""
    centre = segmentationNode.GetSegmentCenterRAS(segmentId)
    if centre is None:
        return False
    jumpTo(scene, centre)
    return True


def jumpToROI(scene: slicer.vtkMRMLScene, roiNode: slicer.vtkMRMLMarkupsROINode) -> None:
    """Scroll all slice views to the ROI's middle."""
    centre = [0.0, 0.0, 0.0]
    roiNode.GetCenterWorld(centre)
    jumpTo(scene, centre)


def startPlacing(
    scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode, positive: bool, name: str
) -> slicer.vtkMRMLMarkupsROINode:
    """A ROI that the user's next clicks in a slice view place."""
    roiNode = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    roiNode.CreateDefaultDisplayNodes()
    roiNode.SetNodeReferenceID(boxes.VOLUME_REFERENCE, volumeNode.GetID())
    boxes.setPositive(roiNode, positive)
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsROINode")
    selection.SetActivePlaceNodeID(roiNode.GetID())
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    interaction.SetPlaceModePersistence(0)
    interaction.SetCurrentInteractionMode(interaction.Place)
    return roiNode


def roisOf(
    scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode
) -> list[slicer.vtkMRMLMarkupsROINode]:
    """The boxes that were drawn for the volume, in the order of drawing."""
    found = []
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLMarkupsROINode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLMarkupsROINode")
        if node.GetNodeReferenceID(boxes.VOLUME_REFERENCE) == volumeNode.GetID():
            found.append(node)
    return found
