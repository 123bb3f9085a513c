"""What boxes are worth: Dice by text alone and after each box of the simulated annotator, ours beside a peer's.

A peer that knows no words and no neighbours (LiteMedSAM) is given the very boxes that ours was given. Over a whole
volume it then has masks on the boxed slices only, so Dice on the boxed slices is told as well: there both had the
same box, and what is compared is the mask in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from MedSAM3Core.evaluation.heldout import dice, reference_masks
from MedSAM3Core.evaluation.simulated import simulate_boxes
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.prompts import Box
from MedSAM3Core.training.pack import Case
from MedSAM3Core.volume import read_volume
from MedSAM3Core.volume.volume import Volume

if TYPE_CHECKING:
    from MedSAM3Core.inference.session import Segmenter

ENOUGH = 0.9
"""Dice from which a case needs no more boxes."""


class Peer(Protocol):
    """A model that is given boxes; `MedSAM3Core.evaluation.baselines.LiteMedSAM` is one."""

    name: str

    def segment(self, volume: Volume, plan: SlicePlan, phrase: str, boxes: Sequence[Box]) -> np.ndarray:
        """Masks in boxes: bool, (slices, rows, columns)."""


@dataclass(frozen=True)
class BoxScore:
    """One concept in one case; entry n of every tuple is that after n boxes.

    Attributes:
        case: File name of the image.
        source: Data set.
        concept: What was asked for.
        slices: Slices of the case.
        whole: Dice of the whole case.
        boxed: Dice on the slices that the boxes are on; entry 0 is nan.
        peer: Dice of the whole case, of the peer with the same boxes; empty without one. Entry 0 is 0.
        peer_boxed: The same on the boxed slices.
    """

    case: str
    source: str
    concept: str
    slices: int
    whole: tuple[float, ...]
    boxed: tuple[float, ...]
    peer: tuple[float, ...] = ()
    peer_boxed: tuple[float, ...] = ()

    @property
    def boxes_needed(self) -> int | None:
        """Boxes until Dice is `ENOUGH`; None where it never is."""
        return next((n for n, value in enumerate(self.whole) if value >= ENOUGH), None)


def measure_boxes(
    segmenter: Segmenter,
    cases: Sequence[Case],
    groups: Mapping[str, Sequence[str]],
    count: int,
    peer: Peer | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> list[BoxScore]:
    """Draw boxes on every concept that a case has.

    Args:
        segmenter: The model.
        cases: Held-out cases.
        groups: Broader term to its parts, as for `reference_masks`.
        count: Boxes at most.
        peer: Is given the same boxes.
        progress: Receives a report a case.
        cancel: Stops between two cases.
    """
    meter = ProgressMeter(progress, cancel, {"evaluating": 1.0})
    scores: list[BoxScore] = []
    for number, case in enumerate(cases):
        meter.step("evaluating", number, len(cases))
        scores.extend(_measure_case(segmenter, case, groups, count, peer))
    meter.step("evaluating", len(cases), len(cases))
    return scores


def _measure_case(
    segmenter: Segmenter, case: Case, groups: Mapping[str, Sequence[str]], count: int, peer: Peer | None
) -> Iterator[BoxScore]:
    volume = read_volume(case.image)
    with segmenter.open(volume) as session:
        for concept, reference in reference_masks(case, groups).items():
            if not reference.any():
                continue
            results = simulate_boxes(session, concept, reference, count)
            drawn = [result.boxes for result in results]
            own = [result.to_array() for result in results]
            theirs = _answers_of(peer, volume, session.plan, concept, drawn) if peer else []
            yield BoxScore(
                case.image.name,
                case.source,
                concept,
                session.plan.count,
                tuple(dice(mask, reference) for mask in own),
                _on_boxed(session.plan, own, reference, drawn),
                tuple(dice(mask, reference) for mask in theirs),
                _on_boxed(session.plan, theirs, reference, drawn),
            )


def _answers_of(
    peer: Peer, volume: Volume, plan: SlicePlan, phrase: str, drawn: Sequence[Sequence[Box]]
) -> list[np.ndarray]:
    """The peer's masks after each box; every box is asked once."""
    masks = [np.zeros(volume.geometry.shape, bool)]
    for before, boxes in pairwise(drawn):
        new = boxes[len(before) :]
        masks.append(masks[-1] | peer.segment(volume, plan, phrase, new) if new else masks[-1])
    return masks


def _on_boxed(
    plan: SlicePlan, masks: Sequence[np.ndarray], reference: np.ndarray, drawn: Sequence[Sequence[Box]]
) -> tuple[float, ...]:
    """Dice on the slices that positive boxes are on; nan where there is none."""
    values = []
    for mask, boxes in zip(masks, drawn, strict=False):
        indices = sorted({plan.box_to_plane(box).slices[0] for box in boxes if box.positive})
        if not indices:
            values.append(float("nan"))
            continue
        values.append(dice(plan.to_plane(mask)[indices], plan.to_plane(reference)[indices]))
    return tuple(values)


@dataclass(frozen=True)
class BoxSummary:
    """A data set; entry n of every tuple is the mean, over its concepts, of the mean over cases, after n boxes.

    Attributes:
        source: Data set.
        cases: Pairs of case and concept.
        whole, boxed, peer, peer_boxed: As in `BoxScore`.
        enough: Share of the pairs that have reached `ENOUGH` with at most n boxes.
    """

    source: str
    cases: int
    whole: tuple[float, ...]
    boxed: tuple[float, ...]
    peer: tuple[float, ...]
    peer_boxed: tuple[float, ...]
    enough: tuple[float, ...]


def summarise_boxes(scores: Sequence[BoxScore]) -> list[BoxSummary]:
    """One summary a data set, in the order met."""
    summaries = []
    for source in dict.fromkeys(score.source for score in scores):
        members = [score for score in scores if score.source == source]
        needed = [score.boxes_needed for score in members]
        counts = range(len(members[0].whole))
        means = {
            name: _mean_over_concepts(members, name) for name in ("whole", "boxed", "peer", "peer_boxed")
        }
        enough = tuple(float(np.mean([n is not None and n <= count for n in needed])) for count in counts)
        summaries.append(BoxSummary(source, len(members), enough=enough, **means))
    return summaries


def _mean_over_concepts(scores: Sequence[BoxScore], name: str) -> tuple[float, ...]:
    rows = []
    for concept in dict.fromkeys(score.concept for score in scores):
        values = np.array([getattr(score, name) for score in scores if score.concept == concept], float)
        if values.size == 0:
            return ()
        # A case that was right without a box has no boxed slice; it says nothing about boxed slices.
        known = ~np.isnan(values)
        rows.append(np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan))
    table = np.array(rows)
    known = ~np.isnan(table)
    counts = np.where(known.any(0), known.sum(0), np.nan)
    return tuple((np.where(known, table, 0).sum(0) / counts).tolist())
