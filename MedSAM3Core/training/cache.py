"""All slices of a training set at one size in memory-mapped arrays, so that a step reads nothing but bytes.

Slices are cut, turned and windowed by the same functions that inference uses. CT is cached over a range wider than the
window the model is told to use, so that augmentation can move the window.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.training.pack import Case
from MedSAM3Core.volume import read_volume

logger = logging.getLogger(__name__)

CT_RANGE = (-260.0, 340.0)
"""Hounsfield range of the cached CT; the soft-tissue window -160..240 lies in its middle two thirds."""


@dataclass(frozen=True)
class SliceRecord:
    """Where one slice is.

    Attributes:
        case: Index into the case list.
        slice: Slice index in the plane frame.
        row: Index into the image array of its kind.
        rgb: Whether that is the colour array.
        present: Class indices with at least one pixel here.
    """

    case: int
    slice: int
    row: int
    rgb: bool
    present: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SliceCache:
    """Slices of many cases.

    Attributes:
        cases: The cases.
        classes: Concept names; a label's value is its index plus one.
        records: One a slice; slices of one case are consecutive and in plane order.
        grey: uint8 (n, size, size).
        colour: uint8 (m, size, size, 3).
        grey_labels: uint8 (n, size, size), 0 background.
        colour_labels: uint8 (m, size, size).
    """

    cases: Sequence[Case]
    classes: tuple[str, ...]
    records: tuple[SliceRecord, ...]
    grey: np.ndarray
    colour: np.ndarray
    grey_labels: np.ndarray
    colour_labels: np.ndarray

    def image(self, record: SliceRecord) -> np.ndarray:
        """uint8 (size, size, 3) of a record."""
        if record.rgb:
            return self.colour[record.row]
        return np.repeat(self.grey[record.row][..., None], 3, axis=2)

    def labels(self, record: SliceRecord) -> np.ndarray:
        """uint8 (size, size) of a record."""
        return (self.colour_labels if record.rgb else self.grey_labels)[record.row]


def build_cache(cases: Sequence[Case], classes: Sequence[str], size: int, folder: Path) -> SliceCache:
    """Read every case once, or map what an earlier run left in ``folder``.

    Args:
        cases: What to read.
        classes: Concept names that may appear.
        size: Side of the cached slices in pixels.
        folder: Where the arrays live; named after a hash of the case list, so that another list makes another cache.
    """
    key = json.dumps([size, list(classes), [str(case.image.name) for case in cases], CT_RANGE])
    place = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not (place / "records.json").exists():
        _write_cache(cases, classes, size, place)
    return _map_cache(cases, classes, place)


def _map_cache(cases: Sequence[Case], classes: Sequence[str], place: Path) -> SliceCache:
    rows = json.loads((place / "records.json").read_text())
    records = tuple(SliceRecord(c, s, r, bool(rgb), tuple(p)) for c, s, r, rgb, p in rows)
    arrays = {
        name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("grey", "colour", "grey_labels", "colour_labels")
    }
    return SliceCache(cases, tuple(classes), records, **arrays)


def _write_cache(cases: Sequence[Case], classes: Sequence[str], size: int, place: Path) -> None:
    stacks: dict[bool, list[np.ndarray]] = {False: [], True: []}
    label_stacks: dict[bool, list[np.ndarray]] = {False: [], True: []}
    counts = {False: 0, True: 0}
    records: list[list] = []
    for number, case in enumerate(cases):
        images, labels = load_slices(case, classes)
        rgb = images.ndim == 4
        images, labels = resize_slices(images, labels, size)
        for index, label in enumerate(labels):
            present = [int(value) - 1 for value in np.unique(label) if value]
            records.append([number, index, counts[rgb] + index, int(rgb), present])
        stacks[rgb].append(images)
        label_stacks[rgb].append(labels)
        counts[rgb] += len(images)
        if number % 200 == 0:
            logger.info("read %d of %d cases, %d slices", number, len(cases), sum(counts.values()))
    place.mkdir(parents=True, exist_ok=True)
    for rgb, name in ((False, "grey"), (True, "colour")):
        tail = (size, size, 3) if rgb else (size, size)
        np.save(place / f"{name}.npy", np.concatenate(stacks[rgb] or [np.zeros((0, *tail), np.uint8)]))
        empty = np.zeros((0, size, size), np.uint8)
        np.save(place / f"{name}_labels.npy", np.concatenate(label_stacks[rgb] or [empty]))
    (place / "records.json").write_text(json.dumps(records))


def load_slices(case: Case, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Slices of a case in the plane frame, windowed, and their label map.

    Returns:
        uint8 (slices, rows, columns[, 3]) and uint8 (slices, rows, columns) of class index plus one.
    """
    volume = read_volume(case.image)
    plan = SlicePlan.for_volume(volume)
    images = to_bytes(np.asarray(plan.to_plane(volume.array)), case.modality)
    labels = np.zeros(images.shape[:3], np.uint8)
    if case.is_volume:
        values = plan.to_plane(read_volume(next(iter(case.masks.values()))).array)
        for value, concept in case.labels.items():
            labels[values == value] = classes.index(concept) + 1
    else:
        for concept, path in case.masks.items():
            labels[plan.to_plane(read_volume(path).array) > 0] = classes.index(concept) + 1
    return images, labels


def to_bytes(array: np.ndarray, modality: str) -> np.ndarray:
    """8-bit values as they are; CT over `CT_RANGE`; anything else between its 0.5 and 99.5 percentiles."""
    if array.dtype == np.uint8:
        return array
    if modality == "CT":
        low, high = CT_RANGE
    else:
        low, high = np.percentile(array, [0.5, 99.5])
    return np.clip((array - low) * (255.0 / max(high - low, 1e-6)) + 0.5, 0, 255).astype(np.uint8)


def resize_slices(images: np.ndarray, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Square resize: antialiased bilinear for images, nearest for labels."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).float()
    tensor = tensor.permute(0, 3, 1, 2) if images.ndim == 4 else tensor[:, None]
    tensor = (
        functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
    )
    tensor = tensor.permute(0, 2, 3, 1) if images.ndim == 4 else tensor[:, 0]
    small = functional.interpolate(
        torch.from_numpy(labels[:, None].astype(np.float32)), (size, size), mode="nearest-exact"
    )
    return tensor.to(torch.uint8).numpy(), small[:, 0].to(torch.uint8).numpy()
