"""Clicks as Slicer's own point lists: one list of a segment holds those on the concept, one those on what is not."""

from __future__ import annotations

import numpy as np
import slicer

from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Point
from MedSAM3SlicerLib.adapter import boxes
from MedSAM3SlicerLib.adapter.matrices import ijkToNode, worldToNodePoints

CLASS_NAME = "vtkMRMLMarkupsFiducialNode"


def pointsFromNode(
    pointNode: slicer.vtkMRMLMarkupsFiducialNode, volumeNode: slicer.vtkMRMLVolumeNode
) -> list[Point]:
    """The list's placed points as voxels of the volume's grid, in the order of clicking.

    Raises:
        PromptError: If one lies outside the volume.
    """
    world = placedPoints(pointNode)
    if not len(world):
        return []
    local = worldToNodePoints(world, volumeNode)
    ijk = (np.linalg.inv(ijkToNode(volumeNode)) @ np.column_stack([local, np.ones(len(local))]).T).T[:, :3]
    voxels = np.floor(ijk + 0.5).astype(int)
    size = np.array(volumeNode.GetImageData().GetDimensions())
    outside = (voxels < 0).any(axis=1) | (voxels >= size).any(axis=1)
    if outside.any():
        raise PromptError(
            f"Point {int(np.flatnonzero(outside)[0]) + 1} of {pointNode.GetName()} lies outside the volume "
            f"{volumeNode.GetName()}; delete it or move it onto the image."
        )
    positive = boxes.isPositive(pointNode)
    return [Point(int(i), int(j), int(k), positive) for i, j, k in voxels]


def placedPoints(pointNode: slicer.vtkMRMLMarkupsFiducialNode) -> np.ndarray:
    """World RAS in mm, (points, 3), of the points that are placed."""
    world = []
    for n in range(pointNode.GetNumberOfControlPoints()):
        if pointNode.GetNthControlPointPositionStatus(n) == pointNode.PositionDefined:
            position = [0.0, 0.0, 0.0]
            pointNode.GetNthControlPointPositionWorld(n, position)
            world.append(position)
    return np.array(world, float).reshape(-1, 3)


def pointListsOf(
    scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode
) -> list[slicer.vtkMRMLMarkupsFiducialNode]:
    """The lists that were clicked for the volume, in the order of their making."""
    nodes = [scene.GetNthNodeByClass(n, CLASS_NAME) for n in range(scene.GetNumberOfNodesByClass(CLASS_NAME))]
    return [node for node in nodes if node.GetNodeReferenceID(boxes.VOLUME_REFERENCE) == volumeNode.GetID()]


def startClicking(scene: slicer.vtkMRMLScene, pointNode: slicer.vtkMRMLMarkupsFiducialNode) -> None:
    """Let the user's next clicks go into the list, until Esc."""
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    selection.SetReferenceActivePlaceNodeClassName(CLASS_NAME)
    selection.SetActivePlaceNodeID(pointNode.GetID())
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    interaction.SetPlaceModePersistence(1)
    interaction.SetCurrentInteractionMode(interaction.Place)


def addPointList(
    scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode, positive: bool, name: str
) -> slicer.vtkMRMLMarkupsFiducialNode:
    """An empty list of the volume's."""
    node = scene.AddNewNodeByClass(CLASS_NAME, name)
    node.CreateDefaultDisplayNodes()
    node.SetNodeReferenceID(boxes.VOLUME_REFERENCE, volumeNode.GetID())
    boxes.setPositive(node, positive)
    return node
