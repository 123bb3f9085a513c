"""Does memory carry an object further than a photocopy? Tracker propagation against copying the anchor's mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from MedSAM3Core.evaluation.heldout import dice, reference_masks
from MedSAM3Core.inference.encoder import Encoder
from MedSAM3Core.inference.features import FeatureStore
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.inference.precision import Precision
from MedSAM3Core.inference.propagator import Anchor, EndRule, Propagator
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.models.loading import LoadedModel
from MedSAM3Core.training.pack import Case
from MedSAM3Core.volume import read_volume
from MedSAM3Core.windowing import choose_window

REACH = 8
"""Slices to each side of the anchor that are compared."""


@dataclass(frozen=True)
class PropagationScore:
    """One object carried from the middle of its extent.

    Attributes:
        case: File name of the image.
        source: Data set.
        concept: The object.
        tracked: Dice of the slices around the anchor, the anchor left out, by the tracker.
        copied: The same by the anchor's own mask on each of them.
    """

    case: str
    source: str
    concept: str
    tracked: float
    copied: float


def compare_with_copying(
    model: LoadedModel, cases: Sequence[Case], reach: int = REACH
) -> list[PropagationScore]:
    """Carry each reference from its middle slice ``reach`` slices to both sides, past the object's end if it ends.

    Cases without slices are passed over.
    """
    scores = []
    for case in cases:
        if case.is_volume:
            scores.extend(_compare_case(model, case, reach))
    return scores


def _compare_case(model: LoadedModel, case: Case, reach: int) -> list[PropagationScore]:
    volume = read_volume(case.image)
    plan = SlicePlan.for_volume(volume)
    settings = InferenceSettings()
    precision = Precision(model.device, settings.precision)
    store = FeatureStore(model.device, settings.device_bytes, settings.host_bytes)
    slices = plan.to_plane(volume.array)
    encoder = Encoder(model.network, model.tracker, slices, store, precision, settings)
    propagator = Propagator(model.tracker, encoder.tracker_pyramid, plan.count, precision.context)
    policy = model.card.recommended
    window = choose_window(volume, None, policy.ct_window or "auto" if volume.modality == "CT" else "auto")
    scores = []
    for concept, grid_mask in reference_masks(case, {}).items():
        mask = np.ascontiguousarray(plan.to_plane(grid_mask))
        occupied = np.flatnonzero(mask.any(axis=(1, 2)))
        if len(occupied) < 3:
            continue
        middle = int(occupied[len(occupied) // 2])
        first, last = max(0, middle - reach), min(plan.count - 1, middle + reach)
        encoder.prefetch(window, list(range(first, last + 1)))
        anchor = Anchor(middle, torch.from_numpy(mask[middle]))
        tracks = propagator.propagate(window, [[anchor]], [(first, last)], EndRule())[0]
        others = [n for n in range(first, last + 1) if n != middle]
        tracked = np.zeros_like(mask)
        for n in others:
            if n in tracks:
                tracked[n] = _enlarge(tracks[n][0].probability, mask.shape[1:])
        copied = np.zeros_like(mask)
        copied[others] = mask[middle]
        scores.append(
            PropagationScore(
                case.image.name,
                case.source,
                concept,
                dice(tracked[others], mask[others]),
                dice(copied[others], mask[others]),
            )
        )
    return scores


def _enlarge(probability: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    enlarged = interpolate(probability.float()[None, None], size=tuple(shape), mode="bilinear")
    return (enlarged[0, 0] > 0.5).numpy()
