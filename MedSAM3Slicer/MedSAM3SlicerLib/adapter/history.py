"""Undo states of segmentations: one stack, the segment editor's where the user edits by hand."""

from __future__ import annotations

from typing import Any, Protocol

import slicer

MOST_STATES = 51
"""Undo states: undoing keeps the present as one too, so 50 steps back need 51 (measured: 50 states, 49 steps)."""


class UndoHistory(Protocol):
    """What `SegmentWriter` and the panel's two arrows need of an undo stack."""

    def saveState(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        """Keep the segmentation as it is now; called before the first voxel changes."""

    def undo(self) -> None:
        """Go back to the last kept state."""

    def redo(self) -> None:
        """Undo the undoing."""

    @property
    def canUndo(self) -> bool:
        """Whether there is a state to go back to."""

    @property
    def canRedo(self) -> bool:
        """Whether there is a state to go forward to."""


class LogicHistory:
    """The stack of a segment editor logic; for scripts, and where there is no segment editor widget.

    Args:
        editorLogic: Bound to a segment editor node; the stack is that of the node's segmentation.
        maximumStates: How many steps are kept (a state keeps only the labelmaps that changed).
    """

    def __init__(
        self, editorLogic: slicer.vtkSlicerSegmentEditorLogic, maximumStates: int = MOST_STATES
    ) -> None:
        self._logic = editorLogic
        self._logic.SetMaximumNumberOfUndoStates(maximumStates)

    def saveState(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        """Keep the segmentation as it is now."""
        self._logic.GetSegmentEditorNode().SetAndObserveSegmentationNode(segmentationNode)
        self._logic.SaveStateForUndo()

    def undo(self) -> None:
        """Go back to the last kept state."""
        self._logic.Undo()

    def redo(self) -> None:
        """Undo the undoing."""
        self._logic.Redo()

    @property
    def canUndo(self) -> bool:
        """Whether there is a state to go back to."""
        return bool(self._logic.CanUndo())

    @property
    def canRedo(self) -> bool:
        """Whether there is a state to go forward to."""
        return bool(self._logic.CanRedo())


class EditorWidgetHistory:
    """The stack of Slicer's own segment editor widget, so that one Ctrl+Z list holds runs and hand edits alike.

    The widget owns a private logic with a stack of its own, so the state must be saved through the widget, and the
    widget must show the segmentation that is written to.

    Args:
        editorWidget: A ``qMRMLSegmentEditorWidget``.
    """

    def __init__(self, editorWidget: Any) -> None:
        self._widget = editorWidget
        self._widget.setMaximumNumberOfUndoStates(MOST_STATES)

    def saveState(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        """Keep the segmentation as it is now."""
        if self._widget.segmentationNode() is not segmentationNode:
            self._widget.setSegmentationNode(segmentationNode)
        self._widget.saveStateForUndo()

    def undo(self) -> None:
        """Go back to the last kept state."""
        self._widget.undo()

    def redo(self) -> None:
        """Undo the undoing."""
        self._widget.redo()

    @property
    def canUndo(self) -> bool:
        """Whether there may be a state to go back to; the widget does not tell."""
        return self._widget.segmentationNode() is not None

    @property
    def canRedo(self) -> bool:
        """Whether there may be a state to go forward to; the widget does not tell."""
        return self._widget.segmentationNode() is not None


class NoHistory:
    """Keeps nothing; for nodes that no user sees."""

    canUndo = canRedo = False

    def saveState(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        """Nothing."""

    def undo(self) -> None:
        """Nothing."""

    def redo(self) -> None:
        """Nothing."""
