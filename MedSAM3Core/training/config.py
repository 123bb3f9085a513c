"""A training run as a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MedSAM3Core.errors import InputError
from MedSAM3Core.faults import first_fault, why_unreadable
from MedSAM3Core.training.architecture import Architecture
from MedSAM3Core.training.augment import Augmentation
from MedSAM3Core.yamlfile import read_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageConfig(_Strict):
    """One stage of a run.

    Attributes:
        kind: "dense" (encoder under an auxiliary head that names every class), "detector" (text-conditioned, end to
            end) or "tracker" (memory propagation on frozen features).
        steps: Optimiser steps.
        batch: Images, or clips for the tracker, a step.
        queries: Phrases an image (detector).
        boxes: Share of present phrases that come with a box (detector).
        frames: Slices a clip (tracker).
        absent: Weight in the semantic map's loss of phrases that are not in the slice (detector): small while the text
            is not understood yet, 1 to teach a model that knows its words where they end.
        query_share: Share of steps in which the object queries are trained too (detector).
        learning_rate: Peak; a cosine leads to a fiftieth of it.
        encoder_rate: Factor on the learning rate of the vision encoder.
        warmup: Steps of linear warm-up.
    """

    kind: Literal["dense", "detector", "tracker"]
    steps: int = Field(gt=0)
    batch: int = Field(default=8, gt=0)
    queries: int = Field(default=3, gt=0)
    boxes: float = Field(default=0.15, ge=0, le=1)
    frames: int = Field(default=5, gt=1)
    absent: float = Field(default=0.1, ge=0)
    query_share: float = Field(default=1.0, ge=0, le=1)
    learning_rate: float = Field(default=8e-4, gt=0)
    encoder_rate: float = Field(default=1.0, ge=0)
    warmup: int = Field(default=200, ge=0)


class TrainingConfig(_Strict):
    """A run.

    Attributes:
        name: Of the model that comes out.
        data: Folder of the data pack.
        output: Folder of checkpoints, logs and the finished model (``model`` below it).
        card: YAML file with what the model's card says beyond the measured figures.
        start: Model folder whose weights and words the run begins with, of the same architecture; None begins from
            random weights.
        architecture: Sizes of the network.
        augmentation: Of images.
        stages: In order.
        source_weights: Source to its share of the draws; "other" is shared by the rest.
        cache_size: Side of cached slices in pixels.
        optimizer: "adamw", or "muon" for the matrices and AdamW for the rest.
        weight_decay: Of both.
        average: Decay of the running average of the weights, which is what is saved.
        seed: Of everything random.
        bf16: Autocast to bfloat16.
        save_every: Steps between checkpoints.
        validate_every: Steps between looks at the validation patients.
    """

    name: str
    data: Path
    output: Path
    card: Path | None = None
    start: Path | None = None
    architecture: Architecture = Architecture()
    augmentation: Augmentation = Augmentation()
    stages: tuple[StageConfig, ...]
    source_weights: dict[str, float] = Field(default_factory=dict)
    cache_size: int = 192
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.02
    average: float = 0.998
    seed: int = 0
    bf16: bool = True
    save_every: int = Field(default=200, gt=0)
    validate_every: int = Field(default=250, gt=0)


def read_config(path: Path) -> TrainingConfig:
    """A run from a file; relative paths in it are relative to the file.

    Raises:
        InputError: Naming the field that is wrong.
    """
    if not path.is_file():
        raise InputError(f"The training configuration {path} does not exist; give the path of a YAML file.")
    try:
        config = TrainingConfig.model_validate(read_yaml(path))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"The training configuration {path} cannot be read as YAML ({why_unreadable(error)}); correct it."
        ) from error
    except ValidationError as error:
        raise InputError(
            f"The training configuration {path} is wrong at {first_fault(error)}; correct it."
        ) from error
    base = path.resolve().parent
    given = {name: getattr(config, name) for name in ("data", "output", "card", "start")}
    return config.model_copy(
        update={name: base / place for name, place in given.items() if place is not None}
    )
