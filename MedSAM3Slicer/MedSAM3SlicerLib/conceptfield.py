"""Where concepts are typed: a line that completes, and chips of what will be looked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Concept
from MedSAM3SlicerLib.signals import Signal

HISTORY_KEY = "MedSAM3/ConceptHistory"
HISTORY_LENGTH = 30


class ConceptField:
    """The line edit and the list of the panel.

    Args:
        ui: The panel's widgets ``conceptLineEdit`` and ``conceptList``.
        resolve: A phrase as a `Concept` (`MedSAM3Core.concepts.resolve`).
        complete: Phrases for what was typed so far (`MedSAM3Core.concepts.complete`).
        split: A line as phrases (`MedSAM3Core.concepts.split_concepts`).
        settings: A ``QSettings`` that keeps the history.
    """

    def __init__(
        self,
        ui: Any,
        resolve: Callable[[str], Concept],
        complete: Callable[[str], list[str]],
        split: Callable[[str], list[str]],
        settings: Any,
    ) -> None:
        self.ui = ui
        self.changed = Signal()
        self.refused = Signal()
        self._resolve, self._complete, self._split = resolve, complete, split
        self._settings = settings
        self._concepts: list[Concept] = []
        self._model = qt.QStringListModel()
        self._completer = qt.QCompleter(self._model, ui.conceptLineEdit)
        self._completer.setCaseSensitivity(qt.Qt.CaseInsensitive)
        self._completer.setCompletionMode(qt.QCompleter.UnfilteredPopupCompletion)
        ui.conceptLineEdit.setCompleter(self._completer)
        ui.conceptLineEdit.connect("textEdited(QString)", self._onEdited)
        ui.conceptLineEdit.connect("returnPressed()", self.takeLine)
        self._completer.connect("activated(QString)", self._onCompleted)
        ui.conceptList.connect("itemClicked(QListWidgetItem*)", self._onChipClicked)
        self._show()

    @property
    def concepts(self) -> list[Concept]:
        """What will be looked for, chips only."""
        return list(self._concepts)

    @property
    def phrases(self) -> list[str]:
        """The chips as they were typed."""
        return [concept.typed for concept in self._concepts]

    def setPhrases(self, phrases: list[str]) -> None:
        """Show these chips instead; phrases that cannot be used are left out."""
        self._concepts = []
        for phrase in phrases:
            self._add(phrase)
        self._show()

    def takeLine(self) -> bool:
        """Turn what stands in the line into chips; returns whether all of it could be used."""
        text = self.ui.conceptLineEdit.text.strip()
        if not text:
            return True
        try:
            for phrase in self._split(text):
                self._add(phrase)
        except PromptError as fault:
            self.refused.emit(str(fault))
            return False
        self.ui.conceptLineEdit.clear()
        self._show()
        self.changed.emit()
        return True

    def remember(self) -> None:
        """Keep the chips in the history, newest first."""
        kept = list(dict.fromkeys([*self.phrases, *self.history()]))[:HISTORY_LENGTH]
        self._settings.setValue(HISTORY_KEY, "\n".join(kept))

    def history(self) -> list[str]:
        """What was looked for before, newest first."""
        text = self._settings.value(HISTORY_KEY, "")
        return [line for line in str(text or "").split("\n") if line]

    def showHistory(self) -> None:
        """Offer what was looked for before, whatever stands in the line."""
        self._model.setStringList(self.history())
        self._completer.complete()

    def suggestions(self, typed: str) -> list[str]:
        """What to offer for a line: of the history first, then of the terminology."""
        wanted = typed.split(",")[-1].strip().lower()
        before = [phrase for phrase in self.history() if phrase.lower().startswith(wanted)][:5]
        known = self._complete(wanted) if wanted else []
        return list(dict.fromkeys([*before, *known]))[:12]

    def _onEdited(self, text: str) -> None:
        self.refused.emit("")
        if text.endswith((",", ";")):
            self.takeLine()
            return
        self._model.setStringList(self.suggestions(text))

    def _onCompleted(self, text: str) -> None:
        """Chosen from the list: Qt fills the line after this signal, so the chip is made one turn later."""

        def take() -> None:
            self.ui.conceptLineEdit.text = text
            self.takeLine()

        qt.QTimer.singleShot(0, take)

    def _onChipClicked(self, item: Any) -> None:
        row = self.ui.conceptList.row(item)
        if 0 <= row < len(self._concepts):
            del self._concepts[row]
            self._show()
            self.changed.emit()

    def _add(self, phrase: str) -> None:
        concept = self._resolve(phrase)
        if concept.phrase not in {known.phrase for known in self._concepts}:
            self._concepts.append(concept)

    def _show(self) -> None:
        chips = self.ui.conceptList
        chips.clear()
        for concept in self._concepts:
            item = qt.QListWidgetItem(_swatch(concept.colour), f"{concept.phrase}  \u2715")
            item.setToolTip(chipToolTip(concept))
            chips.addItem(item)
        chips.setVisible(bool(self._concepts))


def chipToolTip(concept: Concept) -> str:
    """What is known of a concept, and that a click takes it out."""
    code = f"SNOMED CT {concept.code}" if concept.code else "not in the terminology: no code"
    said = "Said to the model: " + "; ".join(concept.prompts or (concept.phrase,))
    return "\n".join([concept.name or concept.phrase, code, said, *concept.notices, "Click to take it out."])


def _swatch(colour: tuple[int, int, int]) -> Any:
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*colour))
    return qt.QIcon(pixmap)
