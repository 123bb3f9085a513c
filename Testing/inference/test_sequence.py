"""Identities through time on doubles with known answers: grey values stand for objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_doubles import BACKGROUND, SIZE, BrightModel, concept

from MedSAM3Core.errors import Cancelled, VolumeError
from MedSAM3Core.inference.linking import Linker, assign, number_objects, overlaps, split_objects
from MedSAM3Core.inference.sequence import ObjectTracker, SequenceSettings
from MedSAM3Core.models.card import Policy
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume

BRIGHT, DIM = 200, 100


def frame(*blocks: tuple[int, int, int], time: float = 0.0) -> Volume:
    """An 8-bit image with blocks of 10 x 10 pixels: (row, column, grey)."""
    pixels = np.full((SIZE, SIZE), BACKGROUND, np.uint8)
    for row, column, grey in blocks:
        pixels[row : row + 10, column : column + 10] = grey
    return Volume.from_array(pixels, modality="US")


def mapping_model() -> BrightModel:
    """A model whose semantic map draws, as the demo model's does; its one instance holds all there is."""
    model = BrightModel()
    policy = Policy(score_rule="presence", mask_source="semantic")
    model.card = model.card.model_copy(update={"recommended": policy})
    return model


def follow(frames, concepts=("bright thing",), model=None, **settings):
    tracker = ObjectTracker(
        model or mapping_model(), [concept(one) for one in concepts], SequenceSettings(**settings)
    )
    return tracker, list(tracker.run(frames))


def places(result) -> dict[int, tuple[int, int]]:
    """Identity to (row, column) of the object's corner."""
    return {one.identity: (one.extent.j[0], one.extent.i[0]) for one in result.objects}


def test_two_objects_keep_their_numbers_while_they_move() -> None:
    film = [frame((10, 5 + t, BRIGHT), (40, 45 - t, BRIGHT)) for t in range(20)]
    _, results = follow(film)
    assert [one.index for one in results] == list(range(20))
    first = places(results[0])
    assert sorted(first) == [1, 2]
    of = {where: identity for identity, where in first.items()}
    for t, result in enumerate(results):
        assert places(result) == {of[10, 5]: (10, 5 + t), of[40, 45]: (40, 45 - t)}
        assert set(np.unique(result.labels())) == {0, 1, 2}


def test_an_object_that_comes_later_gets_the_next_number() -> None:
    film = [frame((10, 5, BRIGHT), *([(40, 40, BRIGHT)] if t >= 8 else [])) for t in range(16)]
    _, results = follow(film)
    assert [sorted(places(one)) for one in results] == [[1]] * 8 + [[1, 2]] * 8


def test_an_object_that_is_hidden_comes_back_as_itself() -> None:
    film = [frame(*([] if 6 <= t < 12 else [(20, 20, BRIGHT)])) for t in range(18)]
    _, results = follow(film, patience=10)
    assert [sorted(places(one)) for one in results] == [[1]] * 6 + [[]] * 6 + [[1]] * 6
    _, results = follow(film, patience=3)
    assert sorted(places(results[-1])) == [2]


def test_a_flash_of_one_frame_is_no_object() -> None:
    film = [frame((10, 5, BRIGHT), *([(40, 40, BRIGHT)] if t == 5 else [])) for t in range(12)]
    _, results = follow(film)
    assert {identity for one in results for identity in places(one)} == {1}


def test_the_tracker_carries_what_is_not_detected() -> None:
    model = BrightModel()
    detect = model.network.detect
    calls = []

    def blind_after_two_batches(*arguments, **options):
        raw = detect(*arguments, **options)
        calls.append(1)
        return raw if len(calls) <= 2 else _nothing(raw)

    model.network.detect = blind_after_two_batches
    film = [frame((10, 5 + t, BRIGHT)) for t in range(16)]
    _, results = follow(film, model=model, batch_frames=4)
    assert [places(one)[1] for one in results] == [(10, 5 + t) for t in range(16)]
    assert [one.objects[0].detected for one in results] == [True] * 8 + [False] * 8


def _nothing(raw):
    from dataclasses import replace

    low = torch.full_like(raw.logits, -9.0)
    empty = torch.full_like(raw.semantic, -9.0)
    return replace(raw, logits=low, presence=torch.full_like(raw.presence, -9.0), semantic=empty)


def test_without_a_tracker_overlap_alone_links() -> None:
    model = BrightModel()
    model.card = model.card.model_copy(update={"tracks": False})
    film = [frame((10, 5 + t, BRIGHT)) for t in range(8)]
    _, results = follow(film, model=model)
    assert [sorted(places(one)) for one in results] == [[1]] * 8
    assert model.tracker.steps == 0


def test_concepts_do_not_take_each_others_objects() -> None:
    film = [frame((10, 5, BRIGHT), (40, 30, DIM)) for _ in range(6)]
    _, results = follow(film, ("bright thing", "dim thing"))
    named = {(one.concept.phrase, one.identity) for result in results for one in result.objects}
    assert named == {("bright thing", 1), ("dim thing", 2)}


def test_memory_does_not_grow_with_the_film() -> None:
    held = []

    def film(count: int):
        for t in range(count):
            held.append(max((len(one.bank.memories) for one in tracker.living), default=0))
            yield frame((10 + t % 7, 5, BRIGHT))

    tracker = ObjectTracker(BrightModel(), [concept("bright thing")])
    results = tracker.run(film(1000))
    assert sum(1 for _ in results) == 1000
    assert max(held[:100]) == max(held) <= tracker.settings.most_anchors + 16


def test_what_is_no_film() -> None:
    with pytest.raises(VolumeError, match=r"Frame 1 has the shape \(8, 8\), the first"):
        follow([frame(), Volume.from_array(np.zeros((8, 8), np.uint8))])
    with pytest.raises(VolumeError, match="Frame 0 has 4 slices"):
        follow([Volume.from_array(np.ones((4, 8, 8), np.uint8))])
    tracker, token = ObjectTracker(BrightModel(), [concept("bright thing")]), CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        list(tracker.run([frame()], token))


def test_assignment_is_the_best_of_all() -> None:
    table = np.array([[0.6, 0.5], [0.55, 0.0]])
    assert assign(table, 0.1) == [(0, 1), (1, 0)]  # the greedy one would leave the second with nothing
    assert assign(table, 0.52) == [(1, 0)]
    assert assign(np.zeros((0, 3))) == []


def test_linker() -> None:
    masks = np.zeros((3, 4, 6), bool)
    masks[0, :2, :2] = masks[1, 2:, 3:] = masks[2, :2, :3] = True
    linker = Linker(patience=1)
    assert linker.link([masks[0], masks[1]]) == [1, 2]
    assert linker.link([masks[1], masks[2]]) == [2, 1]
    assert linker.link([]) == []
    assert linker.link([masks[0]]) == [1]
    linker.link([])
    linker.link([])
    assert linker.link([masks[1]]) == [3]
    assert overlaps([masks[0]], [masks[2]])[0, 0] == pytest.approx(4 / 6)


def test_segmentations_through_time_become_numbered_objects() -> None:
    def whole(*corners: int) -> Segmentation:
        mask = np.zeros((2, 12, 40), bool)
        for corner in corners:
            mask[:, 2:8, corner : corner + 6] = True
        return Segmentation.from_mask(concept("polyp"), Geometry((2, 12, 40), np.eye(4)), mask, score=0.7)

    frames = number_objects([[whole(2, 20)], [whole(21, 3)], [whole()], [whole(22)]])
    named = [{one.concept.name: one.extent.i[0] for one in frame if not one.empty} for frame in frames]
    assert named == [{"polyp 1": 2, "polyp 2": 20}, {"polyp 1": 3, "polyp 2": 21}, {}, {"polyp 2": 22}]
    assert [one.empty for one in frames[2]] == [True]
    assert frames[0][0].concept.colour != frames[0][1].concept.colour
    assert frames[1][0].score == 0.7


def test_parts_are_sorted_and_specks_dropped() -> None:
    mask = np.zeros((10, 30), bool)
    mask[:4, :4] = mask[:, 10:20] = True
    mask[9, 29] = True
    assert [int(part.sum()) for part in split_objects(mask)] == [100, 16]
