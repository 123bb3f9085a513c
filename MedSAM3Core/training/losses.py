"""What the detector is trained on: dense classes, the semantic map, presence, and object queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from MedSAM3Core.models.network import Detections

DICE_SMOOTHING = 1.0
"""Added to both sides of the Dice ratio, in mask pixels. At 8 an object of five pixels was better left out."""


LEAST_SHARE = 0.05
"""Least share of the cross-entropy's weight that an object's pixels have together, however small it is.

With every pixel alike a parotid gland (0.4% of a slice) had 0.4% of it: after 1,000 dense steps all head-and-neck
organs had a Dice of .00 on validation patients, where nuclei had .84.
"""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term.

    ``absent`` is the weight of a pair without the concept in the semantic term. At 1.0 the map of every phrase was
    still empty after 300 steps (best peak 0.14): saying nothing is right more often than not until the text is
    understood. Presence, which is not so easily satisfied, guards absent concepts meanwhile.
    """

    semantic: float = 2.0
    absent: float = 0.1
    presence: float = 0.5
    query_class: float = 1.0
    query_box: float = 0.4
    query_mask: float = 0.5
    dense: float = 0.5


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - soft Dice of each map; both (..., height, width), targets 0..1. Returns (...)."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum((-2, -1))
    total = probability.sum((-2, -1)) + targets.sum((-2, -1))
    return 1 - (overlap + DICE_SMOOTHING) / (total + DICE_SMOOTHING)


def map_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice plus twice the cross-entropy of each map, (..., height, width) to (...).

    The pixels of an object that is there have at least `LEAST_SHARE` of the cross-entropy's weight. A focal
    cross-entropy divided by the object's size was tried and learned nothing in 280 steps.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    area = targets.mean((-2, -1), keepdim=True)
    factor = torch.where(area > 0, (LEAST_SHARE / area.clamp_min(1e-6)).clamp_min(1.0), 1.0)
    weights = 1 + (factor - 1) * targets
    balanced = (entropy * weights).sum((-2, -1)) / weights.sum((-2, -1))
    return dice_loss(logits, targets) + 2.0 * balanced


def dense_loss(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Loss of an auxiliary head that names every class at once.

    Args:
        logits: (batch, classes, height, width).
        labels: (batch, height, width) class index plus one, 0 background.
        known: bool (batch, classes), True where the class was looked for in the image.
    """
    image, concept = known.nonzero(as_tuple=True)
    targets = (labels[image] == (concept + 1)[:, None, None]).float()[:, None]
    factor = labels.shape[-1] // logits.shape[-1]
    targets = functional.avg_pool2d(targets, factor)[:, 0]
    losses = map_loss(logits[image, concept].float(), targets)
    present = targets.flatten(1).amax(1) > 0
    # An image without a class counts a fifth of one with it: most images of a volume lack most of its classes. An image
    # counts by the root of its classes, or one with sixty labelled structures would outweigh fifty with a polyp.
    weights = torch.where(present, 1.0, 0.2)
    of_image = torch.zeros(len(logits), device=logits.device).index_add_(0, image, weights)
    return (losses * weights / of_image[image].sqrt()).sum() / len(logits)


def detection_loss(
    found: Detections, targets: Tensor, weights: LossWeights, queries: bool = True
) -> dict[str, Tensor]:
    """Loss terms of a batch of (slice, phrase) pairs, already weighted.

    Args:
        found: What the detector says, masks included.
        targets: (batch, height, width) of the mask resolution, 0..1.
        weights: Of the terms.
        queries: Whether the object queries are matched and judged too, which needs the masks.
    """
    present = targets.flatten(1).amax(1) >= 0.5
    semantic = map_loss(found.semantic.float(), targets)
    presence = functional.binary_cross_entropy_with_logits(
        found.presence.float(), present.float().expand_as(found.presence)
    )
    shares = torch.where(present, 1.0, weights.absent)
    semantic = (semantic * shares).sum() / shares.sum()
    terms = {"semantic": weights.semantic * semantic, "presence": weights.presence * presence}
    return terms | _query_terms(found, targets, present, weights) if queries else terms


def _query_terms(
    found: Detections, targets: Tensor, present: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    """Class, box and mask losses of the queries after optimal matching, per layer for class and box."""
    objects = [_objects(target) if here else [] for target, here in zip(targets, present, strict=True)]
    queries = found.logits.shape[-1]
    # An image with more objects than queries (a field of nuclei) teaches the semantic map only.
    usable = [number for number, masks in enumerate(objects) if len(masks) <= queries]
    class_terms, box_terms, mask_terms = [], [], []
    for number in usable:
        masks = objects[number]
        for layer in range(len(found.logits)):
            logits, boxes = found.logits[layer, number].float(), found.boxes[layer, number].float()
            truth = torch.zeros(queries, device=logits.device)
            if masks:
                wanted = torch.stack([_box_of(mask) for mask in masks])
                chosen, of = _match(logits, boxes, wanted)
                truth[chosen] = 1.0
                box_terms.append(_box_loss(boxes[chosen], wanted[of]))
                if layer == len(found.logits) - 1:
                    picked = found.masks[number, chosen].float()
                    mask_terms.append(map_loss(picked, torch.stack([masks[i] for i in of])).mean())
            class_terms.append(_class_loss(logits, truth))
    return {
        "query_class": weights.query_class * _mean(class_terms, found.logits),
        "query_box": weights.query_box * _mean(box_terms, found.logits),
        "query_mask": weights.query_mask * _mean(mask_terms, found.logits),
    }


def _mean(terms: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(terms).mean() if terms else like.new_zeros(()).float()


def _class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy in which the few right queries weigh as much as the many wrong ones."""
    losses = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = losses[truth == 0].mean() if (truth == 0).any() else losses.sum() * 0
    return wrong + (losses[truth == 1].mean() if (truth == 1).any() else 0.0)


def _objects(target: Tensor, minimum: int = 3) -> list[Tensor]:
    """Connected components of a mask, each a float map; specks under ``minimum`` mask pixels are left out."""
    from scipy.ndimage import label

    numbered, count = label((target >= 0.5).cpu().numpy())
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    kept = [number + 1 for number in np.argsort(-sizes) if sizes[number] >= minimum]
    # Soft edges belong to the object they touch: only the binary parts are told apart.
    return [torch.from_numpy(numbered == number).to(target) for number in kept]


def _box_of(mask: Tensor) -> Tensor:
    """xyxy of a mask relative to the map, 0..1."""
    rows, columns = mask.amax(1).nonzero().flatten(), mask.amax(0).nonzero().flatten()
    height, width = mask.shape
    return torch.stack(
        [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    )


@torch.no_grad()
def _match(logits: Tensor, boxes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and the objects they answer for, one to one, of the least cost."""
    cost = (
        -2.0 * logits.sigmoid()[:, None]
        + 5.0 * torch.cdist(boxes, wanted, p=1)
        - 2.0 * box_giou(boxes, wanted)
    )
    query, target = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(query).to(cost.device), torch.as_tensor(target).to(cost.device)


def box_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union of every pair: (n, 4) and (m, 4) xyxy to (n, m)."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = (high - low).clamp_min(0).prod(-1)
    areas = (first[:, 2:] - first[:, :2]).prod(-1)[:, None] + (second[:, 2:] - second[:, :2]).prod(-1)[None]
    union = (areas - overlap).clamp_min(1e-6)
    outer_low = torch.minimum(first[:, None, :2], second[None, :, :2])
    outer_high = torch.maximum(first[:, None, 2:], second[None, :, 2:])
    outer = (outer_high - outer_low).clamp_min(0).prod(-1).clamp_min(1e-6)
    return overlap / union - (outer - union) / outer


def _box_loss(boxes: Tensor, wanted: Tensor) -> Tensor:
    """2.5 times L1 plus 1 - GIoU, matched pairs in order, averaged."""
    giou = box_giou(boxes, wanted).diagonal()
    return (2.5 * (boxes - wanted).abs().sum(-1) + 1 - giou).mean()
