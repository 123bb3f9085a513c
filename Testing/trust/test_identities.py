"""What must hold for any geometry, any order and any way of asking, on models with known answers."""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[1] / "inference"))

from inference_doubles import BrightModel, concept, phantom, phantom_array

from MedSAM3Core import Segmenter
from MedSAM3Core.inference.plan import AXIS_NAMES, SlicePlan
from MedSAM3Core.volume import Volume, read_volume
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.reference import read_segmentation
from MedSAM3Core.volume.writing import write_segmentations

NAMES = ("bright thing", "dim thing", "absent thing")
SIDE = 16
GREYS = {"bright thing": 200, "dim thing": 100}


@st.composite
def geometries(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """1 to 600 slices, any spacing, rotation, tilt (shear along the slices) and handedness."""
    slices = draw(st.one_of(st.integers(1, 8), st.integers(9, 60), st.sampled_from([599, 600])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    tilt = np.eye(3)
    tilt[1, 2] = np.tan(np.radians(draw(st.floats(-30, 30))))
    affine = np.eye(4)
    affine[:3, :3] = axes @ tilt * draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return slices, affine


def scene(slices: int, seed: int) -> np.ndarray:
    """A block for each of two concepts, at random places; they do not touch."""
    rng = np.random.default_rng(seed)
    array = np.full((slices, SIDE, SIDE), 20, np.uint8)
    first, last = sorted(rng.integers(0, slices, 2))
    for grey, columns in ((200, slice(2, 6)), (100, slice(9, 14))):
        row = rng.integers(1, SIDE - 6)
        array[first : last + 1, row : row + 5, columns] = grey
    return array


@settings(max_examples=15)
@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from(["seg.nrrd", "nii.gz"]))
def test_read_segment_write_and_read_back_is_the_identity_on_voxels(
    geometry: tuple[int, np.ndarray], seed: int, suffix: str
) -> None:
    """What a session answers is what is read back, voxel by voxel, on the grid of the image's own file."""
    slices, affine = geometry
    array = scene(slices, seed)
    with tempfile.TemporaryDirectory() as folder:
        image, output = Path(folder) / "image.nrrd", Path(folder) / f"out.{suffix}"
        made = Volume.from_array(array, ijk_to_ras=affine, modality="MR")
        write_image(image, made)
        volume = read_volume(image, modality="MR")
        np.testing.assert_array_equal(volume.array, array)
        axis = along_slices(volume.geometry)
        # Slices need not agree here: an object of two slices is no accident, as it may be in a patient.
        alone = {"agreement_mm": 0.0, "propagate": False}
        with Segmenter(BrightModel()).open(volume, axis=axis, mode="thorough", **alone) as session:
            found = session.segment_many([concept(name) for name in GREYS])
        write_segmentations(output, found, volume)
        back = {segment.label: segment for segment in read_segmentation(output)}
    for label, (name, one) in enumerate(zip(GREYS, found, strict=True), 1):
        mask = one.to_array()
        # By slice: the double sees 64 pixels where a slice has 16, and edges may differ by one.
        np.testing.assert_array_equal(mask.any(axis=(1, 2)), (array == GREYS[name]).any(axis=(1, 2)))
        read = back[label].mask if suffix == "nii.gz" else back_by_order(back, label)
        np.testing.assert_array_equal(read, mask)
    assert next(iter(back.values())).geometry.same_grid(volume.geometry, 1e-3)


def along_slices(geometry: Geometry) -> str:
    """The name under which the scanner's own slices are cut; oblique axes are named as a whole, not one by one."""
    return next(name for name in AXIS_NAMES if SlicePlan.choose(geometry, name).axes[0] == 0)


def back_by_order(back: dict, label: int) -> np.ndarray:
    return list(back.values())[label - 1].mask


def write_image(path: Path, volume: Volume) -> None:
    from MedSAM3Core.volume.segnrrd import write_nrrd

    with path.open("wb") as stream:
        write_nrrd(stream, volume.array, volume.geometry)


@pytest.fixture(scope="module")
def straight() -> dict[str, np.ndarray]:
    return answers(phantom())


def answers(
    volume: Volume, order: tuple[str, ...] = NAMES, mode: str = "recommended"
) -> dict[str, np.ndarray]:
    with Segmenter(BrightModel()).open(volume, axis="axial", mode=mode) as session:
        return {
            name: one.to_array()
            for name, one in zip(order, session.segment_many([concept(n) for n in order]), strict=True)
        }


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_flips_and_permutations_of_the_volume_give_those_of_the_mask(
    straight: dict[str, np.ndarray], order: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(order[0] * 3 + order[1])
    signs = rng.choice((1, -1), 3)
    flips = tuple(slice(None, None, int(sign)) for sign in signs)
    affine = np.eye(4)
    for axis, source in enumerate(order):  # array axes are (k, j, i), the affine's columns (i, j, k)
        affine[:, 2 - axis] = np.eye(4)[:, 2 - source] * signs[axis]
    stored = np.ascontiguousarray(phantom_array().transpose(order)[flips])
    for name, mask in answers(phantom(stored, affine)).items():
        np.testing.assert_array_equal(mask, straight[name].transpose(order)[flips])


@pytest.mark.parametrize("mode", ["recommended", "thorough"])
def test_a_run_is_deterministic_and_the_order_of_concepts_changes_no_mask(mode: str) -> None:
    first = answers(phantom(), NAMES, mode)
    for order in (NAMES, NAMES[::-1], (NAMES[1], NAMES[2], NAMES[0])):
        for name, mask in answers(phantom(), order, mode).items():
            np.testing.assert_array_equal(mask, first[name])


def test_a_batch_equals_one_by_one(tmp_path: Path) -> None:
    from MedSAM3Core.batch import BatchSettings, LocalEngine, find_cases, run_batch

    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(4)
    for n in range(5):
        volume = Volume.from_array(scene(int(rng.integers(1, 20)), n), spacing=(1, 2, 3), modality="MR")
        write_image(tmp_path / "in" / f"{n}.nrrd", volume)
    segmenter = Segmenter(BrightModel())
    settings_ = BatchSettings(tmp_path / "out", model="double", tiles=False, mode="thorough")
    cases = find_cases([str(tmp_path / "in")], list(GREYS), tmp_path / "out").cases
    model = BrightModel()
    summary = run_batch(cases, settings_, LocalEngine(segmenter, settings_))
    assert summary.done == 5, summary.failures
    for n in range(5):
        volume = read_volume(tmp_path / "in" / f"{n}.nrrd")
        with Segmenter(model).open(volume, mode="thorough") as session:
            alone = [session.segment(concept(name)) for name in GREYS]
        together = read_segmentation(tmp_path / "out" / f"{n}.seg.nrrd")
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.to_array(), other.mask)
