"""The detector with shared work answers as the network's own way does."""

import pytest
import torch
from test_real_network import TINY

from MedSAM3Core.inference.detector import Request, batches
from MedSAM3Core.inference.heads import PlainHeads, SharedHeads, _Spread
from MedSAM3Core.models.network import ConceptNetwork, Detections
from MedSAM3Core.training.architecture import build_model

ROWS = {"regular": [0, 0, 1, 1], "mixed": [1, 0, 1], "one concept": [0, 1]}


@pytest.fixture(scope="module")
def network() -> ConceptNetwork:
    torch.manual_seed(0)
    model = build_model(TINY.model_copy(update={"encoder_layers": 2, "decoder_layers": 2})).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:  # norms and biases as they come out of training: not all ones and zeros
                value.add_(0.2 * torch.randn_like(value))
    return ConceptNetwork(model)


def answers(
    network: ConceptNetwork, rows: list[int], with_boxes: bool, with_masks: bool = True, dtype: object = None
) -> tuple[Detections, Detections]:
    generator = torch.Generator().manual_seed(3)
    count = len(rows)
    with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        pyramid = network.detector_pyramid(
            network.trunk(torch.randn(2, 3, TINY.image_size, TINY.image_size, generator=generator))
        )
        ids = torch.randint(5, 290, (count, 6), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 4:] = 0
        text = network.encode_text(ids, mask)
        boxes = 0.3 + 0.3 * torch.rand(count, 2, 4, generator=generator) if with_boxes else None
        labels = torch.tensor([[1, 0], [1, -10], [-10, -10], [1, 1]])[:count] if with_boxes else None
        found = []
        for heads in (PlainHeads(network), SharedHeads(network)):
            found.append(heads.detect(heads.prepare(pyramid), rows, text, boxes, labels, with_masks))
    return found[0], found[1]


@pytest.mark.parametrize("with_boxes", [False, True])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_shared_work_gives_the_same_answers(
    network: ConceptNetwork, rows: list[int], with_boxes: bool
) -> None:
    plain, shared = answers(network, rows, with_boxes)
    for name in ("logits", "presence", "boxes", "masks", "semantic"):
        expected, found = getattr(plain, name), getattr(shared, name)
        assert found.shape == expected.shape
        assert expected.std() > 1e-3, f"{name} is the same everywhere and says nothing"
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4, msg=name)


def test_pairs_differ_so_that_a_wrong_row_would_be_seen(network: ConceptNetwork) -> None:
    plain, _ = answers(network, [0, 1], False)
    assert (plain.semantic[0] - plain.semantic[1]).abs().max() > 0.05


def test_without_instance_masks_the_rest_is_unchanged(network: ConceptNetwork) -> None:
    (_, full), (_, lean) = (
        answers(network, [0, 0, 1], False),
        answers(network, [0, 0, 1], False, with_masks=False),
    )
    assert lean.masks.shape == (3, 0, *full.masks.shape[2:])
    assert torch.equal(lean.semantic, full.semantic)


def test_bfloat16_masks_agree(network: ConceptNetwork) -> None:
    plain, shared = answers(network, [0, 0, 1], False, dtype=torch.bfloat16)
    error = (plain.semantic.float() - shared.semantic.float()).square().mean().sqrt()
    exact = answers(network, [0, 0, 1], False)[0].semantic
    own = (plain.semantic.float() - exact).square().mean().sqrt()
    # Sharing rounds in other places; it must not round worse than bfloat16 itself does.
    assert error <= 2 * own


def test_entries_are_spread_in_any_order() -> None:
    entries = torch.arange(6.0).view(2, 3)
    for rows in ([0, 0, 1, 1], [1, 0, 1], [0, 1], [1]):
        spread = _Spread(rows, 2, torch.device("cpu"))
        assert torch.equal(spread(entries), entries[rows])
        out = torch.empty(len(rows), 3)
        spread.add(torch.ones(len(rows), 3), entries, out)
        assert torch.equal(out, entries[rows] + 1)


def test_batches_keep_a_slices_pairs_together() -> None:
    requests = [Request(n, phrase) for phrase in "abc" for n in (2, 0, 1)]
    made = batches(requests, 7)
    assert sorted(n for batch in made for n in batch) == list(range(9))
    assert [[requests[n].index for n in batch] for batch in made] == [[0] * 3 + [1] * 3, [2] * 3]
    assert [len(batch) for batch in batches(requests, 2)] == [2, 1, 2, 1, 2, 1]
    assert batches([], 4) == []
