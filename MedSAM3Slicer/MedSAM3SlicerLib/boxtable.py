"""The table of boxes and points: which ones take part, positive or negative, on which slices."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MedSAM3Core.errors import PromptError
from MedSAM3SlicerLib.adapter import boxes, points, views
from MedSAM3SlicerLib.signals import Signal


class BoxTable(VTKObservationMixin):
    """Shows what was drawn for one segment, or for none yet, in ``ui.boxTable``.

    Args:
        ui: The panel's widgets.
        scene: The scene that the boxes are in.
    """

    def __init__(self, ui: Any, scene: slicer.vtkMRMLScene) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.changed = Signal()
        self._scene = scene
        self._volume: slicer.vtkMRMLVolumeNode | None = None
        self._segment = ("", "")
        self._segmentation: slicer.vtkMRMLSegmentationNode | None = None
        self._nodes: list[slicer.vtkMRMLMarkupsNode] = []
        self._filling = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(30)
        self._timer.connect("timeout()", self.refresh)
        ui.boxTable.setColumnCount(3)
        ui.boxTable.setHorizontalHeaderLabels([_("Box"), _("Means"), _("Slices")])
        ui.boxTable.verticalHeader().hide()
        ui.boxTable.horizontalHeader().setStretchLastSection(True)
        ui.boxTable.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)
        ui.boxTable.connect("cellClicked(int,int)", self._onCellClicked)
        ui.addBoxButton.connect("clicked(bool)", lambda *_: self.add(True))
        ui.addNegativeBoxButton.connect("clicked(bool)", lambda *_: self.add(False))
        ui.deleteBoxButton.connect("clicked(bool)", lambda *_: self.deleteSelected())
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent):
            self.addObserver(scene, event, self._onModified)

    def setVolume(self, volumeNode: slicer.vtkMRMLVolumeNode | None) -> None:
        """Show the boxes of another volume."""
        self._volume = volumeNode
        self.refresh()

    def setSegment(self, segmentationNode: slicer.vtkMRMLSegmentationNode | None, segmentId: str) -> None:
        """Show what belongs to another segment, and what belongs to none."""
        wanted = (
            (segmentationNode.GetID(), segmentId) if segmentationNode is not None and segmentId else ("", "")
        )
        self._segmentation = segmentationNode
        if wanted != self._segment:
            self._segment = wanted
            self.refresh()

    @property
    def nodes(self) -> list[slicer.vtkMRMLMarkupsROINode]:
        """The boxes that are placed, in the order of drawing."""
        return [node for node in self._placed if node.IsA("vtkMRMLMarkupsROINode")]

    @property
    def pointNodes(self) -> list[slicer.vtkMRMLMarkupsFiducialNode]:
        """The lists that have points."""
        return [node for node in self._placed if node.IsA(points.CLASS_NAME)]

    @property
    def _placed(self) -> list[slicer.vtkMRMLMarkupsNode]:
        return [node for node in self._nodes if node.GetNumberOfDefinedControlPoints() > 0]

    @property
    def enabledNodes(self) -> list[slicer.vtkMRMLMarkupsROINode]:
        """Boxes that take part in the next rerun."""
        return [node for node in self.nodes if boxes.isEnabled(node)]

    @property
    def enabledPointNodes(self) -> list[slicer.vtkMRMLMarkupsFiducialNode]:
        """Lists of points that take part in the next rerun."""
        return [node for node in self.pointNodes if boxes.isEnabled(node)]

    def add(self, positive: bool) -> slicer.vtkMRMLMarkupsROINode | None:
        """Let the user's next clicks draw a box; None while no volume is chosen."""
        if self._volume is None:
            return None
        name = _("Box") if positive else _("Not here")
        node = views.startPlacing(self._scene, self._volume, positive, f"{name} {len(self._nodes) + 1}")
        self._own(node)
        return node

    def addPoints(self, positive: bool) -> slicer.vtkMRMLMarkupsFiducialNode | None:
        """Let the user's next clicks be points; None while no volume is chosen."""
        if self._volume is None:
            return None
        lists = [node for node in self._found() if node.IsA(points.CLASS_NAME)]
        node = next((node for node in lists if boxes.isPositive(node) == positive), None)
        if node is None:
            name = _("Points") if positive else _("Points not here")
            node = points.addPointList(self._scene, self._volume, positive, name)
            self._own(node)
        points.startClicking(self._scene, node)
        return node

    def _own(self, node: slicer.vtkMRMLMarkupsNode) -> None:
        if self._segmentation is not None and self._segment[1]:
            boxes.belongTo(node, self._segmentation, self._segment[1])

    def deleteSelected(self) -> None:
        """Delete the selected box."""
        row = self.ui.boxTable.currentRow()
        if 0 <= row < len(self._nodes):
            self._scene.RemoveNode(self._nodes[row])

    def refresh(self) -> None:
        """Show the boxes as they are now."""
        self._nodes = self._found()
        for node in self._nodes:
            if not self.hasObserver(node, "ModifiedEvent", self._onModified):
                self.addObserver(node, "ModifiedEvent", self._onModified)
                self.addObserver(node, node.PointModifiedEvent, self._onModified)
        self._filling = True
        self.ui.boxTable.setRowCount(len(self._nodes))
        for row, node in enumerate(self._nodes):
            texts = (
                node.GetName(),
                _("in it") if boxes.isPositive(node) else _("not in it"),
                self._slices(node),
            )
            for column, text in enumerate(texts):
                self._item(row, column).setText(text)
            self._item(row, 0).setCheckState(qt.Qt.Checked if boxes.isEnabled(node) else qt.Qt.Unchecked)
        self._filling = False
        self.changed.emit()

    def _found(self) -> list[slicer.vtkMRMLMarkupsNode]:
        """The volume's boxes and points that are the segment's or nobody's."""
        if self._volume is None:
            return []
        drawn = [*views.roisOf(self._scene, self._volume), *points.pointListsOf(self._scene, self._volume)]
        if not self._segment[1]:
            return drawn
        return [node for node in drawn if boxes.ownerOf(node) in (self._segment, ("", ""))]

    def close(self) -> None:
        """Observe nothing more."""
        self.removeObservers()
        self._timer.stop()

    def _slices(self, node: slicer.vtkMRMLMarkupsNode) -> str:
        if node.IsA(points.CLASS_NAME):
            count = node.GetNumberOfDefinedControlPoints()
            return _("1 point") if count == 1 else _("{n} points").format(n=count)
        try:
            first, last = boxes.boxFromROI(node, self._volume).k
        except PromptError:
            return _("click in a slice view") if node.GetNumberOfDefinedControlPoints() == 0 else _("outside")
        return str(first) if first == last else f"{first} - {last}"

    def _item(self, row: int, column: int) -> Any:
        item = self.ui.boxTable.item(row, column)
        if item is None:
            item = qt.QTableWidgetItem()
            self.ui.boxTable.setItem(row, column, item)
        return item

    def _onModified(self, caller: Any, event: str) -> None:
        self._timer.start()

    def _onItemChanged(self, item: Any) -> None:
        if not self._filling and item.column() == 0 and item.row() < len(self._nodes):
            boxes.setEnabled(self._nodes[item.row()], item.checkState() == qt.Qt.Checked)
            self.changed.emit()

    def _onCellClicked(self, row: int, column: int) -> None:
        if 0 <= row < len(self._nodes) and self._nodes[row].GetNumberOfDefinedControlPoints() > 0:
            views.jumpToROI(self._scene, self._nodes[row])
