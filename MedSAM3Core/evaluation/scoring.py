"""One answer to one question about one image, judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from MedSAM3Core.evaluation.failures import Failure, classify
from MedSAM3Core.evaluation.instances import components, score_instances
from MedSAM3Core.evaluation.metrics import Overlap, surface_distance
from MedSAM3Core.volume import Volume


@dataclass(frozen=True, eq=False)
class Answer:
    """What a contender says.

    Attributes:
        mask: bool (slices, rows, columns), the volume's own grid.
        score: Confidence, 0..1; None for a contender that has none.
        prompt: The phrase that was said, or what was given instead.
        seconds: Time of this answer; shared work is counted at the first one.
    """

    mask: np.ndarray
    score: float | None = None
    prompt: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Score:
    """A judged answer; one row of the CSV.

    Attributes:
        case: Name of the case.
        patient: Whose it is.
        source: Data set.
        concept: What was asked for.
        model: Who was asked.
        mode: How.
        present: Whether the concept is in the image.
        dice: 0..1; None where the concept is absent.
        iou: 0..1; None where the concept is absent.
        hd95: Larger directed 95th percentile of surface distances; None where the concept is absent or the answer
            empty.
        nsd: Share of the surfaces within the tolerance; None where the concept is absent.
        unit: Of ``hd95``: "mm", or "px" for images without a known pixel size.
        f1: Of objects, where they are known; else None.
        ap: Of objects, where they are known; else None.
        score: The contender's confidence; None where it has none.
        volume_ml: Of the answer; None without a known voxel size or slices.
        reference_ml: Of the reference.
        clean_slices: Slices without the concept that the answer leaves empty.
        empty_slices: Slices without the concept.
        failure: What went wrong, empty when nothing did.
        instead: The concept that was found instead.
        prompt: What was said.
        seconds: Time of the answer.
    """

    case: str
    patient: str
    source: str
    concept: str
    model: str
    mode: str
    present: bool
    dice: float | None
    iou: float | None
    hd95: float | None
    nsd: float | None
    unit: str
    f1: float | None
    ap: float | None
    score: float | None
    volume_ml: float | None
    reference_ml: float | None
    clean_slices: int
    empty_slices: int
    failure: str
    instead: str
    prompt: str
    seconds: float


@dataclass(frozen=True)
class Question:
    """What is asked of one image, and by whom.

    Attributes:
        case: Name of the case.
        patient: Whose it is.
        source: Data set.
        concept: What is asked for.
        model: Who is asked.
        mode: How.
    """

    case: str
    patient: str
    source: str
    concept: str
    model: str
    mode: str


def judge(
    question: Question,
    answer: Answer,
    reference: np.ndarray,
    volume: Volume,
    others: Mapping[str, np.ndarray],
    objects: np.ndarray | None,
    tolerance: float,
    axis: int = 0,
) -> Score:
    """Judge an answer.

    Args:
        question: What was asked.
        answer: What was said.
        reference: bool (slices, rows, columns), empty for an absent concept.
        volume: The image.
        others: Masks of the case's other concepts.
        objects: The reference's objects, numbered; None where they are not known.
        tolerance: For NSD, in mm, or in pixels for images without a known size.
        axis: Array axis along which the image is cut into slices.
    """
    overlap = Overlap.of(answer.mask, reference)
    present = overlap.reference > 0
    surfaces = surface_distance(answer.mask, reference, _spacing(volume), tolerance) if present else None
    counted = score_instances(components(answer.mask), objects) if present and objects is not None else None
    failure, instead = classify(answer.mask, reference, others, axis)
    rest = tuple(a for a in range(3) if a != axis)
    without, touched = ~reference.any(axis=rest), answer.mask.any(axis=rest)
    millilitres = volume.geometry.voxel_volume_ml if volume.calibrated and not volume.is_2d else None
    return Score(
        **vars(question),
        present=present,
        dice=overlap.dice if present else None,
        iou=overlap.iou if present else None,
        hd95=surfaces.hd95 if surfaces else None,
        nsd=surfaces.nsd if surfaces else None,
        unit="mm" if volume.calibrated else "px",
        f1=counted.f1 if counted else None,
        ap=counted.ap if counted else None,
        score=answer.score,
        volume_ml=None if millilitres is None else overlap.answer * millilitres,
        reference_ml=None if millilitres is None else overlap.reference * millilitres,
        clean_slices=int((without & ~touched).sum()),
        empty_slices=int(without.sum()),
        failure=str(failure),
        instead=instead,
        prompt=answer.prompt,
        seconds=answer.seconds,
    )


def found_something(score: Score) -> bool:
    """Whether an answer is right enough to count as a hit: Dice of at least one half, or rightly empty."""
    return score.dice >= 0.5 if score.dice is not None else score.failure != Failure.FALSE_ALARM


def _spacing(volume: Volume) -> tuple[float, float, float]:
    """Voxel size along the array's axes (slice, row, column), in mm, or 1 pixel where it is not known."""
    if not volume.calibrated:
        return (1.0, 1.0, 1.0)
    i, j, k = volume.geometry.spacing
    return (k, j, i)
