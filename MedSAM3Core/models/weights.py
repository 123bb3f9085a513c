"""Networks and their weight files: building without allocating, reading without a second copy, writing atomically.

A network is built on torch's meta device, which allocates nothing, and then every parameter is put in from the mapped
file: as it is where the type on disk is the wanted one on the CPU (the file *is* the memory), converted one by one
otherwise. The file is mapped in pieces, so pages that were converted do not stay resident. Weights that change on the
way (a LoRA merged into them) are all copied, unchanged ones too: one that stays mapped keeps the pages of its piece
resident beside the copies, and loading MedSAM3 peaked at 2.2 times its size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, Sam3VideoConfig, Sam3VideoModel

from MedSAM3Core.errors import CheckpointError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.models.roi_align import use_own_box_pooling
from MedSAM3Core.plurals import counted

log = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
_PIECE_BYTES = 256 * 2**20
_NAMES_SHOWN = 3
IMPOSSIBLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    StrictDataclassError,
)
"""What transformers and torch raise on a configuration of no network."""


def build_empty(config: Sam3VideoConfig) -> Sam3VideoModel:
    """A network without weights: parameters on the meta device, computed tables (rotary angles, indices) on the CPU.

    Args:
        config: Of any size.

    Raises:
        CheckpointError: If its figures make no network.
    """
    try:
        with torch.device("meta"):
            model = Sam3VideoModel(config)
        use_own_box_pooling(model)
        _compute_tables(model, model)
    except IMPOSSIBLE as error:
        raise CheckpointError(
            f"The configuration describes no network that can be built ({reason_of(error)}); export, convert or "
            "download the model again."
        ) from error
    return model.eval()


def reason_of(error: BaseException) -> str:
    """The end of what a library says, on one line: the first lines of transformers' validation name no cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return excerpt(lines[-1] if lines else type(error).__name__).rstrip(".")


def _compute_tables(module: nn.Module, owner: PreTrainedModel) -> None:
    """Let transformers compute the buffers that no checkpoint holds; they are all that is not on the meta device."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    tables = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
    for name, table in tables.items():
        if table is not None:
            module._buffers[name] = torch.zeros_like(table, device="cpu")
    if tables:
        # Parameters of the module are on the meta device, where initialising them is without effect.
        owner._init_weights(module)
    for child in module.children():
        _compute_tables(child, owner)


def describe_names(names: Iterable[str]) -> str:
    """The first few names and how many more there are, for a message."""
    ordered = sorted(names)
    shown = ", ".join(excerpt(name) for name in ordered[:_NAMES_SHOWN])
    return shown if len(ordered) <= _NAMES_SHOWN else f"{shown} and {len(ordered) - _NAMES_SHOWN} more"


def check_tensors(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Account for every tensor by name and shape.

    Args:
        found: Name to shape in a file.
        wanted: Name to shape in the network.
        source: What is being read, for the message.

    Raises:
        CheckpointError: Naming the missing, unexpected or misshapen tensors.
    """
    if missing := set(wanted) - set(found):
        raise CheckpointError(
            f"{source} lacks {len(missing)} of {len(wanted)} tensors ({describe_names(missing)}); "
            "it is incomplete or of another architecture."
        )
    if unexpected := set(found) - set(wanted):
        raise CheckpointError(
            f"{source} holds {counted(len(unexpected), 'tensor')} that the model does not have "
            f"({describe_names(unexpected)}); it is of another architecture."
        )
    for name in sorted(wanted):
        if tuple(found[name]) != tuple(wanted[name]):
            raise CheckpointError(
                f"{source} has {name} of shape {tuple(found[name])} where the model has {tuple(wanted[name])}; "
                "it is of another size or architecture."
            )


def fill(
    model: Sam3VideoModel,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Put the tensors of a safetensors file into an empty network, on its device and in its type.

    Args:
        model: From `build_empty`.
        path: File in transformers' names.
        device: Where the weights go.
        dtype: Floating type they are computed in.
        change: Gets every tensor with its name before it is put in, and gives what is put in.

    Raises:
        CheckpointError: If the file is damaged or does not fit.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_tensors(read_shapes(path), wanted, f"The weights file {path}")
    for piece in read_tensors(path, device, dtype, copy=change is not None):
        changed = piece if change is None else {name: change(name, piece.pop(name)) for name in list(piece)}
        model.load_state_dict(changed, strict=False, assign=True)
    for name, buffer in model.named_buffers():
        if name not in wanted:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = buffer.to(device)
    model.requires_grad_(False)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor of a safetensors file, from its header.

    Raises:
        CheckpointError: If it is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read."""
    return CheckpointError(
        f"The weights file {path} is missing, truncated or not a safetensors file ({excerpt(error)}); "
        "download, import or export the model again."
    )


def read_tensors(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, copy: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Tensors of a safetensors file in pieces, each piece mapped and given up before the next.

    Args:
        path: The file.
        device: Where they go.
        dtype: Type of the floating ones, None for the file's.
        copy: Never give the mapped file itself.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.offset_keys())
    while names:
        piece: dict[str, Tensor] = {}
        size = 0
        with safe_open(path, framework="pt") as file:
            while names and size < _PIECE_BYTES:
                name = names.pop(0)
                tensor = file.get_tensor(name)
                size += tensor.nbytes
                floating = dtype if tensor.is_floating_point() else None
                piece[name] = tensor.to(device=device, dtype=floating, copy=copy)
                del tensor
        yield piece


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype | None = None,
    written: Callable[[int, int], None] | None = None,
) -> None:
    """Write a safetensors file one tensor at a time, under a temporary name that is moved into place at the end.

    Unlike safetensors' own ``save_file`` it never holds the file in memory: 3.4 GB for a full model.

    Args:
        tensors: By name; views of mapped files are welcome, and may share memory.
        path: The file.
        dtype: Type of the floating ones, None for their own.
        written: Told after each tensor how many bytes of how many are written; what it raises ends the writing.

    Raises:
        OSError: If the disk is full; nothing is left behind.
    """
    kinds = {n: (dtype or t.dtype) if t.is_floating_point() else t.dtype for n, t in tensors.items()}
    # Larger items first keeps every tensor aligned to its own size, as safetensors does.
    names = sorted(tensors, key=lambda n: (-kinds[n].itemsize, n))
    partial = path.with_name(path.name + ".partial")
    done, total = 0, sum(tensors[n].numel() * kinds[n].itemsize for n in names)
    try:
        with partial.open("wb") as file:
            file.write(_header({n: (kinds[n], tuple(tensors[n].shape)) for n in names}))
            for name in names:
                value = tensors[name].detach().to("cpu", kinds[name]).contiguous()
                file.write(value.flatten().view(torch.uint8).numpy().data)
                done += value.nbytes
                if written is not None:
                    written(done, total)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


_SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _header(entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """Length and JSON header of a safetensors file, padded to eight bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (kind, shape) in entries.items():
        size = math.prod(shape) * kind.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[kind],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: Path) -> str:
    """SHA-256 of a weights file; of a large one it is remembered beside it while size and time stay the same."""
    status = path.stat()
    note = path.with_name(path.name + ".sha256.json")
    stamp = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(known, dict) and {k: known.get(k) for k in stamp} == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError):
        pass
    digest = file_sha256(path)
    if status.st_size > _PIECE_BYTES:
        try:
            note.write_text(json.dumps({**stamp, "sha256": digest}), encoding="utf-8")
        except OSError as error:
            log.info("the hash of %s is not remembered: %s", path, error)
    return digest
