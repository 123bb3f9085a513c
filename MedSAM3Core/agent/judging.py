"""What the agent needs of whoever plans and judges, and what it shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from MedSAM3Core.agent.facts import Attempt, Judgement, Picture, Plan, Round, Target
from MedSAM3Core.agent.pictures import PictureMaker
from MedSAM3Core.agent.scoring import certainty, object_count
from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume


@dataclass(frozen=True, eq=False)
class Request:
    """What a planner is given.

    Attributes:
        text: As typed.
        pictures: An overview of the image.
        maker: Drew them.
    """

    text: str
    pictures: tuple[Picture, ...]
    maker: PictureMaker


@dataclass(frozen=True, eq=False)
class Look:
    """What a judge is given of one round.

    Attributes:
        text: The whole request as typed.
        target: What was to be found.
        attempt: What was asked of the segmenter.
        segmentation: What came back; a language model is shown pictures and figures of it, never the mask itself.
        pictures: Key slices with the mask.
        score: Internal score, 0..1.
        earlier: Rounds of this target so far.
        rounds_left: How many more may follow.
        maker: Drew the pictures; turns places on them into voxels.
    """

    text: str
    target: Target
    attempt: Attempt
    segmentation: Segmentation
    pictures: tuple[Picture, ...]
    score: float
    earlier: tuple[Round, ...]
    rounds_left: int
    maker: PictureMaker

    def figures(self) -> dict[str, object]:
        """The round in numbers, for a judge that sees no pictures; no value of a file's header is among them."""
        one, plan = self.segmentation, self.maker.plan
        if one.extent is None:
            return {"found": False, "slices_of_image": plan.count}
        first, last = (one.extent.k, one.extent.j, one.extent.i)[plan.axes[0]]
        corners = self.maker.corners(Box(one.extent.i, one.extent.j, one.extent.k))
        pixels = plan.shape[1] * plan.shape[2]
        return {
            "found": True,
            "first_slice": first,
            "last_slice": last,
            "slices_of_image": plan.count,
            "left_top_right_bottom": list(corners),
            "largest_section_percent_of_slice": round(100 * _largest_section(one, plan.axes[0]) / pixels, 2),
            "separate_objects": object_count(one),
            "presence_score": round(one.score, 3),
            "certainty": round(certainty(one), 3),
        }


def _largest_section(segmentation: Segmentation, axis: int) -> int:
    return int(segmentation.mask.sum(axis=tuple(a for a in range(3) if a != axis)).max())


class Judge(Protocol):
    """Plans a request and judges rounds: a language model, or in tests and ablations something that knows the truth.

    Contract: both calls return in bounded time or raise `Cancelled`; what they return is all they can bring about.
    """

    def plan(self, request: Request, cancel: CancelToken | None = None) -> Plan:
        """What the request means."""

    def judge(self, look: Look, cancel: CancelToken | None = None) -> Judgement:
        """What is to be said of a round."""


class SegmenterSession(Protocol):
    """What the agent needs of a session; `Session` and `RemoteSession` are such."""

    volume: Volume

    def segment(
        self,
        concept: str | Concept,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        threshold: float | None = None,
    ) -> Segmentation:
        """Segment one concept."""

    def refine(
        self,
        segmentation: Segmentation,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> Segmentation:
        """Correct a segmentation with boxes."""
