"""A quick look at a run while it trains: Dice on slices of validation patients, by concept.

Not the held-out figures: single slices, no search, no propagation. It says whether a run still learns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.training.batches import BatchMaker
from MedSAM3Core.training.cache import SliceCache, SliceRecord
from MedSAM3Core.training.pack import split_of
from MedSAM3Core.training.sampling import Query
from MedSAM3Core.training.stages import DenseHead, Tokenize

SLICES_PER_CONCEPT = 10
FEWEST_SLICES = 4
"""Concepts with fewer validation slices are left out: their figure would say nothing."""


@dataclass(frozen=True)
class Probe:
    """A slice with a concept that is in it.

    Attributes:
        record: The slice.
        concept: Class index.
        source: Data set.
    """

    record: SliceRecord
    concept: int
    source: str


@dataclass(frozen=True)
class Reading:
    """A concept over its probes.

    Attributes:
        concept: Phrase.
        source: Data set.
        dice: Mean over the slices that show it.
        present: Mean presence there, 0..1; NaN in the dense stage.
        absent: Mean presence of a surely absent phrase on the same slices; NaN in the dense stage.
    """

    concept: str
    source: str
    dice: float
    present: float = float("nan")
    absent: float = float("nan")


def choose_probes(cache: SliceCache, split: str = "validation") -> list[Probe]:
    """The same few slices of every concept for every call, spread over the patients of the split."""
    found: dict[tuple[str, int], list[SliceRecord]] = defaultdict(list)
    for record in cache.records:
        case = cache.cases[record.case]
        if split_of(case.patient) == split:
            for concept in record.present:
                found[case.source, concept].append(record)
    probes = []
    for (source, concept), records in sorted(found.items()):
        if len(records) < FEWEST_SLICES:
            continue
        places = np.linspace(0, len(records) - 1, min(SLICES_PER_CONCEPT, len(records))).round().astype(int)
        probes += [Probe(records[place], concept, source) for place in places]
    return probes


class Validator:
    """Judges the network on validation slices.

    Args:
        network: What is trained.
        head: Its auxiliary head.
        batches: Renders slices, must not augment; its sampler draws the absent phrases and is re-seeded by every call.
        tokenize: Phrases to tokens.
        probes: What is looked at.
    """

    def __init__(
        self,
        network: ConceptNetwork,
        head: DenseHead,
        batches: BatchMaker,
        tokenize: Tokenize,
        probes: Sequence[Probe],
    ) -> None:
        self.network, self.head, self.batches, self.sampler = network, head, batches, batches.sampler
        self.tokenize, self.probes = tokenize, probes

    @torch.no_grad()
    def judge(self, kind: str) -> list[Reading]:
        """Readings of every concept in a stage of ``kind``; empty for the tracker, which has no phrases."""
        if kind == "tracker" or not self.probes:
            return []
        judge: Callable[[Sequence[Probe]], Iterable[tuple[float, float, float]]]
        judge = self._dense if kind == "dense" else self._detector
        self.sampler.random = np.random.default_rng(0)
        rows: dict[tuple[int, str], list[tuple[float, float, float]]] = defaultdict(list)
        for first in range(0, len(self.probes), 16):
            some = self.probes[first : first + 16]
            for probe, row in zip(some, judge(some), strict=True):
                rows[probe.concept, probe.source].append(row)
        names = self.sampler.cache.classes
        return [
            Reading(names[concept], source, *(float(v) for v in np.mean(values, axis=0)))
            for (concept, source), values in rows.items()
        ]

    def _render(self, probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
        pixels, labels = self.batches.render([p.record for p in probes], torch.zeros(len(probes)).bool())
        targets = [
            self.batches.answer(label, Query("", (p.concept,)))
            for label, p in zip(labels, probes, strict=True)
        ]
        return pixels, torch.stack(targets)

    def _dense(self, probes: Sequence[Probe]) -> list[tuple[float, float, float]]:
        pixels, targets = self._render(probes)
        logits = self.head(self.network.detector_pyramid(self.network.trunk(pixels)).maps[0])
        chosen = logits[torch.arange(len(probes)), torch.tensor([p.concept for p in probes])]
        return [(value, float("nan"), float("nan")) for value in slice_dice(chosen, targets)]

    def _detector(self, probes: Sequence[Probe]) -> list[tuple[float, float, float]]:
        pixels, targets = self._render(probes)
        pyramid = self.network.detector_pyramid(self.network.trunk(pixels))
        asked = [self.sampler.cache.classes[p.concept] for p in probes]
        other = [self.sampler.draw_absent(p.record).phrase for p in probes]
        found = self.network.detect(
            pyramid, self.network.encode_text(*self.tokenize(asked)), with_masks=False
        )
        empty = self.network.detect(
            pyramid, self.network.encode_text(*self.tokenize(other)), with_masks=False
        )
        present, absent = (d.presence[-1].float().sigmoid().flatten().tolist() for d in (found, empty))
        return list(zip(slice_dice(found.semantic, targets), present, absent, strict=True))


def slice_dice(logits: Tensor, targets: Tensor) -> list[float]:
    """Dice of each (height, width) logit map at 0 against a 0..1 target at one half."""
    answer, truth = logits > 0, targets >= 0.5
    overlap = (answer & truth).sum((-2, -1)).float()
    total = (answer.sum((-2, -1)) + truth.sum((-2, -1))).float().clamp_min(1)
    return (2 * overlap / total).tolist()
