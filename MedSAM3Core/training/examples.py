"""Labelled cases as slices for fine-tuning: images at the model's size, one bit a pixel for every concept on them.

Masks may overlap (a tumour in its organ), so every concept of a slice has a map of its own. All lies in memory-mapped
arrays that a second run finds again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.cases import LabelledCase
from MedSAM3Core.evaluation.datasets import read_dataset
from MedSAM3Core.evaluation.patients import check_patients
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.models.card import Policy
from MedSAM3Core.plurals import counted
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.training.recipe import Recipe, check_phrase
from MedSAM3Core.volume import Volume
from MedSAM3Core.windowing import choose_window

logger = logging.getLogger(__name__)

READING = "reading"
LEAST_PIXELS = 2
"""A concept with fewer pixels on a resized slice is not asked for there: half a pixel teaches nothing."""


@dataclass(frozen=True)
class Example:
    """One slice.

    Attributes:
        case: Index into the cases.
        slice: Slice index in the plane frame.
        row: Row of the image array.
        masks: Concept to row of the mask array, for the concepts that are on the slice.
    """

    case: int
    slice: int
    row: int
    masks: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class ExampleStore:
    """Slices of many cases.

    Attributes:
        cases: The cases.
        examples: One a slice; those of a case are consecutive and in plane order.
        images: uint8 (slices, size, size, 3).
        masks: uint8 (maps, size, size / 8), eight pixels a byte.
        size: Side in pixels.
    """

    cases: Sequence[LabelledCase]
    examples: tuple[Example, ...]
    images: np.ndarray
    masks: np.ndarray
    size: int

    def mask(self, example: Example, concept: str) -> np.ndarray:
        """bool (size, size) of a concept; empty where it is not on the slice."""
        row = example.masks.get(concept)
        if row is None:
            return np.zeros((self.size, self.size), bool)
        return np.unpackbits(self.masks[row], axis=-1, count=self.size).astype(bool)

    def of_split(self, split: str) -> list[Example]:
        """Slices of the patients of a split."""
        return [example for example in self.examples if self.cases[example.case].split == split]

    @property
    def concepts(self) -> list[str]:
        """All that was looked for, in order of the alphabet."""
        return sorted({concept for case in self.cases for concept in case.references})


def gather_cases(recipe: Recipe) -> list[LabelledCase]:
    """Cases of a recipe's data, their concepts renamed, split by patient; test patients are left out and never opened.

    Raises:
        InputError: If a folder cannot be read, a concept has more than three words, a patient is in two splits, or a
            split is empty.
    """
    cases = []
    for one in recipe.data:
        for case in read_dataset(one.folder, one.layout, one.concept).cases:
            references = {
                _phrase(name, recipe): reference
                for name, reference in case.references.items()
                if not recipe.only or name in recipe.concepts
            }
            if references and case.split != "test":
                cases.append(replace(case, references=references))
    if not cases:
        raise InputError(
            "The training data is empty: no image outside of the test split has a concept that is wanted; check "
            "'data', "
            "'concepts' and 'only'."
        )
    return split_patients(cases, recipe.validation.share, recipe.seed)


def _phrase(name: str, recipe: Recipe) -> str:
    return check_phrase(recipe.concepts.get(name, name))


def split_patients(cases: Sequence[LabelledCase], share: float, seed: int) -> list[LabelledCase]:
    """Give every case without a split one, patient by patient, so that no patient is on both sides.

    Patients are told apart by name over all sources: one name in two folders is one patient, which can lose a case to
    the wrong side but never leaks one.

    Args:
        cases: Cases; those with a split keep it, and so do the other cases of their patients.
        share: Of the patients without a split that are for validation, at least one of them.
        seed: Another one makes another split.

    Raises:
        InputError: If a patient is in two splits, or training or (with a share above 0) validation is left without one.
    """
    check_patients(cases)
    known = {case.patient: case.split for case in cases if case.split}
    loose = sorted({case.patient for case in cases} - known.keys(), key=lambda name: _draw(name, seed))
    wanted = 0
    if "validation" not in known.values():
        wanted = min(math.ceil(share * len(loose)), len(loose) - ("train" not in known.values()))
    chosen = {patient: "validation" if n < wanted else "train" for n, patient in enumerate(loose)} | known
    splits = set(chosen.values())
    if "train" not in splits or (share > 0 and "validation" not in splits):
        have = counted(len(chosen), "patient")
        empty = "training" if "train" not in splits else "validation"
        raise InputError(
            f"The {empty} split is empty: the data has {have}, who cannot be on both sides; add cases of other "
            "patients, or "
            "set validation: {share: 0} to train without watching."
        )
    return [replace(case, split=chosen[case.patient]) for case in cases]


def _draw(patient: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


def build_store(
    cases: Sequence[LabelledCase],
    size: int,
    policy: Policy,
    folder: Path,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> ExampleStore:
    """Read every case once, or map what an earlier run left.

    Args:
        cases: What to read.
        size: Side of the model's input in pixels.
        policy: How the model is shown images.
        folder: Where the arrays live, under a hash of what is in them.
        progress: Receives a report a case.
        cancel: Stops between two cases.

    Raises:
        VolumeError: If an image or a mask cannot be read.
        InputError: If no slice shows any concept.
    """
    facts = [[str(c.image), c.image.stat().st_mtime_ns, repr(sorted(c.references.items()))] for c in cases]
    key = json.dumps([size, policy.ct_window, policy.clip_policy, facts])
    place = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not (place / "examples.json").exists():
        _write_store(cases, size, policy, place, ProgressMeter(progress, cancel, {READING: 1.0}))
    rows = json.loads((place / "examples.json").read_text(encoding="utf-8"))
    examples = tuple(Example(case, index, row, masks) for case, index, row, masks in rows)
    arrays = [np.load(place / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in ("images", "masks")]
    if not any(example.masks for example in examples):
        raise InputError(
            f"None of the {len(examples)} slices shows a concept; the masks are empty, or smaller than two "
            f"pixels at {size} px."
        )
    return ExampleStore(cases, examples, arrays[0], arrays[1], size)


def _write_store(
    cases: Sequence[LabelledCase], size: int, policy: Policy, place: Path, meter: ProgressMeter
) -> None:
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    rows: list[list] = []
    for number, case in enumerate(cases):
        meter.step(READING, number, len(cases))
        slices, maps = read_slices(case, size, policy)
        for index, image in enumerate(slices):
            present = {}
            for concept, plane in maps.items():
                if plane[index].sum() >= LEAST_PIXELS:
                    present[concept] = len(masks)
                    masks.append(np.packbits(plane[index], axis=-1))
            rows.append([number, index, len(images), present])
            images.append(image)
    meter.step(READING, len(cases), len(cases))
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "images.npy", np.stack(images))
    np.save(place / "masks.npy", np.stack(masks) if masks else np.zeros((0, size, (size + 7) // 8), np.uint8))
    (place / "examples.json").write_text(
        json.dumps(rows), encoding="utf-8"
    )  # last: it says that all is there


def read_slices(case: LabelledCase, size: int, policy: Policy) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Slices of a case as inference would cut, turn and window them.

    Returns:
        uint8 (slices, size, size, 3), and for each concept bool (slices, size, size).
    """
    volume = case.read()
    plan = SlicePlan.for_volume(volume)
    window = choose_window(volume, None, _window_request(volume, policy), policy.clip_policy)
    pixels = window.apply(np.asarray(plan.to_plane(volume.array)))
    pixels = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=3)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    resized = [
        functional.interpolate(one[None].float(), (size, size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        for one in tensor
    ]
    images = torch.cat(resized).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    masks = {
        concept: _resize_mask(np.ascontiguousarray(plan.to_plane(mask)), size)
        for concept, mask in case.read_references(volume).items()
    }
    return images, masks


def _window_request(volume: Volume, policy: Policy) -> str:
    return (
        policy.ct_window or "auto" if volume.modality == "CT" and volume.array.dtype != np.uint8 else "auto"
    )


def _resize_mask(planes: np.ndarray, size: int) -> np.ndarray:
    tensor = torch.from_numpy(planes)[:, None].float()
    return (functional.interpolate(tensor, (size, size), mode="nearest-exact")[:, 0] > 0.5).numpy()


def patients_by_split(cases: Sequence[LabelledCase]) -> dict[str, set[str]]:
    """Split to its patients."""
    found: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        found[case.split].add(case.patient)
    return dict(found)
