"""Overlay pictures: the right slices, the right sides, true proportions, colours that can be told apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from MedSAM3Core.errors import OutputError
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.overlay import render_overlay, write_overlay
from MedSAM3Core.overlay.sheet import ALIKE, MARGIN, TILE_PIXELS, TOP_PIXELS, distinct_colours
from MedSAM3Core.overlay.slices import areas_by_slice, key_slices, mask_in_slice
from MedSAM3Core.overlay.tile import edge_letters, paint_slice
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume import Volume
from MedSAM3Core.volume.reference import read_segmentation

RED, GREEN = (255, 0, 0), (0, 255, 0)


def segmentation(volume: Volume, mask: np.ndarray, colour: tuple[int, int, int] = RED) -> Segmentation:
    return Segmentation.from_mask(
        Concept("thing", "thing", name="Thing", colour=colour), volume.geometry, mask
    )


def axial_ct(shape: tuple[int, int, int] = (20, 40, 60), spacing: tuple[float, ...] = (1, 1, 3)) -> Volume:
    voxels = np.full(shape, -1000, np.int16)
    voxels[:, 5:-5, 5:-5] = 40
    return Volume.from_array(voxels, spacing=spacing, modality="CT")


def random_mask(shape: tuple[int, ...], seed: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.3


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_areas_and_sections_agree_with_the_whole_mask(
    tilted: np.ndarray, left_handed: np.ndarray, axis: str
) -> None:
    for affine in (tilted, left_handed):
        mask = np.zeros((8, 9, 10), bool)
        mask[2:6, 3:8, 1:9] = random_mask((4, 5, 8))
        volume = Volume.from_array(np.zeros((8, 9, 10), np.int16), ijk_to_ras=affine)
        one = segmentation(volume, mask)
        plan = SlicePlan.choose(volume.geometry, axis)
        whole = plan.to_plane(mask)
        assert areas_by_slice([one], plan)[0].tolist() == whole.sum(axis=(1, 2)).tolist()
        for index in range(plan.count):
            section = mask_in_slice(one, plan, index)
            assert np.array_equal(
                section if section is not None else np.zeros_like(whole[index]), whole[index]
            )


def test_every_object_is_shown_near_its_largest_section() -> None:
    areas = np.zeros((3, 100))
    areas[0, 10:60] = 100 * np.sin(np.linspace(0, np.pi, 50))
    areas[1, 70:74] = [5, 9, 7, 2]
    chosen = key_slices(areas, 6)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 6
    for row in areas[:2]:
        assert row[chosen].max() >= 0.75 * row.max()
    assert max(np.diff(chosen)) < 40


def test_few_slices_and_none() -> None:
    assert key_slices(np.array([[0, 3, 0]]), 6) == [1]
    assert key_slices(np.zeros((2, 100)), 3) == [25, 50, 74]
    assert key_slices(np.zeros((0, 1)), 3) == [0]


def test_edges_of_an_axial_scan_and_of_a_turned_one(left_handed: np.ndarray) -> None:
    letters = {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    turned = np.diag([1.0, 1.0, -2.0, 1.0])  # columns to the right, rows to the front, slices to the feet
    for affine in (np.diag([-1.0, -1.0, 2.0, 1.0]), turned):
        volume = Volume.from_array(np.zeros((5, 6, 7), np.int16), ijk_to_ras=affine)
        assert edge_letters(SlicePlan.choose(volume.geometry, "axial")) == letters
    volume = Volume.from_array(np.zeros((5, 6, 7), np.int16), ijk_to_ras=left_handed)
    assert edge_letters(SlicePlan.choose(volume.geometry, "coronal")) == {
        "left": "R", "right": "L", "top": "SP", "bottom": "IA"
    }  # fmt: skip


@pytest.mark.parametrize("flip", [1, -1])
def test_the_patients_right_is_on_the_left_of_the_picture(flip: int) -> None:
    """An object on the patient's right, in a volume stored in either direction."""
    affine = np.diag([-2.0 * flip, -2.0, 2.0, 1.0])
    volume = Volume.from_array(np.full((4, 100, 100), 40, np.int16), ijk_to_ras=affine, modality="CT")
    mask = np.zeros((4, 100, 100), bool)
    right = slice(10, 30) if flip == 1 else slice(70, 90)
    mask[:, 40:60, right] = True
    picture = np.asarray(render_overlay(volume, [segmentation(volume, mask)], axis="axial"), int)
    tile = picture[TOP_PIXELS : TOP_PIXELS + TILE_PIXELS, MARGIN : MARGIN + TILE_PIXELS]
    red = np.argwhere(tile[..., 0] - tile[..., 1] > 120)
    assert len(red) > 100
    assert red[:, 1].max() < TILE_PIXELS / 2


def test_anisotropic_slices_keep_their_proportions() -> None:
    volume = axial_ct((60, 40, 80), (1, 1, 4))
    mask = np.zeros(volume.geometry.shape, bool)
    mask[10:50, 10:30, 20:60] = True
    one = segmentation(volume, mask)
    # A coronal slice of this volume is 80 mm wide and 240 mm high.
    sheet = np.asarray(render_overlay(volume, [one], axis="coronal"), int)
    assert sheet.shape[0] >= TOP_PIXELS + 2 * TILE_PIXELS
    tile = sheet[TOP_PIXELS : TOP_PIXELS + TILE_PIXELS, MARGIN : MARGIN + 126]
    red = np.argwhere(tile[..., 0] - tile[..., 1] > 100)
    height, width = np.ptp(red, axis=0)
    assert height / width == pytest.approx(160 / 40, rel=0.1)


def test_painting_fills_and_outlines() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    picture = np.asarray(paint_slice(np.full((20, 20), 100, np.uint8), [(mask, RED)], (200, 200)), int)
    assert picture[10, 10].tolist() == [100, 100, 100]
    assert picture[100, 100].tolist() == [146, 70, 70]
    assert picture[100, 50:54, 0].max() > 245


def test_a_single_voxel_is_seen_in_a_reduced_picture() -> None:
    mask = np.zeros((500, 500), bool)
    mask[250, 250] = True
    picture = np.asarray(paint_slice(np.zeros((500, 500), np.uint8), [(mask, RED)], (100, 100)), int)
    assert picture[..., 0].max() > 40


def test_colours_are_told_apart() -> None:
    same = [(185, 102, 83)] * 12 + [(0, 0, 0)]
    shown = distinct_colours(same, [None] * 13)
    assert shown[0] == (185, 102, 83)
    for n, colour in enumerate(shown):
        assert max(colour) >= 170
        for other in shown[:n]:
            assert np.linalg.norm(np.subtract(colour, other)) >= ALIKE
    on_red = distinct_colours([(216, 101, 79)], [(190, 70, 30)])[0]
    assert np.linalg.norm(np.subtract(on_red, (190, 70, 30))) > 120


@pytest.mark.parametrize("found", [True, False])
def test_photo_stands_beside_itself(found: bool) -> None:
    photo = Volume.from_array(np.full((90, 120, 3), 128, np.uint8), name="photo")
    mask = np.zeros((1, 90, 120), bool)
    mask[0, 30:60, 40:80] = found
    picture = np.asarray(render_overlay(photo, [segmentation(photo, mask, GREEN)]), int)
    left, right = picture[100:500, 20:700], picture[100:500, 760:1400]
    assert (left == 128).all()
    assert ((right[..., 1] - right[..., 0]) > 100).any() == found


@pytest.mark.parametrize("count", [0, 1, 30])
def test_any_number_of_segmentations(count: int) -> None:
    volume = axial_ct()
    masks = [np.zeros(volume.geometry.shape, bool) for _ in range(count)]
    for n, mask in enumerate(masks[1:]):
        mask[n % 20, 10:20, 10:20] = True
    sheet = render_overlay(volume, [segmentation(volume, mask) for mask in masks])
    assert sheet.height >= TOP_PIXELS + 44 * count


def test_volumes_of_few_slices_of_one_value_and_in_colour() -> None:
    for array in (
        np.zeros((2, 9, 9), np.int16),
        np.zeros((3, 9, 9, 3), np.uint8),
        np.zeros((1, 2, 1), np.float32),
    ):
        volume = Volume.from_array(array, spacing=(1, 1, 1))
        assert (
            render_overlay(volume, [segmentation(volume, np.ones(volume.geometry.shape, bool))]).width > 300
        )


def test_thin_slabs_have_no_locator() -> None:
    """Two slabs of equal slices, one of them too thin to show where its slices lie."""
    mask = np.zeros((20, 200, 200), bool)
    mask[5:15, 50:150, 50:150] = True
    drawn = []
    for thickness in (1, 20):
        volume = axial_ct(mask.shape, (1, 1, thickness))
        sheet = np.asarray(render_overlay(volume, [segmentation(volume, mask)], axis="axial"), int)
        beside = sheet[TOP_PIXELS + 60 :, 3 * (TILE_PIXELS + MARGIN) + MARGIN :]
        drawn.append(bool((beside[..., 0] - beside[..., 1] > 60).any()))
    assert drawn == [False, True]


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    volume = axial_ct()
    one = segmentation(volume, random_mask(volume.geometry.shape))
    write_overlay(tmp_path / "a.png", volume, [one])
    assert Image.open(tmp_path / "a.png").mode == "RGB"
    with pytest.raises(OutputError, match="does not exist"):
        write_overlay(tmp_path / "no" / "a.png", volume, [one])


@pytest.mark.shared
def test_a_real_ct(raw: Path) -> None:
    from MedSAM3Core.volume import read_volume

    volume = read_volume(raw / "ts_ct_abdomen" / "ct.nii.gz")
    segments = read_segmentation(raw / "ts_ct_abdomen" / "labels.nii.gz")
    found = [
        Segmentation.from_mask(Concept(s.name, s.name), volume.geometry, s.on(volume.geometry))
        for s in segments
        if s.name in ("liver", "spleen", "kidney_left")
    ]
    assert len(found) == 3
    sheet = render_overlay(volume, found)
    assert sheet.width > 3 * TILE_PIXELS
