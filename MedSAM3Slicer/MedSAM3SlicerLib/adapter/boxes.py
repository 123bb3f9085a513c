"""ROI markups as boxes in voxel indices, and back.

A box in the world is rarely a box in the voxels: the ROI may be turned, the volume tilted, and both may be under
transforms. All eight corners travel from the ROI to the world, out of the volume's transform and to ijk; the box is
their bounds.
"""

from __future__ import annotations

import itertools

import numpy as np
import slicer
import vtk

from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Box
from MedSAM3SlicerLib.adapter.matrices import ijkToNode, nodeToWorldPoints, toArray, worldToNodePoints

POSITIVE_ATTRIBUTE = "MedSAM3.Positive"
CONCEPT_ATTRIBUTE = "MedSAM3.Concept"
ENABLED_ATTRIBUTE = "MedSAM3.Enabled"
VOLUME_REFERENCE = "MedSAM3.Volume"
SEGMENT_ATTRIBUTE = "MedSAM3.Segment"
SEGMENTATION_REFERENCE = "MedSAM3.Segmentation"
ID_ATTRIBUTE = "MedSAM3.Id"

# A corner that lies on a voxel's face within this many voxels belongs to the voxel inside.
_FACE_TOLERANCE_VOXELS = 1e-4
_POSITIVE_COLOUR = (0.20, 0.80, 0.30)
_NEGATIVE_COLOUR = (0.90, 0.25, 0.20)


def isPositive(roiNode: slicer.vtkMRMLMarkupsROINode) -> bool:
    """Whether the concept is inside the ROI (the default) or what is inside is not the concept."""
    return roiNode.GetAttribute(POSITIVE_ATTRIBUTE) != "0"


def setPositive(roiNode: slicer.vtkMRMLMarkupsROINode, positive: bool) -> None:
    """Say whether the concept is inside; shown by the ROI's colour, green or red, and saved with the scene."""
    roiNode.SetAttribute(POSITIVE_ATTRIBUTE, "1" if positive else "0")
    display = roiNode.GetDisplayNode()
    if display is not None:
        display.SetSelectedColor(*(_POSITIVE_COLOUR if positive else _NEGATIVE_COLOUR))


def isEnabled(roiNode: slicer.vtkMRMLMarkupsROINode) -> bool:
    """Whether the ROI takes part in the next rerun."""
    return roiNode.GetAttribute(ENABLED_ATTRIBUTE) != "0"


def setEnabled(roiNode: slicer.vtkMRMLMarkupsROINode, enabled: bool) -> None:
    """Switch the ROI on or off for the next rerun; saved with the scene."""
    roiNode.SetAttribute(ENABLED_ATTRIBUTE, "1" if enabled else "0")


def belongTo(
    markupsNode: slicer.vtkMRMLMarkupsNode,
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    segmentId: str,
) -> None:
    """Say which segment a box or a list of points is for; saved with the scene."""
    markupsNode.SetNodeReferenceID(SEGMENTATION_REFERENCE, segmentationNode.GetID())
    markupsNode.SetAttribute(SEGMENT_ATTRIBUTE, segmentId)


def ownerOf(markupsNode: slicer.vtkMRMLMarkupsNode) -> tuple[str, str]:
    """IDs of the segmentation and the segment that a box or a list of points is for; empty while it is for none."""
    segmentId = markupsNode.GetAttribute(SEGMENT_ATTRIBUTE) or ""
    owner = markupsNode.GetNodeReferenceID(SEGMENTATION_REFERENCE) or ""
    return (owner, segmentId) if owner and segmentId else ("", "")


def corners(roiNode: slicer.vtkMRMLMarkupsROINode) -> np.ndarray:
    """The ROI's eight corners (8, 3), world RAS in mm."""
    half = np.array(roiNode.GetSize()) / 2.0
    local = np.array([[*(half * signs), 1.0] for signs in itertools.product((-1, 1), repeat=3)])
    return (toArray(roiNode.GetObjectToWorldMatrix()) @ local.T).T[:, :3]


def boxFromROI(roiNode: slicer.vtkMRMLMarkupsROINode, volumeNode: slicer.vtkMRMLVolumeNode) -> Box:
    """Smallest box of whole voxels of the volume's grid that holds the ROI, cut to the volume.

    Raises:
        PromptError: If the ROI is not placed yet or lies outside the volume.
    """
    if roiNode.GetNumberOfDefinedControlPoints() == 0:
        raise PromptError(f"The box {roiNode.GetName()} is not placed yet; draw it in a slice view.")
    return _boxAround(corners(roiNode), volumeNode, isPositive(roiNode), roiNode.GetName())


def boxFromPoints(
    pointsWorld: np.ndarray, volumeNode: slicer.vtkMRMLVolumeNode, positive: bool = True
) -> Box:
    """Box around points (n, 3) of world RAS in mm, for example two clicks on one slice.

    Raises:
        PromptError: If the points lie outside the volume.
    """
    return _boxAround(
        np.asarray(pointsWorld, float).reshape(-1, 3), volumeNode, positive, "between the points"
    )


def roiFromBox(
    scene: slicer.vtkMRMLScene, box: Box, volumeNode: slicer.vtkMRMLVolumeNode, name: str = "Box"
) -> slicer.vtkMRMLMarkupsROINode:
    """A ROI around the box' voxels, turned with the volume's grid, under the volume's parent transform."""
    affine = ijkToNode(volumeNode)
    ends = np.array([box.i, box.j, box.k], float)
    centre = affine @ np.append(ends.mean(axis=1), 1.0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = np.eye(4)
    axes[:3, :3] = affine[:3, :3] / spacing
    if np.linalg.det(axes[:3, :3]) < 0:
        axes[:3, 2] *= -1.0  # a ROI is right-handed; its box is the same with one axis turned round
    axes[:3, 3] = centre[:3]
    roiNode = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    roiNode.CreateDefaultDisplayNodes()
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(value) for value in axes.ravel()])
    roiNode.SetAndObserveObjectToNodeMatrix(matrix)
    roiNode.SetSize(*((ends[:, 1] - ends[:, 0] + 1) * spacing))
    roiNode.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    roiNode.SetNodeReferenceID(VOLUME_REFERENCE, volumeNode.GetID())
    setPositive(roiNode, box.positive)
    return roiNode


def boxOutline(box: Box, volumeNode: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """The eight outer corners (8, 3) of the box' voxels, world RAS in mm."""
    ends = [(first - 0.5, last + 0.5) for first, last in (box.i, box.j, box.k)]
    ijk = np.array([[*corner, 1.0] for corner in itertools.product(*ends)])
    return nodeToWorldPoints((ijkToNode(volumeNode) @ ijk.T).T[:, :3], volumeNode)


def _boxAround(
    pointsWorld: np.ndarray, volumeNode: slicer.vtkMRMLVolumeNode, positive: bool, name: str
) -> Box:
    points = worldToNodePoints(pointsWorld, volumeNode)
    homogeneous = np.column_stack([points, np.ones(len(points))])
    ijk = (np.linalg.inv(ijkToNode(volumeNode)) @ homogeneous.T).T[:, :3]
    # Voxel n reaches from n - 0.5 to n + 0.5.
    low = np.floor(ijk.min(axis=0) + 0.5 + _FACE_TOLERANCE_VOXELS).astype(int)
    high = np.maximum(np.ceil(ijk.max(axis=0) - 0.5 - _FACE_TOLERANCE_VOXELS).astype(int), low)
    size = np.array(volumeNode.GetImageData().GetDimensions())
    if (high < 0).any() or (low >= size).any():
        raise PromptError(
            f"The box {name} lies outside the volume {volumeNode.GetName()}; draw it on the image."
        )
    low, high = np.maximum(low, 0), np.minimum(high, size - 1)
    return Box(*((int(first), int(last)) for first, last in zip(low, high, strict=True)), positive=positive)
