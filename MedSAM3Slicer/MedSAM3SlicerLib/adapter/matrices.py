"""Between VTK's matrices and numpy's, and between the frames of two nodes."""

from __future__ import annotations

import numpy as np
import slicer
import vtk

from MedSAM3Core.errors import VolumeError


def toArray(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """4x4 float64 array of a VTK matrix."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def toMatrix(array: np.ndarray) -> vtk.vtkMatrix4x4:
    """VTK matrix of a 4x4 array."""
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(array[row, column]))
    return matrix


def ijkToNode(volumeNode: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """4x4 affine from voxel indices to RAS in mm below the volume's parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return toArray(matrix)


def hasLinearPlace(node: slicer.vtkMRMLTransformableNode) -> bool:
    """Whether a 4x4 matrix says where the node is in the world."""
    parent = node.GetParentTransformNode()
    return parent is None or bool(parent.IsTransformToWorldLinear())


def nodeToWorld(node: slicer.vtkMRMLTransformableNode) -> np.ndarray:
    """4x4 affine from the node's coordinates to world RAS in mm.

    Raises:
        VolumeError: If the node is under a non-linear transform.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    if not parent.GetMatrixTransformToWorld(matrix):
        raise VolumeError(
            f"{node.GetName()} is under the non-linear transform {parent.GetName()}; expected a linear one.",
            "Harden the transform first (Data module, right-click the transform).",
        )
    return toArray(matrix)


def worldToNodePoints(pointsWorld: np.ndarray, node: slicer.vtkMRMLTransformableNode) -> np.ndarray:
    """Points (n, 3) of world RAS in mm as the node's own coordinates; linear and non-linear transforms alike."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, node.GetParentTransformNode(), transform)
    return np.array([transform.TransformPoint(*map(float, point)) for point in pointsWorld]).reshape(-1, 3)


def nodeToWorldPoints(pointsNode: np.ndarray, node: slicer.vtkMRMLTransformableNode) -> np.ndarray:
    """Points (n, 3) of the node's own coordinates as world RAS in mm; linear and non-linear transforms alike."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(node.GetParentTransformNode(), None, transform)
    return np.array([transform.TransformPoint(*map(float, point)) for point in pointsNode]).reshape(-1, 3)
