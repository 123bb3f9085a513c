"""Training of the tracker: clips are unrolled through its memory, on frozen features.

The gates on the object score stay open while training, or nothing could be learnt where the score is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from MedSAM3Core.models.network import ConceptNetwork, Pyramid
from MedSAM3Core.models.tracker import MemoryBank, Tracker, TrackOutput
from MedSAM3Core.training.batches import BatchMaker
from MedSAM3Core.training.clips import ClipMaker, Clips, shrink
from MedSAM3Core.training.config import StageConfig
from MedSAM3Core.training.losses import map_loss
from MedSAM3Core.training.scaled import ScaledNetwork
from MedSAM3Core.training.stages import CALIBRATION_IMAGES

SECOND_ANCHOR = 0.3
"""Share of steps in which the last frame is an anchor too, as between two detections."""

PROMPTS = ("mask", "box", "points")
PROMPT_SHARES = (0.6, 0.25, 0.15)


class TrackerStage:
    """Follows objects through clips.

    Args:
        network: Its trunk is frozen.
        tracker: What is trained, its own neck included.
        batches: Where clips are drawn from.
        config: Of the stage.
        trained: Whether the tracker's neck is one that was trained before, and stays.
    """

    def __init__(
        self,
        network: ConceptNetwork,
        tracker: Tracker,
        batches: BatchMaker,
        config: StageConfig,
        trained: bool = False,
    ) -> None:
        self.network, self.tracker, self.config, self.trained = network, tracker, config, trained
        self.clips = ClipMaker(batches, config.frames)
        self.random = batches.sampler

    def parameters(self) -> list[tuple[Iterable[nn.Parameter], float]]:
        """The tracker and its neck."""
        return [(self.tracker.parameters(), 1.0)]

    def prepare(self) -> None:
        """Begin from the detector's neck, which knows the same features, or the tracker's own; bring it to size."""
        if not self.trained:
            self.tracker.neck.load_state_dict(self.network.detector.vision_encoder.neck.state_dict())
        pixels = self.clips.draw(CALIBRATION_IMAGES // self.config.frames).pixels.flatten(0, 1)
        if isinstance(self.network, ScaledNetwork):
            self.network.calibrate_tracker(self.network.trunk(pixels))

    def loss(self) -> dict[str, Tensor]:
        """Mask, overlap and presence terms over all frames of a batch of clips."""
        clips = self._draw(self.config.batch)
        pyramids = self._encode(clips)
        targets = shrink(clips.masks, self.tracker.low_resolution)
        terms: dict[str, list[Tensor]] = {"mask": [], "overlap": [], "score": []}
        bank = self._prompt(clips, pyramids, targets, terms)
        last = self.config.frames
        if self.random.random.random() < SECOND_ANCHOR:
            last -= 1
            bank = bank.add(self._anchor(pyramids[last], clips.masks[:, last], last))
        for frame in range(1, last):
            output = self.tracker.track(pyramids[frame], bank, frame, gate=False)
            present = targets[:, frame].flatten(1).amax(1) >= 0.5
            self._judge(output, targets[:, frame], present, terms)
            bank = bank.add(self.tracker.memorise(pyramids[frame], output, frame, present=present))
        return {name: torch.stack(values).mean() for name, values in terms.items() if values}

    def carry(self, count: int) -> list[float]:
        """Dice of what memory makes of a first frame's mask, on all later frames of ``count`` drawn clips."""
        clips = self._draw(count)
        pyramids = self._encode(clips)
        targets = shrink(clips.masks, self.tracker.low_resolution)
        bank = self.tracker.new_bank(self.config.frames).add(self._anchor(pyramids[0], clips.masks[:, 0], 0))
        values: list[float] = []
        for frame in range(1, self.config.frames):
            output = self.tracker.track(pyramids[frame], bank, frame)
            bank = bank.add(self.tracker.memorise(pyramids[frame], output, frame))
            answer, truth = output.logits > 0, targets[:, frame] >= 0.5
            both = (answer & truth).sum((-2, -1)).float()
            total = (answer.sum((-2, -1)) + truth.sum((-2, -1))).float()
            values += torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0).tolist()
        return values

    def _draw(self, count: int) -> Clips:
        """Clips on the device of the network."""
        clips = self.clips.draw(count)
        device = next(self.network.parameters()).device
        return Clips(clips.pixels.to(device), clips.masks.to(device))

    def _encode(self, clips: Clips) -> list[Pyramid]:
        """Tracker pyramids, one a frame, of all clips."""
        count, frames = clips.pixels.shape[:2]
        with torch.no_grad():
            trunk = self.network.trunk(clips.pixels.flatten(0, 1))
        pyramid = self.tracker.pyramid(trunk)
        order = torch.arange(count * frames).view(count, frames)
        return [pyramid.take(order[:, frame]) for frame in range(frames)]

    def _anchor(self, pyramid: Pyramid, mask: Tensor, frame: int):
        output = self.tracker.prompt_mask(pyramid, mask, gate=False)
        return self.tracker.memorise(
            pyramid, output, frame, conditioning=True, present=mask.flatten(1).any(1)
        )

    def _prompt(
        self, clips: Clips, pyramids: list[Pyramid], targets: Tensor, terms: dict[str, list[Tensor]]
    ) -> MemoryBank:
        """Bank after the first frame was prompted by mask, box or a click."""
        bank = self.tracker.new_bank(self.config.frames)
        kind = self.random.random.choice(PROMPTS, p=PROMPT_SHARES)
        mask = clips.masks[:, 0]
        if kind == "mask":
            return bank.add(self._anchor(pyramids[0], mask, 0))
        if kind == "box":
            output = self.tracker.prompt_box(pyramids[0], self._boxes(mask), gate=False)
        else:
            points = self._points(mask)
            labels = torch.ones(points.shape[:2], dtype=torch.int32, device=points.device)
            output = self.tracker.prompt_points(pyramids[0], points, labels, gate=False)
        present = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        self._judge(output, targets[:, 0], present, terms)
        memory = self.tracker.memorise(
            pyramids[0], output, 0, conditioning=True, binarise=False, present=present
        )
        return bank.add(memory)

    def _boxes(self, masks: Tensor) -> Tensor:
        """(clips, 4) xyxy in model pixels, jittered by a tenth of their size."""
        boxes = []
        for mask in masks:
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            size = (box[2:] - box[:2]).repeat(2)
            boxes.append(box + size * (torch.rand(4).to(box) - 0.5) * 0.2)
        return torch.stack(boxes)

    def _points(self, masks: Tensor) -> Tensor:
        """(clips, 1, 2) a random point inside each mask, x then y in model pixels."""
        points = []
        for mask in masks:
            inside = mask.nonzero()
            row, column = inside[torch.randint(len(inside), (1,))][0]
            points.append(torch.stack([column, row]).float()[None])
        return torch.stack(points)

    def _judge(
        self, output: TrackOutput, target: Tensor, present: Tensor, terms: dict[str, list[Tensor]]
    ) -> None:
        """Best candidate learns the mask, all learn their overlap with it, the score learns presence."""
        terms["score"].append(
            0.5 * functional.binary_cross_entropy_with_logits(output.object_score.float(), present.float())
        )
        if not present.any():
            return
        found = replace(output, candidates=output.candidates[present], ious=output.ious[present])
        wanted = target[present][:, None].expand_as(found.candidates)
        losses = map_loss(found.candidates.float(), wanted)
        terms["mask"].append(losses.amin(1).mean())
        with torch.no_grad():
            inside, truth = found.candidates > 0, wanted >= 0.5
            union = (inside | truth).sum((-2, -1)).clamp_min(1)
            overlap = (inside & truth).sum((-2, -1)) / union
        terms["overlap"].append((found.ious.float() - overlap).abs().mean())
