"""Low-rank adapters (LoRA): reading them in the formats that are published, merging them, or switching between them.

MedSAM3's file is a flat dictionary ``<module>.lora.lora_A`` of shape [in, rank] and ``<module>.lora.lora_B`` of shape
[rank, out], transposed against peft's, with published module names relative to the image model. It stores neither rank
nor alpha: the rank shows in the shapes, alpha must come from the registry or from peft's ``adapter_config.json`` and is
never guessed (half of it halves the strength of the adapter, and nothing fails).

Source: github.com/Joey-S-Liu/MedSAM3 (lora_layers.py, 2026-02-07) for the format; Hu et al. 2021 for the method.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from MedSAM3Core.errors import CheckpointError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.models.checkpoint import read_checkpoint
from MedSAM3Core.models.naming import is_dropped, linear_targets
from MedSAM3Core.models.registry import ADAPTER_CONFIG
from MedSAM3Core.models.weights import damaged, describe_names, write_tensors
from MedSAM3Core.plurals import counted

ADAPTER_FILE = "adapter.safetensors"
PEFT_CONFIG = "adapter_config.json"

_IMAGE_MODEL_PARTS = (
    "vision_encoder.",
    "text_encoder.",
    "text_projection",
    "geometry_encoder.",
    "detr_encoder.",
    "detr_decoder.",
    "mask_decoder.",
    "dot_product_scoring.",
)
"""Modules of transformers' `Sam3Model`, to which names in a peft file are relative; published names are tried first."""

_MEDSAM3 = re.compile(r"(?P<module>.+)\.lora\.lora_(?P<side>[AB])")
_PEFT = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")


@dataclass(frozen=True, eq=False)
class Adapter:
    """A set of low-rank changes to linear layers, under transformers' names.

    Attributes:
        down: Module to (rank, in).
        up: Module to (out, rank).
        rank: Of all of them.
        alpha: The change is up @ down * alpha / rank.
        dropped: Modules of the file that the network does not have on purpose (point prompts).
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    rank: int
    alpha: float
    dropped: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Factor of the change."""
        return self.alpha / self.rank

    def save(self, folder: Path, base: str) -> None:
        """Write ``adapter.safetensors`` and ``adapter.json`` into a folder; ``base`` names the model it changes."""
        tensors = {f"{m}.lora_A.weight": t for m, t in self.down.items()}
        tensors |= {f"{m}.lora_B.weight": t for m, t in self.up.items()}
        write_tensors(tensors, folder / ADAPTER_FILE)
        values = {"base": base, "alpha": self.alpha, "rank": self.rank}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read what `save` wrote.

        Raises:
            CheckpointError: If a file is missing or damaged.
        """
        path = folder / ADAPTER_FILE
        try:
            values = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sides = [
                {n.removesuffix(e): t for n, t in tensors.items() if n.endswith(e)}
                for e in (".lora_A.weight", ".lora_B.weight")
            ]
            return cls(sides[0], sides[1], int(values["rank"]), float(values["alpha"]))
        except Exception as error:
            if (
                isinstance(error, (OSError, ValueError, KeyError, TypeError))
                or "Safetensor" in type(error).__name__
            ):
                raise damaged(path, error) from error
            raise


def read_adapter(path: Path, alpha: float | None = None, rank: int | None = None) -> Adapter:
    """Read a LoRA file as MedSAM3 or peft writes it.

    Args:
        path: The file.
        alpha: From the registry; None asks peft's ``adapter_config.json`` beside the file.
        rank: That the registry expects; None takes the file's.

    Raises:
        CheckpointError: If it is no LoRA file, its alpha is not known, its rank is another, or it names modules that
            the network does not have.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.layout != "lora":
        raise CheckpointError(
            f"{path} is not a LoRA file (it has {describe_names(checkpoint.tensors)}); expected pairs such as "
            "<module>.lora.lora_A and <module>.lora.lora_B."
        )
    pairs = _pair(checkpoint.tensors, path)
    ranks = {down.shape[0] for down, _ in pairs.values()}
    if len(ranks) != 1:
        raise CheckpointError(f"{path} mixes the ranks {sorted(ranks)}; expected one rank for all modules.")
    found = ranks.pop()
    if alpha is None:
        alpha = _peft_alpha(path, found)
    if rank is not None and found != rank:
        raise CheckpointError(
            f"{path} is a LoRA of rank {found}; expected rank {rank}, for which alpha {alpha:g} is known, so it is "
            "another release: register it with its own rank and alpha."
        )
    if alpha is None:
        raise CheckpointError(
            f"{path} does not store its alpha, without which its strength is unknown; give the alpha that it was "
            "trained with (--alpha), or register the model with it."
        )
    down, up, dropped = _place(pairs, path)
    return Adapter(down, up, found, float(alpha), tuple(dropped))


def _peft_alpha(path: Path, rank: int) -> float | None:
    """Alpha of a LoRA from peft's ``adapter_config.json`` beside it; None without that file or without alpha in it.

    Raises:
        CheckpointError: If the file is damaged, or says more of the scale than one alpha.
    """
    config = path.parent / PEFT_CONFIG
    if not config.is_file():
        return None
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        alpha = settings.get("lora_alpha")
        alpha = None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config} is not what peft writes ({excerpt(error)}); correct it.") from error
    if special := [name for name in ("alpha_pattern", "use_dora", "fan_in_fan_out") if settings.get(name)]:
        raise CheckpointError(
            f"{config} sets {describe_names(special)}, which is not supported; merge the LoRA with peft and import the "
            "whole model."
        )
    # Rank-stabilised LoRA divides by the root of the rank (Kalajdzievski 2023); ours is alpha / rank.
    return alpha * math.sqrt(rank) if alpha is not None and settings.get("use_rslora") else alpha


def _pair(tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Published module to (rank, in) and (out, rank), whichever way round the file has them."""
    sides: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        if match := _MEDSAM3.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = tensor.T
        elif match := _PEFT.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{path} holds {describe_names(unknown)}, which is not part of a LoRA.")
    if single := [module for module, pair in sides.items() if set(pair) != {"A", "B"}]:
        raise CheckpointError(f"{path} holds only one of lora_A and lora_B for {describe_names(single)}.")
    for module, pair in sides.items():
        shapes = tuple(pair["A"].shape), tuple(pair["B"].shape)
        if pair["A"].ndim != 2 or pair["B"].ndim != 2 or shapes[0][0] != shapes[1][1]:
            raise CheckpointError(
                f"{path} has matrices for {module} whose ranks differ (in, rank, out: {shapes}); it is damaged."
            )
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _place(
    pairs: Mapping[str, tuple[Tensor, Tensor]], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """The same under transformers' names; a fused projection becomes three that share their ``down``."""
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    dropped: list[str] = []
    unknown: list[str] = []
    for module, (first, second) in pairs.items():
        if is_dropped(_prefixed(module) + ".weight"):
            dropped.append(module)
            continue
        places = _targets(module)
        if not places:
            unknown.append(module)
        for target, third in places:
            down[target] = first
            up[target] = second if third is None else second.chunk(3)[third]
    if unknown:
        raise CheckpointError(
            f"{path} changes {counted(len(unknown), 'module')} that a SAM 3 model does not have "
            f"({describe_names(unknown)}); it was made for another architecture."
        )
    return down, up, sorted(dropped)


def _prefixed(module: str) -> str:
    return module if module.startswith(("detector.", "tracker.")) else f"detector.{module}"


def _targets(module: str) -> list[tuple[str, int | None]]:
    """transformers' modules behind a name in a LoRA file, which may have been made on either layout."""
    places = list(linear_targets(_prefixed(module)))
    if not places and module.startswith(("detector_model.", "tracker_model.", "tracker_neck.")):
        return [(module, None)]
    if not places and module.startswith(_IMAGE_MODEL_PARTS):
        return [(f"detector_model.{module}", None)]
    return places


def linear_of(model: nn.Module, module: str, adapter: Adapter) -> nn.Linear:
    """The linear layer that an adapter changes.

    Raises:
        CheckpointError: If the network has no such layer or it is of another size.
    """
    try:
        layer = model.get_submodule(module)
    except AttributeError as error:
        raise CheckpointError(f"The LoRA changes {module}, which the base model does not have.") from error
    wanted = (adapter.up[module].shape[0], adapter.down[module].shape[1])
    if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != wanted:
        have = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else type(layer).__name__
        raise CheckpointError(
            f"The LoRA changes {module} as a layer of shape {wanted}, but the base model's is {have}; "
            "it was made for another base."
        )
    return layer


def merge(model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter's changes to the weights, for good.

    Args:
        model: A `Sam3VideoModel`; mapped weights are replaced, not written to.
        adapter: The changes.

    Raises:
        CheckpointError: If it does not fit; nothing is changed then.
    """
    layers = {module: linear_of(model, module, adapter) for module in adapter.down}
    for module, layer in layers.items():
        merged = _merged(layer.weight, adapter, module)
        layer.weight = nn.Parameter(merged, requires_grad=layer.weight.requires_grad)


def merging(model: nn.Module, adapter: Adapter) -> Callable[[str, Tensor], Tensor]:
    """What `MedSAM3Core.models.weights.fill` does to each tensor so that the network has the adapter from the start.

    Args:
        model: The network that is filled; it may still be empty.
        adapter: The changes.

    Returns:
        A function from a tensor's name and value to the value with the change, or the same value where there is none.

    Raises:
        CheckpointError: If the adapter does not fit.
    """
    for module in adapter.down:
        linear_of(model, module, adapter)

    def change(name: str, value: Tensor) -> Tensor:
        module = name.removesuffix(".weight")
        return _merged(value, adapter, module) if name != module and module in adapter.down else value

    return change


@torch.no_grad()
def _merged(weight: Tensor, adapter: Adapter, module: str) -> Tensor:
    """A weight with an adapter's change, computed in float32, in the weight's own type and place."""
    up, down = (side[module].to(weight.device, torch.float32) for side in (adapter.up, adapter.down))
    return torch.add(weight.float(), up @ down, alpha=adapter.scale).to(weight.dtype)


class AdapterSwitch:
    """Adapters beside the weights, of which one at a time is active: a switch touches no weight.

    It costs two thin matrix products a layer (3% of the arithmetic at rank 16).

    Args:
        model: A `Sam3VideoModel`.

    Attributes:
        active: The adapter that acts, or None.
    """

    def __init__(self, model: nn.Module) -> None:
        self.active: Adapter | None = None
        self._model = model
        self._handles: list[RemovableHandle] = []

    def use(self, adapter: Adapter | None) -> None:
        """Let an adapter act, or none.

        Raises:
            CheckpointError: If it does not fit; the one before stays active then.
        """
        layers = {} if adapter is None else {m: linear_of(self._model, m, adapter) for m in adapter.down}
        for handle in self._handles:
            handle.remove()
        self._handles, self.active = [], adapter
        if adapter is None:
            return
        for module, layer in layers.items():
            down = adapter.down[module].to(layer.weight)
            up = adapter.up[module].to(layer.weight) * adapter.scale
            self._handles.append(layer.register_forward_hook(_branch(down, up)))


def _branch(down: Tensor, up: Tensor) -> Any:
    """Hook that adds a low-rank branch to a linear layer's output."""

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        thin = nn.functional.linear(inputs[0], down)
        return output + nn.functional.linear(thin, up)

    return add
