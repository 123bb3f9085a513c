"""One sentence beside the field it concerns."""

from __future__ import annotations

from typing import Any

from MedSAM3Core import errors

FIELD_OF_ERROR = (
    (errors.VolumeError, "input"),
    (errors.PromptError, "concept"),
    (errors.ModelError, "model"),
    (errors.OutputError, "segmentation"),
)


def fieldOf(fault: BaseException, refining: bool = False) -> str:
    """The field that an error concerns, "" for one that concerns none."""
    for kind, field in FIELD_OF_ERROR:
        if isinstance(fault, kind):
            return "box" if refining and field == "concept" else field
    return ""


class ProblemLabels:
    """The labels under the fields; empty ones take no room.

    Args:
        labels: Field name to its label.
    """

    def __init__(self, labels: dict[str, Any]) -> None:
        self._labels = labels
        self.clear()

    def show(self, field: str, sentence: str) -> bool:
        """Show the sentence under the field, hide the label if it is empty; returns whether there is such a field."""
        label = self._labels.get(field)
        if label is None:
            return False
        label.text = sentence
        label.setVisible(bool(sentence))
        return True

    def clear(self) -> None:
        """Hide all."""
        for field in self._labels:
            self.show(field, "")

    def sentences(self) -> dict[str, str]:
        """What is shown, by field."""
        return {field: label.text for field, label in self._labels.items() if label.text}
