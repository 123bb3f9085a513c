"""Runs the stages of a configuration, and takes up an interrupted run where it stopped.

Every step seeds its own randomness from (seed, stage, step), so a resumed run draws what the uninterrupted one would.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.training.checkpoints import load_checkpoint, write_checkpoint
from MedSAM3Core.training.config import StageConfig, TrainingConfig
from MedSAM3Core.training.optimizers import Optimizers, linear_weights, make_optimizers
from MedSAM3Core.training.sampling import ConceptSampler
from MedSAM3Core.training.stages import Stage
from MedSAM3Core.training.validation import Reading

logger = logging.getLogger(__name__)

FINAL_RATE = 0.02
"""Learning rate at the end of a stage as a share of its peak."""


class Trainer:
    """Optimises a module through the stages of a run.

    Args:
        config: The run.
        module: Holds every parameter that any stage trains; its running average is kept beside it.
        make_stage: Builds a stage from its configuration.
        sampler: Re-seeded at every step.
        validate: Judges the module as it is in a stage of the given kind; None leaves that out.
    """

    def __init__(
        self,
        config: TrainingConfig,
        module: nn.Module,
        make_stage: Callable[[StageConfig], Stage],
        sampler: ConceptSampler,
        validate: Callable[[str], list[Reading]] | None = None,
    ) -> None:
        self.config, self.module, self.make_stage, self.sampler = config, module, make_stage, sampler
        self.validate = validate
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.stage_index, self.step = 0, 0
        self.seconds = 0.0
        config.output.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint_path(self) -> Path:
        """Where the run is taken up from."""
        return self.config.output / "checkpoint.pt"

    def run(self, progress: ProgressCallback | None = None, cancel: CancelToken | None = None) -> None:
        """Train what is left of the run; a checkpoint is written every ``save_every`` steps and at every stage's end.

        Raises:
            Cancelled: If the token was cancelled; steps since the last checkpoint are run again when it is taken up.
        """
        meter = ProgressMeter(progress, cancel, {s.kind: float(s.steps) for s in self.config.stages})
        state = self._load()
        while self.stage_index < len(self.config.stages):
            self._run_stage(self.config.stages[self.stage_index], meter, state)
            state, self.stage_index, self.step = None, self.stage_index + 1, 0
            self._save(None)

    def _run_stage(self, config: StageConfig, meter: ProgressMeter, state: list | None) -> None:
        stage = self.make_stage(config)
        optimizers = make_optimizers(
            self.config.optimizer,
            stage.parameters(),
            linear_weights(self.module),
            config.learning_rate,
            self.config.weight_decay,
        )
        if state is not None:
            optimizers.load_state_dict(state)
        if self.step == 0:
            self._seed()
            stage.prepare()
        self.module.train()
        while self.step < config.steps:
            started = time.monotonic()
            terms = self._step(stage, optimizers, config)
            self.seconds += time.monotonic() - started
            self.step += 1
            if self.step % 20 == 0:
                self._log(config, terms)
            if self.step % self.config.validate_every == 0 or self.step == config.steps:
                self._validate(config)
            if self.step % self.config.save_every == 0:
                self._save(optimizers)
            meter.step(config.kind, self.step, config.steps)

    def _step(self, stage: Stage, optimizers: Optimizers, config: StageConfig) -> dict[str, float]:
        self._seed()
        optimizers.set_rates(schedule(self.step, config.steps, config.warmup))
        with self._autocast():
            terms = stage.loss()
        total = torch.stack([term.float() for term in terms.values()]).sum()
        optimizers.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(optimizers.parameters, 1.0)
        optimizers.step()
        self._update_average()
        return {name: float(term.detach()) for name, term in terms.items()} | {"total": float(total.detach())}

    def _autocast(self) -> torch.autocast:
        device = next(self.module.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.bf16)

    def _validate(self, config: StageConfig) -> None:
        """Write what the averaged weights reach on validation slices; the weights in training stay as they are."""
        if self.validate is None:
            return
        kept = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.average)
        self.module.eval()
        with self._autocast():
            readings = self.validate(config.kind)
        self.module.load_state_dict(kept)
        self.module.train()
        rows = [
            [self.stage_index, config.kind, self.step, round(self.seconds, 1), r.concept, r.source]
            + [round(value, 4) for value in (r.dice, r.present, r.absent)]
            for r in readings
        ]
        header = ["stage", "kind", "step", "seconds", "concept", "source", "dice", "present", "absent"]
        append_rows(self.config.output / "validation.csv", header, rows)

    def _seed(self) -> None:
        seed = (self.config.seed, self.stage_index, self.step)
        torch.manual_seed(hash(seed) & 0x7FFFFFFF)
        self.sampler.random = np.random.default_rng(seed)

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory early in each stage: with the long one, half of what a stage begins with (for the detector,
        # random weights) would still be in the average after 350 steps.
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        constants = {name for name, _ in self.module.named_buffers()}
        for name, value in self.module.state_dict().items():
            kept = self.average[name]
            if name not in constants:
                kept.lerp_(value.detach(), 1 - decay)
            else:
                kept.copy_(value)

    def _log(self, config: StageConfig, terms: dict[str, float]) -> None:
        # One row a term: a step does not have all of them.
        rows = [[self.step, round(self.seconds, 1), name, round(value, 4)] for name, value in terms.items()]
        path = self.config.output / f"log_{self.stage_index}_{config.kind}.csv"
        append_rows(path, ["step", "seconds", "term", "value"], rows)

    def _save(self, optimizers: Optimizers | None) -> None:
        state = {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizers": optimizers.state_dict() if optimizers else None,
            "stage": self.stage_index,
            "step": self.step,
            "seconds": self.seconds,
        }
        write_checkpoint(state, self.checkpoint_path)

    def _load(self) -> list | None:
        """Take up a checkpoint; returns the optimiser's state if it was saved in the middle of a stage."""
        if not self.checkpoint_path.exists():
            return None
        state = load_checkpoint(self.checkpoint_path)
        self.module.load_state_dict(state["module"])
        self.average = state["average"]
        self.stage_index, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        logger.info("resumed at stage %d, step %d", self.stage_index, self.step)
        return state["optimizers"]


def append_rows(path: Path, header: list[str], rows: list[list]) -> None:
    """Add rows to a CSV file, which begins with ``header``."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(header)
        writer.writerows(rows)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to `FINAL_RATE`; both as a share of the peak learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    position = (step - warmup) / max(steps - warmup, 1)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(position, 1.0)))
