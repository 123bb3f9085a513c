"""The memory bank: what is attended from a slice, how far back, and what is given up."""

import dataclasses

import pytest
import torch

from MedSAM3Core.models.memory import Memory, MemoryBank


def memory(index: int, conditioning: bool = False) -> Memory:
    return Memory(
        slice_index=index,
        features=torch.zeros(1, 4, 2, 2),
        positions=torch.zeros(1, 4, 2, 2),
        pointer=torch.full((1, 8), float(index)),
        conditioning=conditioning,
        object_score=torch.ones(1),
    )


class TestMemoryBank:
    @pytest.mark.parametrize("reverse", [False, True])
    def test_is_bounded_and_keeps_exactly_what_is_used(self, reverse):
        order = range(200, 100, -1) if reverse else range(0, 100)
        bank = MemoryBank(slices=300).add(memory(order[0], conditioning=True))
        complete = [memory(index) for index in order[1:]]
        for added, each in enumerate(complete, start=1):
            bank = bank.add(each)
            following = order[added] + (-1 if reverse else 1)
            recent = bank.select_recent(following, reverse)
            assert [m.slice_index for _, m in recent] == [
                m.slice_index for m in complete[added - 15 if added > 15 else 0 : added]
            ][::-1]
            assert [offset for offset, _ in recent] == list(range(1, len(recent) + 1))
            assert all((m.features is not None) == (offset <= 6) for offset, m in recent)
            assert len(bank.memories) <= 1 + 15

    def test_the_same_slice_is_replaced(self):
        bank = MemoryBank(slices=9).add(memory(2, True)).add(memory(3)).add(memory(3, True))
        assert [(m.slice_index, m.conditioning) for m in bank.memories] == [(2, True), (3, True)]

    def test_four_anchors_nearest_on_both_sides(self):
        bank = MemoryBank(slices=99)
        for index in (10, 12, 14, 16, 18, 50, 90):
            bank = bank.add(memory(index, True))
        assert [m.slice_index for m in bank.select_anchors(20)] == [18, 50, 16, 14]
        assert [m.slice_index for m in bank.select_anchors(5)] == [10, 12, 14, 16]
        assert [m.slice_index for m in bank.select_anchors(18)] == [16, 18, 14, 12]

    def test_an_anchor_left_out_counts_as_a_tracked_slice(self):
        bank = MemoryBank(slices=99)
        for index in (10, 11, 12, 13, 14, 15):
            bank = bank.add(memory(index, True))
        assert [m.slice_index for m in bank.select_anchors(16)] == [15, 14, 13, 12]
        assert [(o, m.slice_index) for o, m in bank.select_recent(16, False)] == [(5, 11), (6, 10)]
        assert bank.select_recent(16, True) == ()

    def test_forgetting_around_a_correction(self):
        bank = MemoryBank(slices=99).add(memory(0, True))
        for index in range(1, 13):
            bank = bank.add(memory(index))
        left = bank.forget_around(12).memories
        assert [m.slice_index for m in left] == [0, 1, 2, 3, 4]
        assert bank.only_anchors().memories == (bank.memories[0],)

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            MemoryBank(slices=3).slices = 4
