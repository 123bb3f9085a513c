"""Mask suppression, hole filling and island removal: what transformers skips where its compiled kernels
are missing."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def mask_nms(masks: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression by mask overlap, for a batch at once and without leaving the device.

    Args:
        masks: bool, (batch, masks, height, width).
        scores: (batch, masks); equal scores keep the order given.
        threshold: A mask whose intersection over union with a better kept one exceeds this is dropped.

    Returns:
        bool, (batch, masks), True where a mask is kept.
    """
    flat = masks.flatten(2).float()
    overlap = flat @ flat.transpose(1, 2)
    area = flat.sum(-1)
    return _greedy(overlap, area[:, :, None] + area[:, None, :] - overlap, scores, threshold)


def box_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """`mask_nms` with boxes (batch, boxes, 4), xyxy, in the place of masks."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    overlap = (high - low).clamp_min(0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)
    return _greedy(overlap, area[:, :, None] + area[:, None, :] - overlap, scores, threshold)


def _greedy(overlap: Tensor, union: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Keep the best, drop what clashes with it, and so on: (batch, candidates) bool."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    clash = overlap > threshold * union
    clash = clash.gather(1, order[:, :, None].expand_as(clash)).gather(2, order[:, None, :].expand_as(clash))
    clash = clash & torch.ones_like(clash).triu(1)
    kept = torch.ones_like(scores, dtype=torch.bool)
    for index in range(scores.shape[1]):
        kept = kept & ~(clash[:, index] & kept[:, index, None])
    return torch.zeros_like(kept).scatter(1, order, kept)


def fill_holes(mask: np.ndarray, largest: int | np.ndarray) -> np.ndarray:
    """Fill the holes of each slice that have at most ``largest`` pixels.

    A hole is background that is not connected to the slice's border (4-neighbourhood), so that the
    foreground around it is closed in the 8-neighbourhood.

    Args:
        mask: bool, (slices, rows, columns).
        largest: Pixels, for all slices or (slices,) one by one; 0 fills nothing.

    Returns:
        A new array.
    """
    filled = mask.copy()
    limits = np.broadcast_to(largest, len(mask))
    for index in np.flatnonzero(mask.any(axis=(1, 2)) & (limits > 0)):
        rows, columns = _bounds(mask[index])
        crop = np.pad(mask[index, rows, columns], 1)
        labels, count = ndimage.label(~crop)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        small = (sizes <= limits[index]) & (np.arange(count + 1) > 0) & (np.arange(count + 1) != labels[0, 0])
        filled[index, rows, columns] |= small[labels][1:-1, 1:-1]
    return filled


def remove_islands(mask: np.ndarray, smallest: int = 0, share: float = 0.0) -> np.ndarray:
    """Drop small connected components (26-neighbourhood, 8 in a single slice).

    Args:
        mask: bool, (slices, rows, columns).
        smallest: Components of fewer voxels are dropped.
        share: Components of less than this share of the largest one are dropped too.

    Returns:
        A new array.
    """
    if (smallest <= 1 and share <= 0) or not mask.any():
        return mask.copy()
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    keep = sizes >= max(smallest, share * sizes.max(), 1)
    return keep[labels]


def _bounds(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
