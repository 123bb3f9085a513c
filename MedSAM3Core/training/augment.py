"""Random geometry and intensity, on a whole batch at once."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional


class Augmentation(BaseModel):
    """How far images are moved and re-toned.

    Attributes:
        rotation: Largest rotation to either side, degrees.
        scale: Smallest and largest zoom.
        shift: Largest shift, as a share of the image.
        aspect: Largest stretch of one side against the other, as a share.
        tone: Largest change of contrast, and of brightness as a share of the range.
        gamma: Largest exponent; its inverse is the smallest.
        noise: Largest standard deviation of noise, as a share of the range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotation: float = 15.0
    scale: tuple[float, float] = (0.8, 1.35)
    shift: float = 0.08
    aspect: float = 0.15
    tone: float = 0.25
    gamma: float = 1.4
    noise: float = 0.04


def warp(
    images: Tensor,
    labels: Tensor,
    flip: Tensor,
    settings: Augmentation,
    size: int,
    turn: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Crop, rotate, zoom and mirror a batch.

    Args:
        images: float, (batch, channels, height, width).
        labels: integer, (batch, layers, height, width); all layers of an image move with it.
        flip: bool, (batch,): mirror left to right.
        settings: How far.
        size: Side of the result.
        turn: Optional angle in radians added to each image (quarter turns for images without an up).

    Returns:
        Images and labels of the new size; what lies outside is the border's value in images and 0 in labels.
    """
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(settings.rotation)
    if turn is not None:
        angle = angle + turn
    low, high = settings.scale
    zoom = 1 / torch.empty(count).uniform_(math.log(low), math.log(high)).exp()
    stretch = 1 + (torch.rand(count) * 2 - 1) * settings.aspect
    mirror = torch.where(flip, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = angle.cos() * zoom * stretch * mirror
    theta[:, 0, 1] = -angle.sin() * zoom
    theta[:, 1, 0] = angle.sin() * zoom * mirror
    theta[:, 1, 1] = angle.cos() * zoom / stretch
    theta[:, :, 2] = (torch.rand(count, 2) * 2 - 1) * 2 * settings.shift
    grid = functional.affine_grid(theta, [count, 1, size, size], align_corners=False)
    moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    turned = functional.grid_sample(
        labels.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, turned.long()


def retone(images: Tensor, settings: Augmentation) -> Tensor:
    """Change contrast, brightness, gamma and noise of images in 0..1; the result stays in 0..1.

    Args:
        images: float, (batch, channels, height, width).
        settings: How far.
    """
    count = len(images)
    shape = (count, 1, 1, 1)
    contrast = 1 + (torch.rand(shape) * 2 - 1) * settings.tone
    brightness = (torch.rand(shape) * 2 - 1) * settings.tone * 0.6
    images = ((images - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
    gamma = torch.exp((torch.rand(shape) * 2 - 1) * math.log(settings.gamma))
    images = images.clamp_min(1e-4) ** gamma
    noise = torch.randn(images.shape) * torch.rand(shape) * settings.noise
    return (images + noise).clamp(0, 1)
