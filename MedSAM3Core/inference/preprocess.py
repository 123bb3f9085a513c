"""From 8-bit slices to the pixels a SAM 3 model was trained on, for inference and training alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MEAN = 0.5
STD = 0.5


def to_pixels(slices: np.ndarray | Tensor, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Square, normalised model input.

    The published preprocessing: the aspect is not kept, the resize is bilinear and antialiased and rounds
    to whole grey values, then ``(x / 255 - 0.5) / 0.5``. Source: facebookresearch/sam3,
    model/sam3_image_processor.py.

    Args:
        slices: uint8, (n, rows, columns) or (n, rows, columns, 3).
        size: Side of the model's input in pixels.
        device: Where the resize runs and the result lives.

    Returns:
        float32, (n, 3, size, size).

    Raises:
        ValueError: If the array is not uint8 or not of one of these shapes.
    """
    images = torch.as_tensor(np.ascontiguousarray(slices) if isinstance(slices, np.ndarray) else slices)
    if (
        images.dtype != torch.uint8
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[-1] != 3)
    ):
        raise ValueError(
            f"The slices are {images.dtype} of shape {tuple(images.shape)}; "
            "expected uint8 of shape (n, rows, columns) or (n, rows, columns, 3)."
        )
    images = images.to(device)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    values = images.float()
    if values.shape[-2:] != (size, size):
        values = functional.interpolate(
            values, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        values = values.round().clamp(0, 255)
    return ((values / 255 - MEAN) / STD).expand(-1, 3, -1, -1).contiguous()
