"""The table of segments: shown or not, millilitres, score, what made them."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MedSAM3SlicerLib.adapter import provenance, views
from MedSAM3SlicerLib.adapter.meter import VolumeMeter
from MedSAM3SlicerLib.signals import Signal

NAME, VOLUME, SCORE, MADE_BY = range(4)


class SegmentTable(VTKObservationMixin):
    """Shows one segmentation in ``ui.segmentsTable``.

    Args:
        ui: The panel's widgets.
        scene: The scene whose views jump to a clicked segment.
    """

    def __init__(self, ui: Any, scene: slicer.vtkMRMLScene) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.changed = Signal()
        self._scene = scene
        self._node: slicer.vtkMRMLSegmentationNode | None = None
        self._ids: list[str] = []
        self._meter = VolumeMeter()
        self._filling = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(30)
        self._timer.connect("timeout()", self.refresh)
        self._idle = qt.QTimer()
        self._idle.setInterval(0)
        self._idle.connect("timeout()", self._measure)
        table = ui.segmentsTable
        table.setColumnCount(4)
        table.setHorizontalHeaderLabels([_("Segment"), _("ml"), _("Score"), _("Made by")])
        for column, side in ((NAME, qt.Qt.AlignLeft), (VOLUME, qt.Qt.AlignRight), (SCORE, qt.Qt.AlignRight)):
            table.horizontalHeaderItem(column).setTextAlignment(side | qt.Qt.AlignVCenter)
        table.horizontalHeaderItem(MADE_BY).setTextAlignment(qt.Qt.AlignLeft | qt.Qt.AlignVCenter)
        table.verticalHeader().hide()
        table.setWordWrap(False)
        table.horizontalHeader().setSectionResizeMode(NAME, qt.QHeaderView.Stretch)
        for column, width in ((VOLUME, 64), (SCORE, 52), (MADE_BY, 110)):
            table.setColumnWidth(column, width)
        table.connect("cellClicked(int,int)", self._onCellClicked)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)

    def setNode(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Show another segmentation."""
        if node is self._node:
            return
        self.removeObservers()
        self._node = node
        if node is not None:
            segmentation = node.GetSegmentation()
            for event in (
                segmentation.SegmentAdded,
                segmentation.SegmentRemoved,
                segmentation.SegmentModified,
                segmentation.SegmentsOrderModified,
                segmentation.SourceRepresentationModified,
            ):
                self.addObserver(segmentation, event, self._onModified)
            if node.GetDisplayNode() is not None:
                self.addObserver(node.GetDisplayNode(), "ModifiedEvent", self._onModified)
        self.refresh()

    @property
    def selectedId(self) -> str:
        """ID of the selected segment, "" if none is."""
        row = self.ui.segmentsTable.currentRow()
        return self._ids[row] if 0 <= row < len(self._ids) else ""

    def select(self, segmentId: str) -> None:
        """Select a segment's row."""
        if segmentId in self._ids:
            self.ui.segmentsTable.setCurrentCell(self._ids.index(segmentId), NAME)

    def close(self) -> None:
        """Observe nothing more."""
        self.removeObservers()
        self._timer.stop()
        self._idle.stop()

    def refresh(self) -> None:
        """Show the segments as they are now."""
        selected = self.selectedId
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        count = segmentation.GetNumberOfSegments() if segmentation is not None else 0
        self._ids = [segmentation.GetNthSegmentID(n) for n in range(count)] if segmentation else []
        self._filling = True
        self.ui.segmentsTable.setRowCount(count)
        for row, segmentId in enumerate(self._ids):
            self._fillRow(self._node, row, segmentId)
        self._filling = False
        self.select(selected)
        if any(self._millilitres(segmentId) is None for segmentId in self._ids):
            self._idle.start()
        self.changed.emit()

    def _fillRow(self, node: slicer.vtkMRMLSegmentationNode, row: int, segmentId: str) -> None:
        segment = node.GetSegmentation().GetSegment(segmentId)
        score = provenance.scoreOf(segment)
        name = self._item(row, NAME, segment.GetName())
        name.setIcon(_swatch(segment.GetColor()))
        display = node.GetDisplayNode()
        shown = display is None or display.GetSegmentVisibility(segmentId)
        name.setCheckState(qt.Qt.Checked if shown else qt.Qt.Unchecked)
        volume = self._millilitres(segmentId)
        self._item(row, VOLUME, "..." if volume is None else formatMillilitres(volume), right=True)
        self._item(row, SCORE, "" if score is None else f"{score:.2f}", right=True)
        self._item(row, MADE_BY, madeBy(segment))
        tip = provenance.describe(segment) or _("Not made by MedSAM3.")
        for column in range(4):
            self.ui.segmentsTable.item(row, column).setToolTip(tip)

    def _item(self, row: int, column: int, text: str, right: bool = False) -> Any:
        item = self.ui.segmentsTable.item(row, column)
        if item is None:
            item = qt.QTableWidgetItem()
            self.ui.segmentsTable.setItem(row, column, item)
        item.setText(text)
        if right:
            item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
        return item

    def _millilitres(self, segmentId: str) -> float | None:
        return self._meter.millilitres(self._node, segmentId)

    def _measure(self) -> None:
        if self._node is not None and self._meter.step():
            return
        self._idle.stop()
        if self._node is not None:
            self.refresh()

    def _onModified(self, caller: Any, event: str) -> None:
        """Many changes come at once; the table follows a moment after the last."""
        self._timer.start()

    def _onCellClicked(self, row: int, column: int) -> None:
        if self._node is not None and 0 <= row < len(self._ids):
            views.jumpToSegment(self._scene, self._node, self._ids[row])
        self.changed.emit()

    def _onItemChanged(self, item: Any) -> None:
        if self._filling or self._node is None or item.column() != NAME or item.row() >= len(self._ids):
            return
        display = self._node.GetDisplayNode()
        if display is not None:
            display.SetSegmentVisibility(self._ids[item.row()], item.checkState() == qt.Qt.Checked)


def madeBy(segment: slicer.vtkSegment) -> str:
    """The model and the number of boxes, or that it was drawn by hand."""
    made = provenance.readProvenance(segment)
    if made is None:
        return _("by hand")
    if not made.boxes:
        return made.model
    boxes = _("1 box") if len(made.boxes) == 1 else _("{n} boxes").format(n=len(made.boxes))
    return f"{made.model}, {boxes}"


def formatMillilitres(value: float) -> str:
    """Three digits at least, thousands apart: 0.35, 12.4, 1 532."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _swatch(colour: tuple[float, float, float]) -> Any:
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*(round(255 * channel) for channel in colour)))
    return qt.QIcon(pixmap)
