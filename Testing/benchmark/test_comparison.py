"""The benchmark on a tiny network: what it counts and compares is right; how fast it is is nobody's business here."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from MedSAM3Core.benchmark import figures, studies
from MedSAM3Core.benchmark.comparison import Comparison, box_on_middle_slice, dice, floor_seconds
from MedSAM3Core.benchmark.floor import Part, Rates, count_flops, measure_rates
from MedSAM3Core.benchmark.measuring import HostMemory
from MedSAM3Core.benchmark.subject import (
    EVERYTHING,
    PHRASES,
    Subject,
    full_subject,
    picked,
    reduced_config,
    stack,
    synthetic_model,
)
from MedSAM3Core.cli.benchmark_compare import scan_lengths
from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import InputError
from MedSAM3Core.inference.session import Segmenter
from MedSAM3Core.progress import Progress
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
    vocabulary=49408,
    encoder_layers=1,
    decoder_layers=1,
    queries=6,
)
SLICES = 3


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = synthetic_model(build_model(TINY).config, torch.device("cpu"))
    array = np.random.default_rng(0).integers(-200, 300, (SLICES, 40, 50)).astype(np.int16)
    volume = Volume.from_array(array, spacing=(1, 1, 3), modality="CT")
    concepts = tuple(resolve(phrase) for phrase in PHRASES[:2])
    return Subject("tiny", Segmenter(model), volume, concepts, EVERYTHING, synthetic=True)


@pytest.fixture(scope="module")
def document(subject: Subject) -> dict:
    return Comparison(subject, repeats=2, reference_slices=2).run()


def test_every_path_is_measured_and_the_work_is_counted(document: dict) -> None:
    assert set(document["paths"]) == {"ours", "video", "images"}
    assert document["paths"]["images"]["counts"] == {"slices": 2, "pairs": 4}
    assert document["paths"]["video"]["counts"]["slices"] == 2
    assert document["paths"]["ours"]["repeats"] == 2
    assert document["work"]["slices"] == SLICES
    assert document["work"]["pairs"] == SLICES * 2
    assert document["work"]["steps"] > 0, "masks of random weights are propagated too"
    assert all(path["seconds"]["median"] > 0 for path in document["paths"].values())
    assert {part["unit"] for part in document["parts"]} == {"slice", "pair", "step"}


def test_the_references_time_is_scaled_and_said_to_be(document: dict) -> None:
    rows = figures.path_rows(document)
    assert "scaled from 2 slices" in rows[1][0]
    assert all(len(row) == len(figures.PATH_COLUMNS) for row in rows)


def test_it_is_plain_values_and_tables(document: dict) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    text = figures.markdown(document)
    assert "| arithmetic floor |" in text
    assert text.count("| --- |") >= 3


def test_the_picture_is_drawn(document: dict, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    figures.plot(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_operations_are_counted_with_attention() -> None:
    linear = nn.Linear(8, 16, bias=False)
    assert count_flops(lambda: linear(torch.zeros(5, 8))) == 2 * 5 * 8 * 16
    q = torch.zeros(1, 2, 7, 4)
    assert count_flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * (2 * 7 * 7 * 4)


def test_the_floor_is_work_over_rates() -> None:
    parts = [Part("a", "slice", 100, (1.0,)), Part("b", "pair", 10, (1.0,)), Part("c", "step", 1, (1.0,))]
    floor = floor_seconds(parts, Rates(50.0, 20.0, "float32"), {"slices": 2, "pairs": 6, "steps": 40}, 60)
    assert floor["matrix products"] == pytest.approx((200 + 60 + 40) / 50)
    assert floor["total"] == pytest.approx(6 + 3)


def test_rates_are_of_this_device() -> None:
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert 1e8 < rates.flops < 1e15
    assert 1e8 < rates.bytes < 1e13


def test_memory_is_watched_while_it_is_held() -> None:
    with HostMemory() as memory:
        held = np.ones(60_000_000, np.uint8)
        assert held.sum() == held.size
    assert memory.grown > 40_000_000


def test_dice_and_the_box_of_a_mask() -> None:
    one, other = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    assert dice(one, other) is None
    one[1, 1:3, 1:4] = True
    other[1, 1:3, 1:3] = True
    assert dice(one, other) == pytest.approx(2 * 4 / 10)
    box = box_on_middle_slice(one)
    assert (box.k, box.j, box.i) == ((1, 1), (1, 2), (1, 3))


def test_a_stack_is_cut_in_the_middle_or_mirrored() -> None:
    assert picked(5, 3) == [1, 2, 3]
    assert picked(3, 8) == [0, 1, 2, 1, 0, 1, 2, 1]
    volume = Volume.from_array(np.arange(3)[:, None, None] * np.ones((1, 2, 2)), modality="MR")
    assert stack(volume, 4).array[:, 0, 0].tolist() == [0, 1, 2, 1]


def test_sizes_that_do_not_exist_are_refused() -> None:
    for arguments, match in (((1, 500), "multiple of 336"), ((3, 336), "expected 1, 2, 4 or 8")):
        with pytest.raises(InputError, match=match):
            reduced_config(*arguments)
    with pytest.raises(InputError, match="ask for fewer"):
        full_subject("cpu", 2, 99)


def test_modes_are_compared_with_the_thorough_one(subject: Subject) -> None:
    settings = {**EVERYTHING, "thorough": False}
    truth = [np.ones(subject.volume.array.shape, bool)] * 2
    runs = studies.compare_modes(
        Subject("tiny", subject.segmenter, subject.volume, subject.concepts, settings), truth
    )
    assert [one["name"] for one in runs] == ["thorough", "recommended", "fast"]
    assert runs[0]["dice_with_thorough"] == [1.0, 1.0]
    assert all(0 < value <= 1 for value in runs[0]["dice_with_reference"])
    assert all(len(row) == len(studies.STUDY_COLUMNS) for row in studies.study_rows(runs))


def test_a_scan_grows_by_air(subject: Subject) -> None:
    reports: list[Progress] = []
    runs = studies.grow_scan(subject, [SLICES, 6], SLICES, progress=reports.append)
    assert [one["slices"] for one in runs] == [SLICES, 6]
    assert runs[1]["work"]["slices"] == 6, "with random weights everything is found everywhere"
    assert list(dict.fromkeys(one.stage for one in reports)) == ["thorough", "3 slices", "6 slices"]
    assert reports[-1].fraction == pytest.approx(1)
    assert [one.fraction for one in reports] == sorted(one.fraction for one in reports)
    assert runs[0]["air_scores"] == [0.0, 0.0], "there is no air beside the object alone"
    assert all(score > 0 for score in runs[1]["air_scores"])


def test_it_is_said_when_a_model_sees_something_in_air() -> None:
    alone = {"air_scores": [0.0, 0.0], "closely_from": 0.4}
    longer = {"air_scores": [0.67, 0.2], "closely_from": 0.4}
    assert studies.notices([alone], ["brainstem", "liver"]) == []
    (notice,) = studies.notices([alone, longer, longer], ["brainstem", "liver"])
    assert "brainstem 0.67" in notice
    assert "liver" not in notice


def test_scans_grow_up_to_the_longest() -> None:
    assert scan_lengths(80, 600) == [80, 100, 300, 600]
    assert scan_lengths(100, 2000) == [100, 300, 600, 2000]
    assert scan_lengths(80, 250) == [80, 100, 250]
    assert scan_lengths(700, 600) == [700]
