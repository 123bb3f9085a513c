"""What a user's boxes and clicks make of the slice that they are on.

A positive box prompts the detector, together with the concept, and the tracker's prompt encoder; clicks prompt the
tracker, with the mask that they correct. Of all these answers the one that agrees best with what was drawn is taken.
Where none does, a shape to be corrected by hand is put there, and the user is told. Negative boxes remove what is in
them. A negative click removes the island that it is on; on the slice's largest piece it trims, if it can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.detector import Detector, Request
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.inference.propagator import Propagator
from MedSAM3Core.windowing import Window

BOX_MARGIN = 0.1
"""Share of a box's side by which the object may stick out of it: boxes are drawn by hand."""

LEAST_FIT = 0.5
"""Overlap of a mask's own box with the drawn one under which the mask is not what the user meant."""

LEAST_KEPT = 0.3
"""Share of a piece that must remain when a negative click trims it; less means that the click meant the whole piece."""

SPOT_SHARE = 0.02
"""Radius of the spot that is put under a click that nothing answers, as a share of the slice's shorter side."""

CLICK_THRESHOLDS = (1.0, 0.5, 0.25)
"""Shares of the mask threshold at which the detector is asked what is under a click."""

INSIDE, OUTSIDE, FIRST_CORNER, LAST_CORNER, NO_POINT = 1, 0, 2, 3, -1
"""Labels of the tracker's prompt encoder."""

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class PlanePoint:
    """A click in the plane frame, voxel indices.

    Attributes:
        index: Slice.
        row: Row.
        column: Column.
        positive: Whether the concept is there.
    """

    index: int
    row: int
    column: int
    positive: bool = True


@dataclass(frozen=True)
class SlicePrompts:
    """What a user has put on one slice, in the order drawn."""

    boxes: tuple[PlaneBox, ...] = ()
    points: tuple[PlanePoint, ...] = ()

    @property
    def inside(self) -> tuple[PlaneBox, ...]:
        """Positive boxes."""
        return tuple(box for box in self.boxes if box.positive)

    @property
    def outside(self) -> tuple[PlaneBox, ...]:
        """Negative boxes."""
        return tuple(box for box in self.boxes if not box.positive)

    @property
    def here(self) -> tuple[PlanePoint, ...]:
        """Positive clicks."""
        return tuple(point for point in self.points if point.positive)

    @property
    def not_here(self) -> tuple[PlanePoint, ...]:
        """Negative clicks."""
        return tuple(point for point in self.points if not point.positive)


@dataclass(frozen=True)
class Settled:
    """A slice after its prompts.

    Attributes:
        mask: bool, (rows, columns).
        added: Those of its pixels that are new and touch nothing that was there: objects of their own.
        notices: Sentences for the user.
    """

    mask: np.ndarray
    added: np.ndarray
    notices: tuple[str, ...] = ()


class SliceSettler:
    """Makes the mask of a slice that was prompted.

    Args:
        plan: The cut.
        detector: Is asked with the concept and the boxes.
        propagator: Has the tracker; None where the model has none.
        mask_threshold: Probability from which a pixel is in the mask.
        window: Intensity window.
        phrase: What is said to the detector.
    """

    def __init__(
        self,
        plan: SlicePlan,
        detector: Detector,
        propagator: Propagator | None,
        mask_threshold: float,
        window: Window,
        phrase: str,
    ) -> None:
        self.plan = plan
        self.detector = detector
        self.propagator = propagator
        self.mask_threshold = mask_threshold
        self.window = window
        self.phrase = phrase

    def settle(self, index: int, before: np.ndarray, prompts: SlicePrompts) -> Settled:
        """The slice with its prompts worked in.

        Args:
            index: Slice in the plane frame.
            before: bool, (rows, columns), what was there; it is not changed.
            prompts: At least one.
        """
        mask, notices = before.copy(), []
        if prompts.inside or prompts.here:
            drawn = self._best(index, before, prompts)
            missing = self._unanswered(drawn, prompts)
            if missing.any():
                drawn = drawn | missing
                notices.append(
                    f"Nothing like {self.phrase!r} stood out where slice {self.plan.grid_slice(index)} was marked; "
                    "an ellipse was put there to be corrected."
                )
            mask = _replace_touched(before, drawn, prompts)
        for point in prompts.not_here:
            if mask[point.row, point.column]:
                mask = self._without(index, mask, point, prompts)
        for box in prompts.outside:
            mask[box.index[1:]] = False
        return Settled(mask, _islands_apart(mask, before), tuple(notices))

    # -- what is inside ---------------------------------------------------------------------------------------

    def _best(self, index: int, before: np.ndarray, prompts: SlicePrompts) -> np.ndarray:
        """The answer that agrees best with what was drawn; all False where none does."""
        masks = [self._bounded(mask, prompts) for mask in self._answers(index, before, prompts)]
        fits = [_agreement(mask, prompts) for mask in masks]
        best = int(np.argmax(fits))
        return masks[best] if fits[best] >= LEAST_FIT else np.zeros_like(masks[best])

    def _answers(self, index: int, before: np.ndarray, prompts: SlicePrompts) -> Iterator[np.ndarray]:
        """Masks of the slice: where there is a box both models' mean first, then each on its own."""
        request = Request(index, self.phrase, prompts.boxes)
        maps = [self.detector.detect(self.window, [request])[0].probability.float()]
        if self.propagator is not None and prompts.inside:
            maps.append(self._ask_boxes(index, prompts))
            maps.insert(0, (maps[0] + maps[1]) / 2)
        clicks = self._ask_clicks(index, before, prompts)
        enlarged = fusion.enlarge(torch.stack([*clicks, *maps]), self.plan.shape[1:]).cpu().numpy()
        yield from (one >= self.mask_threshold for one in enlarged)
        if prompts.here:
            for share in CLICK_THRESHOLDS[1:]:
                yield enlarged[-1 if len(maps) == 1 else -2] >= share * self.mask_threshold

    def _ask_boxes(self, index: int, prompts: SlicePrompts) -> Tensor:
        assert self.propagator is not None
        if not prompts.points:
            return self.propagator.prompt_boxes(self.window, index, prompts.inside, self.plan.shape[1:])
        clicks = _clicks(prompts.points)
        return self._ask(index, [[*_corners(box), *clicks] for box in prompts.inside])

    def _ask_clicks(self, index: int, before: np.ndarray, prompts: SlicePrompts) -> list[Tensor]:
        """The tracker's answers to clicks alone: as one object that corrects the mask, as one, as one each."""
        if self.propagator is None or not prompts.here or prompts.inside:
            return []
        together = [_clicks(prompts.points)]
        each = [[*_clicks([point]), *_clicks(prompts.not_here)] for point in prompts.here]
        known = _pieces_under(before, prompts.here)
        answers = [self._ask(index, together, known)] if known.any() else []
        answers.append(self._ask(index, together))
        return [*answers, self._ask(index, each)] if len(each) > 1 else answers

    def _ask(
        self, index: int, objects: Sequence[Sequence[tuple]], previous: np.ndarray | None = None
    ) -> Tensor:
        assert self.propagator is not None
        most = max(len(one) for one in objects)
        padded = [[*one, *[(0.0, 0.0, NO_POINT)] * (most - len(one))] for one in objects]
        values = torch.tensor(padded, dtype=torch.float32)
        rows, columns = self.plan.shape[1:]
        points = values[..., :2] / torch.tensor([columns, rows])
        before = None if previous is None else torch.from_numpy(previous)
        return self.propagator.prompt_points(self.window, index, points, values[..., 2].int(), before)

    def _bounded(self, mask: np.ndarray, prompts: SlicePrompts) -> np.ndarray:
        """What of an answer can be meant: what lies in the boxes, and the pieces that were clicked on."""
        near = _region(mask.shape, prompts.inside)
        return (mask & near) | _pieces_under(mask, prompts.here)

    def _unanswered(self, drawn: np.ndarray, prompts: SlicePrompts) -> np.ndarray:
        """Shapes for boxes and clicks in which the answer has nothing."""
        boxes = [] if drawn.any() else list(prompts.inside)
        radius = max(1, round(SPOT_SHARE * min(drawn.shape)))
        for point in prompts.here:
            if not drawn[point.row, point.column]:
                rows = (point.row - radius, point.row + radius)
                boxes.append(
                    PlaneBox((point.index,) * 2, rows, (point.column - radius, point.column + radius))
                )
        return _ellipses(drawn.shape, boxes)

    # -- what is not ------------------------------------------------------------------------------------------

    def _without(self, index: int, mask: np.ndarray, point: PlanePoint, prompts: SlicePrompts) -> np.ndarray:
        """The mask without what a negative click is on: trimmed if it is the largest piece, else the whole island."""
        labels, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
        piece = labels == labels[point.row, point.column]
        largest = count == 1 or piece.sum() >= np.bincount(labels.ravel())[1:].max()
        wanted = [p for p in prompts.here if piece[p.row, p.column]]
        if not (largest or wanted) or self.propagator is None:
            return mask & ~piece if not wanted else mask & ~_nearer(piece, point, wanted)
        middle = wanted or [_deepest_point(piece, index)]
        objects = [[*_clicks(middle), *_clicks(prompts.not_here)]]
        found = fusion.enlarge(self._ask(index, objects, piece)[None], self.plan.shape[1:])[0].cpu().numpy()
        left = piece & (found >= self.mask_threshold)
        if left[point.row, point.column] or left.sum() < LEAST_KEPT * piece.sum():
            return mask & ~(_nearer(piece, point, wanted) if wanted else piece)
        return (mask & ~piece) | left


def _clicks(points: Sequence[PlanePoint]) -> list[tuple[float, float, int]]:
    """Points as (x, y, label) in pixels of the slice, at the middle of their pixel."""
    return [(p.column + 0.5, p.row + 0.5, INSIDE if p.positive else OUTSIDE) for p in points]


def _corners(box: PlaneBox) -> list[tuple[float, float, int]]:
    return [
        (float(box.columns[0]), float(box.rows[0]), FIRST_CORNER),
        (float(box.columns[1] + 1), float(box.rows[1] + 1), LAST_CORNER),
    ]


def _pieces_under(mask: np.ndarray, points: Sequence[PlanePoint]) -> np.ndarray:
    """The connected pieces of the mask that have a click on them."""
    if not points:
        return np.zeros_like(mask)
    labels, _ = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    hit = {int(labels[p.row, p.column]) for p in points} - {0}
    return np.isin(labels, list(hit)) if hit else np.zeros_like(mask)


def _deepest_point(piece: np.ndarray, index: int) -> PlanePoint:
    depth = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), piece.shape)
    return PlanePoint(index, int(row), int(column))


def _nearer(piece: np.ndarray, point: PlanePoint, others: Sequence[PlanePoint]) -> np.ndarray:
    """The part of a piece that is nearer to a click than to any of the others."""
    rows, columns = np.indices(piece.shape)
    own, *rest = (np.hypot(rows - p.row, columns - p.column) for p in (point, *others))
    return piece & (own < np.min(rest, axis=0))


def _islands_apart(mask: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The pieces of a mask that touch nothing of what was there before."""
    labels, _ = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    touched = np.unique(labels[before])
    return mask & ~np.isin(labels, touched)


def _agreement(mask: np.ndarray, prompts: SlicePrompts) -> float:
    """0..1: how well a mask fits the boxes and the clicks."""
    fits = [_fit(mask, box) for box in prompts.inside]
    fits += [float(mask[p.row, p.column] == p.positive) for p in prompts.points]
    return float(np.mean(fits))


def _region(shape: tuple[int, ...], boxes: Sequence[PlaneBox]) -> np.ndarray:
    """Pixels in any of the boxes, each a little enlarged."""
    region = np.zeros(shape, bool)
    for box in boxes:
        row = max(1, round(BOX_MARGIN * (box.rows[1] - box.rows[0] + 1)))
        column = max(1, round(BOX_MARGIN * (box.columns[1] - box.columns[0] + 1)))
        rows = slice(max(0, box.rows[0] - row), box.rows[1] + row + 1)
        columns = slice(max(0, box.columns[0] - column), box.columns[1] + column + 1)
        region[rows, columns] = True
    return region


def _replace_touched(mask: np.ndarray, drawn: np.ndarray, prompts: SlicePrompts) -> np.ndarray:
    """The drawn mask, and those pieces of the old one that no positive box or click touches."""
    touched = np.zeros(mask.shape, bool)
    for box in prompts.inside:
        touched[box.index[1:]] = True
    for point in prompts.here:
        touched[point.row, point.column] = True
    labels, _ = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    hit = np.unique(labels[touched])
    return drawn | (mask & ~np.isin(labels, hit[hit > 0]))


def _fit(mask: np.ndarray, box: PlaneBox) -> float:
    """Intersection over union of the drawn box and the box of the mask's parts that lie in it."""
    labels, _ = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    inside = np.unique(labels[box.index[1:]])
    own = np.isin(labels, inside[inside > 0])
    if not own.any():
        return 0.0
    rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    height = min(rows[-1], box.rows[1]) - max(rows[0], box.rows[0]) + 1
    width = min(columns[-1], box.columns[1]) - max(columns[0], box.columns[0]) + 1
    overlap = max(0, height) * max(0, width)
    area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    drawn = (box.rows[1] - box.rows[0] + 1) * (box.columns[1] - box.columns[0] + 1)
    return float(overlap / (area + drawn - overlap))


def _ellipses(shape: tuple[int, ...], boxes: Sequence[PlaneBox]) -> np.ndarray:
    """The ellipse that each box encloses."""
    rows, columns = np.indices(shape)
    mask = np.zeros(shape, bool)
    for box in boxes:
        half_height = (box.rows[1] - box.rows[0] + 1) / 2
        half_width = (box.columns[1] - box.columns[0] + 1) / 2
        y = (rows - (box.rows[0] + box.rows[1]) / 2) / half_height
        x = (columns - (box.columns[0] + box.columns[1]) / 2) / half_width
        mask |= x**2 + y**2 <= 1
    return mask
