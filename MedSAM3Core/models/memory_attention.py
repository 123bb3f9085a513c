"""The tracker's memory attention, with every memory projected once.

A memory is attended from several slices, and transformers projects it to keys and values and rotates the keys each
time. Only the encoding of its distance changes, and projection and rotation are linear: the key of a memory at a
distance is the key of the memory plus that of the distance. So keys and values are made when a memory is attended
first, and kept as long as it lives. On a CPU that was a third of a step of the demo model; on a GPU, where products of
matrices cost next to nothing and a memory's keys would be 20 MB, transformers' own order is left as it is.

Source: the modules are transformers' own (models/sam3_tracker_video, 5.23); only the order of work is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from MedSAM3Core.models.memory import Memory
from MedSAM3Core.models.rotary import rotate, turns

Projections = list[tuple[Tensor, Tensor]]
"""Key and value for each layer, each (objects, heads, tokens, channels of a head)."""


class MemoryAttention:
    """The answers of `Sam3TrackerVideoMemoryAttention`, to rounding; for inference only.

    Args:
        module: transformers' module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self._kept: WeakKeyDictionary[Memory, Projections] = WeakKeyDictionary()

    def __call__(
        self,
        features: Tensor,
        positions: Tensor,
        memories: Sequence[tuple[Tensor, Memory]],
        tokens: Tensor,
        token_encoding: Tensor,
    ) -> Tensor:
        """Condition a slice's features on memories.

        Args:
            features: (tokens, objects, channels).
            positions: Their encoding, of the same shape.
            memories: Each with the encoding of its distance, (memory channels,); all with features.
            tokens: (pointer tokens, objects, memory channels).
            token_encoding: Their encoding, of the same shape.

        Returns:
            (objects, tokens, channels).
        """
        output = (features + 0.1 * positions).transpose(0, 1)
        turn = self._turn(output)
        pointers, pointer_keys = tokens.transpose(0, 1), (tokens + token_encoding).transpose(0, 1)
        kept = [self._project(memory, turn, output) for _, memory in memories]
        for number, layer in enumerate(self._module.layers):
            own, cross = layer.self_attn, layer.cross_attn_image
            asked = layer.layer_norm1(output)
            query, key = (
                rotate(_heads(own, own.q_proj(asked)), turn),
                rotate(_heads(own, own.k_proj(asked)), turn),
            )
            output = output + _attend(own, query, key, _heads(own, own.v_proj(asked)))
            query = rotate(_heads(cross, cross.q_proj(layer.layer_norm2(output))), turn)
            keys = [
                projections[number][0] + rotate(_heads(cross, _without_bias(cross.k_proj, distance)), turn)
                for (distance, _), projections in zip(memories, kept, strict=True)
            ]
            values = [projections[number][1] for projections in kept]
            keys.append(_heads(cross, cross.k_proj(pointer_keys)))
            values.append(_heads(cross, cross.v_proj(pointers)))
            output = output + _attend(cross, query, torch.cat(keys, 2), torch.cat(values, 2))
            output = output + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(output))))
        return self._module.layer_norm(output)

    def _turn(self, output: Tensor) -> Tensor:
        """The grid's rotation, complex (tokens, channels of a head / 2)."""
        cosines, sines = self._module.rotary_emb(output, self._module.position_ids)
        return turns(cosines[0], sines[0])

    def _project(self, memory: Memory, turn: Tensor, like: Tensor) -> Projections:
        found = self._kept.get(memory)
        if found is None or found[0][0].dtype != like.dtype:
            found = self._kept[memory] = self._projections(memory, turn, like)
        return found

    def _projections(self, memory: Memory, turn: Tensor, like: Tensor) -> Projections:
        assert memory.features is not None
        assert memory.positions is not None
        values = memory.features.to(like).flatten(2).transpose(1, 2)
        keys = values + memory.positions.to(like).flatten(2).transpose(1, 2)
        attentions = [layer.cross_attn_image for layer in self._module.layers]
        return [
            (rotate(_heads(a, a.k_proj(keys)), turn), _heads(a, a.v_proj(values)).contiguous())
            for a in attentions
        ]


def _heads(attention: Any, channels: Tensor) -> Tensor:
    """(..., tokens, channels) to (..., heads, tokens, channels of a head)."""
    return channels.unflatten(-1, (attention.num_attention_heads, attention.head_dim)).transpose(-2, -3)


def _without_bias(projection: nn.Linear, vector: Tensor) -> Tensor:
    """A vector's share of a projection, as one token; through the layer itself, where an adapter may sit."""
    share = projection(vector[None])
    return share if projection.bias is None else share - projection.bias


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    found = scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    return attention.o_proj(found.transpose(1, 2).flatten(2))
