"""Rotary positions as one complex product: a rotation of pairs of channels is a product of complex numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def turns(cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotations of pairs, complex64 (..., channels / 2), from transformers' tables, which hold every value twice."""
    return torch.complex(cosines[..., ::2].float(), sines[..., ::2].float())


def rotate(vectors: Tensor, turn: Tensor) -> Tensor:
    """Rotate neighbouring pairs of channels.

    Args:
        vectors: (..., channels).
        turn: complex64, broadcast to (..., channels / 2).
    """
    pairs = torch.view_as_complex(vectors.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).type_as(vectors)
