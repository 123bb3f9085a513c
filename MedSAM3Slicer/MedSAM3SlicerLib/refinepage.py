"""The part of the panel that improves a segment beyond boxes: points, more like this, locks, acceptance, revisions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedSAM3SlicerLib.adapter import provenance
from MedSAM3SlicerLib.adapter.shownslice import shownSlice
from MedSAM3SlicerLib.boxtable import BoxTable
from MedSAM3SlicerLib.logic import SegmentationLogic

UI_FILE = Path(__file__).resolve().parent.parent / "Resources" / "UI" / "Refine.ui"
SETTLE_MS = 300
"""What is drawn becomes an undo step when it has not changed for so long: dragging a handle is one step."""


class RefinePage:
    """Shows a `Refinement` under the table of boxes.

    Args:
        parent: The layout that gets the page.
        logic: Its ``refinement`` does the work.
        boxTable: The boxes and points.
        choices: Image, segmentation and segment's ID as the panel shows them now.
        moreLikeThis: Starts a rerun that looks for more of the selected segment.
        say: Shows a sentence in the status line.
    """

    def __init__(
        self,
        parent: Any,
        logic: SegmentationLogic,
        boxTable: BoxTable,
        choices: Callable[[], tuple[Any, Any, str]],
        moreLikeThis: Callable[[], Any],
        say: Callable[[str], None],
    ) -> None:
        self.logic = logic
        self.boxTable = boxTable
        self._choices, self._say = choices, say
        self.widget = slicer.util.loadUI(str(UI_FILE))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        parent.addWidget(self.widget)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.connect("timeout()", self.settle)
        self._revisions: list[int] = []
        for button, slot in (
            (self.ui.addPointButton, lambda: boxTable.addPoints(True)),
            (self.ui.addNegativePointButton, lambda: boxTable.addPoints(False)),
            (self.ui.moreLikeThisButton, moreLikeThis),
            (self.ui.lockSliceButton, self.toggleLock),
            (self.ui.acceptButton, self.toggleAccepted),
            (self.ui.restoreButton, self.restore),
        ):
            button.connect("clicked(bool)", lambda *_, slot=slot: slot())
        boxTable.changed.connect(self._timer.start)

    def toggleLock(self) -> None:
        """Lock the shown slice, or release it."""
        volumeNode, node, segmentId = self._choices()
        if self.logic.isBusy or not segmentId or volumeNode is None:
            return
        shown = shownSlice(self.logic.scene, volumeNode, slicingAxis(node, segmentId))
        if shown is None:
            self._say(_("No slice view shows a slice of this image; scroll one to the slice to lock."))
            return
        locked = shown in self.logic.refinement.lockedSlices(node, segmentId)
        self.logic.refinement.setLocked(node, segmentId, [shown], locked=not locked)
        self.refresh()

    def toggleAccepted(self) -> None:
        """Take the segment for done, or take that back."""
        volumeNode, node, segmentId = self._choices()
        if self.logic.isBusy or not segmentId or volumeNode is None:
            return
        accepted = self.logic.refinement.isAccepted(node, segmentId)
        self.logic.refinement.accept(node, segmentId, volumeNode, accepted=not accepted)
        self.refresh()

    def restore(self) -> None:
        """Bring the chosen revision back."""
        volumeNode, node, segmentId = self._choices()
        index = self.ui.revisionComboBox.currentIndex
        if self.logic.isBusy or volumeNode is None or not 0 <= index < len(self._revisions):
            return
        self.logic.refinement.restore(node, segmentId, self._revisions[index], volumeNode)
        self._say(_("Revision {n} is back; undo takes it away again.").format(n=self._revisions[index]))
        self.refresh()

    def settle(self) -> None:
        """Keep what was drawn as an undo step, and show what undo has brought back."""
        volumeNode, node, _segmentId = self._choices()
        if node is None or volumeNode is None or self.logic.isBusy:
            return
        if self.logic.refinement.drawings.reconcile(node, volumeNode):
            self.refresh()

    def refresh(self) -> None:
        """Show the selected segment's locks and revisions."""
        volumeNode, node, segmentId = self._choices()
        self.boxTable.setSegment(node, segmentId)
        ready = bool(segmentId) and volumeNode is not None and not self.logic.isBusy
        ui = self.ui
        for button in (ui.moreLikeThisButton, ui.lockSliceButton, ui.acceptButton):
            button.enabled = ready
        ui.addPointButton.enabled = ui.addNegativePointButton.enabled = volumeNode is not None
        locked = self.logic.refinement.lockedSlices(node, segmentId) if segmentId else ()
        ui.lockedLabel.text = _("Locked: {n}").format(n=", ".join(map(str, locked))) if locked else ""
        ui.acceptButton.checked = bool(segmentId) and self.logic.refinement.isAccepted(node, segmentId)
        self._fillRevisions(node, segmentId)
        ui.restoreButton.enabled = ready and bool(self._revisions)
        self._timer.start()

    def close(self) -> None:
        """Wait for nothing more."""
        self._timer.stop()

    def _fillRevisions(self, node: Any, segmentId: str) -> None:
        found = self.logic.refinement.revisions.of(node, segmentId) if segmentId else []
        numbers = [revision.number for revision in reversed(found)]
        if numbers == self._revisions:
            return
        self._revisions = numbers
        self.ui.revisionComboBox.clear()
        for revision in reversed(found):
            when = revision.created[11:16]
            self.ui.revisionComboBox.addItem(f"{revision.number}: {revision.what} {when}".rstrip())


def slicingAxis(node: slicer.vtkMRMLSegmentationNode, segmentId: str) -> int:
    """0, 1 or 2 for i, j or k: the axis along which the segment's model cut the image; k where that is not known."""
    made = provenance.readProvenance(node.GetSegmentation().GetSegment(segmentId))
    found = re.search(r"grid axis ([ijk])", made.axis) if made else None
    return "ijk".index(found.group(1)) if found else 2
