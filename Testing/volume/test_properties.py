"""For any geometry: write and read back is the identity; and damaged files end in one sentence, never otherwise."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume import Volume, read_volume
from MedSAM3Core.volume.reference import read_segmentation
from MedSAM3Core.volume.writing import write_segmentations


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shapes of 1 to 40 voxels along each axis, and affines of any rotation, handedness, spacing and origin."""
    shape = draw(st.tuples(*[st.integers(1, 40)] * 3).filter(lambda s: s != (1, 1, 1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))  # of either handedness
    spacing = draw(st.tuples(*[st.floats(0.05, 12)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-900, 900)] * 3))
    return shape, affine


@settings(max_examples=30)
@given(
    grid=grids(),
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(["a.seg.nrrd", "a.nrrd", "a.nii.gz", "a.nii"]),
)
def test_write_and_read_back_is_the_identity(
    grid: tuple[tuple[int, int, int], np.ndarray], seed: int, name: str
) -> None:
    shape, affine = grid
    rng = np.random.default_rng(seed)
    volume = Volume.from_array(np.zeros(shape, np.int16), ijk_to_ras=affine)
    masks = [rng.random(shape) < share for share in (0.2, 0.5)]
    if not name.endswith(".seg.nrrd"):
        masks[0] &= ~masks[1]  # a labelmap holds no overlap
    segmentations = [
        Segmentation.from_mask(Concept(f"c{n}", f"c{n}"), volume.geometry, mask)
        for n, mask in enumerate(masks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_segmentations(path, segmentations, volume)
        segments = {
            segment.label if "seg" not in name else n + 1: segment
            for n, segment in enumerate(read_segmentation(path))
        }
    tolerance = 1e-9 if "nrrd" in name else 1e-3
    for n, mask in enumerate(masks, 1):
        if n in segments:
            assert np.array_equal(segments[n].mask, mask)
            assert segments[n].geometry.same_grid(volume.geometry, tolerance)
        else:
            assert not mask.any()


def seed_files(folder: Path) -> list[Path]:
    """A small file of each format."""
    rng = np.random.default_rng(12)
    volume = Volume.from_array(rng.integers(0, 99, (3, 8, 9), dtype=np.int16), spacing=(1, 2, 3))
    photo = Volume.from_array(rng.integers(0, 255, (12, 13, 3), dtype=np.uint8))
    one = Segmentation.from_mask(Concept("c", "c"), volume.geometry, volume.array > 50)
    flat = Segmentation.from_mask(Concept("c", "c"), photo.geometry, photo.array[..., 0] > 50)
    paths = [folder / name for name in ("a.seg.nrrd", "a.nrrd", "a.nii", "a.nii.gz", "a.png")]
    for path in paths[:-1]:
        write_segmentations(path, [one], volume)
    write_segmentations(paths[-1], [flat], photo)
    return paths


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    return [(path.name, path.read_bytes()) for path in seed_files(folder)]


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """What is done to a file: bytes changed, cut, repeated, at a place given as a share of its length."""
    kind = st.sampled_from(["flip", "set", "cut", "drop", "repeat"])
    return draw(st.lists(st.tuples(kind, st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))


def damaged(data: bytes, damage: list[tuple[str, float, int]]) -> bytes:
    content = bytearray(data)
    for kind, share, value in damage:
        place = min(int(share * len(content)), len(content) - 1)
        if place < 0:
            break
        if kind == "flip":
            content[place] ^= value or 1
        elif kind == "set":
            content[place : place + 4] = bytes([value]) * 4
        elif kind == "cut":
            del content[place:]
        elif kind == "drop":
            del content[place : place + value]
        else:
            content[place:place] = content[place : place + value]
    return bytes(content)


@settings(max_examples=150)
@given(which=st.integers(0, 4), damage=damages())
def test_damaged_files_end_in_one_sentence(
    seeds: list[tuple[str, bytes]], which: int, damage: list[tuple[str, float, int]]
) -> None:
    name, data = seeds[which]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(damaged(data, damage))
        for read in (read_volume, read_segmentation):
            try:
                read(path)
            except VolumeError as error:
                assert "\n" not in str(error)  # noqa: PT017 - many damages leave a readable file, and that is right
