"""Doubles of a model with known answers: brightness stands for anatomy.

`BrightNetwork` doubles `ConceptNetwork`: a phrase names a grey value, and the "detector" finds the pixels
of that value. A positive box adds every pixel above the background in it, a negative one takes away.
`BrightTracker` doubles `Tracker`: an object is the grey value of its anchor; on the next slice it is the
pixels of that value that touch where it was. It has ended where there are none. Geometry, anchors and
bookkeeping can be tested exactly with them; they say nothing about a model's quality.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.models.network import Detections, Pyramid, TextFeatures
from MedSAM3Core.models.tracker import Memory, MemoryBank, TrackOutput
from MedSAM3Core.prompts import Concept
from MedSAM3Core.volume.volume import Volume

SIZE = 64
GREY = {"bright thing": 200, "dim thing": 100, "absent thing": 150}
BACKGROUND, TOLERANCE = 20, 20


def _grey(maps: Tensor) -> Tensor:
    return (maps[:, 0] * 0.5 + 0.5) * 255


@dataclass
class BrightNetwork:
    """Doubles `ConceptNetwork`; counts what it is asked to do."""

    image_size: int = SIZE
    encoded: int = 0
    detected: int = 0
    batches: list[int] = field(default_factory=list)

    def modules(self) -> tuple[()]:
        """No layers: a cancel has nowhere to come in between."""
        return ()

    def trunk(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        return pixels

    def detector_pyramid(self, trunk: Tensor) -> Pyramid:
        maps = (trunk, avg_pool2d(trunk, 2), avg_pool2d(trunk, 4))
        return Pyramid(maps, tuple(torch.zeros_like(m) for m in maps))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        return TextFeatures(input_ids[..., None].float(), attention_mask.bool())

    def encode_exemplars(
        self, pyramid: Pyramid, text: TextFeatures, boxes: Tensor, labels: Tensor | None = None
    ) -> TextFeatures:
        """The phrase that stands for the grey value in the first box."""
        grey = _grey(pyramid.maps[0])[0]
        inside = _inside(boxes[0, 0], grey.shape[-1]) & (grey > BACKGROUND + TOLERANCE)
        return TextFeatures(grey[inside].median().view(1, 1, 1), text.mask)

    def detect(
        self,
        pyramid: Pyramid,
        text: TextFeatures,
        boxes: Tensor | None,
        labels: Tensor | None,
        with_masks: bool = True,
    ) -> Detections:
        self.detected += len(text.embeddings)
        self.batches.append(len(text.embeddings))
        grey = _grey(pyramid.maps[0])
        hit = (grey - text.embeddings[:, 0, 0].view(-1, 1, 1)).abs() < TOLERANCE
        if boxes is not None:
            for n, m in np.ndindex(*labels.shape):
                if labels[n, m] == -10:
                    continue
                inside = _inside(boxes[n, m], hit.shape[-1])
                hit[n] = (
                    hit[n] | (inside & (grey[n] > BACKGROUND + TOLERANCE))
                    if labels[n, m] == 1
                    else hit[n] & ~inside
                )
        logits = hit.float() * 20 - 10
        there = hit.flatten(1).any(1).float()[None] * 8 - 4
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, len(hit), 1, 4)
        return Detections(there[..., None], there, whole, logits[:, None], logits)


def _inside(box: Tensor, size: int) -> Tensor:
    x, y, width, height = (box * size).tolist()
    rows, columns = torch.arange(size)[:, None] + 0.5, torch.arange(size)[None] + 0.5
    return ((rows - y).abs() < height / 2) & ((columns - x).abs() < width / 2)


@dataclass
class BrightTracker:
    """Doubles `Tracker`; notes which slices' features it was given."""

    image_size: int = SIZE
    low_resolution: int = SIZE
    steps: int = 0

    def pyramid(self, trunk: Tensor) -> Pyramid:
        maps = (trunk, avg_pool2d(trunk, 2), avg_pool2d(trunk, 4))
        return Pyramid(maps, tuple(torch.zeros_like(m) for m in maps))

    def new_bank(self, slices: int) -> MemoryBank:
        return MemoryBank(slices)

    def prompt_mask(self, pyramid: Pyramid, masks: Tensor) -> TrackOutput:
        grey = _grey(pyramid.maps[0]).expand(len(masks), -1, -1)
        inside = masks > 0.5
        value = (grey * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)
        return self._output(inside, value)

    def prompt_box(self, pyramid: Pyramid, boxes: Tensor, gate: bool = True) -> TrackOutput:
        grey = _grey(pyramid.maps[0])[0]
        x0, y0, x1, y1 = (boxes[:, n].view(-1, 1, 1) for n in range(4))
        rows, columns = torch.arange(SIZE)[:, None] + 0.5, torch.arange(SIZE)[None] + 0.5
        inside = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
        return self._output(inside & (grey > BACKGROUND + TOLERANCE), torch.zeros(len(boxes)))

    def prompt_points(
        self,
        pyramid: Pyramid,
        points: Tensor,
        labels: Tensor,
        gate: bool = True,
        previous: Tensor | None = None,
    ) -> TrackOutput:
        """Everything of the grey value under the first click inside, without what the clicks outside are in."""
        grey = _grey(pyramid.maps[0])[0]
        shown, values = [], []
        for own, meaning in zip(points.long().tolist(), labels.tolist(), strict=True):
            value = {
                label: [grey[y, x] for (x, y), m in zip(own, meaning, strict=True) if m == label]
                for label in (0, 1)
            }
            hit = ((grey - value[1][0]).abs() < TOLERANCE) & (grey > BACKGROUND + TOLERANCE)
            for other in value[0]:
                hit = hit & ((grey - other).abs() >= TOLERANCE)
            shown.append(hit)
            values.append(value[1][0])
        return self._output(torch.stack(shown), torch.stack(values))

    def track(self, pyramid: Pyramid, bank: MemoryBank, slice_index: int) -> TrackOutput:
        self.steps += len(pyramid.maps[0])
        last = max((m for m in bank.memories if m.slice_index < slice_index), key=lambda m: m.slice_index)
        value = bank.anchors[0].pointer[:, 0]
        near = max_pool2d(last.features.float(), 5, 1, 2)[:, 0] > 0
        grey = _grey(pyramid.maps[0])
        return self._output(((grey - value.view(-1, 1, 1)).abs() < TOLERANCE) & near, value)

    def memorise(
        self, pyramid: Pyramid, output: TrackOutput, slice_index: int, conditioning: bool = False
    ) -> Memory:
        features = (output.logits > 0).float()[:, None]
        return Memory(slice_index, features, features[:1], output.pointer, conditioning, output.object_score)

    def _output(self, inside: Tensor, value: Tensor) -> TrackOutput:
        logits = inside.float() * 20 - 10
        score = inside.flatten(1).any(1).float() * 20 - 10
        return TrackOutput(logits, score, value[:, None], logits[:, None], score[:, None])


@dataclass
class BrightModel:
    """Doubles `LoadedModel`."""

    network: BrightNetwork = field(default_factory=BrightNetwork)
    tracker: BrightTracker = field(default_factory=BrightTracker)
    card: ModelCard = field(
        default_factory=lambda: ModelCard(
            name="bright", sha256="0" * 64, recommended=Policy(score_rule="presence")
        )
    )
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def tokenize(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[GREY[phrase]] for phrase in phrases])
        return ids, torch.ones_like(ids)


def concept(phrase: str) -> Concept:
    return Concept(phrase, phrase, (phrase,), phrase)


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Boolean ellipsoid, centre and radii in voxels along (slices, rows, columns)."""
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    return (((grid - centre) / radii) ** 2).sum(-1) <= 1


SHAPE = (30, SIZE, SIZE)
BRIGHT = ball(SHAPE, (12, 22, 20), (6.5, 12, 9))
DIM = ball(SHAPE, (18, 45, 44), (8.5, 10, 12)) & ~BRIGHT
UNNAMED = ball(SHAPE, (15, 14, 52), (5.5, 6, 6))
UNNAMED_GREY = 245


def phantom(voxels: np.ndarray | None = None, ijk_to_ras: np.ndarray | None = None) -> Volume:
    """Three objects: two that have a name, and one that no phrase finds."""
    return Volume.from_array(
        phantom_array() if voxels is None else voxels, ijk_to_ras=ijk_to_ras, modality="MR"
    )


def phantom_array() -> np.ndarray:
    array = np.full(SHAPE, BACKGROUND, np.uint8)
    array[BRIGHT], array[DIM], array[UNNAMED] = 200, 100, UNNAMED_GREY
    return array
