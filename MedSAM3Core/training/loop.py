"""The fine-tuning loop: accelerate's mixed precision, accumulation and several processes around a task.

Every batch is drawn from (seed, step, batch of the step, process), so a run that is taken up draws what the
uninterrupted one would; with its weights, optimiser and schedule from the checkpoint it goes on exactly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from MedSAM3Core.errors import InputError, ResourceError
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.training.checkpoints import damaged, load_checkpoint, write_checkpoint
from MedSAM3Core.training.curves import CurveWriter
from MedSAM3Core.training.recipe import Recipe
from MedSAM3Core.training.tasks import Task
from MedSAM3Core.training.trainer import schedule

logger = logging.getLogger(__name__)

STAGE = "fine-tuning"
CHECKPOINT_FILE = "checkpoint.pt"
LOG_EVERY = 5
GRADIENT_NORM = 1.0
BETAS = (0.9, 0.999)
_MEMORY_WORDS = ("can't allocate memory", "out of memory", "not enough memory", "cannot allocate memory")


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        step: Optimiser steps done.
        seconds: Of computing so far.
        best: Best validation Dice, -1 before the first look.
        best_step: Step of it.
        looks: Looks since then.
        stopped: Whether it stopped before its last step because nothing got better.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_step: int = 0
    looks: int = 0
    stopped: bool = False


class Loop:
    """Trains a task.

    Args:
        task: What is trained.
        recipe: The run.

    Raises:
        InputError: If accelerate is missing, or the precision is not available here.
    """

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.task, self.recipe = task, recipe
        self.state = RunState()
        self.accelerator = _accelerator(recipe)
        self._chief = self.accelerator.is_main_process
        optimizer = _optimizer(task, recipe)
        self.module, self.optimizer = self.accelerator.prepare(task.module, optimizer)
        self._trained = {
            name: parameter for name, parameter in task.module.named_parameters() if parameter.requires_grad
        }
        self._best: dict[str, torch.Tensor] | None = None
        self._folder = recipe.output
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint_path(self) -> Path:
        """Where the run is taken up from."""
        return self._folder / CHECKPOINT_FILE

    def run(self, progress: ProgressCallback | None = None, cancel: CancelToken | None = None) -> RunState:
        """Train what is left of the run, and put the best weights in place.

        Raises:
            Cancelled: If the token was cancelled; the steps done are kept.
            CheckpointError: If the checkpoint is damaged.
            InputError: If it is of another run.
            ResourceError: If memory ran out, with what to change.
        """
        self._load()
        curves = CurveWriter(self._folder, self.recipe.tensorboard) if self._chief else None
        if curves is not None:
            curves.rewind(self.state.step)
        meter = ProgressMeter(progress, cancel, {STAGE: 1.0})
        try:
            self._train(meter, curves)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            raise ResourceError(out_of_memory_advice(self.recipe)) from error
        finally:
            if curves is not None:
                curves.close()
        self._take_best()
        return self.state

    def _train(self, meter: ProgressMeter, curves: CurveWriter | None) -> None:
        recipe, state = self.recipe, self.state
        if state.step == 0:
            self._look(curves)
        while state.step < recipe.steps and not state.stopped:
            started = time.monotonic()
            terms = self._step()
            state.seconds += time.monotonic() - started
            state.step += 1
            last = state.step == recipe.steps
            if curves is not None and (state.step % LOG_EVERY == 0 or last):
                curves.write(state.step, state.seconds, "train", terms)
            if state.step % recipe.validation.every == 0 or last:
                self._look(curves)
            if state.step % recipe.save_every == 0 or last or state.stopped:
                self._save()
            self._report(meter)

    def _report(self, meter: ProgressMeter) -> None:
        try:
            meter.step(STAGE, self.state.step, self.recipe.steps)
        except BaseException:
            if self.state.step % self.recipe.save_every:  # a cancelled run keeps every step
                self._save()
            raise

    def _step(self) -> dict[str, float]:
        recipe, state = self.recipe, self.state
        factor = schedule(state.step, recipe.steps, recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.module.train()
        sums: dict[str, float] = {}
        for part in range(recipe.accumulate):
            self.task.reseed((recipe.seed, state.step, part, self.accelerator.process_index))
            batch = self.task.draw()
            with self.accelerator.accumulate(self.module):
                with self.accelerator.autocast():
                    terms = self.module(batch)
                loss = torch.stack([term.float() for term in terms.values()]).sum()
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(list(self._trained.values()), GRADIENT_NORM)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, term in (terms | {"loss": loss}).items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / recipe.accumulate
        if not np.isfinite(sums["loss"]):
            raise InputError(
                f"The loss is not a number any more at step {state.step + 1}; lower learning_rate (now "
                f"{recipe.learning_rate:g}), or set precision: fp32."
            )
        return sums

    def _look(self, curves: CurveWriter | None) -> None:
        """Judge the weights on validation slices, keep the best, and stop when nothing gets better."""
        self.module.eval()
        dice = self.task.judge()
        if not dice:
            return
        state, mean = self.state, float(np.mean(list(dice.values())))
        if curves is not None:
            named = {f"dice/{concept}": value for concept, value in dice.items()}
            curves.write(state.step, state.seconds, "validation", {"dice": mean} | named)
        if mean > state.best:
            state.best, state.best_step, state.looks = mean, state.step, 0
            self._best = {name: value.detach().cpu().clone() for name, value in self._trained.items()}
            return
        state.looks += 1
        patience = self.recipe.validation.patience
        state.stopped = patience > 0 and state.looks >= patience
        if state.stopped:
            logger.info("stopped at step %d: no better Dice in %d looks", state.step, state.looks)

    @torch.no_grad()
    def _take_best(self) -> None:
        for name, value in (self._best or {}).items():
            self._trained[name].copy_(value.to(self._trained[name].device))
        self.task.module.eval()

    def _save(self) -> None:
        if not self._chief:
            return
        scaler = self.accelerator.scaler
        content = {
            "fingerprint": self.recipe.fingerprint(),
            "weights": {name: value.detach().cpu() for name, value in self._trained.items()},
            "best": self._best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "state": dict(vars(self.state)),
        }
        write_checkpoint(content, self.checkpoint_path)

    @torch.no_grad()
    def _load(self) -> None:
        if not self.checkpoint_path.exists():
            return
        content = read_run_checkpoint(self.checkpoint_path)
        if content["fingerprint"] != self.recipe.fingerprint():
            raise InputError(
                f"The run in {self._folder} was begun with another configuration or other data; go on with that "
                "one, or choose "
                "another 'output'."
            )
        missing = self._trained.keys() - content["weights"].keys()
        if missing:
            raise damaged(self.checkpoint_path, f"it lacks {sorted(missing)[0]}")
        for name, parameter in self._trained.items():
            parameter.copy_(content["weights"][name].to(parameter.device))
        self.optimizer.load_state_dict(content["optimizer"])
        if self.accelerator.scaler is not None and content["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self._best = content["best"]
        self.state = RunState(**content["state"])
        logger.info("taken up at step %d", self.state.step)


def read_run_checkpoint(path: Path) -> Mapping[str, Any]:
    """The checkpoint of a run.

    Raises:
        CheckpointError: If it is damaged or another kind of file.
    """
    content = load_checkpoint(path)
    wanted = {"fingerprint", "weights", "best", "optimizer", "scaler", "state"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise damaged(path, "it is no checkpoint of a fine-tuning run")
    return content


def out_of_memory_advice(recipe: Recipe) -> str:
    """What to change when memory ran out, most effective first for this recipe."""
    advice = []
    if recipe.batch > 1:
        advice.append(
            f"batch: {max(1, recipe.batch // 2)} with accumulate: {recipe.accumulate * 2} (the same step in halves)"
        )
    if recipe.method == "full":
        advice.append("method: lora, which trains a hundredth of the weights, or method: frozen")
    if recipe.method == "lora" and "vision" in recipe.lora.parts:
        advice.append(
            "lora: {parts: [encoder, decoder, geometry, masks, scoring]}, which leaves the image encoder out"
        )
    if recipe.method != "tracker" and recipe.prompts.queries > 1:
        advice.append(f"prompts: {{queries: {recipe.prompts.queries - 1}}}")
    if recipe.method == "tracker" and recipe.frames > 2:
        advice.append(f"frames: {recipe.frames - 1}")
    if recipe.precision == "fp32":
        advice.append("precision: bf16")
    tried = "; or ".join(advice) or "a machine with more memory"
    return f"Memory ran out with batch {recipe.batch} and the method {recipe.method}; try {tried}."


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error).lower() for words in _MEMORY_WORDS
    )


def _accelerator(recipe: Recipe) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise InputError("Fine-tuning needs accelerate; run pip install 'MedSAM3Core[training]'.") from error
    precision: str = recipe.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("The precision fp16 needs a GPU; set precision: bf16 or fp32.")
    # Which queries are matched differs from batch to batch, so not every parameter has a gradient in each.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=recipe.accumulate,
        cpu=not torch.cuda.is_available(),  # without it torchrun's processes do not find each other on CPUs
        kwargs_handlers=[unused],
    )


def _optimizer(task: Task, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; what has one dimension (norms, biases) is not decayed."""
    groups = []
    for parameters, factor in task.parameters():
        for many in (True, False):
            chosen: list[nn.Parameter] = [p for p in parameters if (p.ndim > 1) == many]
            if chosen and factor > 0:
                decay = recipe.weight_decay if many else 0.0
                groups.append(
                    {"params": chosen, "weight_decay": decay, "peak": recipe.learning_rate * factor}
                )
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS)
