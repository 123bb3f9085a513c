"""A model folder: ``config.json``, ``model.safetensors``, the tokeniser's files, ``card.json``.

The demo model, converted checkpoints and a user's fine-tune are all such folders, with transformers' names inside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Sam3VideoConfig, Sam3VideoModel

from MedSAM3Core.errors import CheckpointError, OutputError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.models.weights import IMPOSSIBLE, WEIGHTS_FILE, file_sha256, reason_of, write_tensors

CONFIG_FILE = "config.json"
MOST_LAYERS = 256
MOST = 1_000_000
"""SAM 3 has 32 layers, and no figure above its vocabulary of 49,408."""


def save_model_folder(
    path: Path,
    model: Sam3VideoModel,
    tokenizer: PhraseTokenizer,
    card: ModelCard,
    dtype: torch.dtype = torch.float16,
) -> ModelCard:
    """Write a model so that `load_model` reads it; the folder appears whole or not at all.

    Args:
        path: The folder; one that exists is replaced.
        model: The network.
        tokenizer: Whole or trimmed.
        card: What is known of it; resolution and hash are filled in.
        dtype: Type on disk.

    Returns:
        The card as it was written.

    Raises:
        OutputError: If the folder cannot be written.
    """
    with new_folder(path) as folder:
        write_tensors(model.state_dict(), folder / WEIGHTS_FILE, dtype)
        write_config(folder, model.config)
        tokenizer.save(folder)
        card = card.model_copy(
            update={
                "sha256": file_sha256(folder / WEIGHTS_FILE),
                "resolution": model.detector_model.config.vision_config.image_size,
            }
        )
        card.write(folder)
    return card


def write_config(folder: Path, config: Sam3VideoConfig) -> None:
    """Write ``config.json``."""
    config.save_pretrained(folder)


def read_config(folder: Path) -> Sam3VideoConfig:
    """Configuration of a model folder.

    Raises:
        CheckpointError: If it is missing or of another kind of model.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} is not a model folder: its {CONFIG_FILE} is missing or unreadable ({excerpt(error)}); "
            "give the folder that a conversion or a fine-tuning run wrote."
        ) from error
    if kind != "sam3_video":
        raise CheckpointError(
            f"{path} describes a model of type {excerpt(repr(kind))}; expected 'sam3_video', as a conversion writes it."
        )
    _check_sizes(values, path)
    try:
        return Sam3VideoConfig.from_dict(values)
    except IMPOSSIBLE as error:
        raise CheckpointError(
            f"{path} describes no network ({reason_of(error)}); export, convert or download the model again."
        ) from error


def _check_sizes(values: object, path: Path, key: str = "") -> None:
    """Refuse figures that no model has: a network of two thousand million layers would be built until memory ends."""
    most = MOST_LAYERS if "layers" in key or "stages" in key else MOST
    if isinstance(values, int) and values > most:
        raise CheckpointError(
            f"{path} says {excerpt(key) or 'a size'} is {excerpt(values)}; expected at most {most}, so it is damaged "
            "or not a model's."
        )
    inner: list[tuple[str, object]] = []
    if isinstance(values, dict):
        inner = list(values.items())
    elif isinstance(values, list):
        inner = [(key, one) for one in values]
    for name, one in inner:
        _check_sizes(one, path, str(name))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of ``path`` when the block ends without an error.

    Raises:
        OutputError: If the disk is full or cannot be written; nothing is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    old = path.with_name(path.name + ".replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not path.exists():  # a process died between the two renames below
            old.rename(path)
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir()
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except OSError as error:
        raise OutputError(
            f"The model folder {path} cannot be written ({error.strerror or error}); free some space or choose "
            "another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
