"""A fine-tuning run from its recipe to the model folder that comes out, and its place among the installed models."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.cases import LabelledCase
from MedSAM3Core.models.card import DataSource, ModelCard
from MedSAM3Core.models.folder import new_folder, save_model_folder
from MedSAM3Core.models.loading import LoadedModel, load_model
from MedSAM3Core.models.lora import ADAPTER_FILE, merge
from MedSAM3Core.models.registry import adapter_base, find_entry, installed_folder, model_folder
from MedSAM3Core.models.weights import file_sha256
from MedSAM3Core.plurals import counted
from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.training.adapters import Adapters
from MedSAM3Core.training.examples import ExampleStore, build_store, gather_cases, patients_by_split
from MedSAM3Core.training.loop import Loop, RunState
from MedSAM3Core.training.recipe import Recipe
from MedSAM3Core.training.tasks import DetectionTask, make_task

logger = logging.getLogger(__name__)

PUBLISHED_LORA_FILE = "medsam3_lora.pt"


@dataclass(frozen=True)
class FineTuned:
    """What a run gave.

    Attributes:
        model: Folder of the finished model.
        installed: Folder that it was installed in, None if it was not.
        state: Where the run ended.
        patients: Split to its number of patients.
        concepts: What was trained.
        trained: Parameters that were trained.
        total: Parameters of the model.
    """

    model: Path
    installed: Path | None
    state: RunState
    patients: dict[str, int]
    concepts: tuple[str, ...]
    trained: int
    total: int


def fine_tune(
    recipe: Recipe, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
) -> FineTuned:
    """Run a recipe, or take up a run that was stopped.

    Raises:
        InputError: If the recipe or its data cannot be used.
        ModelError: If the base is not installed, or the name is taken by a published model.
        CheckpointError: If the run's checkpoint is damaged.
        ResourceError: If memory ran out.
        Cancelled: If the token was cancelled; the run so far is kept.
    """
    _check_name(recipe)
    cases = gather_cases(recipe)
    model = load_model(recipe.base, _device(), merged=recipe.method != "lora")
    if recipe.method == "lora" and adapter_base(model.folder) is not None:
        raise InputError(
            f"The base {recipe.base!r} is a LoRA itself; give its own base, or set method: frozen, which merges "
            "it first."
        )
    policy = model.card.recommended
    with _one_after_the_other():
        store = build_store(
            cases, model.network.image_size, policy, recipe.output / "cache", progress, cancel
        )
    torch.manual_seed(recipe.seed)
    task = make_task(model, store, recipe)
    loop = Loop(task, recipe)
    state = loop.run(progress, cancel)
    folder = recipe.output / "model"
    card = describe(recipe, model, store, state)
    adapters = task.adapters if isinstance(task, DetectionTask) else None
    if loop.accelerator.is_main_process:
        _export(folder, model, card, adapters, recipe)
    loop.accelerator.wait_for_everyone()
    installed = (
        install(folder, recipe.name) if recipe.register_model and loop.accelerator.is_main_process else None
    )
    trained = sum(p.numel() for p in task.module.parameters() if p.requires_grad)
    return FineTuned(
        folder,
        installed,
        state,
        {split: len(names) for split, names in patients_by_split(cases).items()},
        tuple(store.concepts),
        trained,
        sum(p.numel() for p in model.network.parameters()),
    )


def _device() -> str:
    """The GPU of this process among those of torchrun, or whatever there is."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank and torch.cuda.is_available() else "auto"


def _one_after_the_other() -> AbstractContextManager[None]:
    """The first process of several reads the data; the others then find it read."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InputError("Fine-tuning needs accelerate; run pip install 'MedSAM3Core[training]'.") from error
    return PartialState(cpu=not torch.cuda.is_available()).main_process_first()


def _check_name(recipe: Recipe) -> None:
    if recipe.register_model and find_entry(recipe.name) is not None:
        raise InputError(
            f"The name {recipe.name!r} is that of a published model; choose another name for yours."
        )


def describe(recipe: Recipe, model: LoadedModel, store: ExampleStore, state: RunState) -> ModelCard:
    """Card of the result: what the base's says, with what was trained on top."""
    card = model.card
    trained = [case for case in store.cases if case.split == "train"]
    patients = len({case.patient for case in trained})
    words = (
        f"Fine-tuned from {card.name} ({recipe.method}) on {counted(patients, 'patient')}, {state.step} steps"
    )
    if state.best >= 0:
        words += f"; validation Dice {state.best:.3f} at step {state.best_step}, on single slices, text alone"
    limits = (
        *card.limits,
        f"Fine-tuned on {counted(patients, 'patient')}; not measured on held-out ones unless its figures say so.",
    )
    return card.model_copy(
        update={
            "name": recipe.name,
            "title": recipe.name,
            "summary": f"{words}.",
            "base": card.name,
            "concepts": tuple(sorted({*card.concepts, *store.concepts})),
            "training_data": (*card.training_data, *_sources(trained)),
            "held_out_dice": {},
            "held_out_absent": None,
            "tracks": card.tracks or recipe.method == "tracker",
            "limits": limits,
            "sha256": "",
        }
    )


def _sources(cases: Sequence[LabelledCase]) -> tuple[DataSource, ...]:
    names = sorted({(case.source, case.licence) for case in cases})
    return tuple(
        DataSource(
            name=source,
            licence=licence or "not stated",
            cases=len({c.patient for c in cases if (c.source, c.licence) == (source, licence)}),
        )
        for source, licence in names
    )


def _export(
    folder: Path, model: LoadedModel, card: ModelCard, adapters: Adapters | None, recipe: Recipe
) -> None:
    """A LoRA on an installed model stays a LoRA; anything else becomes a whole model. MedSAM3's own file lies
    beside.
    """
    if adapters is not None:
        adapters.save_published(recipe.output / PUBLISHED_LORA_FILE)
        adapters.remove()
        if installed_folder(recipe.base) is not None:
            entry = find_entry(recipe.base)
            with new_folder(folder) as place:
                adapters.adapter().save(place, entry.name if entry else recipe.base)
                card.model_copy(update={"sha256": file_sha256(place / ADAPTER_FILE)}).write(place)
            return
        merge(model.network.model, adapters.adapter())
    save_model_folder(folder, model.network.model, model.tokenizer, card)


def install(folder: Path, name: str) -> Path:
    """Copy a finished model among the installed ones, where ``--model NAME`` and the panel find it.

    Raises:
        OutputError: If it cannot be written.
    """
    with new_folder(model_folder(name)) as place:
        shutil.copytree(folder, place, dirs_exist_ok=True)
    return model_folder(name)
