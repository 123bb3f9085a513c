"""Ours, transformers' two ways and the arithmetic floor, in one run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from MedSAM3Core.benchmark.floor import Part, Rates, measure_parts, measure_rates
from MedSAM3Core.benchmark.measuring import Answer, Measured, measure, median, p95
from MedSAM3Core.benchmark.references import ImagePath, VideoPath
from MedSAM3Core.benchmark.subject import Subject, phrases_of
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.inference.preprocess import to_pixels
from MedSAM3Core.inference.rotation import published_rotation
from MedSAM3Core.inference.session import Session
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Box

FULL_MEMORY = 6
"""Recent slices that a tracker step remembers when its bank is full, beside the anchor."""

Say = Callable[[str], None]


class Comparison:
    """Everything that ``medsam3 benchmark`` measures of one subject.

    Args:
        subject: What is measured.
        repeats: Repetitions of our path; the references run once, because they take so long.
        reference_slices: Slices that the references see; their time is scaled to all, and said to be.
        cancel: Looked at between the paths, and by our own.
        say: Told what begins.
    """

    def __init__(
        self,
        subject: Subject,
        repeats: int = 3,
        reference_slices: int | None = None,
        cancel: CancelToken | None = None,
        say: Say = lambda sentence: None,
    ) -> None:
        self.subject = subject
        self.repeats = repeats
        count = len(subject.volume.array)
        self.reference_slices = count if reference_slices is None else min(count, reference_slices)
        self.cancel = cancel or CancelToken()
        self.say = say
        plan = SlicePlan.for_volume(subject.volume)
        self.truth = None if subject.truth is None else [plan.to_plane(mask) for mask in subject.truth]

    def run(self) -> dict[str, Any]:
        """Measure all of it.

        Returns:
            Plain values; see ``docs/benchmarks.md`` for what they mean.

        Raises:
            Cancelled: If the token was cancelled.
        """
        subject, device = self.subject, self.subject.model.device
        self.say("our path, once to warm up")
        with self._open() as session:
            self._ours(session)
            precision = session.precision
        self.say(f"our path, {self.repeats} times")
        ours = measure(self._ours_afresh, self.repeats, device)
        rerun = self._measure_rerun()
        self.cancel.check()
        with published_rotation(subject.model.network):
            references = self._references(precision.dtype)
        self.say("every part of the network alone")
        settings = session.settings
        parts = measure_parts(
            subject.model, precision, settings.batch_slices, settings.batch_pairs, FULL_MEMORY
        )
        rates = measure_rates(device, precision.dtype)
        return document(self, ours, rerun, references, parts, rates, precision.name)

    # -- ours -------------------------------------------------------------------------------------------------

    def _open(self) -> Session:
        return self.subject.segmenter.open(self.subject.volume, **self.subject.settings)

    def _ours(self, session: Session) -> Answer:
        found = session.segment_many(self.subject.concepts, cancel=self.cancel)
        masks = np.stack([session.plan.to_plane(one.to_array()) for one in found])
        return Answer(masks, dict(found[0].timings), dataclasses.asdict(session.work))

    def _ours_afresh(self) -> Answer:
        with self._open() as session:
            return self._ours(session)

    def _measure_rerun(self) -> Measured | None:
        """A second call on the same features with one box."""
        if self.subject.synthetic:
            return None
        self.say("a rerun with one box")
        with self._open() as session:
            found = session.segment_many(self.subject.concepts[:1], cancel=self.cancel)[0]
            if found.extent is None:
                return None
            box = box_on_middle_slice(found.to_array())

            def rerun() -> Answer:
                changed = session.refine(found, boxes=[box], cancel=self.cancel)
                return Answer(changed.to_array()[None], dict(changed.timings))

            return measure(rerun, max(3, self.repeats), self.subject.model.device)

    # -- the references ---------------------------------------------------------------------------------------

    def _references(self, dtype: torch.dtype) -> dict[str, Measured]:
        subject = self.subject
        model, device = subject.model.network.model, subject.model.device
        with self._open() as session:
            plan, window = session.plan, session.window(subject.concepts[0])
            cut = np.ascontiguousarray(plan.to_plane(subject.volume.array)[: self.reference_slices])
        pixels = to_pixels(window.apply(cut), subject.model.network.image_size, device)
        phrases = phrases_of(subject.concepts)
        ids, attention = subject.model.tokenize(phrases)
        tokens, shape = (ids.to(device), attention.to(device)), plan.shape[1:]
        self.say("transformers' video model")
        bound = (len(phrases), 0.0) if subject.synthetic else (None, None)
        video = VideoPath(model, dtype, *bound)
        answers = {"video": measure(lambda: video.run(pixels, phrases, tokens, shape), 1, device)}
        self.cancel.check()
        self.say("transformers' image model, one slice and concept at a time, float32")
        image = ImagePath(model, subject.model.card.policy())
        answers["images"] = measure(lambda: image.run(pixels, tokens, shape), 1, device)
        return answers


def box_on_middle_slice(mask: np.ndarray) -> Box:
    """Around the mask (slices, rows, columns) on the slice in the middle of those that hold any of it."""
    k = int(np.flatnonzero(mask.any(axis=(1, 2)))[mask.any(axis=(1, 2)).sum() // 2])
    rows, columns = np.flatnonzero(mask[k].any(axis=1)), np.flatnonzero(mask[k].any(axis=0))
    return Box.on_slice(k, (int(columns[0]), int(columns[-1])), (int(rows[0]), int(rows[-1])))


def dice(one: np.ndarray, other: np.ndarray) -> float | None:
    """Of two masks; None where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return None if total == 0 else 2 * int((one & other).sum()) / total


def floor_seconds(
    parts: list[Part], rates: Rates, work: Mapping[str, int], moved_bytes: int
) -> dict[str, float]:
    """Seconds that the work takes at the device's best rates.

    Args:
        parts: Operations of each part.
        rates: What the device reaches.
        work: Units done: "slices", "pairs", "steps".
        moved_bytes: Bytes that have to be read and written at least once.
    """
    units = {"slice": work["slices"], "pair": work["pairs"], "step": work["steps"]}
    flops = sum(part.flops * units[part.unit] for part in parts)
    return {
        "matrix products": flops / rates.flops,
        "copies": moved_bytes / rates.bytes,
        "total": flops / rates.flops + moved_bytes / rates.bytes,
    }


def document(
    comparison: Comparison,
    ours: Measured,
    rerun: Measured | None,
    references: Mapping[str, Measured],
    parts: list[Part],
    rates: Rates,
    precision: str,
) -> dict[str, Any]:
    """What was measured as plain values."""
    subject, count = comparison.subject, len(comparison.subject.volume.array)
    scale = count / comparison.reference_slices
    weights = sum(p.numel() * 4 for p in subject.model.network.parameters())
    volume_bytes, mask_bytes = subject.volume.array.nbytes, ours.answer.masks.nbytes
    work = ours.answer.counts
    floor = floor_seconds(parts, rates, work, weights + 2 * (volume_bytes + mask_bytes))
    paths = {"ours": _path(ours, 1.0)} | {name: _path(found, scale) for name, found in references.items()}
    total = median(ours.seconds)
    ratios = {
        f"ours faster than {name}, times": paths[name]["seconds"]["median"] / total for name in references
    }
    processor = median(ours.processor)
    ratios |= {
        f"the same in processor time, {name}": median(found.processor) * scale / processor
        for name, found in references.items()
    }
    ratios["ours over the floor"] = total / floor["total"]
    first = ours.answer.masks[:, : comparison.reference_slices]
    return {
        "subject": subject.title,
        "device": str(subject.model.device),
        "precision": precision,
        "load": [round(value, 1) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "slices": count,
        "concepts": [concept.phrase for concept in subject.concepts],
        "synthetic": subject.synthetic,
        "reference_slices": comparison.reference_slices,
        "work": work,
        "paths": paths,
        "rerun_with_one_box": None if rerun is None else _path(rerun, 1.0),
        "floor": {"seconds": floor, **dataclasses.asdict(rates)},
        "parts": [_part(part) for part in parts],
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
        "dice": {
            name: [dice(a, b) for a, b in zip(first, found.answer.masks, strict=True)]
            for name, found in references.items()
        },
        "dice_with_reference": None
        if comparison.truth is None
        else {
            name: [dice(a, b) for a, b in zip(found.answer.masks, comparison.truth, strict=True)]
            for name, found in {"ours": ours, **references}.items()
            if len(found.answer.masks[0]) == count
        },
    }


def _path(found: Measured, scale: float) -> dict[str, Any]:
    stages = {name: {"median": median(v), "p95": p95(v)} for name, v in found.stages.items()}
    return {
        "seconds": {"median": median(found.seconds) * scale, "p95": p95(found.seconds) * scale},
        "processor_seconds": {
            "median": median(found.processor) * scale,
            "p95": p95(found.processor) * scale,
        },
        "repeats": len(found.seconds),
        "stages": stages,
        "host_bytes": found.host_bytes,
        "device_bytes": found.device_bytes,
        "counts": found.answer.counts,
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "unit": part.unit,
        "flops": part.flops,
        "seconds": {"median": median(part.seconds), "p95": p95(part.seconds)},
    }
