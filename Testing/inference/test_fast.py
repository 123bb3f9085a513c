"""The fast mode: fewer slices, shapes in between, a lower resolution on the same weights."""

import dataclasses

import numpy as np
import pytest
import torch
from inference_doubles import BRIGHT, SHAPE, BrightModel, concept, phantom
from test_real_network import TINY, TinyModel
from transformers import Sam3VideoModel

from MedSAM3Core import Segmenter
from MedSAM3Core.inference import resolution
from MedSAM3Core.inference.finder import search, thin
from MedSAM3Core.inference.fusion import fill_between
from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.models.lora import Adapter, AdapterSwitch
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.models.tracker import Tracker
from MedSAM3Core.training.architecture import build_model


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def disc(row: float, column: float, radius: float, size: int = 40) -> torch.Tensor:
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).float()


def test_slices_are_thinned_but_not_their_ends_nor_what_is_known() -> None:
    chosen = thin([*range(10, 21), *range(30, 33)], {12}, 4)
    assert chosen == [10, 12, 16, 20, 30, 32]
    assert thin(list(range(5)), set(), 1) == list(range(5))


def test_the_search_looks_at_few_slices_and_leaves_no_wide_gap() -> None:
    looked: list[int] = []
    one = search(0, 199, 8, 0, 0.5, fine=4)
    want = next(one)
    try:
        while True:
            looked += want
            want = one.send({n: float(50 <= n <= 149) for n in want})
    except StopIteration as stop:
        chosen = stop.value
    assert chosen[0] == 50
    assert chosen[-1] == 149
    assert max(np.diff(chosen)) <= 4
    assert set(chosen) <= set(looked)
    assert len(looked) < 70


def test_a_moving_shape_keeps_its_form_between_two_slices() -> None:
    filled = fill_between({0: disc(12, 12, 8), 4: disc(26, 26, 8)}, 4)
    assert sorted(filled) == [0, 1, 2, 3, 4]
    middle = (filled[2] >= 0.5).numpy()
    expected = disc(19, 19, 8).numpy() > 0
    assert dice(middle, expected) > 0.8
    mean = ((disc(12, 12, 8) + disc(26, 26, 8)) / 2 > 0.5).numpy()
    assert dice(mean, expected) < 0.6, "a mean of both would be their overlap"


def test_nothing_is_filled_across_a_wider_gap() -> None:
    assert sorted(fill_between({0: disc(5, 5, 3), 5: disc(5, 5, 3)}, 4)) == [0, 5]


def test_the_fast_mode_encodes_fewer_slices_at_a_small_loss() -> None:
    thorough, fast = BrightModel(), BrightModel()
    with Segmenter(thorough).open(phantom(), mode="thorough") as session:
        expected = session.segment(concept("bright thing")).to_array()
        assert session.work.slices == SHAPE[0]
    with Segmenter(fast).open(
        phantom(), mode="fast", resolution_share=1.0, fine_mm=4.0, key_stride_mm=4.0
    ) as session:
        found = session.segment(concept("bright thing")).to_array()
        assert session.work.slices <= 16
    assert dice(found, expected) > 0.95
    assert dice(found, BRIGHT) > 0.9


@pytest.fixture(scope="module")
def model() -> TinyModel:
    torch.manual_seed(0)
    config = build_model(TINY).config
    config.detector_config.vision_config.backbone_config.pretrain_image_size = 32
    built = Sam3VideoModel(config).eval()
    return TinyModel(ConceptNetwork(built), Tracker(built), ModelCard(name="tiny", recommended=Policy()))


def test_sides_are_whole_windows_from_the_pretrained_one(model: TinyModel) -> None:
    assert resolution.sides(model) == [32, 64]
    assert resolution.lower_side(model, 0.5) == 32
    assert resolution.lower_side(model, 2 / 3) == 64
    with pytest.raises(ValueError, match="expected one of"):
        resolution.at_side(model, 48)


def test_the_same_side_is_the_same_model(model: TinyModel) -> None:
    assert resolution.at_side(model, 64) is model


def test_a_lower_side_runs_on_the_same_weights(model: TinyModel) -> None:
    lower = resolution.at_side(model, 32)
    assert lower.network.image_size == lower.tracker.image_size == 32
    own, shared = model.network.state_dict(), lower.network.state_dict()
    assert all(shared[name].data_ptr() == value.data_ptr() for name, value in own.items() if value.numel())
    built = Sam3VideoModel(lower.network.model.config).eval()
    built.load_state_dict(model.network.model.state_dict())
    expected = ConceptNetwork(built)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        text = model.network.encode_text(*model.tokenize(["liver", "spleen"]))
        answers = [n.detect(n.detector_pyramid(n.trunk(pixels)), text) for n in (lower.network, expected)]
        tracked = lower.tracker.prompt_mask(
            lower.tracker.pyramid(lower.network.trunk(pixels[:1])), torch.ones(1, 32, 32)
        )
    assert answers[0].semantic.shape == (2, 16, 16)
    torch.testing.assert_close(answers[0].semantic, answers[1].semantic)
    torch.testing.assert_close(answers[0].presence, answers[1].presence)
    assert tracked.logits.shape[-1] == 16


def test_a_lower_side_answers_with_the_adapter_that_acts(model: TinyModel) -> None:
    layer = "detector_model.vision_encoder.backbone.layers.0.attention.q_proj"
    width = model.network.model.get_submodule(layer).in_features
    adapter = Adapter({layer: torch.randn(2, width)}, {layer: torch.randn(width, 2)}, rank=2, alpha=2.0)
    switched = dataclasses.replace(model, switch=AdapterSwitch(model.network.model))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        plain = resolution.at_side(switched, 32).network.trunk(pixels)
        switched.switch.use(adapter)
        adapted = resolution.at_side(switched, 32)
        own = switched.network.trunk(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        assert not torch.allclose(adapted.network.trunk(pixels), plain, atol=1e-3)
        switched.switch.use(None)
        assert torch.equal(resolution.at_side(switched, 32).network.trunk(pixels), plain)
        again = switched.network.trunk(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(own, again, atol=1e-3)
