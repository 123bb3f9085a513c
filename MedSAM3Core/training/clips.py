"""Runs of neighbouring slices with one object to follow: what the tracker learns from.

A clip begins where the object is and may run past its end, so that the tracker learns to stop. Single images become
clips by moving them a little from frame to frame. Among several objects of a slice one is drawn, so that only memory
can tell which.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor
from torch.nn import functional

from MedSAM3Core.inference.preprocess import MEAN, STD
from MedSAM3Core.training.augment import Augmentation, retone, warp
from MedSAM3Core.training.batches import BatchMaker
from MedSAM3Core.training.cache import SliceRecord

FRAME_MOTION = Augmentation(rotation=6.0, scale=(0.93, 1.07), shift=0.04, aspect=0.04)
"""How far a single image moves from frame to frame."""

LONGEST_STRIDE = 2
"""Slices of a volume are taken one by one or every second, as thin and thick slices would have it."""


@dataclass(frozen=True)
class Clips:
    """A batch of clips.

    Attributes:
        pixels: (clips, frames, 3, size, size), normalised.
        masks: (clips, frames, size, size) bool, the object.
    """

    pixels: Tensor
    masks: Tensor


class ClipMaker:
    """Draws clips.

    Args:
        batches: Whose sampler, cache and augmentation are used.
        frames: Slices a clip.
    """

    def __init__(self, batches: BatchMaker, frames: int) -> None:
        if batches.augmentation is None:
            raise ValueError("Clips are drawn for training only and need an augmentation.")
        self.batches, self.frames = batches, frames
        self.augmentation = batches.augmentation
        self._slices: dict[int, list[SliceRecord]] = defaultdict(list)
        for record in batches.cache.records:
            self._slices[record.case].append(record)

    def draw(self, clips: int) -> Clips:
        """``clips`` clips, each with an object on its first frame."""
        pixels: list[Tensor] = []
        masks: list[Tensor] = []
        while len(pixels) < clips:
            drawn = self._draw_one()
            if drawn is not None:
                pixels.append(drawn[0])
                masks.append(drawn[1])
        return Clips(torch.stack(pixels), torch.stack(masks))

    def _draw_one(self) -> tuple[Tensor, Tensor] | None:
        """One clip, or None if augmentation moved the object off the first frame."""
        random = self.batches.sampler.random
        record, wanted = self.batches.sampler.draw_slice()
        if wanted is None:
            return None
        records = self._neighbours(record)
        images = torch.stack([self.batches.toned(r) for r in records])
        labels = np.stack([self.batches.cache.labels(r) for r in records])
        mask = torch.from_numpy(self._object(labels, wanted))
        if self.batches.cache.cases[record.case].is_volume is False:
            images, moved = warp(
                images,
                mask[:, None],
                torch.zeros(self.frames, dtype=torch.bool),
                FRAME_MOTION,
                images.shape[-1],
            )
            mask = moved[:, 0]
        flip = torch.tensor([bool(random.random() < 0.5)])
        frames, masks = warp(
            images.flatten(0, 1)[None], mask[None], flip, self.augmentation, self.batches.image_size
        )
        frames = retone(frames, self.augmentation)
        if masks[0, 0].sum() < 12:
            return None
        return (frames.view(self.frames, 3, *frames.shape[-2:]) - MEAN) / STD, masks[0] > 0

    def _neighbours(self, record: SliceRecord) -> list[SliceRecord]:
        """The slice and those after it, up or down, one by one or every second; the last one repeats at the end."""
        random = self.batches.sampler.random
        slices = self._slices[record.case]
        step = int(random.choice([-1, 1])) * int(random.integers(1, LONGEST_STRIDE + 1))
        start = slices.index(record)
        places = [min(max(start + step * n, 0), len(slices) - 1) for n in range(self.frames)]
        return [slices[place] for place in places]

    def _object(self, labels: np.ndarray, wanted: int) -> np.ndarray:
        """What is followed, (frames, height, width) 0 or 1: a class, or one component of it."""
        mask = labels == wanted + 1
        pieces, count = label(mask)
        on_first = np.unique(pieces[0])[1:]
        if count > 1 and len(on_first) > 1 and self.batches.sampler.random.random() < 0.6:
            mask = pieces == on_first[self.batches.sampler.random.integers(len(on_first))]
        return mask.astype(np.int64)


def shrink(masks: Tensor, size: int) -> Tensor:
    """(clips, frames, height, width) bool to soft masks of the mask resolution."""
    return functional.adaptive_avg_pool2d(masks.float(), size)
