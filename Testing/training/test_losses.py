"""Losses against literal computations, and what they must prefer."""

import torch
from torch.nn import functional

from MedSAM3Core.models.network import Detections
from MedSAM3Core.training.losses import (
    DICE_SMOOTHING,
    LossWeights,
    box_giou,
    dense_loss,
    detection_loss,
    dice_loss,
)


def test_dice_loss_is_one_minus_dice():
    target = torch.zeros(8, 8)
    target[2:5, 2:5] = 1
    sure = torch.where(target > 0, 30.0, -30.0)
    assert dice_loss(sure, target) < 1e-5
    expected = 1 - DICE_SMOOTHING / (9 + 9 + DICE_SMOOTHING)
    torch.testing.assert_close(dice_loss(torch.roll(sure, 4, 0).roll(4, 1), target), torch.tensor(expected))


def test_giou_of_known_boxes():
    first = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    second = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [0.5, 0.0, 1.5, 1.0]])
    torch.testing.assert_close(box_giou(first, second), torch.tensor([[1.0, -1 / 3, 1 / 3]]))


def test_dense_loss_ignores_unknown_classes():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, :4] = 1
    logits = torch.zeros(1, 2, 4, 4)
    known = torch.tensor([[True, False]])
    base = dense_loss(logits, labels, known)
    logits[:, 1] = 17.0
    torch.testing.assert_close(dense_loss(logits, labels, known), base)
    logits[:, 0] = torch.where(torch.arange(4)[:, None] < 2, 20.0, -20.0)
    assert dense_loss(logits, labels, known) < 0.01 < base


def _detections(target, queries=3, right=0):
    """A detector that is right: one query has the object, in two layers."""
    rows, columns = target.nonzero().T
    size = len(target)
    box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / size
    logits = torch.full((2, 1, queries), -9.0)
    logits[:, :, right] = 9.0
    boxes = torch.rand(2, 1, queries, 4).sort(-1).values[..., [0, 1, 2, 3]]
    boxes[:, :, right] = box
    masks = torch.full((1, queries, size, size), -20.0)
    masks[0, right] = torch.where(target > 0, 20.0, -20.0)
    return Detections(logits, torch.full((2, 1), 9.0), boxes, masks, masks[:, right])


def test_a_right_detection_costs_nothing_and_a_wrong_one_costs():
    target = torch.zeros(16, 16)
    target[3:8, 4:12] = 1
    right = detection_loss(_detections(target, right=1), target[None], LossWeights())
    assert sum(right.values()) < 0.02
    moved = detection_loss(_detections(target.roll(6, 0)), target[None], LossWeights())
    assert moved["query_mask"] > 0.5
    assert moved["query_box"] > 0.2
    assert moved["semantic"] > 0.5


def test_an_absent_concept_wants_no_query_and_no_presence():
    target = torch.zeros(16, 16)
    present = torch.zeros(16, 16)
    present[2:5, 2:5] = 1
    terms = detection_loss(_detections(present), target[None], LossWeights())
    assert terms["presence"] > 2
    assert terms["query_class"] > 1
    assert terms["query_mask"] == 0


def test_gradients_reach_every_query():
    target = torch.zeros(1, 16, 16)
    target[0, 2:6, 2:6] = 1
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    found = Detections(
        logits,
        torch.zeros(1, 1),
        functional.pad(torch.full((1, 1, 4, 2), 0.5), (0, 2), value=0.9),
        torch.zeros(1, 4, 16, 16),
        torch.zeros(1, 16, 16),
    )
    sum(detection_loss(found, target, LossWeights()).values()).backward()
    assert (logits.grad != 0).all()
