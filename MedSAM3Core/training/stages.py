"""What a step of each kind of training computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from MedSAM3Core.models.network import PADDED_BOX_LABEL
from MedSAM3Core.training.batches import BatchMaker
from MedSAM3Core.training.config import StageConfig
from MedSAM3Core.training.losses import LossWeights, dense_loss, detection_loss
from MedSAM3Core.training.scaled import ScaledNetwork

CALIBRATION_IMAGES = 24
"""Slices that a neck is calibrated on."""

Tokenize = Callable[[list[str]], tuple[Tensor, Tensor]]


class Stage(Protocol):
    """A kind of training.

    Contract: `prepare` is called once, before the first step and not when a run is taken up; `loss` draws its own batch
    and returns named, weighted terms whose sum is minimised; `parameters` groups what it trains, each with the factor
    on the learning rate.
    """

    def prepare(self) -> None:
        """Put the weights into the state that the stage begins with."""

    def loss(self) -> dict[str, Tensor]:
        """Terms of one step."""

    def parameters(self) -> list[tuple[Iterable[nn.Parameter], float]]:
        """What is trained, and how fast."""


class DenseHead(nn.Module):
    """Auxiliary head that names every class at each pixel; thrown away after training."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.project = nn.Conv2d(channels, classes, 1)
        if self.project.bias is not None:  # most classes are absent from most pixels
            nn.init.constant_(self.project.bias, -3.0)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes, height, width) logits."""
        return self.project(functional.gelu(self.norm(maps)))


class DenseStage:
    """The vision encoder alone: all classes of an image at once are the cheapest teacher."""

    def __init__(
        self, network: ScaledNetwork, head: DenseHead, batches: BatchMaker, config: StageConfig
    ) -> None:
        self.network, self.head, self.batches, self.config = network, head, batches, config

    def parameters(self) -> list[tuple[Iterable[nn.Parameter], float]]:
        """Vision encoder and head."""
        return [
            (self.network.detector.vision_encoder.parameters(), self.config.encoder_rate),
            (self.head.parameters(), 1.0),
        ]

    def prepare(self) -> None:
        """Nothing: the vision encoder begins as it is."""

    def loss(self) -> dict[str, Tensor]:
        """Dense loss on the finest and the coarsest level of the pyramid."""
        batch = self.batches.draw(self.config.batch, 0)
        pyramid = self.network.detector_pyramid(self.network.trunk(batch.pixels))
        # The fusion encoder reads only the coarsest level: without a loss there it would start from noise.
        coarse = functional.interpolate(pyramid.maps[-1], scale_factor=2.0, mode="bilinear")
        return {
            "dense": dense_loss(self.head(pyramid.maps[0]), batch.labels, batch.known),
            "dense_coarse": 0.5 * dense_loss(self.head(coarse), batch.labels, batch.known),
        }


class DetectorStage:
    """Everything but the tracker, asked by text, and by text and a box."""

    def __init__(
        self,
        network: ScaledNetwork,
        head: DenseHead,
        batches: BatchMaker,
        tokenize: Tokenize,
        config: StageConfig,
    ) -> None:
        self.network, self.head, self.batches, self.tokenize = network, head, batches, tokenize
        self.config, self.weights = config, LossWeights(absent=config.absent)

    def parameters(self) -> list[tuple[Iterable[nn.Parameter], float]]:
        """The detector, its vision transformer at its own rate, and the head."""
        detector = self.network.detector
        # Lists, not sets: the optimiser's saved state is matched to parameters by their order.
        backbone = list(detector.vision_encoder.backbone.parameters())
        inside = set(backbone)
        others = [parameter for parameter in detector.parameters() if parameter not in inside]
        return [(backbone, self.config.encoder_rate), (others, 1.0), (self.head.parameters(), 1.0)]

    def prepare(self) -> None:
        """Bring the neck's maps to the size that the text can be heard beside."""
        pixels = self.batches.draw(CALIBRATION_IMAGES, 0).pixels
        self.network.calibrate_detector(self.network.trunk(pixels))

    def _trunk(self, pixels: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.config.encoder_rate > 0):
            return self.network.trunk(pixels)

    def loss(self) -> dict[str, Tensor]:
        """Semantic, presence and query terms of (slice, phrase) pairs, and the dense term of the slices."""
        batch = self.batches.draw(self.config.batch, self.config.queries)
        pyramid = self.network.detector_pyramid(self._trunk(batch.pixels))
        text = self.network.encode_text(*self.tokenize(batch.phrases))
        boxes, labels = self._draw_boxes(batch.targets)
        queries = bool(self.batches.sampler.random.random() < self.config.query_share)
        found = self.network.detect(pyramid.take(batch.images), text, boxes, labels, with_masks=queries)
        terms = detection_loss(found, batch.targets, self.weights, queries)
        dense = dense_loss(self.head(pyramid.maps[0]), batch.labels, batch.known)
        return terms | {"dense": self.weights.dense * dense}

    def _draw_boxes(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """For some pairs the jittered box of the answer as a positive prompt; padding for the others.

        Without boxes in training no gradient reaches the geometry encoder's box embeddings.
        """
        boxes = torch.full((len(targets), 1, 4), 0.5)
        labels = torch.full((len(targets), 1), PADDED_BOX_LABEL)
        random = self.batches.sampler.random
        for number, target in enumerate(targets):
            rows, columns = (
                (target.amax(1) >= 0.5).nonzero().flatten(),
                (target.amax(0) >= 0.5).nonzero().flatten(),
            )
            if len(rows) == 0 or random.random() >= self.config.boxes:
                continue
            ends = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / target.shape[-1]
            low, high = ends[:2], ends[2:]
            jitter = torch.as_tensor(random.uniform(-0.1, 0.1, 4), dtype=torch.float32)
            centre = (low + high) / 2 + jitter[:2] * (high - low)
            size = (high - low) * (1 + jitter[2:])
            boxes[number, 0] = torch.cat([centre, size]).clamp(0.01, 0.99)
            labels[number, 0] = 1
        return boxes, labels
