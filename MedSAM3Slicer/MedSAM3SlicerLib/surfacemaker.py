"""Shows segments in 3D without holding the window up: the surfaces come one by one from a timer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import qt
import slicer

from MedSAM3SlicerLib.adapter.surfaces import hideSurfaces, surfaceSteps


class SurfaceMaker:
    """Makes the surfaces of one segmentation at a time."""

    def __init__(self) -> None:
        self._node: slicer.vtkMRMLSegmentationNode | None = None
        self._steps: Iterator[None] | None = None
        self._timer: Any = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.connect("timeout()", self._tick)

    @property
    def isBusy(self) -> bool:
        """Whether surfaces are still to come."""
        return self._steps is not None

    def show(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Start making the node's surfaces; None makes none."""
        self.close()
        self._node = node
        if node is not None:
            self._steps = surfaceSteps(node)
            self._timer.start()

    def hide(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Take the node's surfaces away."""
        self.close()
        if node is not None:
            hideSurfaces(node)

    def close(self) -> None:
        """Make no more; what is there stays."""
        self._timer.stop()
        self._steps = None

    def _tick(self) -> None:
        gone = self._node is None or self._node.GetScene() is None
        if gone or self._steps is None or next(self._steps, "done") == "done":
            self.close()
