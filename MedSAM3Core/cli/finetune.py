"""``medsam3 finetune``: train a model from a configuration, and take up a run that was stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.errors import Cancelled
from MedSAM3Core.progress import CancelToken, ProgressCallback


def finetune(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml",
            help="The configuration. In configs/, medsam3.yaml, lora.yaml, full.yaml and tracker.yaml begin from "
            "a model; demo.yaml trains the demo model from nothing, demo_further.yaml goes on from it.",
        ),
    ],
    evaluate: Annotated[
        bool,
        typer.Option(
            help="When training from nothing: measure the finished model on the held-out patients and write the "
            "Dice into its card."
        ),
    ] = True,
    as_json: options.AsJson = False,
) -> None:
    """Train a model from a YAML configuration.

    [bold]medsam3 finetune configs/lora.yaml[/bold]

    Checkpoints and the curves of loss and validation Dice (metrics.csv) are kept in the configuration's output folder.
    Ctrl-C stops the run; the same command takes it up again. The finished model is the folder 'model' in there: use
    it with --model, or let 'register: true' install it. On several GPUs: torchrun --nproc-per-node N -m
    MedSAM3Core.cli finetune CONFIG.yaml.
    """
    from MedSAM3Core.training.recipe import is_recipe

    if is_recipe(config):
        _fine_tune(config, as_json)
    else:
        _train(config, evaluate, as_json)


def _fine_tune(config: Path, as_json: bool) -> None:
    """Go on from a model."""
    from MedSAM3Core.training.recipe import read_recipe

    recipe = read_recipe(config)
    from MedSAM3Core.training.finetuning import fine_tune

    with _stoppable() as (cancel, progress):
        done = fine_tune(recipe, progress, cancel)
    if int(os.environ.get("RANK", "0")):  # of torchrun's processes the first one speaks
        return
    state = done.state
    summary = {
        "name": recipe.name,
        "model": str(done.model),
        "installed": str(done.installed) if done.installed else None,
        "concepts": list(done.concepts),
        "patients": done.patients,
        "trained_parameters": done.trained,
        "parameters": done.total,
        "steps": state.step,
        "stopped_early": state.stopped,
        "validation_dice": state.best if state.best >= 0 else None,
        "best_step": state.best_step,
    }
    if as_json:
        terminal.print_json(summary)
        return
    best = f"{state.best:.3f} at step {state.best_step}" if state.best >= 0 else "not looked at"
    terminal.print_facts(
        [
            ("trained", f"{recipe.name}, {done.trained:,} of {done.total:,} parameters ({recipe.method})"),
            ("patients", ", ".join(f"{count} {split}" for split, count in sorted(done.patients.items()))),
            ("steps", f"{state.step}{', stopped early' if state.stopped else ''}"),
            ("validation Dice", best),
            ("model", str(done.model)),
            *([("installed as", recipe.name)] if done.installed else []),
        ]
    )


def _train(config: Path, evaluate: bool, as_json: bool) -> None:
    """Train from random weights."""
    from MedSAM3Core.training.config import read_config

    settings = read_config(config)
    from MedSAM3Core.training.export import export_run, judge
    from MedSAM3Core.training.finetune import Run

    run = Run(settings)
    with _stoppable() as (cancel, progress):
        run.train(progress, cancel)
    folder = export_run(run)
    figures: dict[str, float] = {}
    if evaluate:
        with _stoppable() as (cancel, progress):
            judge(folder, settings.data, progress=progress, cancel=cancel)
        figures = _figures(folder)
    summary: dict[str, Any] = {"name": settings.name, "model": str(folder), "held_out_dice": figures}
    if as_json:
        terminal.print_json(summary)
        return
    terminal.print_facts([("trained", settings.name), ("model", str(folder))])
    if figures:
        rows = [[concept, f"{value:.2f}"] for concept, value in figures.items()]
        terminal.print_table(
            "Held-out patients, text prompts only", [("concept", "left"), ("Dice", "right")], rows
        )


@contextmanager
def _stoppable() -> Iterator[tuple[CancelToken, ProgressCallback | None]]:
    """A token and a progress callback; cancelling says that nothing is lost."""
    with terminal.cancel_on_interrupt() as cancel, terminal.progress_bar() as progress:
        try:
            yield cancel, progress
        except Cancelled as stopped:
            raise Cancelled(
                "Stopped; the run so far is kept.", "Give the same command to go on."
            ) from stopped


def _figures(folder: Path) -> dict[str, float]:
    from MedSAM3Core.models.card import ModelCard

    return dict(ModelCard.read(folder).held_out_dice)
