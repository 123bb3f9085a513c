"""Which slices and which phrases a step sees: balanced by source and concept, with negatives that are surely absent.

A concept that nobody labelled in an image is unknown there, not absent. Surely absent are the concepts that were
labelled in the case but not in the slice, and those of a body region (or a kind of picture) that the image cannot show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from MedSAM3Core.errors import InputError
from MedSAM3Core.training.cache import SliceCache, SliceRecord
from MedSAM3Core.training.knowledge import ANYWHERE, CONCEPT_REGIONS, DISTRACTORS, SOURCE_REGIONS, TONED_ALIKE
from MedSAM3Core.training.pack import split_of


@dataclass(frozen=True)
class Query:
    """A phrase asked of a slice.

    Attributes:
        phrase: What is said to the model.
        classes: Class indices whose union is the answer; empty when the concept is absent.
    """

    phrase: str
    classes: tuple[int, ...]


class ConceptSampler:
    """Draws (slice, phrases) with the randomness of its own generator.

    Args:
        cache: The slices.
        groups: Broader term to the concepts that make it up.
        weights: Source name to its share of the draws; those not named share ``other``.
        split: Which patients, see `pack.split_of`.
        seed: Of the generator.
    """

    def __init__(
        self,
        cache: SliceCache,
        groups: Mapping[str, Sequence[str]],
        weights: dict[str, float],
        split: str = "train",
        seed: int = 0,
    ) -> None:
        self.cache = cache
        self.random = np.random.default_rng(seed)
        self.index = {name: number for number, name in enumerate(cache.classes)}
        self.groups = {
            term: tuple(self.index[part] for part in parts if part in self.index)
            for term, parts in groups.items()
        }
        self._by_class: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._by_source: dict[str, list[int]] = defaultdict(list)
        for number, record in enumerate(cache.records):
            case = cache.cases[record.case]
            if split_of(case.patient) != split:
                continue
            self._by_source[case.source].append(number)
            for present in record.present:
                self._by_class[case.source][present].append(number)
        self._sources, self._shares = self._source_shares(weights)
        self._foreign = {source: self._foreign_phrases(source) for source in self._by_source}

    def _source_shares(self, weights: dict[str, float]) -> tuple[list[str], np.ndarray]:
        """Sources with a share above zero, and the shares; without any weight all sources are alike."""
        others = [source for source in self._by_source if source not in weights]
        rest = weights.get("other", 0.0) if weights else 1.0
        share = {source: rest / len(others) for source in others}
        share |= {source: weight for source, weight in weights.items() if source in self._by_source}
        total = sum(share.values())
        if total <= 0:
            found = ", ".join(sorted(self._by_source)) or "none"
            raise InputError(
                f"No slice can be drawn: the data has training patients of these sources: {found}; "
                f"source_weights names {', '.join(sorted(weights)) or 'none'}."
            )
        return list(share), np.array([value / total for value in share.values()])

    def _foreign_phrases(self, source: str) -> list[str]:
        """Phrases that are surely absent from every image of a source."""
        regions = SOURCE_REGIONS[source]
        phrases = []
        for phrase in [*self.index, *self.groups]:
            where = CONCEPT_REGIONS.get(phrase, ANYWHERE)
            if where is not ANYWHERE and not where & regions:
                phrases.append(phrase)
        return phrases

    def draw_slice(self) -> tuple[SliceRecord, int | None]:
        """A slice and the class it was drawn for (None: any slice of the source, for its empty ones)."""
        source = self._sources[self.random.choice(len(self._sources), p=self._shares)]
        if self.random.random() < 0.15:
            numbers = self._by_source[source]
            return self.cache.records[numbers[self.random.integers(len(numbers))]], None
        classes = list(self._by_class[source])
        wanted = classes[self.random.integers(len(classes))]
        numbers = self._by_class[source][wanted]
        return self.cache.records[numbers[self.random.integers(len(numbers))]], wanted

    def draw_queries(self, record: SliceRecord, wanted: int | None, count: int) -> list[Query]:
        """``count`` phrases for a slice: what it was drawn for first, then others, about two in five absent."""
        queries = [self._positive(record, wanted)] if wanted is not None else []
        while len(queries) < count:
            others = [c for c in record.present if c not in {q for query in queries for q in query.classes}]
            if others and self.random.random() < 0.35:
                queries.append(self._positive(record, others[self.random.integers(len(others))]))
            else:
                queries.append(self.draw_absent(record))
        return queries

    def _positive(self, record: SliceRecord, wanted: int) -> Query:
        terms = [
            term for term, parts in self.groups.items() if wanted in parts and self._knows(record, parts)
        ]
        if terms and self.random.random() < 0.4:
            term = terms[self.random.integers(len(terms))]
            return Query(term, tuple(c for c in self.groups[term] if c in record.present))
        return Query(self.cache.classes[wanted], (wanted,))

    def _knows(self, record: SliceRecord, parts: Sequence[int]) -> bool:
        """Whether every part of a broader term was looked for in the case, so that their union is the whole answer."""
        labelled = self.cache.cases[record.case].concepts
        return all(self.cache.classes[part] in labelled for part in parts)

    def draw_absent(self, record: SliceRecord) -> Query:
        """A phrase that is surely absent from a slice."""
        case = self.cache.cases[record.case]
        absent = [name for name in case.concepts if self.index[name] not in record.present]
        # Broader terms too: a model that never hears "hippocampus" of a slice without one sees it everywhere.
        absent += [
            term
            for term, parts in self.groups.items()
            if parts and self._knows(record, parts) and not set(parts) & set(record.present)
        ]
        draw = self.random.random()
        if absent and draw < 0.45:
            return Query(absent[self.random.integers(len(absent))], ())
        if draw < 0.6:
            return Query(DISTRACTORS[self.random.integers(len(DISTRACTORS))], ())
        alike = [
            p
            for p in self._foreign[case.source]
            if CONCEPT_REGIONS[p] & TONED_ALIKE.get(case.modality, frozenset())
        ]
        pool = alike if alike and draw < 0.85 else self._foreign[case.source]
        return Query(pool[self.random.integers(len(pool))], ())
