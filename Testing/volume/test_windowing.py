"""Windows: presets by concept, percentiles, requests, and what they make of voxels."""

import numpy as np
import pytest

from MedSAM3Core import windowing
from MedSAM3Core.errors import InputError
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.windowing import Window, choose_window


@pytest.fixture
def ct() -> Volume:
    ramp = np.arange(-1000, 1000, dtype=np.int16).reshape(2, 20, 50)
    return Volume.from_array(ramp, modality="CT")


@pytest.fixture
def mr() -> Volume:
    rng = np.random.default_rng(0)
    voxels = np.where(rng.random((4, 30, 30)) < 0.5, 0, rng.normal(500, 50, (4, 30, 30)))
    return Volume.from_array(voxels.astype(np.float32), modality="MR")


@pytest.mark.parametrize(
    ("concept", "name"),
    [
        ("liver", "soft tissue"),
        ("left kidney", "soft tissue"),
        ("renal pelvis", "soft tissue"),
        ("liver tumor", "liver"),
        ("hepatic vessel", "liver"),
        ("lung nodule", "lung"),
        ("left upper lobe", "lung"),
        ("trachea", "lung"),
        ("ground-glass opacity", "lung"),
        ("l1 vertebra", "bone"),
        ("mandible", "bone"),
        ("left femur", "bone"),
        ("tooth", "bone"),
        ("teeth", "bone"),
        ("brainstem", "head and neck"),
        ("right parotid gland", "head and neck"),
        ("optic disc", "head and neck"),
        ("spinal cord", "spine"),
        ("intervertebral disc", "spine"),
        ("brain hemorrhage", "brain"),
        ("hippocampus", "brain"),
        ("ischemic stroke", "stroke"),
        ("heart", "mediastinum"),
        ("left ventricle", "mediastinum"),
        ("lateral ventricle", "brain"),
        ("aorta", "mediastinum"),
        ("esophagus", "mediastinum"),
        ("oesophagus", "mediastinum"),
        ("left iliac artery", "vascular"),
        ("something else", "soft tissue"),
    ],
)
def test_ct_window_follows_the_concept(ct: Volume, concept: str, name: str) -> None:
    window = choose_window(ct, concept)
    assert window.name == name
    assert concept in window.describe()


def test_presets_are_the_published_ones() -> None:
    published = {"lung": (1500, -600), "bone": (1800, 400), "brain": (80, 40), "liver": (150, 30)}
    for name, (width, level) in published.items():
        assert (windowing.CT_WINDOWS[name].width, windowing.CT_WINDOWS[name].level) == (width, level)


def test_every_rule_names_a_preset() -> None:
    assert {name for name, _ in windowing._CT_RULES} <= set(windowing.CT_WINDOWS)


def test_body_part_decides_without_a_concept() -> None:
    voxels = np.arange(-1000, 1000, dtype=np.int16).reshape(2, 20, 50)
    base = Volume.from_array(voxels, modality="CT")
    head = Volume(base.array, base.geometry, "CT", body_part="HEAD")
    assert choose_window(head).name == "brain"
    assert choose_window(head, "liver").name == "soft tissue"
    assert choose_window(base).name == "soft tissue"


def test_apply_maps_the_ends_and_the_middle(ct: Volume) -> None:
    window = choose_window(ct, request="200,100")
    shown = window.apply(np.array([[-500, 0, 100, 200, 500]], dtype=np.int16))
    assert shown.dtype == np.uint8
    assert shown.tolist() == [[0, 0, 128, 255, 255]]


def test_apply_survives_int16_overflow() -> None:
    # 32767 - (-32768) does not fit into int16: the arithmetic must leave the type first.
    shown = Window("full", -32768, 32767).apply(np.array([[-32768, 32767]], dtype=np.int16))
    assert shown.tolist() == [[0, 255]]


def test_per_slice_stretches_each_slice_after_the_window(ct: Volume) -> None:
    window = choose_window(ct, "liver", clip_policy="slice")
    stack = np.stack([np.full((4, 4), -2000), np.array([[0, 50, 100, 100]] * 4)]).astype(np.int16)
    shown = window.apply(stack)
    assert shown[0].max() == 0
    assert (shown[1].min(), shown[1].max()) == (0, 255)
    assert "each slice" in window.describe()


def test_percentiles_leave_out_the_background(mr: Volume) -> None:
    window = choose_window(mr, "hippocampus")
    assert window.name == "percentiles"
    assert 300 < window.low < 420
    assert 580 < window.high < 700
    shown = window.apply(mr.array)
    assert shown.shape == mr.array.shape
    assert (shown[mr.array == 0] == 0).all()


def test_one_outlier_does_not_darken_the_volume(mr: Volume) -> None:
    voxels = mr.array.copy()
    voxels[0, 0, 0] = 1e6
    assert choose_window(Volume.from_array(voxels, modality="MR")).high < 700


def test_constant_volume_is_black_and_named_so() -> None:
    flat = Volume.from_array(np.full((3, 5, 5), 7, np.int16))
    window = choose_window(flat)
    assert window.name == "constant"
    assert window.apply(flat.array).max() == 0


def test_eight_bits_and_colour_stay_as_they_are() -> None:
    rng = np.random.default_rng(1)
    grey = Volume.from_array(rng.integers(0, 200, (2, 8, 9), dtype=np.uint8))
    colour = Volume.from_array(rng.integers(0, 200, (8, 9, 3), dtype=np.uint8))
    for volume in (grey, colour):
        window = choose_window(volume, "polyp", clip_policy="slice")
        assert window.name == "as is"
        assert np.array_equal(window.apply(volume.array), volume.array)


def test_sixteen_bit_colour_uses_the_whole_range() -> None:
    colour = Volume.from_array(np.array([[[[0, 32768, 65535]] * 2]], dtype=np.uint16))
    assert choose_window(colour).apply(colour.array)[0, 0, 0].tolist() == [0, 128, 255]


def test_requests(ct: Volume) -> None:
    assert choose_window(ct, "liver", "Lung").level == -600
    assert choose_window(ct, "liver", "soft-tissue").name == "soft tissue"
    assert (choose_window(ct, request="full").low, choose_window(ct, request="full").high) == (-1000, 999)
    custom = choose_window(ct, request=" 400 , 40 ")
    assert (custom.width, custom.level) == (400, 40)


@pytest.mark.parametrize("request_", ["purple", "1,2,3", "0,40", "-5,40", "nan,1", "", "a,b"])
def test_bad_requests_name_the_choices(ct: Volume, request_: str) -> None:
    with pytest.raises(InputError, match="soft tissue"):
        choose_window(ct, request=request_)


def test_hounsfield_preset_is_refused_for_mr(mr: Volume) -> None:
    with pytest.raises(InputError, match="Hounsfield units, but the volume is MR"):
        choose_window(mr, request="lung")


def test_sampled_percentiles_agree_with_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    voxels = rng.normal(0, 1, (20, 100, 100)).astype(np.float32)
    exact = windowing.robust_range(voxels)
    monkeypatch.setattr(windowing, "PERCENTILE_SAMPLES", 50_000)
    assert windowing.robust_range(voxels) == pytest.approx(exact, abs=0.1)
