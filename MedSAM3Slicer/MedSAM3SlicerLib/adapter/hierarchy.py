"""Where nodes stand in the subject hierarchy: patient, study, series."""

from __future__ import annotations

import slicer

from MedSAM3Core.volume.modality import from_dicom


def itemOf(scene: slicer.vtkMRMLScene, node: slicer.vtkMRMLNode) -> int:
    """Subject hierarchy item of the node, made where there is none.

    Slicer makes the items itself; ``slicer-core`` has no plugins that would.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node)
    if item == hierarchy.GetInvalidItemID():
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    return item


def placeBeside(scene: slicer.vtkMRMLScene, node: slicer.vtkMRMLNode, neighbour: slicer.vtkMRMLNode) -> None:
    """Put the node under the same parent (study or folder) as its neighbour."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parent = hierarchy.GetItemParent(itemOf(scene, neighbour))
    hierarchy.SetItemParent(itemOf(scene, node), parent)


def modalityOf(scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode) -> str | None:
    """Modality as the core writes it ("CT", "MR", "XR", ...), or None when DICOM did not say."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(volumeNode)
    written = hierarchy.GetItemAttribute(item, "DICOM.Modality") if item else ""
    return from_dicom(written or volumeNode.GetAttribute("DICOM.Modality"))


def removeNode(scene: slicer.vtkMRMLScene, node: slicer.vtkMRMLDisplayableNode) -> None:
    """Remove a node with its display and storage nodes; removing it alone would leave those in the scene."""
    companions = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    companions += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    scene.RemoveNode(node)
    for companion in companions:
        if companion is not None:
            scene.RemoveNode(companion)
