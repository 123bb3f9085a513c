"""An annotator that follows a fixed rule, so that "text and n boxes" means the same for every model and every run.

The rule: look at the slice with the largest error against the reference, and there at the object with the largest
error. Is it in the reference, draw the box of that object (one connected component); is it something that the
reference does not have at all, draw a negative box around it. No object is boxed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from MedSAM3Core.errors import InputError
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.prompts import Box
from MedSAM3Core.segmentation import Segmentation

if TYPE_CHECKING:
    from MedSAM3Core.inference.session import Session

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class _Fault:
    """An object on a slice that is wrong.

    Attributes:
        size: Pixels that are wrong.
        box: Around the object.
    """

    size: int
    box: PlaneBox


def simulate_boxes(session: Session, concept: str, reference: np.ndarray, count: int) -> list[Segmentation]:
    """What the simulated annotator has after text alone and after each of ``count`` boxes.

    Args:
        session: The volume, open on a model.
        concept: The phrase.
        reference: bool, (slices, rows, columns), the volume's own grid.
        count: Boxes that are drawn at most.

    Returns:
        ``count`` + 1 segmentations; entry n is that after n boxes, entry 0 that of text alone. Where nothing is left
        to correct the last one is repeated, so entry n is always what n boxes give.

    Raises:
        InputError: If the reference is on another grid, or ``count`` is negative.
    """
    if count < 0:
        raise InputError(f"The number of boxes is {count}; expected 0 or more.")
    results = [session.segment(concept)]
    for _ in range(count):
        box = next_box(session.plan, results[-1].to_array(), reference, results[-1].boxes)
        results.append(results[-1] if box is None else session.refine(results[-1], boxes=[box]))
    return results


def next_box(
    plan: SlicePlan, mask: np.ndarray, reference: np.ndarray, drawn: Sequence[Box] = ()
) -> Box | None:
    """The box that the annotator draws next; None when every wrong object has been boxed, or nothing is wrong.

    Args:
        plan: How the volume is cut; the box lies on one of its slices.
        mask: What there is, bool (slices, rows, columns) on the volume's own grid.
        reference: What there should be, the same grid.
        drawn: Boxes that were drawn before.

    Raises:
        InputError: If mask and reference differ in shape.
    """
    if mask.shape != reference.shape:
        raise InputError(
            f"The reference has {reference.shape} voxels, the volume {mask.shape}; give a reference on the same grid."
        )
    found, wanted = plan.to_plane(mask), plan.to_plane(reference.astype(bool))
    errors = (found != wanted).sum(axis=(1, 2))
    for index in np.argsort(-errors, kind="stable"):
        if errors[index] == 0:
            break
        faults = sorted(_faults(found[index], wanted[index], int(index)), key=lambda fault: -fault.size)
        for fault in faults:
            box = plan.box_to_grid(fault.box)
            if box not in drawn:
                return box
    return None


def _faults(found: np.ndarray, wanted: np.ndarray, index: int) -> Iterator[_Fault]:
    """The wrong objects of one slice: those of the reference, and islands that touch none of them."""
    islands, _ = ndimage.label(found, structure=_EIGHT_NEIGHBOURS)
    objects, _ = ndimage.label(wanted, structure=_EIGHT_NEIGHBOURS)
    touched = np.unique(islands[wanted])
    for number, place in enumerate(ndimage.find_objects(objects), start=1):
        inside = objects == number
        own = np.isin(islands, np.setdiff1d(np.unique(islands[inside]), 0))
        # What is too much of an island that several objects share counts for each of them.
        wrong = int((inside & ~found).sum() + (own & ~wanted).sum())
        if wrong:
            yield _Fault(wrong, _box(place, index, True))
    for number, place in enumerate(ndimage.find_objects(islands), start=1):
        if number not in touched:
            yield _Fault(int((islands[place] == number).sum()), _box(place, index, False))


def _box(place: tuple[slice, ...], index: int, positive: bool) -> PlaneBox:
    rows, columns = ((part.start, part.stop - 1) for part in place)
    return PlaneBox((index, index), rows, columns, positive)
