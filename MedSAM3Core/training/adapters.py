"""Low-rank adapters that are trained beside frozen weights, and files of them that both projects read.

The vision encoder's query, key and value are one layer in the published model, so their adapters share one ``down``
matrix
here: only then can the file be written in the published form, and what was trained is exactly what is read back.

Source: Hu et al. 2021 for the method; github.com/Joey-S-Liu/MedSAM3 (2026-02-07) for names and layout of its file.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from MedSAM3Core.errors import InputError
from MedSAM3Core.models.lora import Adapter
from MedSAM3Core.models.naming import linear_targets
from MedSAM3Core.training.recipe import LoraPart, LoraSettings

_VIT, _TRUNK = r"vision_encoder\.backbone\.layers\.(\d+)\.", r"backbone.vision_backbone.trunk.blocks.\1."
_CLIP = r"text_encoder\.text_model\.encoder\.layers\.(\d+)\."
_BLOCKS = r"backbone.language_backbone.encoder.transformer.resblocks.\1."

Family = tuple[LoraPart, str, str]


def _stack(part: LoraPart, ours: str, published: str, attentions: Mapping[str, str]) -> list[Family]:
    """A stack of layers with some attentions and a feed-forward part."""
    families: list[Family] = [
        (part, rf"{ours}\.layers\.(\d+)\.{name}\.(\w)_proj", rf"{published}.\1.{other}.\2_proj")
        for name, other in attentions.items()
    ]
    return [*families, (part, rf"{ours}\.layers\.(\d+)\.mlp\.fc([12])", rf"{published}.\1.linear\2")]


_CROSS = {"self_attn": "self_attn", "cross_attn": "cross_attn_image"}
_FAMILIES: list[Family] = [
    ("vision", _VIT + r"attention\.[qkv]_proj", _TRUNK + "attn.qkv"),
    ("vision", _VIT + r"attention\.o_proj", _TRUNK + "attn.proj"),
    ("vision", _VIT + r"mlp\.fc([12])", _TRUNK + r"mlp.fc\2"),
    ("text", _CLIP + r"self_attn\.(\w+_proj)", _BLOCKS + r"attn.\2"),
    ("text", _CLIP + r"mlp\.fc1", _BLOCKS + "mlp.c_fc"),
    ("text", _CLIP + r"mlp\.fc2", _BLOCKS + "mlp.c_proj"),
    *_stack("encoder", "detr_encoder", "transformer.encoder.layers", _CROSS),
    *_stack(
        "decoder",
        "detr_decoder",
        "transformer.decoder.layers",
        {"self_attn": "self_attn", "vision_cross_attn": "cross_attn", "text_cross_attn": "ca_text"},
    ),
    *_stack("geometry", "geometry_encoder", "geometry_encoder.encode", _CROSS),
    (
        "masks",
        r"mask_decoder\.prompt_cross_attn\.(\w)_proj",
        r"segmentation_head.cross_attend_prompt.\1_proj",
    ),
    ("scoring", r"dot_product_scoring\.text_proj", "dot_prod_scoring.prompt_proj"),
    ("scoring", r"dot_product_scoring\.query_proj", "dot_prod_scoring.hs_proj"),
]
"""Part, transformers' module below ``detector_model``, and its published name; ``o_proj`` is published as
``out_proj``."""

_PREFIX = "detector_model."


def published_module(name: str, parts: Iterable[LoraPart]) -> str | None:
    """Published name of a linear layer that adapters are put beside; None for a layer that gets none.

    Args:
        name: transformers' name, with ``detector_model.``.
        parts: Parts of the model that are adapted.
    """
    if not name.startswith(_PREFIX):
        return None
    for part, pattern, published in _FAMILIES:
        if part in parts and (match := re.fullmatch(pattern, name.removeprefix(_PREFIX))):
            return re.sub(r"\.o_proj$", ".out_proj", match.expand(published))
    return None


class Adapters(nn.Module):
    """Trainable adapters beside the linear layers of a model.

    Args:
        model: A `Sam3VideoModel`; its weights are not touched.
        settings: Rank, strength and parts.

    Raises:
        InputError: If no layer is chosen.
    """

    def __init__(self, model: nn.Module, settings: LoraSettings) -> None:
        super().__init__()
        self.settings = settings
        self.groups: dict[str, list[str]] = defaultdict(list)
        layers: dict[str, nn.Linear] = {}
        for name, layer in model.named_modules():
            published = published_module(name, settings.parts) if isinstance(layer, nn.Linear) else None
            if published is not None and isinstance(layer, nn.Linear):
                self.groups[published].append(name)
                layers[name] = layer
        if not layers:
            raise InputError(
                "No layer was chosen for LoRA; name at least one part in 'lora: {parts: [...]}'."
            )
        rank = settings.rank
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        self._handles: list[RemovableHandle] = []
        for published, names in self.groups.items():
            first = layers[names[0]]
            down = nn.Parameter(first.weight.new_empty(rank, first.in_features, dtype=torch.float32))
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down[_key(published)] = down
            for name in names:
                up = nn.Parameter(
                    first.weight.new_zeros(layers[name].out_features, rank, dtype=torch.float32)
                )
                self.up[_key(name)] = up
                self._handles.append(
                    layers[name].register_forward_hook(self._branch(_key(published), _key(name)))
                )

    def _branch(self, down: str, up: str):
        scale = self.settings.alpha / self.settings.rank

        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            thin = nn.functional.linear(inputs[0], self.down[down].to(inputs[0].dtype))
            return output + nn.functional.linear(thin, self.up[up].to(inputs[0].dtype)) * scale

        return add

    def remove(self) -> None:
        """Take the adapters off the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def adapter(self) -> Adapter:
        """What was trained, as inference reads it."""
        downs = {name: published for published, names in self.groups.items() for name in names}
        return Adapter(
            {name: self.down[_key(published)].detach().cpu().clone() for name, published in downs.items()},
            {name: self.up[_key(name)].detach().cpu().clone() for name in downs},
            self.settings.rank,
            self.settings.alpha,
        )

    def published_state(self) -> dict[str, Tensor]:
        """What was trained as MedSAM3's loader reads it: ``<module>.lora.lora_A`` [in, rank], ``lora_B`` [rank,
        out].
        """
        tensors = {}
        for published, names in self.groups.items():
            ordered = sorted(names, key=lambda name: _third(published, name))
            up = torch.cat([self.up[_key(name)] for name in ordered])
            tensors[f"{published}.lora.lora_A"] = self.down[_key(published)].detach().cpu().T.contiguous()
            tensors[f"{published}.lora.lora_B"] = up.detach().cpu().T.contiguous()
        return tensors

    def save_published(self, path: Path) -> None:
        """Write `published_state` as a ``.pt`` file; MedSAM3's configuration must name the same rank and alpha."""
        torch.save(self.published_state(), path)


def _third(published: str, name: str) -> int:
    """Which third of a fused layer's rows a module is; 0 for a layer of its own."""
    places: Mapping[str, int | None] = dict(linear_targets(f"detector.{published}"))
    return places[name] or 0


def _key(name: str) -> str:
    """A name that may stand in a parameter dictionary, which takes no dots."""
    return name.replace(".", "/")
