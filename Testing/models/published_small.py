"""Prompts, images and sizes of ``data/published_small.npz``, for its maker and for the test that reads it."""

import os

import numpy as np
import torch
from parity import image

SIZE, SEED, FRAMES = int(os.environ.get("PUBLISHED_SIZE", 224)), 5, 9
PHRASES = {"text": ("liver", False), "other": ("optic disc", False), "boxes": ("liver", True)}
BOXES, LABELS = [[0.5, 0.4, 0.3, 0.2], [0.2, 0.9, 0.1, 0.31]], [1, 0]
DISC, CLICK = (110, 96, 40), (110.0, 96.0)


def pixels(frame: int) -> torch.Tensor:
    """Model input of a frame, (1, 3, size, size)."""
    shifted = np.roll(image(77, SIZE), (2 * frame, 3 * frame), axis=(0, 1))
    return torch.from_numpy((shifted / 255 - 0.5) / 0.5).float().permute(2, 0, 1)[None]


def disc() -> torch.Tensor:
    """The mask prompt, (size, size) bool."""
    x, y, radius = DISC
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def thin(name: str, values: torch.Tensor) -> torch.Tensor:
    """What is kept of an output, so that the file stays small: a part of the large ones, all of the others."""
    if "fpn" in name:
        return values[:4, ::4, ::4]
    if name.endswith("masks"):
        return values[:, ::2, ::2]
    if "memory" in name:
        return values[:16]
    return values
