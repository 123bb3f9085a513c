"""Detections and tracks of a concept become one probability volume, and that becomes a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.inference.postprocess import fill_holes, remove_islands
from MedSAM3Core.inference.propagator import Track
from MedSAM3Core.segmentation import Extent

ENLARGED_AT_ONCE = 16
"""Slices enlarged to full size at once: 16 of 512 x 512 are 17 MB."""


@dataclass(frozen=True)
class Slab:
    """Consecutive slices of a concept in the plane frame.

    Attributes:
        first: Index of the first slice.
        probability: float16, (slices, rows, columns), 0..1.
        mask: bool, the same shape.
    """

    first: int
    probability: np.ndarray
    mask: np.ndarray


def accept_slices(
    scores: Mapping[int, float], threshold: float, low_share: float, half_width: int, sure_share: float = 1.0
) -> dict[int, float]:
    """Slices on which a concept is taken to be, with the scores that decided.

    Scores that agree along the axis count: a slice's score is first averaged with its scored neighbours up to
    ``half_width`` slices away, with weights that fall linearly. Then a slice is accepted from
    ``threshold``, and from ``low_share`` of it where it touches accepted slices. A slice that is sure by itself needs
    no neighbours: an object may be thinner than the window.

    Args:
        scores: Slice to score, 0..1.
        threshold: Score of an accepted slice.
        low_share: Share of the threshold that suffices beside an accepted slice; 1 switches this off.
        half_width: Slices on either side that are averaged; 0 takes every slice alone.
        sure_share: How far from the threshold to 1 the score of a sure slice is; 1 knows no sure slice.
    """
    sure = threshold + sure_share * (1.0 - threshold) if sure_share < 1.0 else math.inf
    agreed = {n: _agree(scores, n, half_width) for n in scores}
    # No more than the threshold, so that an object's middle still comes before its ends.
    agreed |= {n: max(agreed[n], threshold) for n, score in scores.items() if score >= sure}
    accepted = {n for n, score in agreed.items() if score >= threshold}
    frontier = list(accepted)
    while frontier:
        n = frontier.pop()
        for neighbour in (n - 1, n + 1):
            if neighbour not in accepted and agreed.get(neighbour, -1.0) >= low_share * threshold:
                accepted.add(neighbour)
                frontier.append(neighbour)
    return {n: agreed[n] for n in sorted(accepted)}


def _agree(scores: Mapping[int, float], index: int, half_width: int) -> float:
    near = [(half_width + 1 - abs(d), scores.get(index + d)) for d in range(-half_width, half_width + 1)]
    known = [(weight, score) for weight, score in near if score is not None]
    return sum(weight * score for weight, score in known) / sum(weight for weight, _ in known)


def choose_anchors(
    scores: Mapping[int, float], share: float, spacing: int, required: Sequence[int] = ()
) -> list[int]:
    """Slices that are sure enough to propagate from: the best first, each ``spacing`` slices from those before it.

    Args:
        scores: Slice to score of the accepted slices.
        share: Least score as a share of the best one.
        spacing: Least distance in slices.
        required: Slices that are anchors in any case.

    Returns:
        In ascending order.
    """
    chosen = list(required)
    best = max(scores.values(), default=0.0)
    for n in sorted(scores, key=lambda n: (-round(scores[n], 3), n)):
        if scores[n] >= share * best and all(abs(n - other) >= spacing for other in chosen):
            chosen.append(n)
    return sorted(chosen)


def blend_tracks(tracks: Sequence[Track]) -> Tensor:
    """What the tracks of one slice say together: (height, width) float32.

    Between two anchors each side counts by its nearness; a lone track counts in full.
    """
    weights = [1.0 - track.distance / track.gap if track.gap else 1.0 for track in tracks]
    total = sum(weights)
    parts = [track.probability.float() * (w / total) for track, w in zip(tracks, weights, strict=True)]
    return torch.stack(parts).sum(0)


def fuse(
    detected: Mapping[int, Tensor],
    accepted: Mapping[int, float],
    tracks: Mapping[int, Sequence[Track]],
    weight: float,
    lone: bool = False,
) -> dict[int, Tensor]:
    """Probability of a concept on every slice where anything speaks for it.

    On an accepted slice the detector and the tracks are averaged. On a slice between two anchors that the
    detector did not accept, the tracks alone decide: the concept does not vanish and return. Beyond the last
    anchor a track without a detection is taken to have run on past the end.

    Args:
        detected: Slice to the detector's probability, (height, width).
        accepted: Slices on which the concept is taken to be.
        tracks: Slice to tracks.
        weight: Weight of the tracks where the detector has accepted, 0..1.
        lone: Whether a single track decides alone too, as in clips where the detector saw only the first slice.
    """
    fused = {}
    for n in sorted(set(accepted) | set(tracks)):
        found = tracks.get(n)
        if n in accepted:
            probability = detected[n].float()
            if found:
                probability = (1 - weight) * probability + weight * blend_tracks(found)
            fused[n] = probability
        elif found and (lone or len(found) > 1):
            fused[n] = blend_tracks(found)
    return fused


def box_of(mask: Tensor, shape: tuple[int, int]) -> PlaneBox | None:
    """Box around a slice's mask (height, width) in the pixels of a slice of ``shape``, on slice 0; None if empty."""
    rows, columns = (np.flatnonzero(mask.any(axis).cpu().numpy()) for axis in (1, 0))
    if not len(rows):
        return None
    ends = []
    for hits, size, pixels in zip((rows, columns), mask.shape, shape, strict=True):
        first, last = int(hits[0] * pixels / size), int(np.ceil((hits[-1] + 1) * pixels / size)) - 1
        ends.append((first, max(first, last)))
    return PlaneBox((0, 0), ends[0], ends[1])


def box_between(before: PlaneBox, after: PlaneBox, share: float, index: int) -> PlaneBox:
    """The box a ``share`` of the way from one box to another, on slice ``index``."""
    pairs = zip((*before.rows, *before.columns), (*after.rows, *after.columns), strict=True)
    top, bottom, left, right = (round((1 - share) * a + share * b) for a, b in pairs)
    return PlaneBox((index, index), (top, bottom), (left, right))


def fill_between(probabilities: Mapping[int, Tensor], most: int) -> dict[int, Tensor]:
    """Probability on the slices between two neighbours that are at most ``most`` slices apart.

    Shapes are interpolated, not grey values, after their centres were laid on each other: an object that moves
    keeps its form, where a mean of both would be their overlap. Source: Raya and Udupa, Shape-based interpolation
    of multidimensional objects, IEEE TMI 9 (1990) 32-42.

    Args:
        probabilities: Slice to (height, width).
        most: Distance of two slices that belong together; 1 adds nothing.
    """
    filled = dict(probabilities)
    pairs = [(a, b) for a, b in itertools.pairwise(sorted(probabilities)) if 1 < b - a <= most]
    shapes = {n: _Outline.of(probabilities[n]) for n in {n for pair in pairs for n in pair}}
    for a, b in pairs:
        for n in range(a + 1, b):
            depth = shapes[a].towards(shapes[b], (n - a) / (b - a))
            filled[n] = torch.from_numpy(depth).sigmoid().to(probabilities[a])
    return {n: filled[n] for n in sorted(filled)}


@dataclass(frozen=True)
class _Outline:
    """A shape by the signed distance to its outline in pixels, positive inside.

    Attributes:
        depth: (height, width) float32.
        centre: Row and column of its centre of mass; the map's own where it is empty.
    """

    depth: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, probability: Tensor) -> _Outline:
        inside = probability.cpu().numpy() >= 0.5
        if not inside.any():
            return cls(
                np.full(inside.shape, -max(inside.shape), np.float32), np.array(inside.shape) / 2 - 0.5
            )
        depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
        # The outline runs between pixels, half a pixel from the centres on either side.
        depth = (depth - 0.5 * np.sign(depth)).astype(np.float32)
        return cls(depth, np.array(ndimage.center_of_mass(inside)))

    def towards(self, other: _Outline, share: float) -> np.ndarray:
        """Depth of the shape a ``share`` of the way to another."""
        centre = (1 - share) * self.centre + share * other.centre
        near, far = (
            ndimage.shift(one.depth, centre - one.centre, order=1, mode="nearest") for one in (self, other)
        )
        return (1 - share) * near + share * far


def smooth_along_axis(probabilities: Mapping[int, Tensor], sigma: float) -> dict[int, Tensor]:
    """Gaussian over neighbouring slices, where both are there; ``sigma`` in slices."""
    if sigma <= 0:
        return dict(probabilities)
    reach = max(1, round(2 * sigma))
    smoothed = {}
    for n in probabilities:
        near = [m for m in range(n - reach, n + reach + 1) if m in probabilities]
        weights = [float(np.exp(-0.5 * ((m - n) / sigma) ** 2)) for m in near]
        maps = [w * probabilities[m].float() for w, m in zip(weights, near, strict=True)]
        smoothed[n] = torch.stack(maps).sum(0) / sum(weights)
    return smoothed


def to_slab(
    probabilities: Mapping[int, Tensor],
    plan: SlicePlan,
    threshold: float,
    device: torch.device | str = "cpu",
) -> Slab | None:
    """Enlarge per-slice maps to the plane's own pixels; None where there are none.

    Args:
        probabilities: Slice to (height, width) of any resolution, covering the slice.
        plan: The cut.
        threshold: Probability from which a pixel is in the mask.
        device: Where maps are enlarged.
    """
    if not probabilities:
        return None
    first, last = min(probabilities), max(probabilities)
    slab = np.zeros((last - first + 1, *plan.shape[1:]), np.float16)
    mask = np.zeros(slab.shape, bool)
    indices = sorted(probabilities)
    for start in range(0, len(indices), ENLARGED_AT_ONCE):
        batch = indices[start : start + ENLARGED_AT_ONCE]
        maps = torch.stack([probabilities[n] for n in batch]).to(device).float()
        enlarged = enlarge(maps, plan.shape[1:]).half().cpu()
        rows = np.array(batch) - first
        slab[rows], mask[rows] = enlarged.numpy(), (enlarged >= threshold).numpy()
    return Slab(first, slab, mask)


def enlarge(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """(n, height, width) to (n, rows, columns): bilinear, averaging where it shrinks."""
    # Where nothing shrinks both ways give the same to 1e-7, and the plain one takes half the time.
    shrinks = shape[0] < maps.shape[-2] or shape[1] < maps.shape[-1]
    return interpolate(maps[:, None], size=shape, mode="bilinear", align_corners=False, antialias=shrinks)[
        :, 0
    ]


def clean(mask: np.ndarray, island_share: float, hole_share: float) -> np.ndarray:
    """Fill small holes in slices and drop small islands.

    Args:
        mask: bool, (slices, rows, columns).
        island_share: Islands smaller than this share of the largest are dropped.
        hole_share: Holes smaller than this share of their slice's mask are filled.
    """
    region = Extent.of_mask(mask)
    if region is None:
        return mask.copy()
    crop = mask[region.slices]
    crop = fill_holes(crop, np.floor(hole_share * crop.sum(axis=(1, 2))).astype(int))
    crop = remove_islands(crop, share=island_share)
    cleaned = np.zeros_like(mask)
    cleaned[region.slices] = crop
    return cleaned
