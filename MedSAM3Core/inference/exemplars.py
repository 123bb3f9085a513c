"""More like this: what a user has settled shows the detector what to look for on every slice.

On a slice that shows the segment already, its own islands' boxes are exemplars for what else is there, as in the
published model. On the other slices the exemplars come from the nearest slice that shows it best: the detector is
told what their boxes hold there (`Detector.with_exemplars`). What is found is added; settled slices stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from MedSAM3Core.errors import PromptError
from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.detector import Detector, Finding, Request
from MedSAM3Core.inference.encoder import Encoder
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.inference.refine import Draft, StageStep
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.windowing import Window

MOST_BOXES = 8
"""Islands of a slice that serve as exemplars, the largest first."""

MOST_EXEMPLARS = 3
"""Slices that lend their exemplars to others; the surest ones."""


class ExemplarSearch:
    """Looks for what resembles a segment.

    Args:
        plan: The cut.
        encoder: Gives features.
        detector: Is prompted.
        settings: All choices.
    """

    def __init__(
        self, plan: SlicePlan, encoder: Encoder, detector: Detector, settings: InferenceSettings
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.detector = detector
        self.settings = settings

    def extend(
        self,
        draft: Draft,
        boxes: Sequence[PlaneBox],
        window: Window,
        phrase: str,
        threshold: float,
        step: StageStep,
    ) -> Draft:
        """A new draft with what resembles the segment added.

        Args:
            draft: The state before; it is not changed.
            boxes: The user's boxes: positive ones through several slices bound the search, negative ones exclude.
            window: Intensity window.
            phrase: What is said to the detector.
            threshold: Score from which a slice shows the concept.
            step: Told of progress.

        Raises:
            PromptError: If the segment is empty.
        """
        own = {n: _boxes_of(draft.mask[n], n) for n in range(self.plan.count) if draft.mask[n].any()}
        if not own:
            raise PromptError(
                "The segment is empty, so nothing can be looked for that resembles it; draw a box."
            )
        wanted = [n for n in self._slices(boxes) if n not in draft.fixed]
        self.encoder.prefetch(window, [*wanted, *own], lambda done, total: step("encoding", done, total))
        findings = self._look(draft, own, wanted, window, phrase, step)
        s = self.settings
        half_width = round(s.agreement_mm / self.plan.spacing[0])
        scores = {n: finding.score for n, finding in findings.items()}
        accepted = fusion.accept_slices(scores, threshold, s.low_share, half_width, s.sure_share)
        result = draft.copy()
        for n in accepted:
            self._add(result, n, findings[n], boxes)
        return result

    def _slices(self, boxes: Sequence[PlaneBox]) -> range:
        deep = [box.slices for box in boxes if box.positive and box.slices[0] != box.slices[1]]
        if not deep:
            return range(self.plan.count)
        return range(min(first for first, _ in deep), max(last for _, last in deep) + 1)

    def _look(
        self,
        draft: Draft,
        own: dict[int, tuple[PlaneBox, ...]],
        wanted: Sequence[int],
        window: Window,
        phrase: str,
        step: StageStep,
    ) -> dict[int, Finding]:
        done = 0

        def count(finished: int, total: int) -> None:
            step("searching", done + finished, max(1, len(wanted)))

        here = [n for n in wanted if n in own]
        requests = [Request(n, phrase, own[n]) for n in here]
        findings = dict(zip(here, self.detector.detect(window, requests, count), strict=True))
        done = len(here)
        lenders = self._lenders(draft, own)
        for lender in lenders:
            group = [
                n for n in wanted if n not in own and min(lenders, key=lambda m: (abs(m - n), m)) == lender
            ]
            taught = self.detector.with_exemplars(window, Request(lender, phrase, own[lender]))
            found = taught.detect(window, [Request(n, phrase) for n in group], count)
            findings.update(zip(group, found, strict=True))
            done += len(group)
        step("searching", 1, 1)
        return findings

    def _lenders(self, draft: Draft, own: dict[int, tuple[PlaneBox, ...]]) -> list[int]:
        """Slices whose exemplars others borrow: those that a user has settled, else the surest."""
        ranked = sorted(own, key=lambda n: (n not in draft.fixed, -draft.scores.get(n, 0.0), n))
        return ranked[:MOST_EXEMPLARS]

    def _add(self, result: Draft, index: int, finding: Finding, boxes: Sequence[PlaneBox]) -> None:
        s = self.settings
        found = fusion.enlarge(finding.probability[None].float(), self.plan.shape[1:])[0].half().cpu().numpy()
        mask = found >= self.detector.policy.mask_threshold
        mask = fusion.clean(mask[None], s.island_share, s.hole_share)[0] & _allowed(index, mask.shape, boxes)
        result.mask[index] |= mask
        np.maximum(result.probability[index], found, out=result.probability[index], where=mask)
        if mask.any():
            result.scores[index] = max(result.scores.get(index, 0.0), finding.score)


def _boxes_of(mask: np.ndarray, index: int) -> tuple[PlaneBox, ...]:
    """Boxes around a slice's islands, the largest first."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3), bool))
    places = ndimage.find_objects(labels)
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:MOST_BOXES]
    ends = [[(part.start, part.stop - 1) for part in places[n]] for n in order]
    return tuple(PlaneBox((index, index), rows, columns) for rows, columns in ends)


def _allowed(index: int, shape: tuple[int, ...], boxes: Sequence[PlaneBox]) -> np.ndarray:
    """Pixels of a slice that the user's boxes leave open."""
    deep = [box for box in boxes if box.positive and box.slices[0] != box.slices[1]]
    allowed = np.full(shape, not deep)
    for box in deep:
        if box.slices[0] <= index <= box.slices[1]:
            allowed[box.index[1:]] = True
    for box in boxes:
        if not box.positive and box.slices[0] <= index <= box.slices[1]:
            allowed[box.index[1:]] = False
    return allowed
