"""What a fine-tuning step asks of its slices: phrases that are there, some with a box, and phrases that are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MedSAM3Core.errors import InputError
from MedSAM3Core.inference.preprocess import MEAN, STD
from MedSAM3Core.models.network import PADDED_BOX_LABEL
from MedSAM3Core.training.augment import Augmentation, retone, warp
from MedSAM3Core.training.examples import Example, ExampleStore
from MedSAM3Core.training.knowledge import DISTRACTORS, LATERAL_PAIR
from MedSAM3Core.training.recipe import PromptSettings

BOX_JITTER = 0.1
"""How far a drawn box may lie beside the answer's own, as a share of its size."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's images and questions.

    Attributes:
        pixels: (images, 3, size, size), normalised.
        phrases: One a pair.
        images: (pairs,) index of the pair's image.
        targets: (pairs, mask, mask), 0..1.
        boxes: (pairs, 1, 4), cxcywh relative to the image.
        labels: (pairs, 1), 1 for a box, -10 for none.
    """

    pixels: Tensor
    phrases: list[str]
    images: Tensor
    targets: Tensor
    boxes: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            images=self.images.to(device),
            targets=self.targets.to(device),
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
        )


class Asker:
    """Draws slices and phrases of one split.

    Args:
        store: The slices.
        split: Whose patients.
        prompts: What is asked.
        augmentation: How far images are changed; None leaves them as they are.
        mask_size: Side of the model's masks.

    Raises:
        InputError: If no slice of the split shows a concept.
    """

    def __init__(
        self,
        store: ExampleStore,
        split: str,
        prompts: PromptSettings,
        augmentation: Augmentation | None,
        mask_size: int,
    ) -> None:
        self.store, self.prompts, self.augmentation, self.mask_size = store, prompts, augmentation, mask_size
        self.random = np.random.default_rng(0)
        self.examples = store.of_split(split)
        self._showing: dict[str, list[Example]] = defaultdict(list)
        for example in self.examples:
            for concept in example.masks:
                self._showing[concept].append(example)
        if not self._showing:
            raise InputError(f"No slice of the {split} patients shows a concept; check the masks.")
        self.concepts = sorted(self._showing)
        self._all = store.concepts
        self._distractors = [phrase for phrase in DISTRACTORS if phrase not in self._all]

    def draw(self, images: int) -> Batch:
        """A batch: every concept is drawn as often as any other, however rare it is."""
        drawn = [self._draw_example() for _ in range(images)]
        asked = [self._draw_phrases(example, wanted) for example, wanted in drawn]
        return self.render([example for example, _ in drawn], asked, self.prompts.boxes)

    def render(
        self,
        examples: Sequence[Example],
        asked: Sequence[Sequence[str]],
        box_share: float,
        plain: bool = False,
    ) -> Batch:
        """Images and answers of some slices.

        Args:
            examples: The slices.
            asked: Phrases of each.
            box_share: Share of the phrases with an answer that get a box.
            plain: Neither images nor boxes are moved.
        """
        pictures, layers, phrases, index = [], [], [], []
        for number, (example, names) in enumerate(zip(examples, asked, strict=True)):
            flip = not plain and self._may_flip(example) and bool(self.random.random() < 0.5)
            image, masks = self._picture(example, names, flip, plain)
            pictures.append(image)
            layers.append(masks)
            phrases += [other_side(name) if flip else name for name in names]
            index += [number] * len(names)
        targets = functional.adaptive_avg_pool2d(torch.cat(layers), self.mask_size)
        boxes, labels = self._boxes(targets, box_share, 0.0 if plain else BOX_JITTER)
        return Batch(torch.stack(pictures), phrases, torch.tensor(index), targets, boxes, labels)

    def _draw_example(self) -> tuple[Example, str | None]:
        if self.random.random() < self.prompts.empty_slices:
            return self.examples[self.random.integers(len(self.examples))], None
        wanted = self.concepts[self.random.integers(len(self.concepts))]
        showing = self._showing[wanted]
        return showing[self.random.integers(len(showing))], wanted

    def _draw_phrases(self, example: Example, wanted: str | None) -> list[str]:
        phrases = [wanted] if wanted is not None else []
        while len(phrases) < self.prompts.queries:
            others = [concept for concept in example.masks if concept not in phrases]
            if others and self.random.random() >= self.prompts.negatives:
                phrases.append(others[self.random.integers(len(others))])
            else:
                phrases.append(self.draw_absent(example))
        return phrases

    def draw_absent(self, example: Example) -> str:
        """A phrase that is surely not on the slice: labelled in the case but not here, named absent, or no concept at
        all.

        A concept of other cases, which nobody looked for in this one, is unknown here and never drawn.
        """
        case = self.store.cases[example.case]
        known = [concept for concept in case.references if concept not in example.masks]
        known += [concept for concept in case.absent if concept not in case.references]
        if known and self.random.random() < 0.75:
            return known[self.random.integers(len(known))]
        return self._distractors[self.random.integers(len(self._distractors))]

    def _picture(
        self, example: Example, names: Sequence[str], flip: bool, plain: bool
    ) -> tuple[Tensor, Tensor]:
        """(3, size, size) normalised, and (names, size, size) of 0 and 1."""
        image = torch.from_numpy(np.array(self.store.images[example.row])).permute(2, 0, 1).float() / 255
        masks = torch.from_numpy(np.stack([self.store.mask(example, name) for name in names])).long()
        if self.augmentation is not None and not plain:
            moved, turned = warp(
                image[None], masks[None], torch.tensor([flip]), self.augmentation, self.store.size
            )
            image, masks = retone(moved, self.augmentation)[0], turned[0]
        return (image - MEAN) / STD, masks.float()

    def _may_flip(self, example: Example) -> bool:
        """Mirroring is right if every sided concept of the case has its other side among the concepts."""
        if self.augmentation is None:
            return False
        sided = [name for name in self.store.cases[example.case].references if name.startswith(LATERAL_PAIR)]
        return all(other_side(name) in self._all for name in sided)

    def _boxes(self, targets: Tensor, share: float, jitter: float) -> tuple[Tensor, Tensor]:
        boxes = torch.full((len(targets), 1, 4), 0.5)
        labels = torch.full((len(targets), 1), PADDED_BOX_LABEL)
        for number, target in enumerate(targets):
            if self.random.random() >= share or not (target >= 0.5).any():
                continue
            boxes[number, 0] = box_of(target, self.random.uniform(-jitter, jitter, 4))
            labels[number, 0] = 1
        return boxes, labels


def box_of(target: Tensor, jitter: np.ndarray) -> Tensor:
    """cxcywh of a (height, width) map's half-filled pixels, relative to the map, moved by shares of its size."""
    rows = (target.amax(1) >= 0.5).nonzero().flatten()
    columns = (target.amax(0) >= 0.5).nonzero().flatten()
    ends = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float() / target.shape[-1]
    low, high = ends[:2], ends[2:]
    moves = torch.as_tensor(jitter, dtype=torch.float32)
    size = (high - low) * (1 + moves[2:])
    return torch.cat([(low + high) / 2 + moves[:2] * (high - low), size]).clamp(0.005, 0.995)


def other_side(name: str) -> str:
    """The mirrored name: left and right change places."""
    left, right = LATERAL_PAIR
    if name.startswith(left):
        return right + name[len(left) :]
    return left + name[len(right) :] if name.startswith(right) else name
