"""From drawn slices to tensors: augmented pixels, labels and the answer to each phrase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MedSAM3Core.inference.preprocess import MEAN, STD
from MedSAM3Core.training.augment import Augmentation, retone, warp
from MedSAM3Core.training.cache import CT_RANGE, SliceCache, SliceRecord
from MedSAM3Core.training.knowledge import LATERAL_PAIR
from MedSAM3Core.training.sampling import ConceptSampler, Query

SOFT_TISSUE = (-160.0, 240.0)
"""Hounsfield window the demo model is told to use."""

WITHOUT_UP = frozenset({"endoscopy", "histopathology", "fluorescence microscopy", "dermoscopy"})
"""Modalities whose images may be turned by quarter turns."""


@dataclass(frozen=True)
class Batch:
    """One step's images and questions.

    Attributes:
        pixels: (images, 3, size, size), normalised.
        labels: (images, size, size), class index plus one after augmentation.
        known: (images, classes) bool: the class was looked for in the image.
        phrases: One a pair.
        images: (pairs,) index of the pair's image.
        targets: (pairs, mask, mask), 0..1.
    """

    pixels: Tensor
    labels: Tensor
    known: Tensor
    phrases: list[str]
    images: Tensor
    targets: Tensor


class BatchMaker:
    """Makes batches from a sampler.

    Args:
        sampler: Draws slices and phrases.
        augmentation: How far images are changed; None leaves them as they are.
        image_size: Side of the model's input.
        mask_size: Side of its masks.
    """

    def __init__(
        self, sampler: ConceptSampler, augmentation: Augmentation | None, image_size: int, mask_size: int
    ) -> None:
        self.sampler = sampler
        self.cache: SliceCache = sampler.cache
        self.augmentation = augmentation
        self.image_size = image_size
        self.mask_size = mask_size
        self._mirror = mirrored_classes(self.cache.classes)

    def draw(self, images: int, queries: int) -> Batch:
        """A batch of ``images`` slices with ``queries`` phrases each."""
        drawn = [self.sampler.draw_slice() for _ in range(images)]
        records = [record for record, _ in drawn]
        flips = torch.tensor(
            [self._may_flip(record) and self.sampler.random.random() < 0.5 for record in records]
        )
        pixels, labels = self.render(records, flips)
        pairs = [
            (number, self._mirror_query(query) if flips[number] else query)
            for number, (record, wanted) in enumerate(drawn)
            for query in self.sampler.draw_queries(record, wanted, queries)
        ]
        index = torch.tensor([number for number, _ in pairs], dtype=torch.long)
        targets = [self.answer(labels[number], query) for number, query in pairs]
        return Batch(
            pixels,
            labels,
            torch.stack(
                [self._known(record, bool(flip)) for record, flip in zip(records, flips, strict=True)]
            ),
            [query.phrase for _, query in pairs],
            index,
            torch.stack(targets) if targets else torch.zeros(0, self.mask_size, self.mask_size),
        )

    def render(self, records: list[SliceRecord], flips: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented pixels and labels of some slices; ``flips`` is bool (slices,)."""
        images = torch.stack([self.toned(record) for record in records])
        labels = torch.stack(
            [torch.from_numpy(self.cache.labels(record).astype(np.int64)) for record in records]
        )
        if self.augmentation is None:
            images = functional.interpolate(
                images, (self.image_size,) * 2, mode="bilinear", antialias=True, align_corners=False
            )
            labels = functional.interpolate(
                labels[:, None].float(), (self.image_size,) * 2, mode="nearest-exact"
            )
            return (images - MEAN) / STD, labels[:, 0].long()
        turns = torch.tensor([self._turn(record) for record in records])
        images, labels = warp(images, labels[:, None], flips, self.augmentation, self.image_size, turns)
        labels = torch.stack(
            [self._mirror[label] if flip else label for label, flip in zip(labels[:, 0], flips, strict=True)]
        )
        return (retone(images, self.augmentation) - MEAN) / STD, labels

    def answer(self, labels: Tensor, query: Query) -> Tensor:
        """Mask of a phrase at the mask resolution, 0..1."""
        hit = (
            torch.isin(labels, torch.tensor([c + 1 for c in query.classes])) if query.classes else labels < 0
        )
        return functional.adaptive_avg_pool2d(hit.float()[None], self.mask_size)[0]

    def toned(self, record: SliceRecord) -> Tensor:
        """(3, size, size) in 0..1 of a cached slice, CT in the window that the model is told to use."""
        image = torch.tensor(self.cache.image(record)).permute(2, 0, 1).float() / 255
        case = self.cache.cases[record.case]
        if case.modality == "CT" and case.is_volume:
            low, high = SOFT_TISSUE
            wide = CT_RANGE[1] - CT_RANGE[0]
            image = ((image * wide + CT_RANGE[0] - low) / (high - low)).clamp(0, 1)
        return image

    def _turn(self, record: SliceRecord) -> float:
        case = self.cache.cases[record.case]
        return float(self.sampler.random.integers(4)) * np.pi / 2 if case.modality in WITHOUT_UP else 0.0

    def _may_flip(self, record: SliceRecord) -> bool:
        """Mirroring is right only if every sided class of the case has its other side among the classes."""
        if self.augmentation is None:
            return False
        names = [name for name in self.cache.cases[record.case].concepts if name.startswith(LATERAL_PAIR)]
        return all(_other_side(name) in self.cache.classes for name in names)

    def _mirror_query(self, query: Query) -> Query:
        return Query(_other_side(query.phrase), tuple(int(self._mirror[c + 1]) - 1 for c in query.classes))

    def _known(self, record: SliceRecord, flipped: bool) -> Tensor:
        known = torch.zeros(len(self.cache.classes), dtype=torch.bool)
        for name in self.cache.cases[record.case].concepts:
            index = self.cache.classes.index(name)
            known[int(self._mirror[index + 1]) - 1 if flipped else index] = True
        return known


def _other_side(name: str) -> str:
    """The mirrored name: left and right change places."""
    left, right = LATERAL_PAIR
    if name.startswith(left):
        return right + name[len(left) :]
    return left + name[len(right) :] if name.startswith(right) else name


def mirrored_classes(classes: tuple[str, ...]) -> Tensor:
    """Label value to the label value of its mirror image, (classes + 1,); 0 stays 0."""
    table = torch.arange(len(classes) + 1)
    for index, name in enumerate(classes):
        other = _other_side(name)
        if other in classes:
            table[index + 1] = classes.index(other) + 1
    return table
