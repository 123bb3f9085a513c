from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from inference_doubles import BACKGROUND, SIZE, BrightModel, concept

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.inference.sequence_volumes import VolumeTracker
from MedSAM3Core.inference.session import Segmenter
from MedSAM3Core.volume.volume import Volume


def volume(*blocks: tuple[int, int], t: int = 0, slices: int = 10) -> Volume:
    """Bright blocks of 5 slices and 12 x 12 pixels at (row, column)."""
    array = np.full((slices, SIZE, SIZE), BACKGROUND, np.uint8)
    for row, column in blocks:
        array[2:7, row : row + 12, column : column + 12] = 200
    return replace(Volume.from_array(array, spacing=(1, 1, 1), modality="US"), time_s=t / 10)


def follow(model: BrightModel, volumes):
    tracker = VolumeTracker(Segmenter(model), [concept("bright thing")], mode="thorough")
    return list(tracker.run(volumes))


def places(result) -> dict[int, tuple[int, int]]:
    ends = {one.identity: one.segmentation.extent for one in result.objects}
    return {identity: (extent.j[0], extent.i[0]) for identity, extent in ends.items()}


def test_objects_keep_their_numbers_in_3d() -> None:
    results = follow(BrightModel(), [volume((5, 5 + t), (40, 40 - t), t=t) for t in range(4)])
    first = {where: identity for identity, where in places(results[0]).items()}
    assert sorted(first.values()) == [1, 2]
    for t, result in enumerate(results):
        assert places(result) == {first[5, 5]: (5, 5 + t), first[40, 40]: (40, 40 - t)}
        assert result.time_s == t / 10
        assert set(np.unique(result.labels())) == {0, 1, 2}
        assert all(one.detected for one in result.objects)


def test_the_tracker_carries_a_volume_that_text_does_not_find() -> None:
    model = BrightModel()
    tokenize, runs = model.tokenize, []

    def tell_then_forget(phrases):
        runs.append(1)
        ids, mask = tokenize(phrases)
        return (ids, mask) if len(runs) == 1 else (ids * 0 + 150, mask)  # a grey value that is nowhere

    model.tokenize = tell_then_forget
    results = follow(model, [volume((5, 5 + t), t=t) for t in range(3)])
    assert [[one.detected for one in result.objects] for result in results] == [[True], [False], [False]]
    assert [places(result) for result in results] == [{1: (5, 5 + t)} for t in range(3)]


def test_grids_must_be_the_same() -> None:
    with pytest.raises(VolumeError, match="Time 1 lies on another grid"):
        follow(BrightModel(), [volume((5, 5)), volume((5, 5), slices=12)])
