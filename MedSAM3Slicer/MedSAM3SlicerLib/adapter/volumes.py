"""Volume nodes as the core's volumes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import slicer
import slicer.util

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume.volume import Volume
from MedSAM3SlicerLib.adapter import hierarchy
from MedSAM3SlicerLib.adapter.matrices import hasLinearPlace, ijkToNode, nodeToWorld


def volumeProblem(volumeNode: slicer.vtkMRMLVolumeNode | None) -> str:
    """One sentence on why the volume cannot be segmented, empty when it can.

    Scalar volumes (2D ones too) and 8- or 16-bit colour volumes can. Labelmaps, tensors and vector fields cannot.
    """
    if volumeNode is None:
        return "Choose a volume to segment."
    name = volumeNode.GetName()
    if volumeNode.IsA("vtkMRMLLabelMapVolumeNode"):
        return f"{name} is a labelmap; choose the image it was drawn on."
    image = volumeNode.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        return f"{name} holds no voxels; load the image again."
    if image.GetPointData().GetScalars() is None:
        return f"{name} is a tensor volume; choose a scalar or a colour image."
    components = image.GetNumberOfScalarComponents()
    if components == 1:
        return ""
    if components not in (3, 4) or image.GetScalarTypeAsString() not in ("unsigned char", "unsigned short"):
        return (
            f"{name} has {components} components of type {image.GetScalarTypeAsString()}; "
            "choose a scalar image or one of 8- or 16-bit colours."
        )
    return ""


def firstUsableVolume(scene: slicer.vtkMRMLScene) -> slicer.vtkMRMLVolumeNode | None:
    """The scene's first volume that can be segmented, or None."""
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
        if not volumeProblem(node):
            return node
    return None


def readVolume(scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode) -> Volume:
    """The node's voxels, without copying them, and their place in the world; see `volumeReader`."""
    return volumeReader(scene, volumeNode)()


def volumeReader(scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode) -> Callable[[], Volume]:
    """Everything about the node that is asked on this thread; what checks the voxels may be called on another.

    The affine goes to world RAS, through a linear parent transform, so that "axial" is what the user sees in the
    slice views. Under a non-linear transform it is the volume's own; voxels are never resampled either way, so masks
    return to exactly the voxels they came from.

    Returns:
        Makes a `Volume` whose array is (slices, rows, columns) or (slices, rows, columns, 3). (Measured on
        300x512x512: the checks take 20 ms for whole numbers and 150 ms for floats, too long for a window.)

    Raises:
        VolumeError: With `volumeProblem`'s sentence.
    """
    problem = volumeProblem(volumeNode)
    if problem:
        raise VolumeError(problem)
    array = slicer.util.arrayFromVolume(volumeNode)
    affine = ijkToWorld(volumeNode)
    modality = hierarchy.modalityOf(scene, volumeNode)
    name = volumeNode.GetName() or ""

    def read() -> Volume:
        voxels = _asColour(array) if array.ndim == 4 else array
        return Volume.from_array(voxels, ijk_to_ras=affine, modality=modality, name=name, rgb=array.ndim == 4)

    return read


def ijkToWorld(volumeNode: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """4x4 affine from voxel indices to world RAS in mm; to the volume's own RAS under a non-linear transform."""
    affine = ijkToNode(volumeNode)
    return nodeToWorld(volumeNode) @ affine if hasLinearPlace(volumeNode) else affine


def contentStamp(volumeNode: slicer.vtkMRMLVolumeNode) -> tuple[int, ...]:
    """Changes whenever the voxels, their geometry or a parent transform change; equal stamps mean cached features
    hold.
    """
    image = volumeNode.GetImageData()
    stamps = [hash(image.GetAddressAsString("")), image.GetMTime()] if image else [0, 0]
    stamps += [hash(ijkToNode(volumeNode).tobytes())]
    parent = volumeNode.GetParentTransformNode()
    while parent is not None:
        stamps.append(parent.GetTransformToWorldMTime())
        parent = parent.GetParentTransformNode()
    return tuple(stamps)


def _asColour(array: np.ndarray) -> np.ndarray:
    """Drop an alpha channel; scale 16-bit colours to the 8 bits the model was trained on."""
    colour = array[..., :3]
    return colour if colour.dtype == np.uint8 else (colour >> 8).astype(np.uint8)
