"""The way through the detector: the class token is always there, and pairs of a batch do not see each other."""

import pytest
import tiny
import torch

from MedSAM3Core.models.network import PADDED_BOX_LABEL, ConceptNetwork
from MedSAM3Core.models.roi_align import use_own_box_pooling


@pytest.fixture(scope="module")
def network():
    return ConceptNetwork(tiny.model())


@pytest.fixture(scope="module")
def inputs(network):
    generator = torch.Generator().manual_seed(8)
    pixels = torch.randn(2, 3, tiny.SIZE, tiny.SIZE, generator=generator)
    ids = torch.tensor([[598, 5, 9, 599], [598, 7, 599, 599]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        pyramid = network.detector_pyramid(network.trunk(pixels))
        return pixels, ids, mask, pyramid, network.encode_text(ids, mask)


@torch.no_grad()
def test_text_only_keeps_the_class_token(network, inputs):
    """Equal to transformers with a padded box, which is what the published code computes; far from it without."""
    pixels, ids, mask, pyramid, text = inputs
    ours = network.detect(pyramid, text)
    model = use_own_box_pooling(tiny.model().detector_model)
    padded = {
        "input_boxes": torch.full((2, 1, 4), 0.5),
        "input_boxes_labels": torch.full((2, 1), PADDED_BOX_LABEL),
    }
    with_token = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, **padded)
    without = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    for attribute, mine in (("pred_masks", ours.masks), ("pred_logits", ours.logits[-1])):
        assert (mine - getattr(with_token, attribute)).abs().max() < 2e-4
        assert (mine - getattr(without, attribute)).abs().max() > 0.01
    assert (ours.boxes[-1] - with_token.pred_boxes).abs().max() < 2e-4
    assert (ours.presence[-1] - with_token.presence_logits[:, 0]).abs().max() < 2e-4
    assert (ours.semantic - with_token.semantic_seg[:, 0]).abs().max() < 2e-4


@torch.no_grad()
def test_text_with_boxes(network, inputs):
    pixels, ids, mask, pyramid, text = inputs
    boxes = torch.tensor(
        [[[0.5, 0.4, 0.3, 0.2], [0.2, 0.2, 0.1, 0.1]], [[0.6, 0.6, 0.2, 0.5], [0.5, 0.5, 0.5, 0.5]]]
    )
    labels = torch.tensor([[1, 0], [1, PADDED_BOX_LABEL]])
    ours = network.detect(pyramid, text, boxes, labels)
    model = use_own_box_pooling(tiny.model().detector_model)
    theirs = model(
        pixel_values=pixels, input_ids=ids, attention_mask=mask, input_boxes=boxes, input_boxes_labels=labels
    )
    assert (ours.masks - theirs.pred_masks).abs().max() < 2e-4
    assert (ours.logits[-1] - theirs.pred_logits).abs().max() < 2e-4
    assert (ours.masks - network.detect(pyramid, text).masks).abs().max() > 0.01


@torch.no_grad()
def test_pairs_of_a_batch_are_independent(network, inputs):
    *_, pyramid, text = inputs
    order = [1, 0, 1]
    together = network.detect(pyramid.take(order), text.take([0, 0, 1]))
    for index, (image, phrase) in enumerate(zip(order, [0, 0, 1], strict=True)):
        alone = network.detect(pyramid.take([image]), text.take([phrase]))
        # Mask logits reach 60 here, so this is rounding.
        torch.testing.assert_close(together.masks[index], alone.masks[0], atol=2e-3, rtol=1e-5)


@torch.no_grad()
def test_without_masks_the_rest_is_the_same(network, inputs):
    *_, pyramid, text = inputs
    full, lean = network.detect(pyramid, text), network.detect(pyramid, text, with_masks=False)
    assert lean.masks.shape[1] == 0
    assert torch.equal(full.semantic, lean.semantic)
    assert torch.equal(full.logits, lean.logits)


def test_every_decoder_layer_comes_out(network, inputs):
    *_, pyramid, text = inputs
    with torch.no_grad():
        found = network.detect(pyramid, text)
    assert found.logits.shape == (2, 2, 12)
    assert found.presence.shape == (2, 2)
    assert found.boxes.shape == (2, 2, 12, 4)
