"""Reading checkpoint files that others made, without running anything that is in them.

A ``.pt`` file is a zip with a pickle inside. Its opcodes are read first, and a file that names anything but tensors,
plain containers and numbers is refused before a byte of it is unpickled; then torch's own restricted unpickler loads
it with ``weights_only=True``, mapped, so that a trainer's 10 GB of optimiser state are never read.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from MedSAM3Core.errors import CheckpointError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.models.weights import describe_names

Layout = Literal["published video", "published image", "transformers", "lora", "other"]

_WRAPPERS = ("model", "state_dict", "model_state_dict")
_PARALLEL_PREFIX = "module."
_DAMAGE = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    OSError,
    MemoryError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What torch, zipfile and safetensors raise on damaged files, or can by their code; Testing/trust/fuzz.py looks."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a file, with what they were wrapped in taken off.

    Attributes:
        path: The file.
        tensors: By the names in the file, without a wrapper's or ``module.`` prefix; mapped where possible.
        left_out: Top-level entries that are not weights (optimiser state, counters, ...).
        scalars: Plain numbers and texts found beside the tensors.
    """

    path: Path
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    scalars: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """What kind of file it is, by its names."""
        return layout_of(self.tensors)


def layout_of(names: Mapping[str, Any]) -> Layout:
    """What kind of checkpoint has these names."""
    if any(".lora_A" in name or ".lora_B" in name or name.startswith("lora_") for name in names):
        return "lora"
    if any(name.startswith(("detector_model.", "tracker_model.")) for name in names):
        return "transformers"
    if any(name.startswith(("detector.", "tracker.")) for name in names):
        return "published video"
    if any(name.startswith("backbone.vision_backbone.trunk.") for name in names):
        return "published image"
    return "other"


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file.

    Raises:
        CheckpointError: If it is missing, damaged, holds code, or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(
            f"The checkpoint {path} does not exist; give the path of a .pt or .safetensors file."
        )
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    wrapped, left_out = _unwrap(content)
    tensors = {name.removeprefix(_PARALLEL_PREFIX): v for name, v in wrapped.items() if isinstance(v, Tensor)}
    scalars = {name: v for name, v in wrapped.items() if isinstance(v, (int, float, str))}
    rest = [name for name in wrapped if not isinstance(wrapped[name], Tensor) and name not in scalars]
    if not tensors:
        raise CheckpointError(
            f"The checkpoint {path} holds no tensors (it has {describe_names(map(str, content)) or 'nothing'}); "
            "expected a dictionary of weights."
        )
    return Checkpoint(path, tensors, tuple(sorted({*map(str, left_out), *map(str, rest)})), scalars)


def _unwrap(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The dictionary of weights inside a trainer's checkpoint, and the names of what stands beside it."""
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner, [name for name in content if name != wrapper]
    return content, []


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, *_DAMAGE) as error:
        raise _broken(path, error) from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        is_zip = zipfile.is_zipfile(path)
    except _DAMAGE as error:
        raise _broken(path, error) from error
    if not is_zip:
        raise CheckpointError(
            f"The checkpoint {path} is truncated, or not a file that torch.save or safetensors wrote; "
            "download or copy it again."
        )
    try:
        forbidden = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except _DAMAGE as error:
        raise _broken(path, error) from error
    if forbidden:
        raise CheckpointError(
            f"The checkpoint {path} contains code ({describe_names(forbidden)}) and was not opened; "
            "ask its authors for a file of tensors only, for example .safetensors."
        )
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _DAMAGE as error:
        raise _broken(path, error) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"The checkpoint {path} holds a {type(content).__name__}; expected a dictionary of weights."
        )
    return content


def _broken(path: Path, error: Exception) -> CheckpointError:
    reason = excerpt(str(error).splitlines()[0] if str(error) else type(error).__name__)
    return CheckpointError(
        f"The checkpoint {path} is truncated or damaged ({reason}); download or copy it again."
    )
