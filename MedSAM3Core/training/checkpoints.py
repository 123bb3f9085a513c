"""Checkpoints of runs on disk: there whole or not at all, and read without running anything that is in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from MedSAM3Core.errors import CheckpointError, OutputError
from MedSAM3Core.volume.atomic import atomic_file

_DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def write_checkpoint(content: Any, path: Path) -> None:
    """Write a run's state over the former one, which stays as it was if that fails.

    Raises:
        OutputError: If the disk is full or cannot be written.
    """
    try:
        with atomic_file(path) as stream:
            torch.save(content, stream)
    except RuntimeError as error:  # torch's writer does not always pass on why the system refused
        raise OutputError(
            f"The checkpoint {path} was not written ({str(error).splitlines()[0]}), and the former one is kept; free "
            "some space and start the run again, which goes on from there."
        ) from error


def load_checkpoint(path: Path) -> Any:
    """Tensors and plain values of a checkpoint.

    Raises:
        CheckpointError: If it is damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise damaged(path, type(error).__name__) from error


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error for a checkpoint that a run cannot go on from."""
    return CheckpointError(
        f"The checkpoint {path} cannot be read ({reason}); delete it to begin the run again, or put back a copy of it."
    )
