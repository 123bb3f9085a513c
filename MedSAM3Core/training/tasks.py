"""What a fine-tuning step computes, by method, and how the result is judged on validation patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from MedSAM3Core.models.loading import LoadedModel
from MedSAM3Core.models.network import ConceptNetwork, Detections
from MedSAM3Core.training.adapters import Adapters
from MedSAM3Core.training.asking import Asker, Batch
from MedSAM3Core.training.augment import Augmentation
from MedSAM3Core.training.config import StageConfig
from MedSAM3Core.training.examples import Example, ExampleStore
from MedSAM3Core.training.losses import LossWeights, detection_loss
from MedSAM3Core.training.recipe import PromptSettings, Recipe
from MedSAM3Core.training.tracker_stage import TrackerStage

Terms = dict[str, Tensor]
Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]

VALIDATION_BATCH = 8


class Task(Protocol):
    """A kind of fine-tuning.

    Contract: `module` holds every trained parameter and gives the named, weighted terms of one drawn batch; `draw`
    draws it from the generator that it was re-seeded with; `judge` gives the Dice of each concept on validation
    slices, the same slices at every call, without changing the generator of training.
    """

    module: nn.Module

    def draw(self) -> object:
        """A batch for `module`, on the CPU."""

    def reseed(self, seed: Sequence[int]) -> None:
        """Let the next draws depend on ``seed`` alone."""

    def parameters(self) -> list[tuple[list[nn.Parameter], float]]:
        """What is trained, with factors on the learning rate."""

    def judge(self) -> dict[str, float]:
        """Concept to Dice on validation slices."""


class _DetectionModule(nn.Module):
    """The detector under prompts; a module of its own so that it can be wrapped for several GPUs."""

    def __init__(self, network: ConceptNetwork, tokenize: Tokenize, adapters: Adapters | None) -> None:
        super().__init__()
        self.network, self.adapters = network, adapters
        self.tokenize = tokenize
        self.weights = LossWeights(
            absent=1.0
        )  # a model that knows words can be told at full weight what is not there

    def forward(self, batch: Batch) -> Terms:
        device = next(self.network.parameters()).device
        batch = batch.to(device)
        found = self.detect(batch)
        return detection_loss(found, batch.targets, self.weights)

    def detect(self, batch: Batch, with_masks: bool = True) -> Detections:
        """Detections of a batch's pairs."""
        device = batch.pixels.device
        ids, mask = (tokens.to(device) for tokens in self.tokenize(batch.phrases))
        pyramid = self.network.detector_pyramid(self.network.trunk(batch.pixels))
        text = self.network.encode_text(ids, mask)
        return self.network.detect(pyramid.take(batch.images), text, batch.boxes, batch.labels, with_masks)


class DetectionTask:
    """Text and text-with-box prompts on single slices.

    Args:
        model: What is trained.
        store: Slices.
        recipe: The run.
    """

    def __init__(self, model: LoadedModel, store: ExampleStore, recipe: Recipe) -> None:
        self.recipe = recipe
        self.network = model.network
        mask_size = 4 * _tokens(model)
        self.asker = Asker(store, "train", recipe.prompts, recipe.augmentation, mask_size)
        self.validation = None
        if store.of_split("validation"):
            self.validation = Asker(store, "validation", PromptSettings(boxes=0), None, mask_size)
        self.adapters = Adapters(self.network.model, recipe.lora) if recipe.method == "lora" else None
        self.module: nn.Module = _DetectionModule(self.network, model.tokenizer, self.adapters)
        self._freeze()

    def _freeze(self) -> None:
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        for parameters, _ in self.parameters():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def parameters(self) -> list[tuple[list[nn.Parameter], float]]:
        """Adapters; or the detector, and with "full" its two encoders at their own rate."""
        if self.adapters is not None:
            return [(list(self.adapters.parameters()), 1.0)]
        detector = self.network.detector
        encoders = [*detector.vision_encoder.parameters(), *detector.text_encoder.parameters()]
        inside = set(encoders)
        others = [parameter for parameter in detector.parameters() if parameter not in inside]
        return [(others, 1.0)] + (
            [(encoders, self.recipe.encoder_rate)] if self.recipe.method == "full" else []
        )

    def reseed(self, seed: Sequence[int]) -> None:
        """Both numpy's generator and torch's."""
        self.asker.random = np.random.default_rng(list(seed))
        torch.manual_seed(int(self.asker.random.integers(2**31)))

    def draw(self) -> object:
        """Slices with phrases."""
        return self.asker.draw(self.recipe.batch)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Text alone, semantic map, each concept on the slices that show it."""
        if self.validation is None:
            return {}
        self.validation.random = np.random.default_rng(0)
        device = next(self.network.parameters()).device
        assert isinstance(self.module, _DetectionModule)
        values: dict[str, list[float]] = defaultdict(list)
        for concept, examples in choose_probes(self.validation, self.recipe.validation.slices).items():
            for first in range(0, len(examples), VALIDATION_BATCH):
                some = examples[first : first + VALIDATION_BATCH]
                batch = self.validation.render(some, [[concept]] * len(some), 0.0, plain=True).to(device)
                found = self.module.detect(batch, with_masks=False)
                values[concept] += map_dice(found.semantic.float(), batch.targets)
        return {concept: float(np.mean(members)) for concept, members in values.items()}


def choose_probes(asker: Asker, count: int) -> dict[str, list[Example]]:
    """For each concept up to ``count`` slices that show it, spread over the patients, always the same."""
    found: dict[str, list[Example]] = defaultdict(list)
    for example in asker.examples:
        for concept in example.masks:
            found[concept].append(example)
    chosen = {}
    for concept, examples in sorted(found.items()):
        places = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
        chosen[concept] = [examples[place] for place in places]
    return chosen


def map_dice(logits: Tensor, targets: Tensor) -> list[float]:
    """Dice of each (height, width) map of logits at 0 against a 0..1 target at one half; 1 where both are empty."""
    answer, truth = logits > 0, targets >= 0.5
    overlap = (answer & truth).sum((-2, -1)).float()
    total = (answer.sum((-2, -1)) + truth.sum((-2, -1))).float()
    return torch.where(total > 0, 2 * overlap / total.clamp_min(1), 1.0).tolist()


class _ClipSource:
    """The store as the clip maker knows its slices.

    Args:
        store: Slices.
        split: Whose patients.
        augmentation: How far clips are moved.
        size: Side of the model's input.
    """

    def __init__(self, store: ExampleStore, split: str, augmentation: Augmentation, size: int) -> None:
        self.store, self.augmentation, self.image_size = store, augmentation, size
        self.concepts = store.concepts
        self.random = np.random.default_rng(0)
        self.sampler = self  # the clip maker draws from its batches' sampler
        examples = store.of_split(split)
        self._showing: dict[str, list[Example]] = defaultdict(list)
        counts: dict[int, int] = defaultdict(int)
        for example in examples:
            counts[example.case] += 1
            for concept in example.masks:
                self._showing[concept].append(example)
        self._wanted = ""
        self.cache = SimpleNamespace(
            records=examples,
            cases=[SimpleNamespace(is_volume=counts[n] > 1) for n in range(len(store.cases))],
            labels=self._labels,
        )

    def draw_slice(self) -> tuple[Example, int]:
        """A slice and the index of a concept on it."""
        names = sorted(self._showing)
        self._wanted = names[self.random.integers(len(names))]
        showing = self._showing[self._wanted]
        return showing[self.random.integers(len(showing))], self.concepts.index(self._wanted)

    def toned(self, example: Example) -> Tensor:
        """(3, size, size) in 0..1."""
        return torch.from_numpy(np.array(self.store.images[example.row])).permute(2, 0, 1).float() / 255

    def _labels(self, example: Example) -> np.ndarray:
        value = self.concepts.index(self._wanted) + 1
        return np.where(self.store.mask(example, self._wanted), value, 0).astype(np.int64)


class _TrackerModule(nn.Module):
    """One batch of clips through the tracker's memory."""

    def __init__(self, stage: TrackerStage) -> None:
        super().__init__()
        self.tracker = stage.tracker
        self._stage = [stage]  # in a list: its network is not a part of this module

    def forward(self, batch: object) -> Terms:
        return self._stage[0].loss()


class TrackerTask:
    """Objects followed through runs of slices, on frozen features.

    Args:
        model: What is trained; its tracker goes on from what it knows.
        store: Slices.
        recipe: The run.
    """

    def __init__(self, model: LoadedModel, store: ExampleStore, recipe: Recipe) -> None:
        self.recipe = recipe
        augmentation = recipe.augmentation or Augmentation()
        config = StageConfig(kind="tracker", steps=recipe.steps, batch=recipe.batch, frames=recipe.frames)
        size = model.network.image_size
        self.source = _ClipSource(store, "train", augmentation, size)
        self.stage = TrackerStage(model.network, model.tracker, self.source, config)  # type: ignore[arg-type]
        self.judging: TrackerStage | None = None
        if store.of_split("validation"):
            still = Augmentation(rotation=0, scale=(1, 1), shift=0, aspect=0, tone=0, gamma=1, noise=0)
            source = _ClipSource(store, "validation", still, size)
            self.judging = TrackerStage(model.network, model.tracker, source, config)  # type: ignore[arg-type]
            self._validation = source
        for parameter in model.network.parameters():
            parameter.requires_grad_(False)
        for parameter in model.tracker.parameters():
            parameter.requires_grad_(True)
        self.module: nn.Module = _TrackerModule(self.stage)

    def parameters(self) -> list[tuple[list[nn.Parameter], float]]:
        """The tracker with its neck."""
        return [(list(self.stage.tracker.parameters()), 1.0)]

    def reseed(self, seed: Sequence[int]) -> None:
        """Both numpy's generator and torch's."""
        self.source.random = np.random.default_rng(list(seed))
        torch.manual_seed(int(self.source.random.integers(2**31)))

    def draw(self) -> object:
        """Nothing: the clips are drawn where their features are computed."""
        return None

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Dice of what is carried from a mask on the first frame of a clip to its other frames."""
        if self.judging is None:
            return {}
        self._validation.random = np.random.default_rng(0)
        state = torch.get_rng_state()
        torch.manual_seed(0)
        values = [
            value
            for _ in range(max(1, self.recipe.validation.slices // 4))
            for value in self.judging.carry(4)  # four clips at a time
        ]
        torch.set_rng_state(state)
        return {"carried": float(np.mean(values))}


def make_task(model: LoadedModel, store: ExampleStore, recipe: Recipe) -> Task:
    """The task of a recipe's method."""
    kind = TrackerTask if recipe.method == "tracker" else DetectionTask
    return kind(model, store, recipe)


def _tokens(model: LoadedModel) -> int:
    vision = model.network.model.config.detector_config.vision_config.backbone_config
    return int(vision.image_size) // int(vision.patch_size)
