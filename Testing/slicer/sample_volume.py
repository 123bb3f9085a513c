"""The bundled sample as a volume node, read by the core since slicer-core has no Qt file manager."""

from __future__ import annotations

import numpy as np
import vtk

from MedSAM3Core.volume import read_volume


def loadSample(application, sample):
    """The node, in the soft tissue window if it is a CT."""
    volume = read_volume(sample.image)
    node = application.addVolume(volume.array, name=sample.title)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(value) for value in np.asarray(volume.geometry.ijk_to_ras).ravel()])
    node.SetIJKToRASMatrix(matrix)
    if volume.modality == "CT":
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevel(400, 50)
    return node
