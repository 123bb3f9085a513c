"""A fine-tuning run as a YAML file: where to begin, what to train, on which data, and when to stop."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MedSAM3Core.concepts.phrases import MAX_WORDS
from MedSAM3Core.errors import InputError
from MedSAM3Core.faults import first_fault, why_unreadable
from MedSAM3Core.training.augment import Augmentation
from MedSAM3Core.yamlfile import read_yaml

Method = Literal["frozen", "lora", "full", "tracker"]
LoraPart = Literal["vision", "text", "encoder", "decoder", "geometry", "masks", "scoring"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Strict):
    """A folder of labelled images, of any layout that ``medsam3 evaluate`` reads.

    Attributes:
        folder: The folder; relative paths are relative to the configuration.
        layout: Name of a published layout, or a YAML file; None looks at what is there.
        concept: What the masks of an images-and-masks folder show.
    """

    folder: Path
    layout: str | None = None
    concept: str | None = None


class PromptSettings(_Strict):
    """What is asked of a slice.

    Attributes:
        queries: Phrases a slice.
        boxes: Share of present phrases that come with a jittered box of the answer ("text and box").
        negatives: Share of phrases that are absent from the slice: labelled elsewhere in the case, or surely unknown.
        empty_slices: Share of slices drawn without regard to what is on them, for the empty ones.
    """

    queries: int = Field(default=3, gt=0)
    boxes: float = Field(default=0.5, ge=0, le=1)
    negatives: float = Field(default=0.35, ge=0, lt=1)
    empty_slices: float = Field(default=0.15, ge=0, lt=1)


class LoraSettings(_Strict):
    """Which layers get low-rank adapters, and how strong.

    Attributes:
        rank: Of all of them.
        alpha: The change is scaled by alpha / rank.
        parts: Parts of the model; MedSAM3 adapts all of them.
    """

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)
    parts: tuple[LoraPart, ...] = ("vision", "text", "encoder", "decoder", "geometry", "masks", "scoring")


class ValidationSettings(_Strict):
    """How a run is watched, and when it stops.

    Attributes:
        share: Of the patients, where the data has no split of its own.
        every: Steps between two looks.
        patience: Looks without a better Dice after which the run stops; 0 never stops early.
        slices: Slices of each concept that are looked at, the same at every look.
    """

    share: float = Field(default=0.2, ge=0, lt=1)
    every: int = Field(default=50, gt=0)
    patience: int = Field(default=6, ge=0)
    slices: int = Field(default=16, gt=0)


class Recipe(_Strict):
    """A fine-tuning run.

    Attributes:
        name: Of the model that comes out.
        base: Registry name or folder of the model that it begins from.
        method: "frozen" trains the detector under frozen image and text encoders (MedSAM-3), "lora" low-rank adapters,
            "full" everything but the tracker (Medical SAM3), "tracker" the tracker on runs of slices.
        data: Where labelled images are.
        output: Folder of checkpoints, logs and the finished model (``model`` below it).
        concepts: Name in the data to the phrase that is said; names that are not here are said as they are. If given
            with ``only``, others are left out.
        only: Train on the concepts of ``concepts`` alone.
        prompts: What is asked.
        lora: For the method "lora".
        validation: When to stop.
        augmentation: Of images; null leaves them as they are.
        steps: Most optimiser steps.
        batch: Slices (clips for the tracker) a step and process.
        accumulate: Batches a step is made of.
        frames: Slices a clip (tracker).
        learning_rate: Peak; a cosine leads to a fiftieth of it.
        encoder_rate: Factor on the learning rate of the encoders ("full").
        warmup: Steps of linear warm-up.
        weight_decay: Of AdamW.
        precision: "auto" is bf16 where a GPU has it, else fp32.
        save_every: Steps between checkpoints.
        tensorboard: Also write TensorBoard event files.
        register_model: Install the finished model under its name.
        seed: Of everything random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    base: str
    method: Method = "frozen"
    data: tuple[DataSettings, ...] = Field(min_length=1)
    output: Path
    concepts: dict[str, str] = Field(default_factory=dict)
    only: bool = False
    prompts: PromptSettings = PromptSettings()
    lora: LoraSettings = LoraSettings()
    validation: ValidationSettings = ValidationSettings()
    augmentation: Augmentation | None = Augmentation()
    steps: int = Field(default=400, gt=0)
    batch: int = Field(default=4, gt=0)
    accumulate: int = Field(default=1, gt=0)
    frames: int = Field(default=4, gt=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    encoder_rate: float = Field(default=0.1, ge=0)
    warmup: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    precision: Precision = "auto"
    save_every: int = Field(default=50, gt=0)
    tensorboard: bool = False
    register_model: bool = Field(default=False, alias="register")
    seed: int = 0

    def fingerprint(self) -> str:
        """A hash of everything that a resumed run must share with the one it takes up."""
        free = {"steps", "save_every", "tensorboard", "register_model", "output", "validation", "name"}
        text = self.model_dump_json(exclude=free)
        return hashlib.sha256(text.encode()).hexdigest()


def is_recipe(path: Path) -> bool:
    """Whether a configuration begins from another model, and is not a training from random weights."""
    values = _load(path)
    return isinstance(values, dict) and "base" in values


def read_recipe(path: Path) -> Recipe:
    """A run from a file; relative paths in it are relative to the file.

    Raises:
        InputError: Naming the field that is wrong.
    """
    try:
        recipe = Recipe.model_validate(_load(path))
    except ValidationError as error:
        raise InputError(
            f"The fine-tuning configuration {path} is wrong at {first_fault(error)}; correct it."
        ) from error
    base = path.resolve().parent
    data = tuple(one.model_copy(update={"folder": _place(base, one.folder)}) for one in recipe.data)
    changes: dict[str, Any] = {"data": data, "output": _place(base, recipe.output)}
    if os.path.isdir(base / recipe.base):  # false also for names that no file system takes
        changes["base"] = str((base / recipe.base).resolve())
    for phrase in recipe.concepts.values():
        check_phrase(phrase)
    return recipe.model_copy(update=changes)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"The training configuration {path} does not exist; give the path of a YAML file.")
    try:
        return read_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"The training configuration {path} cannot be read as YAML ({why_unreadable(error)}); correct it."
        ) from error


def _place(base: Path, path: Path) -> Path:
    return base / Path(os.path.expandvars(path)).expanduser()


def check_phrase(phrase: str) -> str:
    """A concept phrase as it is said to the model: lower case, single blanks, at most three words.

    Raises:
        InputError: If it has more words, or none.
    """
    tidy = " ".join(phrase.lower().replace("_", " ").split())
    count = len(tidy.split())
    if count == 0:
        raise InputError(
            "A concept of the training data has no name; name it in 'concepts' of the configuration."
        )
    if count > MAX_WORDS:
        raise InputError(
            f"The concept {phrase!r} has {count} words, but concepts are trained with at most {MAX_WORDS}; give "
            "it a shorter "
            f"phrase in 'concepts' of the configuration, for example {{{phrase!r}: 'liver tumor'}}."
        )
    return tidy
