"""Which slice of a volume the user looks at."""

from __future__ import annotations

import numpy as np
import slicer

from MedSAM3SlicerLib.adapter.matrices import toArray
from MedSAM3SlicerLib.adapter.volumes import ijkToWorld


def shownSlice(scene: slicer.vtkMRMLScene, volumeNode: slicer.vtkMRMLVolumeNode, axis: int) -> int | None:
    """Grid index, along an axis of the volume, of what the slice view nearest to that axis shows.

    Args:
        scene: Its slice views are looked at.
        volumeNode: The volume.
        axis: 0, 1 or 2 for i, j or k.

    Returns:
        None where no view shows a slice of the volume.
    """
    affine = ijkToWorld(volumeNode)
    along = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    best, shown = 0.0, None
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
        toRas = toArray(scene.GetNthNodeByClass(n, "vtkMRMLSliceNode").GetSliceToRAS())
        likeness = abs(float(toRas[:3, 2] @ along))
        if likeness > best + 1e-6:
            best, shown = likeness, (np.linalg.inv(affine) @ toRas[:, 3])[axis]
    if shown is None:
        return None
    index = int(np.floor(shown + 0.5))
    return index if 0 <= index < volumeNode.GetImageData().GetDimensions()[axis] else None
