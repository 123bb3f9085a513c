"""What the steps of the agent hand to each other: plans, verdicts, actions, rounds. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Segmentation

MAX_TARGETS = 6
"""Most things that one request is split into; what a plan has beyond is left out with a notice."""
MAX_ROUNDS = 10
"""Most rounds a target may be given."""
MAX_ACTIONS = 4
"""Most actions of one verdict that are looked at."""
MOST_COUNT = 1000
"""Most objects that a plan may expect of one target."""
THRESHOLDS = (0.05, 0.95)
"""Least and largest threshold that an action may ask for."""


class MeasureKind(StrEnum):
    """What can be computed from masks to answer a question."""

    VOLUME = "volume"
    DIAMETER = "diameter"
    COUNT = "count"
    SLICES = "slices"
    SHARE = "share"
    INTENSITY = "intensity"


@dataclass(frozen=True)
class Target:
    """One thing to segment.

    Attributes:
        concept: What it is.
        count: How many separate objects are expected, None when that is open.
        place: Where it is expected, in a few words for whoever judges; changes no computation.
    """

    concept: Concept
    count: int | None = None
    place: str = ""


@dataclass(frozen=True)
class Question:
    """Something to compute from the masks when they are there.

    Attributes:
        kind: What to compute.
        target: Index of the target.
        of: For a share, index of the target that is the whole.
    """

    kind: MeasureKind
    target: int
    of: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a request means.

    Attributes:
        targets: At least one, at most `MAX_TARGETS`, each concept once.
        modality: What kind of image the planner takes this for, in its words; shown, not used.
        questions: To be answered from the masks.
        notices: What of the answer was set aside, and whether it was made without a language model.
    """

    targets: tuple[Target, ...]
    modality: str = ""
    questions: tuple[Question, ...] = ()
    notices: tuple[str, ...] = ()


class Verdict(StrEnum):
    """What a judge says of a round."""

    ACCEPT = "accept"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    MISSING_PARTS = "missing_parts"
    WRONG_SLICES = "wrong_slices"
    UNJUDGED = "unjudged"
    WRONG_OBJECT = "wrong_object"

    @property
    def rank(self) -> int:
        """How good a round is: 3 accepted, 2 the right thing but not well, 1 not judged, 0 the wrong thing."""
        return {"accept": 3, "unjudged": 1, "wrong_object": 0}.get(self.value, 2)

    @property
    def words(self) -> str:
        """For people."""
        return self.value.replace("_", " ")


@dataclass(frozen=True)
class Rephrase:
    """Say another phrase to the model; the target then is what the new phrase means."""

    concept: Concept


@dataclass(frozen=True)
class Synonym:
    """Say the terminology's next name for the same thing."""


@dataclass(frozen=True)
class AddBox:
    """Draw a box, voxels of the volume's own grid, on one slice."""

    box: Box


@dataclass(frozen=True)
class KeepSlices:
    """Keep what lies from ``first`` to ``last``, grid indices along the slicing axis, and drop the rest."""

    first: int
    last: int


@dataclass(frozen=True)
class SetThreshold:
    """Use another score from which a slice shows the concept, within `THRESHOLDS`."""

    value: float


@dataclass(frozen=True)
class Stop:
    """Try nothing more for this target."""


Action = Rephrase | Synonym | AddBox | KeepSlices | SetThreshold | Stop
"""All that an answer can bring about. There is no other way from a model's text to anything that happens."""


@dataclass(frozen=True)
class Judgement:
    """A structured verdict.

    Attributes:
        verdict: The verdict.
        reason: One line for people.
        actions: What to try next, in this order.
        notices: What of the answer was set aside, and why.
    """

    verdict: Verdict
    reason: str = ""
    actions: tuple[Action, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """What is asked of the segmenter in a round.

    Attributes:
        concept: With the phrase to say as the first of its prompts.
        threshold: Score from which a slice shows it; None takes the model's.
        boxes: Drawn so far, in order.
        slices: First and last slice to keep, grid indices along the slicing axis; None keeps all.
        fresh: Whether the boxes start from nothing: what was there was another object.
    """

    concept: Concept
    threshold: float | None = None
    boxes: tuple[Box, ...] = ()
    slices: tuple[int, int] | None = None
    fresh: bool = False

    def describe(self) -> str:
        """In words, for the list of rounds."""
        parts = [f"'{(self.concept.prompts or (self.concept.phrase,))[0]}'"]
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:.2f}")
        drawn = sum(box.positive for box in self.boxes)
        if drawn:
            parts.append(f"{drawn} box{'es' if drawn > 1 else ''} around it")
        if len(self.boxes) > drawn:
            parts.append(f"{len(self.boxes) - drawn} where it is not")
        if self.slices is not None:
            parts.append(f"slices {self.slices[0]} to {self.slices[1]}")
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice as it is shown to a judge.

    Attributes:
        number: How it is called in the conversation, from 1.
        png: The file's bytes.
        sha256: Of these bytes, hexadecimal.
        size: Width and height in pixels.
        slice_index: Grid index along the slicing axis.
    """

    number: int
    png: bytes = field(repr=False)
    sha256: str
    size: tuple[int, int]
    slice_index: int


@dataclass(frozen=True, eq=False)
class Round:
    """One try at one target, and what was said of it.

    Attributes:
        number: From 1, counted through the whole request.
        target: Index of the target.
        attempt: What was asked.
        segmentation: What came back.
        pictures: What the judge saw.
        score: Internal score, 0..1, see `scoring.internal_score`.
        judgement: What the judge said.
    """

    number: int
    target: int
    attempt: Attempt
    segmentation: Segmentation
    pictures: tuple[Picture, ...]
    score: float
    judgement: Judgement


@dataclass(frozen=True)
class Answer:
    """A question answered from the masks.

    Attributes:
        kind: What was computed.
        concept: Of what.
        value: The number; None where there is nothing to compute it from.
        unit: Of the number.
        sentence: For people.
    """

    kind: MeasureKind
    concept: str
    value: float | None
    unit: str
    sentence: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a request came to.

    Attributes:
        plan: What it was taken to mean.
        rounds: All rounds, in order.
        chosen: For each target, the round that was taken; None where none was left.
        answers: To the plan's questions.
        notices: Sentences for the user.
    """

    plan: Plan
    rounds: tuple[Round, ...]
    chosen: tuple[Round | None, ...]
    answers: tuple[Answer, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def segmentations(self) -> list[Segmentation]:
        """The chosen rounds' segmentations, one a target that has one."""
        return [one.segmentation for one in self.chosen if one is not None]
