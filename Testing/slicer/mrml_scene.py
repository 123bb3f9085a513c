"""A MRML scene with what the application would have put around it. Nothing here is a double: every class is Slicer's
own.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.volume.geometry import Geometry


class Application:
    """Scene and logics, as ``slicer.mrmlScene`` and ``slicer.modules.*.logic()`` are in the application."""

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.applicationLogic = slicer.vtkMRMLApplicationLogic()
        self.applicationLogic.SetMRMLScene(self.scene)
        self.segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
        self.terminologies = slicer.vtkSlicerTerminologiesModuleLogic()
        self.sequences = slicer.vtkSlicerSequencesLogic()
        self.markups = slicer.vtkSlicerMarkupsLogic()
        for logic in (self.segmentations, self.terminologies, self.sequences, self.markups):
            logic.SetMRMLApplicationLogic(self.applicationLogic)
            logic.SetMRMLScene(self.scene)
        self.editorLogic = slicer.vtkSlicerSegmentEditorLogic()
        self.editorLogic.SetMRMLScene(self.scene)
        self.editorNode = slicer.vtkMRMLSegmentEditorNode()  # as the module Segment Editor makes its own
        self.editorNode.SetSingletonTag("SegmentEditor")
        self.editorNode = self.scene.AddNode(self.editorNode)
        self.editorNode.SetOverwriteMode(self.editorNode.OverwriteNone)
        self.editorLogic.SetSegmentEditorNode(self.editorNode)

    def close(self) -> None:
        self.editorLogic.SetSegmentEditorNode(None)
        self.scene.Clear(1)

    def addVolume(
        self, array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), directions=None, name="volume"
    ):
        """A scalar (or, with a fourth axis, vector) volume node; array (slices, rows, columns[, channels])."""
        vector = array.ndim == 4
        node = self.scene.AddNewNodeByClass(
            "vtkMRMLVectorVolumeNode" if vector else "vtkMRMLScalarVolumeNode", name
        )
        image = vtk.vtkImageData()
        image.SetDimensions(*array.shape[2::-1])
        flat = array.reshape(-1, array.shape[3]) if vector else array.reshape(-1)
        image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(flat), deep=True))
        node.SetAndObserveImageData(image)
        node.SetSpacing(*spacing)
        node.SetOrigin(*origin)
        if directions is not None:
            node.SetIJKToRASDirections(*np.asarray(directions, float).ravel())
        node.CreateDefaultDisplayNodes()
        return node

    def addTransform(self, matrix, name="transform"):
        """A linear transform node; matrix 4x4, to world RAS in mm."""
        node = self.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
        vtkMatrix = vtk.vtkMatrix4x4()
        vtkMatrix.DeepCopy([float(value) for value in np.asarray(matrix).ravel()])
        node.SetMatrixTransformToParent(vtkMatrix)
        return node

    def addBendingTransform(self, name="bend"):
        """A thin plate spline transform: not linear."""
        node = self.scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
        spline = vtk.vtkThinPlateSplineTransform()
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for n, point in enumerate([(0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (50, 50, 50)]):
            source.InsertNextPoint(*point)
            target.InsertNextPoint(*(value + 25 * (n == 4) for value in point))
        spline.SetSourceLandmarks(source)
        spline.SetTargetLandmarks(target)
        spline.SetBasisToR()
        node.SetAndObserveTransformToParent(spline)
        return node

    def addROI(self, centre, size, rotation=None, name="R"):
        """A ROI; centre and size in mm, rotation 3x3 to world RAS."""
        node = self.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
        node.CreateDefaultDisplayNodes()
        matrix = np.eye(4)
        matrix[:3, :3] = np.eye(3) if rotation is None else rotation
        matrix[:3, 3] = centre
        vtkMatrix = vtk.vtkMatrix4x4()
        vtkMatrix.DeepCopy([float(value) for value in matrix.ravel()])
        node.SetAndObserveObjectToNodeMatrix(vtkMatrix)
        node.SetSize(*size)
        return node


def phantom(shape: tuple[int, int, int]) -> np.ndarray:
    """CT-like int16 (slices, rows, columns): air at -1000, a ball of 60 off the centre."""
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    centre = [0.55 * shape[0], 0.4 * shape[1], 0.6 * shape[2]]
    radii = [0.3 * n for n in shape]
    inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii, strict=True)) < 1
    return np.where(inside, 60, -1000).astype(np.int16)


def rotation(axis: int, degrees: float) -> np.ndarray:
    """3x3 rotation about a RAS axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [n for n in range(3) if n != axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = -s, s
    return matrix


def result(volumeNode, mask: np.ndarray, phrase: str = "ball", score: float = 0.9, **fields) -> Segmentation:
    """What a run would give back for the volume; mask (slices, rows, columns)."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    affine = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
    concept = fields.pop("concept", None) or Concept(phrase, phrase, (phrase,), phrase.capitalize())
    made = fields.pop("provenance", None) or Provenance(
        phrase, "demo", "ab" * 32, "0.1.0", prompts=(phrase, f"{phrase}|{phrase}s"), boxes=("3,1,2,8,9,+",),
        thresholds={"detection": 0.5}, axis="axial (k)", window="CT soft tissue (W 400, L 40)", device="cpu",
        created="2026-11-23T06:00:00+00:00", notices=("Not for clinical use.",),
    )  # fmt: skip
    return Segmentation.from_mask(
        concept, Geometry(mask.shape, affine), mask, score=score, provenance=made, **fields
    )
