"""Answers to a request's questions, computed from the masks. A language model may ask for them; it never makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from MedSAM3Core.agent.facts import Answer, MeasureKind, Question
from MedSAM3Core.agent.scoring import object_count
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume

MAX_HULL_POINTS = 4000
"""Points whose distances are all compared; more are reduced to their convex hull first."""


def answer(
    question: Question, found: Sequence[Segmentation | None], volume: Volume, plan: SlicePlan
) -> Answer:
    """Compute one answer.

    Args:
        question: What is asked.
        found: For each target its segmentation, or None.
        volume: The image.
        plan: How it was cut, for the slice range.
    """
    one = found[question.target]
    if one is None or one.empty:
        name = one.concept.phrase if one is not None else f"target {question.target + 1}"
        return Answer(question.kind, name, None, "", f"The {name} was not found, so nothing was measured.")
    whole = found[question.of] if question.of is not None else None
    return _ANSWERS[question.kind](one, whole, volume, plan)


def _volume(one: Segmentation, _: Segmentation | None, volume: Volume, __: SlicePlan) -> Answer:
    name = one.concept.phrase
    if not volume.calibrated:
        return Answer(
            MeasureKind.VOLUME, name, one.voxels, "pixels", f"The {name} covers {one.voxels:,} pixels."
        )
    if volume.is_2d:
        area = one.voxels * volume.geometry.spacing[0] * volume.geometry.spacing[1]
        return Answer(MeasureKind.VOLUME, name, area, "mm2", f"The {name} has an area of {area:,.1f} mm2.")
    ml = one.volume_ml
    return Answer(MeasureKind.VOLUME, name, ml, "ml", f"The {name} has a volume of {ml:,.2f} ml.")


def _diameter(one: Segmentation, _: Segmentation | None, volume: Volume, __: SlicePlan) -> Answer:
    name, longest = one.concept.phrase, longest_distance_mm(one)
    unit = "mm" if volume.calibrated else "pixels"
    sentence = f"The longest straight line within the outline of the {name} is {longest:.1f} {unit}."
    return Answer(MeasureKind.DIAMETER, name, longest, unit, sentence)


def _count(one: Segmentation, _: Segmentation | None, __: Volume, ___: SlicePlan) -> Answer:
    name, count = one.concept.phrase, object_count(one)
    sentence = f"There {'is 1 separate object' if count == 1 else f'are {count} separate objects'} of {name}."
    return Answer(MeasureKind.COUNT, name, count, "objects", sentence)


def _slices(one: Segmentation, _: Segmentation | None, __: Volume, plan: SlicePlan) -> Answer:
    name = one.concept.phrase
    assert one.extent is not None
    first, last = (one.extent.k, one.extent.j, one.extent.i)[plan.axes[0]]
    where = f"slice {first}" if first == last else f"slices {first} to {last}"
    sentence = f"The {name} is on {plan.name} {where}, {last - first + 1} of {plan.count}."
    return Answer(MeasureKind.SLICES, name, last - first + 1, "slices", sentence)


def _share(one: Segmentation, whole: Segmentation | None, __: Volume, ___: SlicePlan) -> Answer:
    name = one.concept.phrase
    if whole is None or whole.empty:
        return Answer(MeasureKind.SHARE, name, None, "", f"There is no whole to compare the {name} with.")
    mine, its = one.to_array(), whole.to_array()
    share = 100 * int((mine & its).sum()) / int(its.sum())
    sentence = f"{share:.1f}% of the {whole.concept.phrase} is {name}."
    return Answer(MeasureKind.SHARE, name, share, "%", sentence)


def _intensity(one: Segmentation, _: Segmentation | None, volume: Volume, __: SlicePlan) -> Answer:
    name = one.concept.phrase
    assert one.extent is not None
    values = volume.array[one.extent.slices][one.mask].astype(np.float64)
    mean = float(values.mean())
    unit = "HU" if volume.modality == "CT" else ""
    sentence = f"The mean intensity of the {name} is {mean:.1f}{' ' + unit if unit else ''}."
    return Answer(MeasureKind.INTENSITY, name, mean, unit, sentence)


_ANSWERS = {
    MeasureKind.VOLUME: _volume,
    MeasureKind.DIAMETER: _diameter,
    MeasureKind.COUNT: _count,
    MeasureKind.SLICES: _slices,
    MeasureKind.SHARE: _share,
    MeasureKind.INTENSITY: _intensity,
}


def longest_distance_mm(segmentation: Segmentation) -> float:
    """Longest distance of two voxel centres of a mask, in mm; 0 of a single voxel."""
    points = np.argwhere(segmentation.mask)[:, ::-1].astype(np.float64)  # (k, j, i) to (i, j, k)
    points = points @ segmentation.geometry.ijk_to_ras[:3, :3].T
    spread = points[:, np.ptp(points, axis=0) > 0]
    if len(points) > MAX_HULL_POINTS and spread.shape[1] > 1:
        try:
            points = points[ConvexHull(spread).vertices]
        except QhullError:  # all on one line or plane that is oblique to the axes
            order = np.argsort(spread[:, 0])
            points = points[order[:: max(1, len(order) // MAX_HULL_POINTS)]]
    return float(pdist(points).max()) if len(points) > 1 else 0.0
