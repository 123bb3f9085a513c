"""The way of concepts through a volume: search, accept, propagate, fuse. No user input but the phrase is
known here."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.detector import Detector, Finding, Request
from MedSAM3Core.inference.encoder import Encoder
from MedSAM3Core.inference.finder import Search, search, search_starts
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.inference.propagator import Anchor, EndRule, Propagator, Track
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.progress import ProgressMeter
from MedSAM3Core.prompts import Concept
from MedSAM3Core.windowing import Window

STAGE_WEIGHTS = {"searching": 6.0, "propagating": 3.0, "fusing": 1.0}
"""Share of a text run's work, measured on the demo model: encoding and detecting, tracking, enlarging
masks."""

BEST_SLICES = 3
"""A phrase is judged by the mean score of its best slices; one slice would reward a lucky hit."""


@dataclass
class ConceptRun:
    """One concept's run, filled from stage to stage.

    Attributes:
        concept: What was asked for.
        window: Intensity window its features were made with.
        phrases: Candidates for what is said to the model, best first.
        within: First and last slice that are looked at.
        coarse_mm: Distance of the first looks in mm, for a concept of known length; 0 begins with the key slices.
        phrase: What was said in the end.
        findings: Phrase to slice to what the detector said.
        accepted: Slices on which the concept is taken to be, with their score.
        anchors: Slices that were propagated from.
        tracks: Slice to tracks that reached it.
        probabilities: Slice to the fused probability, (height, width).
    """

    concept: Concept
    window: Window
    phrases: tuple[str, ...]
    within: tuple[int, int]
    coarse_mm: float = 0.0
    phrase: str = ""
    findings: dict[str, dict[int, Finding]] = field(default_factory=lambda: defaultdict(dict))
    accepted: dict[int, float] = field(default_factory=dict)
    anchors: list[int] = field(default_factory=list)
    tracks: dict[int, list[Track]] = field(default_factory=dict)
    probabilities: dict[int, Tensor] = field(default_factory=dict)

    @property
    def found(self) -> dict[int, Finding]:
        """Findings of the phrase that was chosen."""
        return self.findings[self.phrase]

    @property
    def scores(self) -> dict[int, float]:
        """Slice to score of the phrase that was chosen."""
        return {n: finding.score for n, finding in self.found.items()}


class Clock:
    """Seconds by stage, summed over however many visits."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the time of the block to ``stage``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


class Runner:
    """Runs concepts on one volume by text alone.

    Args:
        plan: The cut.
        encoder: Gives features.
        detector: Says where a phrase is.
        propagator: Carries masks along the axis; None where there is nothing to propagate.
        settings: All choices.
    """

    def __init__(
        self,
        plan: SlicePlan,
        encoder: Encoder,
        detector: Detector,
        propagator: Propagator | None,
        settings: InferenceSettings,
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.detector = detector
        self.propagator = propagator
        self.settings = settings
        self.policy = detector.policy
        self.clip = self.policy.clip_slices if self.policy.propagation == "clips" else None

    def run(self, runs: Sequence[ConceptRun], meter: ProgressMeter, clock: Clock) -> None:
        """Take runs from their phrases to their probabilities; runs of one window share features and
        batches."""
        by_window: dict[Window, list[ConceptRun]] = defaultdict(list)
        for run in runs:
            by_window[run.window].append(run)
        searching = StageProgress(meter, "searching")
        for window, group in by_window.items():
            self._choose_phrases(window, group, searching, clock)
            self._search(window, group, searching, clock)
        for run in runs:
            self.accept(run)
        if self.settings.exemplars:
            for window, group in by_window.items():
                self._look_again(window, group, searching, clock)
        propagating = StageProgress(meter, "propagating")
        for window, group in by_window.items():
            with clock.measure("propagating"):
                self._propagate(window, group, propagating)
        for run in runs:
            self.fuse(run)

    def accept(self, run: ConceptRun) -> None:
        """Decide on which slices the concept is."""
        s = self.settings
        half_width = self.in_slices(s.agreement_mm) if s.agreement_mm > 0 else 0
        run.accepted = fusion.accept_slices(
            run.scores, self.policy.threshold, s.low_share, half_width, s.sure_share
        )

    def fuse(self, run: ConceptRun) -> None:
        """Fuse detections and tracks."""
        s = self.settings
        detected = {n: run.found[n].probability for n in run.accepted}
        fused = fusion.fuse(
            detected, run.accepted, run.tracks, s.propagation_weight, lone=self.clip is not None
        )
        fused = fusion.fill_between(fused, self.fine)
        sigma = min(self.policy.smoothing_slices, s.smoothing_mm / self.plan.spacing[0])
        run.probabilities = fusion.smooth_along_axis(fused, sigma)

    @property
    def fine(self) -> int:
        """Most slices from one that is looked at closely to the next."""
        return self.in_slices(self.settings.fine_mm) if self.settings.fine_mm > 0 else 1

    def in_slices(self, mm: float) -> int:
        """A distance along the axis in whole slices, at least one."""
        return max(1, round(mm / self.plan.spacing[0]))

    def look(
        self,
        window: Window,
        requests: Sequence[Request],
        clock: Clock,
        step: Callable[[int, int], None] | None,
    ) -> list[Finding]:
        """Encode what is missing, then detect, in chunks that fit the store, so that cancelling is quick."""
        findings: dict[int, Finding] = {}
        order = sorted(range(len(requests)), key=lambda n: requests[n].index)
        slices = sorted({request.index for request in requests})
        size = self.settings.batch_slices
        for start in range(0, len(slices), size):
            chunk = set(slices[start : start + size])
            with clock.measure("encoding"):
                self.encoder.prefetch(window, sorted(chunk))
            mine = [n for n in order if requests[n].index in chunk]
            with clock.measure("detecting"):
                answers = self.detector.detect(window, [requests[n] for n in mine])
            # To the host, or the maps of a scan of 2,000 slices and 8 concepts would take 2.6 GB of a GPU.
            kept = [replace(answer, probability=answer.probability.cpu()) for answer in answers]
            findings.update(zip(mine, kept, strict=True))
            if step is not None:
                step(min(start + size, len(slices)), len(slices))
        return [findings[n] for n in range(len(requests))]

    # -- search ----------------------------------------------------------------------------------------------

    def _choose_phrases(
        self, window: Window, runs: Sequence[ConceptRun], progress: StageProgress, clock: Clock
    ) -> None:
        """Keep, of each run's phrases, the one that the model finds most surely on the key slices."""
        several = [run for run in runs if len(run.phrases) > 1]
        wanted = [(run, phrase, next(self._search_of(run))) for run in several for phrase in run.phrases]
        self._look_for(window, wanted, progress, clock)
        for run in runs:
            # The first of equals: the phrase as typed comes before its synonyms.
            surety = {phrase: _surety(run.findings[phrase]) for phrase in run.phrases}
            run.phrase = max(surety, key=surety.__getitem__)

    def _search(
        self, window: Window, runs: Sequence[ConceptRun], progress: StageProgress, clock: Clock
    ) -> None:
        """Advance the searches of all runs together until each has seen its slices."""
        asked = [(run, one, next(one)) for run in runs for one in [self._search_of(run)]]
        while asked:
            self._look_for(window, [(run, run.phrase, want) for run, _, want in asked], progress, clock)
            following = []
            for run, one, want in asked:
                try:
                    following.append((run, one, one.send({n: run.found[n].score for n in want})))
                except StopIteration:
                    continue
            asked = following

    def _search_of(self, run: ConceptRun) -> Search:
        s = self.settings
        if self.clip is not None:
            return search_starts(*run.within, self.clip)
        stride = 1 if s.thorough else self.in_slices(s.key_stride_mm)
        margin = self.in_slices(s.margin_mm) if s.margin_mm > 0 else 0
        # A slice that may be accepted beside others counts as occupied.
        coarse = 0 if s.thorough or run.coarse_mm <= 0 else self.in_slices(run.coarse_mm)
        return search(*run.within, stride, margin, s.low_share * self.policy.threshold, self.fine, coarse)

    def _look_for(
        self,
        window: Window,
        wanted: Sequence[tuple[ConceptRun, str, Sequence[int]]],
        progress: StageProgress,
        clock: Clock,
    ) -> None:
        """Detect what is not known yet of (run, phrase, slices)."""
        open_ones = [
            (run, phrase, n)
            for run, phrase, slices in wanted
            for n in slices
            if n not in run.findings[phrase]
        ]
        progress.plan(len({n for _, _, n in open_ones}))
        requests = [Request(n, phrase) for _, phrase, n in open_ones]
        findings = self.look(window, requests, clock, progress.step)
        for (run, phrase, n), finding in zip(open_ones, findings, strict=True):
            run.findings[phrase][n] = finding

    # -- second look -----------------------------------------------------------------------------------------

    def _look_again(
        self, window: Window, runs: Sequence[ConceptRun], progress: StageProgress, clock: Clock
    ) -> None:
        """Detect once more on accepted slices, with the box that the surest slices around them suggest as exemplar.

        The score stays that of the text alone: an exemplar says that there is something, so the model agrees.
        """
        wanted = [(run, box) for run in runs for box in self._exemplars(run)]
        progress.plan(len({box.middle for _, box in wanted}))
        requests = [Request(box.middle, run.phrase, (box,)) for run, box in wanted]
        findings = self.look(window, requests, clock, progress.step)
        for (run, box), finding in zip(wanted, findings, strict=True):
            before = run.found[box.middle]
            mean = (before.probability.float() + finding.probability.float()) / 2
            run.found[box.middle] = replace(before, probability=mean.to(before.probability.dtype))

    def _exemplars(self, run: ConceptRun) -> list[PlaneBox]:
        """For each accepted slice that is no anchor, the box between those of the anchors around it."""
        boxes = {
            a.index: box for a in self._anchors(run) if (box := fusion.box_of(a.mask, self.plan.shape[1:]))
        }
        between = []
        for n in run.accepted:
            if not boxes or n in boxes:
                continue
            before = max((a for a in boxes if a < n), default=min(boxes))
            after = min((a for a in boxes if a > n), default=max(boxes))
            share = (n - before) / (after - before) if after > before else 0.0
            between.append(fusion.box_between(boxes[before], boxes[after], share, n))
        return between

    # -- propagation ------------------------------------------------------------------------------------------

    def _propagate(self, window: Window, runs: Sequence[ConceptRun], progress: StageProgress) -> None:
        """Carry every run's masks from its surest slices to all others that it was accepted on."""
        s = self.settings
        for run in runs:
            run.tracks = {}
        wanted = [(run, *one) for run in runs for one in self._objects(run)]
        if not wanted or self.propagator is None or not s.propagate or self.policy.propagation == "none":
            return
        owners, objects, limits = zip(*wanted, strict=True)
        tracks = self.propagator.propagate(
            window, objects, limits, EndRule(s.end_score, s.end_area_share), progress.step_of_total
        )
        for run, found in zip(owners, tracks, strict=True):
            run.tracks.update(found)

    def _objects(self, run: ConceptRun) -> list[tuple[list[Anchor], tuple[int, int]]]:
        """What is propagated of a run, and how far: its anchors as one object, or in clips each start on its own."""
        if self.clip is not None:
            ends = {n: min(n + self.clip - 1, run.within[1]) for n in run.accepted}
            return [([self._anchor(run, n)], (n, end)) for n, end in ends.items()]
        anchors = [anchor for anchor in self._anchors(run) if anchor.mask.any()]
        run.anchors = [anchor.index for anchor in anchors]
        # Not beyond the last accepted slice: running on past the end of an organ is the known failure of propagation.
        return [(anchors, (min(run.accepted), max(run.accepted)))] if anchors else []

    def _anchors(self, run: ConceptRun) -> list[Anchor]:
        s = self.settings
        chosen = fusion.choose_anchors(run.accepted, s.anchor_share, self.in_slices(s.anchor_spacing_mm))
        return [self._anchor(run, n) for n in chosen]

    def _anchor(self, run: ConceptRun, index: int) -> Anchor:
        return Anchor(index, run.found[index].probability.float() >= self.policy.mask_threshold)


class StageProgress:
    """Units finished of those known to be wanted so far: a search learns on its way how much it has to see.

    Args:
        meter: Reports.
        stage: Name of the stage.
    """

    def __init__(self, meter: ProgressMeter, stage: str) -> None:
        self.meter = meter
        self.stage = stage
        self._before = self._planned = self._batch = 0

    def plan(self, units: int) -> None:
        """Say that a further batch of ``units`` follows."""
        self._before += self._batch
        self._batch = units
        self._planned += units

    def step(self, done: int, total: int) -> None:
        """Report ``done`` units of the batch that was planned last."""
        self.meter.step(self.stage, self._before + done, self._planned)

    def step_of_total(self, done: int, total: int) -> None:
        """Report a batch that says its size itself."""
        if done <= 1 or self._batch != total:
            self.plan(total)
        self.step(done, total)


def _surety(findings: Mapping[int, Finding]) -> float:
    best = sorted((finding.score for finding in findings.values()), reverse=True)[:BEST_SLICES]
    return sum(best) / max(1, len(best))
