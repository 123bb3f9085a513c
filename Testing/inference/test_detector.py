import numpy as np
import pytest
import torch
from inference_doubles import BACKGROUND, BRIGHT, DIM, UNNAMED, BrightModel, phantom_array

from MedSAM3Core.inference.detector import Detector, Request, combine_masks, slice_scores
from MedSAM3Core.inference.encoder import Encoder, window_token
from MedSAM3Core.inference.features import FeatureStore
from MedSAM3Core.inference.plan import PlaneBox
from MedSAM3Core.inference.precision import Precision
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.models.card import Policy
from MedSAM3Core.models.network import Detections
from MedSAM3Core.windowing import Window

WINDOW = Window("as is", 0, 255)


def make(**changes) -> tuple[BrightModel, Encoder, Detector]:
    model = BrightModel()
    settings = InferenceSettings.preset("recommended", **changes)
    store = FeatureStore("cpu", settings.device_bytes)
    encoder = Encoder(
        model.network, model.tracker, phantom_array(), store, Precision("cpu", "float32"), settings
    )
    return model, encoder, Detector(encoder, model.tokenize, settings, model.card.recommended)


def test_findings_come_in_the_order_asked() -> None:
    model, _, detector = make(batch_pairs=3)
    asked = [
        (14, "dim thing"),
        (10, "bright thing"),
        (14, "bright thing"),
        (2, "dim thing"),
        (10, "bright thing"),
    ]
    found = detector.detect(WINDOW, [Request(n, phrase) for n, phrase in asked])
    truth = {"bright thing": BRIGHT, "dim thing": DIM}
    for (n, phrase), finding in zip(asked, found, strict=True):
        assert np.array_equal(finding.probability.numpy() > 0.5, truth[phrase][n])
        assert (finding.score > 0.5) == truth[phrase][n].any()
    assert model.network.encoded == 3
    assert max(model.network.batches) == 3


def test_boxes_on_one_pair_do_not_reach_another() -> None:
    _, _, detector = make()
    box = PlaneBox((15, 15), (5, 25), (43, 62))
    with_box, without = detector.detect(
        WINDOW, [Request(15, "bright thing", (box,)), Request(15, "bright thing")]
    )
    assert np.array_equal(with_box.probability.numpy() > 0.5, BRIGHT[15] | UNNAMED[15])
    assert np.array_equal(without.probability.numpy() > 0.5, BRIGHT[15])
    removed = PlaneBox((15, 15), (0, 63), (0, 63), positive=False)
    assert not (detector.detect(WINDOW, [Request(15, "dim thing", (removed,))])[0].probability > 0.5).any()


def test_prefetching_encodes_each_slice_once_in_batches() -> None:
    model, encoder, _ = make(batch_slices=4)
    steps = []
    encoder.prefetch(WINDOW, [9, 3, 5, 7, 1, 3], lambda n, total: steps.append((n, total)))
    encoder.prefetch(WINDOW, [1, 3], lambda n, total: steps.append((n, total)))
    assert model.network.encoded == 5
    assert steps == [(4, 5), (5, 5)]
    assert encoder.missing(WINDOW, range(10)) == [0, 2, 4, 6, 8]


def test_pyramids_follow_the_order_asked_and_windows_do_not_mix() -> None:
    _, encoder, _ = make()
    finest = encoder.detector_pyramid(WINDOW, [12, 2, 12]).maps[0]
    assert torch.equal(finest[0], finest[2])
    assert (((finest[1, 0] * 0.5 + 0.5) * 255).round() == BACKGROUND).all()
    other = Window("half", 0, 510)
    assert window_token(other) != window_token(WINDOW)
    assert not torch.equal(encoder.detector_pyramid(other, [12]).maps[0][0], finest[0])


def raw() -> Detections:
    """Two queries on a 2 x 2 slice: a sure one above and a doubtful one below; the semantic map is even."""
    masks = torch.tensor([[[[9.0, 9.0], [-9.0, -9.0]], [[-9.0, -9.0], [9.0, 9.0]]]])
    return Detections(
        logits=torch.tensor([[[2.0, -1.0]]]),
        presence=torch.tensor([[0.0]]),
        boxes=torch.tensor([[[[0, 0, 1, 0.5], [0, 0.5, 1, 1]]]]),
        masks=masks,
        semantic=torch.zeros(1, 2, 2),
    )


def test_score_rules_by_hand() -> None:
    scores = {name: float(value) for name, value in slice_scores(raw()).items()}
    sure = 1 / (1 + np.exp(-2))
    assert scores == pytest.approx({"presence": 0.5, "queries": sure, "product": sure / 2, "semantic": 0.5})


@pytest.mark.parametrize(
    ("source", "rule", "least", "expected"),
    [
        ("semantic", "queries", 0.5, [0.5, 0.5]),
        ("instances", "queries", 0.5, [1.0, 0.0]),
        ("instances", "queries", 0.2, [1.0, 1.0]),
        ("instances", "product", 0.5, [0.0, 0.0]),
        ("mean", "queries", 0.5, [0.75, 0.25]),
        ("max", "queries", 0.5, [1.0, 0.5]),
    ],
)
def test_masks_by_hand(source: str, rule: str, least: float, expected: list[float]) -> None:
    settings = InferenceSettings(mask_source=source, instance_threshold=least)  # type: ignore[arg-type]
    combined = combine_masks(raw(), settings, Policy(score_rule=rule))  # type: ignore[arg-type]
    assert combined[0, :, 0].tolist() == pytest.approx(expected, abs=1e-3)


def test_the_best_instance_alone_and_masks_cut_before_they_are_enlarged() -> None:
    settings = InferenceSettings(mask_source="instances", instance_threshold=0.1)
    best = combine_masks(
        raw(), settings, Policy(score_rule="queries", best_only=True, resize_before_threshold=False)
    )
    assert best[0].tolist() == [[1.0, 1.0], [0.0, 0.0]]
