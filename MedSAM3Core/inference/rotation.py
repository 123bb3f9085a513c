"""The vision encoder's rotary positions as one complex product.

transformers rotates queries and keys by seven passes over memory in float32 (two products, a negation, an interleaving,
a sum, two casts); on a CPU that was 35% of the vision encoder of the demo model. A rotation of pairs is a product of
complex numbers, which is one pass between the casts, and the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import (
    ALL_ATTENTION_FUNCTIONS,
    Sam3ViTRoPEAttention,
    eager_attention_forward,
)

from MedSAM3Core.models.rotary import rotate, turns


class ComplexRotaryAttention(Sam3ViTRoPEAttention):
    """transformers' attention with another way to the same rotation; weights and names are the same."""

    def forward(  # type: ignore[override]  # its annotation leaves the weights out
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As transformers'.

        Args:
            hidden_states: (batch, height, width, channels).
            position_embeddings: Cosines and sines, each (1, tokens, head channels), every value twice.
            kwargs: For the attention function.
        """
        batch, height, width, _ = hidden_states.shape
        split = (batch, height * width, self.num_attention_heads, self.head_dim)
        cosines, sines = position_embeddings
        turn = turns(cosines, sines)[:, :, None]
        query = rotate(self.q_proj(hidden_states).view(split), turn).transpose(1, 2)
        key = rotate(self.k_proj(hidden_states).view(split), turn).transpose(1, 2)
        value = self.v_proj(hidden_states).view(split).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        found, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask=None,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            is_causal=self.is_causal,
            **kwargs,
        )
        return self.o_proj(found.reshape(batch, height, width, -1)), weights


def use_complex_rotation(network: nn.Module) -> None:
    """Let every vision attention of a network rotate so; calling it again changes nothing."""
    for module in network.modules():
        if type(module) is Sam3ViTRoPEAttention:
            module.__class__ = ComplexRotaryAttention


@contextmanager
def published_rotation(network: nn.Module) -> Iterator[None]:
    """Within the block a network is transformers' own again, to be measured against."""
    changed = [module for module in network.modules() if type(module) is ComplexRotaryAttention]
    for module in changed:
        module.__class__ = Sam3ViTRoPEAttention  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = ComplexRotaryAttention
