"""The whole path through transformers' own classes, tiny and with random weights: numbers, not anatomy."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from inference_doubles import concept

from MedSAM3Core import Box, Cancelled, CancelToken, Segmenter
from MedSAM3Core.inference.precision import Precision, has_bfloat16
from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.models.lora import AdapterSwitch
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.models.roi_align import use_own_box_pooling
from MedSAM3Core.models.tracker import Tracker
from MedSAM3Core.training.architecture import Architecture, build_model
from MedSAM3Core.volume.volume import Volume

TINY = Architecture(
    image_size=64,
    patch_size=8,
    vision_width=32,
    vision_depth=2,
    vision_heads=2,
    window_size=4,
    global_layers=(1,),
    width=128,
    text_width=32,
    text_depth=1,
    vocabulary=300,
    encoder_layers=1,
    decoder_layers=1,
    queries=6,
)
PHRASES = ("liver", "left kidney", "spleen")


@dataclass
class TinyModel:
    """Doubles `LoadedModel` with a real network of random weights; a phrase is said by the numbers of its letters."""

    network: ConceptNetwork
    tracker: Tracker
    card: ModelCard
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    switch: AdapterSwitch | None = None

    def tokenize(self, phrases: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[298, *(ord(letter) for letter in phrase)][:15] for phrase in phrases]
        ids = torch.tensor([row + [299] * (16 - len(row)) for row in rows])
        return ids, torch.tensor([[n <= len(row) for n in range(16)] for row in rows]).long()


@pytest.fixture(scope="module")
def tiny() -> TinyModel:
    model = use_own_box_pooling(build_model(TINY)).eval()
    card = ModelCard(name="tiny", recommended=Policy(score_rule="semantic", threshold=0.05))
    return TinyModel(ConceptNetwork(model), Tracker(model), card)


@pytest.fixture(scope="module")
def volume() -> Volume:
    smooth = np.cumsum(np.random.default_rng(0).normal(size=(9, 50, 40)), axis=0)
    return Volume.from_array((smooth * 100).astype(np.int16), spacing=(1, 1, 3), modality="MR")


def probabilities(tiny: TinyModel, volume: Volume, together: bool = True, **settings) -> list[np.ndarray]:
    settings = {"precision": "float32", "end_score": 0.0, "end_area_share": -1.0, **settings}
    with Segmenter(tiny).open(volume, **settings) as session:
        wanted = [concept(phrase) for phrase in PHRASES]
        found = session.segment_many(wanted) if together else [session.segment(one) for one in wanted]
        return [one.probability_map() for one in found]


@pytest.fixture(scope="module")
def expected(tiny: TinyModel, volume: Volume) -> list[np.ndarray]:
    return probabilities(tiny, volume)


def test_phrases_differ_and_the_tracker_takes_part(tiny: TinyModel, volume: Volume, expected: list) -> None:
    with_tracker = expected
    assert all(p.any() for p in with_tracker)
    assert not np.allclose(with_tracker[0], with_tracker[1], atol=1e-3)
    assert not np.allclose(with_tracker[0], probabilities(tiny, volume, propagate=False)[0], atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_slices": 1},
        {"batch_pairs": 1},
        {"keep": "trunk"},
        {"together": False},
        {"device_bytes": 500_000},
    ],
)
def test_batches_bounds_and_company_change_nothing(
    tiny: TinyModel, volume: Volume, expected: list, changes: dict
) -> None:
    for a, b in zip(expected, probabilities(tiny, volume, **changes), strict=True):
        # float16 maps: one unit in the last place of a probability is 5e-4
        assert np.abs(a - b).max() <= 1e-3


def test_published_mode_takes_every_slice_on_its_own(tiny: TinyModel, volume: Volume) -> None:
    answers = []
    for array in (volume.array, volume.array[5:6]):
        part = Volume.from_array(array, spacing=(1, 1, 3), modality="MR")
        with Segmenter(tiny).open(part, mode="published", precision="float32", window="600,0") as session:
            answers.append(session.segment(concept("liver"), threshold=0.0).probability_map())
    assert answers[0].any()
    assert np.abs(answers[0][5:6] - answers[1]).max() <= 1e-3


def test_boxes_reach_both_the_detector_and_the_tracker(tiny: TinyModel, volume: Volume) -> None:
    with Segmenter(tiny).open(volume, precision="float32") as session:
        before = session.segment(concept("liver"))
        after = session.refine(
            before, boxes=[Box.on_slice(5, (5, 20), (8, 30)), Box.on_slice(5, (22, 30), (30, 40), False)]
        )
    assert after.to_array()[5, 8:31, 5:21].any()
    assert not after.to_array()[5, 30:41, 22:31].any()


def test_bfloat16_agrees_with_float32(tiny: TinyModel, volume: Volume) -> None:
    exact = probabilities(tiny, volume, propagate=False)
    fast = probabilities(tiny, volume, propagate=False, precision="bfloat16")
    assert np.mean([np.abs(a - b).mean() for a, b in zip(exact, fast, strict=True)]) < 0.02


def test_automatic_precision_looks_at_hardware_and_numbers() -> None:
    pixels = torch.rand(1, 3, 8, 8)
    agreeing = Precision("cpu")
    agreeing.settle(torch.nn.Conv2d(3, 4, 3), pixels)
    assert (agreeing.name == "bfloat16") == has_bfloat16(torch.device("cpu"))
    disagreeing = Precision("cpu")

    def loses(x: torch.Tensor) -> torch.Tensor:
        # adding and removing a large number: float32 keeps what bfloat16 loses
        return torch.matmul(x, torch.eye(8)) if not torch.is_autocast_enabled("cpu") else x * 0

    disagreeing.settle(loses, pixels)
    assert disagreeing.name == "float32"


def test_a_cancel_is_heard_in_the_middle_of_a_batch(tiny: TinyModel, volume: Volume) -> None:
    """All slices are one batch; the cancel comes while its first layer computes."""
    token, reached = CancelToken(), []
    layers = tiny.network.detector.vision_encoder.backbone.layers
    watches = [layers[0].register_forward_hook(lambda *_: token.cancel())]
    watches.append(layers[1].register_forward_hook(lambda *_: reached.append(1)))
    session = Segmenter(tiny).open(volume, batch_slices=64)
    with pytest.raises(Cancelled):
        session.segment(concept("liver"), cancel=token)
    assert not reached
    for watch in watches:
        watch.remove()
    assert session.segment(concept("liver")).geometry.same_grid(volume.geometry)
