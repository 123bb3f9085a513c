"""The agent on cases whose answer is known, and judges that know it.

The paper's third open question is what an agent can recover when the base result is wrong, and how much that depends on
the judge. A `SimulatedJudge` answers it without a language model: it is right with a known probability, and else says
and does something at random. What it asks for goes the way of every judge: boxes are drawn on the pictures it was
shown, in thousandths, and only the listed actions exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from MedSAM3Core.agent.facts import (
    THRESHOLDS,
    Action,
    AddBox,
    Judgement,
    KeepSlices,
    Plan,
    Rephrase,
    SetThreshold,
    Synonym,
    Target,
    Verdict,
)
from MedSAM3Core.agent.judging import Judge, Look, Request, SegmenterSession
from MedSAM3Core.agent.pictures import FRAME, Picture
from MedSAM3Core.agent.run import run_agent
from MedSAM3Core.concepts import resolve
from MedSAM3Core.evaluation.heldout import dice
from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Segmentation

GOOD_ENOUGH = 0.85
"""Dice from which a judge that knows the truth accepts."""
ANOTHER_OBJECT = 0.1
"""A mask with less than this share of its voxels in the reference is another object."""
MOSTLY = 0.8
"""Precision or recall that a judge does not complain about."""


def run_agent_case(
    session: SegmenterSession,
    request: str,
    judge: Judge,
    rounds: int = 3,
    cancel: CancelToken | None = None,
) -> Segmentation:
    """Run the agent on one open volume and give the first target's result.

    Args:
        session: The volume, open on a model.
        request: In plain words, for example "segment the liver".
        judge: `LanguageModelJudge` of `MedSAM3Core.agent.advisor`, or a `SimulatedJudge`.
        rounds: Most rounds.
        cancel: Stops it with `Cancelled`.

    Returns:
        The best round's segmentation; an empty one if no round was kept.
    """
    outcome = run_agent(session, request, judge, rounds, cancel=cancel)
    if outcome.segmentations:
        return outcome.segmentations[0]
    geometry = session.volume.geometry
    return Segmentation.from_mask(outcome.plan.targets[0].concept, geometry, np.zeros(geometry.shape, bool))


class SimulatedJudge:
    """A judge that knows the reference and is right with a known probability.

    Args:
        phrase: What is to be found.
        reference: Bool (slices, rows, columns), the volume's own grid.
        accuracy: Probability that a round's verdict and actions come from the reference, 0..1; otherwise both are
            drawn at random.
        seed: Of the random draws.
        other_phrases: What a wrong judge may call the target instead.
    """

    def __init__(
        self,
        phrase: str,
        reference: np.ndarray,
        accuracy: float = 1.0,
        seed: int = 0,
        other_phrases: Sequence[str] = ("spleen", "lung", "bone"),
    ) -> None:
        self.phrase = phrase
        self.reference = reference
        self.accuracy = accuracy
        self._other_phrases = tuple(other_phrases)
        self._random = np.random.default_rng(seed)

    def plan(self, request: Request, cancel: CancelToken | None = None) -> Plan:
        """The one target."""
        return Plan((Target(resolve(self.phrase)),))

    def judge(self, look: Look, cancel: CancelToken | None = None) -> Judgement:
        """The truth, or something at random."""
        if self._random.random() < self.accuracy:
            return self._truth(look)
        return self._nonsense(look)

    def _truth(self, look: Look) -> Judgement:
        mask, reference = look.segmentation.to_array(), self.reference
        overlap = int((mask & reference).sum())
        precision, recall = overlap / max(int(mask.sum()), 1), overlap / max(int(reference.sum()), 1)
        if dice(mask, reference) >= GOOD_ENOUGH or (not mask.any() and not reference.any()):
            return Judgement(Verdict.ACCEPT, "It agrees with the reference.")
        drawn = self._helpful_boxes(look, mask)
        if not mask.any():
            return Judgement(Verdict.MISSING_PARTS, "Nothing was found.", drawn or (Synonym(),))
        if precision < ANOTHER_OBJECT:
            return Judgement(Verdict.WRONG_OBJECT, "It is elsewhere.", drawn or (Synonym(),))
        outside = self._outside_range(look, mask)
        if outside is not None:
            return Judgement(Verdict.WRONG_SLICES, "It goes on too far.", (*drawn, outside))
        if precision < MOSTLY and recall >= MOSTLY:
            return Judgement(Verdict.TOO_LARGE, "It holds more than the target.", drawn)
        verdict = Verdict.MISSING_PARTS if recall < MOSTLY else Verdict.TOO_SMALL
        return Judgement(verdict, "Parts are not covered.", drawn)

    def _helpful_boxes(self, look: Look, mask: np.ndarray) -> tuple[Action, ...]:
        """The reference's box on the picture that shows most of what is wrong, where none is drawn yet."""
        plan = look.maker.plan
        planes = plan.to_plane(self.reference), plan.to_plane(mask)
        drawn = {plan.box_to_plane(box).slices[0] for box in look.attempt.boxes}
        best: tuple[int, Picture] | None = None
        for picture in look.pictures:
            index = plan.grid_slice(picture.slice_index)
            wrong = int((planes[0][index] ^ planes[1][index]).sum())
            if index not in drawn and planes[0][index].any() and wrong and (best is None or wrong > best[0]):
                best = wrong, picture
        if best is None:
            return ()
        rows, columns = np.nonzero(planes[0][plan.grid_slice(best[1].slice_index)])
        _, height, width = plan.shape
        corners = (
            FRAME * float(columns.min()) / width,
            FRAME * float(rows.min()) / height,
            FRAME * float(columns.max() + 1) / width,
            FRAME * float(rows.max() + 1) / height,
        )
        left, top, right, bottom = (round(n) for n in corners)
        return (AddBox(look.maker.box(best[1], (left, top, right, bottom), True)),)

    def _outside_range(self, look: Look, mask: np.ndarray) -> KeepSlices | None:
        """The reference's slices, if most of what is too much lies outside of them."""
        axis = look.maker.plan.axes[0]
        others = tuple(a for a in range(3) if a != axis)
        places = np.flatnonzero(self.reference.any(axis=others))
        if not len(places):
            return None
        extra = (mask & ~self.reference).sum(axis=others)
        inside = int(extra[places[0] : places[-1] + 1].sum())
        if 2 * inside >= int(extra.sum()):
            return None
        return KeepSlices(int(places[0]), int(places[-1]))

    def _nonsense(self, look: Look) -> Judgement:
        choices = [one for one in Verdict if one is not Verdict.UNJUDGED]
        verdict = choices[int(self._random.integers(len(choices)))]
        return Judgement(verdict, "Said at random.", (self._random_action(look),))

    def _random_action(self, look: Look) -> Action:
        kind = int(self._random.integers(5))
        if kind == 0:
            low, high = THRESHOLDS
            return SetThreshold(round(float(self._random.uniform(low, high)), 2))
        if kind == 1:
            first, last = sorted(int(n) for n in self._random.integers(0, look.maker.plan.count, 2))
            return KeepSlices(first, last)
        if kind == 2:
            names = self._other_phrases
            return Rephrase(resolve(names[int(self._random.integers(len(names)))]))
        if kind == 3 or not look.pictures:
            return Synonym()
        picture = look.pictures[int(self._random.integers(len(look.pictures)))]
        x, y = (np.sort(self._random.integers(0, FRAME - 100, 2)) for _ in range(2))
        corners = (float(x[0]), float(y[0]), float(x[1] + 100), float(y[1] + 100))
        return AddBox(look.maker.box(picture, corners, bool(self._random.integers(2))))


DEGRADATIONS = ("none", "wrong concept", "shifted", "truncated")


class DegradedSession:
    """A session whose answers to text are wrong on purpose; boxes work as they do.

    "wrong concept" answers every phrase with another structure, as a base model does that takes the lung for the
    liver; "shifted" moves each answer to text by half of the object's width; "truncated" cuts off half of its slices
    (of a 2D image, half of its rows).

    Args:
        session: The real one.
        kind: One of `DEGRADATIONS`.
        wrong_phrase: What "wrong concept" looks for instead.
    """

    def __init__(self, session: SegmenterSession, kind: str, wrong_phrase: str = "") -> None:
        if kind not in DEGRADATIONS:
            raise ValueError(f"The degradation is {kind!r}; expected one of {', '.join(DEGRADATIONS)}.")
        self.volume = session.volume
        self.plan = getattr(session, "plan", None)
        self.options = getattr(session, "options", {})
        self.kind = kind
        self._session = session
        self._wrong = resolve(wrong_phrase) if wrong_phrase else None
        self._answers: dict[tuple[str, float | None], Segmentation] = {}

    def segment(
        self,
        concept: str | Concept,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        threshold: float | None = None,
    ) -> Segmentation:
        """As the real one, with the answer to the text degraded before any box is used."""
        meant = concept if isinstance(concept, Concept) else resolve(concept)
        asked = self._wrong if self.kind == "wrong concept" and self._wrong is not None else meant
        key = ((asked.prompts or (asked.phrase,))[0], threshold)
        if key not in self._answers:
            self._answers[key] = self._session.segment(asked, (), progress, cancel, threshold)
        found = dataclasses.replace(self._degrade(self._answers[key]), concept=meant)
        return self._session.refine(found, boxes, progress, cancel) if boxes else found

    def refine(
        self,
        segmentation: Segmentation,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> Segmentation:
        """As the real one."""
        return self._session.refine(segmentation, boxes, progress, cancel)

    def _degrade(self, found: Segmentation) -> Segmentation:
        if found.extent is None or self.kind in ("none", "wrong concept"):
            return found
        mask, probability = found.to_array(), found.probability_map()
        if self.kind == "shifted":
            step = max(1, found.extent.shape[2] // 2)
            mask, probability = _shift(mask, step), _shift(probability, step)
        else:
            axis = 0 if found.extent.shape[0] > 1 else 1
            ends = (found.extent.k, found.extent.j)[axis]
            gone: list[slice] = [slice(None)] * 3
            gone[axis] = slice((ends[0] + ends[1] + 1) // 2, None)
            mask[tuple(gone)], probability[tuple(gone)] = False, 0
        cut = Segmentation.from_mask(found.concept, found.geometry, mask, probability=probability)
        return dataclasses.replace(found, extent=cut.extent, mask=cut.mask, probability=cut.probability)


def _shift(array: np.ndarray, columns: int) -> np.ndarray:
    """Moved to higher columns, with nothing coming in from the left."""
    moved = np.zeros_like(array)
    moved[:, :, columns:] = array[:, :, :-columns]
    return moved
