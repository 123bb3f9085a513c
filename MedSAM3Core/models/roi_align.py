"""Pooling of box prompts by torchvision's definition, without torchvision.

SAM 3's geometry encoder pools image features inside each box with ``torchvision.ops.roi_align``. torchvision has
no CPU build beside every torch we support and is known to crash Slicer on some systems, so the operation is ours,
on every machine, also where torchvision is installed: one definition, one set of numbers.

The average of bilinear samples on a regular grid is separable: rows and columns of a bin are weighted
independently, and a sample that falls outside in one direction is zero in both. So a box is two small weight
matrices, and pooling is one contraction with the feature map: differentiable, batched, and the same on CPU and
GPU in any floating dtype.

Source of the definition: torchvision/csrc/ops/cpu/roi_align_kernel.cpp (aligned=False, sampling_ratio=-1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3GeometryEncoder, box_cxcywh_to_xyxy


def roi_align(features: Tensor, boxes: Tensor, output_size: int) -> Tensor:
    """Average-pool the features inside each box to a fixed size.

    Args:
        features: (batch, channels, height, width), any floating dtype; gradients flow through them.
        boxes: (batch, boxes, 4), xyxy in feature cells (0 is the centre of the first cell, as torchvision has
            it with ``aligned=False``). They may reach outside the map; no gradient flows to them.
        output_size: Bins along each axis of the result.

    Returns:
        (batch, boxes, channels, output_size, output_size), in the dtype of ``features``.
    """
    height, width = features.shape[-2:]
    # Positions need float32, also under autocast: bfloat16 resolves a 72-cell map to a quarter cell.
    with torch.autocast(features.device.type, enabled=False):
        x0, y0, x1, y1 = boxes.detach().float().unbind(-1)
        rows = _bin_weights(y0, y1, height, output_size)
        columns = _bin_weights(x0, x1, width, output_size)
        double = features.dtype == torch.float64
        working = features if double else features.float()
        pooled = torch.einsum(
            "bchw,bnph,bnqw->bncpq", working, rows.to(working.dtype), columns.to(working.dtype)
        )
    return pooled.to(features.dtype)


def _bin_weights(start: Tensor, end: Tensor, cells: int, bins: int) -> Tensor:
    """Weight of every cell of one axis in every bin.

    Args:
        start: (batch, boxes) first coordinate of the boxes along the axis, in cells.
        end: Same shape, last coordinate.
        cells: Length of the axis.
        bins: Bins a box is divided into.

    Returns:
        (batch, boxes, bins, cells); a row sums to one where the whole bin is inside the map, else to less.
    """
    length = (end - start).clamp(min=1.0)
    bin_length = length / bins
    samples = torch.ceil(bin_length).clamp(min=1)
    most = int(samples.max().item()) if samples.numel() else 1
    sample = torch.arange(most, device=start.device, dtype=torch.float32)
    # In the kernel's order of operations, so that samples on an edge round the same way.
    offset = (sample + 0.5) * bin_length[..., None] / samples[..., None]
    bin_start = start[..., None] + torch.arange(bins, device=start.device) * bin_length[..., None]
    position = bin_start[..., None] + offset[..., None, :]
    counted = (sample < samples[..., None])[..., None, :] & (position >= -1) & (position <= cells)
    # Bilinear interpolation with the edge cell repeated is a tent around the clamped position.
    clamped = position.clamp(0, cells - 1)
    cell = torch.arange(cells, device=start.device, dtype=torch.float32)
    tent = (1 - (clamped[..., None] - cell).abs()).clamp(min=0) * counted[..., None]
    return tent.sum(-2) / samples[..., None, None]


class BoxPoolingGeometryEncoder(Sam3GeometryEncoder):
    """transformers' geometry encoder with `roi_align` in the place of ``torchvision.ops.roi_align``."""

    def _encode_boxes(
        self, boxes: Tensor, boxes_mask: Tensor, boxes_labels: Tensor, vision_features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embed boxes (batch, boxes, 4), cxcywh relative to the image, as the class it overrides does."""
        batch, count = boxes.shape[:2]
        height, width = vision_features.shape[-2:]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)
        pooled = roi_align(vision_features, box_cxcywh_to_xyxy(boxes.float()) * scale, self.roi_size)
        pooled = self.boxes_pool_project(pooled.flatten(0, 1)).view(batch, count, self.hidden_size)
        centre_x, centre_y, box_width, box_height = (part.flatten() for part in boxes.unbind(-1))
        position = self._encode_box_coordinates(centre_x, centre_y, box_width, box_height)
        position = self.boxes_pos_enc_project(position.view(batch, count, -1).to(pooled.dtype))
        embedded = self.boxes_direct_project(boxes.to(pooled.dtype)) + pooled + position
        return self.label_embed(boxes_labels.long()) + embedded, boxes_mask


def use_own_box_pooling(model: nn.Module) -> nn.Module:
    """Make every geometry encoder inside ``model`` pool with `roi_align`; called wherever a network is built.

    Only the class of the submodule changes: parameters, names, hooks and buffers stay. It is idempotent.

    Args:
        model: A `Sam3Model`, `Sam3VideoModel` or anything that holds one.

    Returns:
        The same model.
    """
    for module in model.modules():
        if type(module) is Sam3GeometryEncoder:
            module.__class__ = BoxPoolingGeometryEncoder
    return model
