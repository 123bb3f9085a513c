import itertools

import numpy as np
import pytest
from inference_doubles import BACKGROUND, SIZE, BrightModel, concept
from scipy import ndimage

from MedSAM3Core import Box, Segmenter
from MedSAM3Core.inference.tiles import TiledSession, Tiling
from MedSAM3Core.volume.volume import Volume

SIDE = 512
CENTRES = [(60, 60), (128, 200), (256, 256), (300, 420), (440, 90), (500, 500)]
RADIUS = 14


def slide() -> tuple[Volume, np.ndarray]:
    """Discs of 28 pixels, some of them across seams, one cut by the image's border."""
    rows, columns = np.indices((SIDE, SIDE))
    discs = np.zeros((SIDE, SIDE), bool)
    for row, column in CENTRES:
        discs |= (rows - row) ** 2 + (columns - column) ** 2 <= RADIUS**2
    image = np.where(discs, 200, BACKGROUND).astype(np.uint8)
    return Volume.from_array(np.repeat(image[..., None], 3, 2), modality="HISTO"), discs


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(
    ("shape", "side"), [((100, 70), 32), ((64, 64), 64), ((50, 200), 64), ((33, 33), 32)]
)
def test_tiles_cover_the_image_and_overlap_enough(shape: tuple[int, int], side: int) -> None:
    tiling = Tiling.of(shape, side, 0.25)
    image = np.random.default_rng(0).random(shape, np.float32)
    tiles = tiling.cut(image)
    assert tiles.shape[1:] == (min(side, shape[0]), min(side, shape[1]))
    np.testing.assert_allclose(tiling.blend(tiles), image, atol=1e-5)
    for starts, part in ((tiling.tops, tiling.size[0]), (tiling.lefts, tiling.size[1])):
        assert all(b - a <= 0.75 * part + 1 for a, b in itertools.pairwise(starts))


def test_a_tile_counts_less_towards_its_edge() -> None:
    tiling = Tiling.of((64, 96), 64, 0.25)
    assert tiling.lefts == (0, 32)
    tiles = np.zeros((2, 64, 64), np.float32)
    tiles[0] = 1
    blended = tiling.blend(tiles)[32]
    assert blended[10] == 1
    assert blended[90] == 0
    assert blended[40] == pytest.approx(1 / (1 + 8.5 / 16)), "nearer to the first tile's middle"
    assert 0 < blended[60] < 0.25


def test_small_objects_of_a_large_image_are_found_in_tiles_and_are_whole_across_seams() -> None:
    volume, discs = slide()
    model = BrightModel()
    with Segmenter(model).open(volume, tile_pixels=128) as session:
        assert isinstance(session, TiledSession)
        found = session.segment(concept("bright thing"))
        tiles = len(session.tiling.corners)
        assert session.work.slices == tiles + 1, "every tile once, and the whole image once"
        session.segment(concept("dim thing"))
        assert session.work.slices == tiles + 1, "a second concept encodes nothing"
    mask = found.to_array()[0]
    assert ndimage.label(mask)[1] == len(CENTRES), "a disc across a seam is one disc"
    assert dice(mask, discs) > 0.9
    with Segmenter(BrightModel()).open(volume, tiles="off") as session:
        whole = session.segment(concept("bright thing")).to_array()[0]
    assert dice(mask, discs) > dice(whole, discs) + 0.05
    assert any("tiles" in notice for notice in found.provenance.notices)


def test_a_large_object_is_seen_whole() -> None:
    image = np.full((SIDE, SIDE), BACKGROUND, np.uint8)
    image[100:400, 100:400] = 200
    volume = Volume.from_array(image, modality="DERM")
    with Segmenter(BrightModel()).open(volume, tile_pixels=128) as session:
        found = session.segment(concept("bright thing"))
        assert session.work.slices == 1
    assert dice(found.to_array()[0], image == 200) > 0.95


def test_only_a_single_large_image_is_cut() -> None:
    small = Volume.from_array(np.zeros((SIZE, SIZE), np.uint8))
    deep = Volume.from_array(np.zeros((3, SIDE, SIDE), np.uint8))
    for volume, settings, expected in (
        (small, {"tile_pixels": 128}, False),
        (deep, {"tile_pixels": 128}, False),
        (slide()[0], {"tile_pixels": 128, "tiles": "off"}, False),
        (slide()[0], {"tile_pixels": 300}, False),
        (slide()[0], {"tile_pixels": 300, "tiles": "on"}, True),
    ):
        with Segmenter(BrightModel()).open(volume, **settings) as session:
            assert isinstance(session, TiledSession) == expected


def test_a_box_changes_its_own_surroundings_only() -> None:
    volume, _ = slide()
    array = volume.array.copy()
    array[0, 200:230, 330:360] = 245  # no phrase finds this
    volume = Volume.from_array(array, modality="HISTO")
    with Segmenter(BrightModel()).open(volume, tile_pixels=128) as session:
        before = session.segment(concept("bright thing"))
        after = session.refine(before, boxes=[Box.on_slice(0, (328, 361), (198, 231))])
        assert session.tiling.size == (128, 128)
    was, now = before.to_array()[0], after.to_array()[0]
    inside = np.zeros_like(was)
    inside[200:230, 330:360] = True
    assert not was[205:225, 335:355].any(), "only its blurred edge has the grey that was asked for"
    assert now[inside].mean() > 0.9
    near = np.zeros_like(was)
    near[190:240, 320:370] = True
    assert np.array_equal(was[~near], now[~near])
    assert len(after.boxes) == 1
