"""The pack, its split, the cache, the sampler and the batches."""

import numpy as np
import pytest
import torch

from MedSAM3Core.errors import InputError
from MedSAM3Core.training.augment import Augmentation
from MedSAM3Core.training.batches import BatchMaker, mirrored_classes
from MedSAM3Core.training.cache import build_cache
from MedSAM3Core.training.finetune import read_groups
from MedSAM3Core.training.knowledge import CONCEPT_REGIONS, DISTRACTORS, SOURCE_REGIONS
from MedSAM3Core.training.pack import read_pack, split_of
from MedSAM3Core.training.sampling import ConceptSampler, Query

CLASSES = ("left parotid gland", "polyp", "right parotid gland")


@pytest.fixture(scope="module")
def cache(pack, tmp_path_factory):
    return build_cache(read_pack(pack), CLASSES, 48, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def sampler(cache, pack):
    weights = {"openkbp_headneck": 0.6, "kvasir_seg": 0.4}
    patients = {case.patient for case in cache.cases}
    assert any(split_of(patient) == "train" for patient in patients)
    return ConceptSampler(cache, read_groups(pack), weights)


def known_in(case):
    """Class indices that were looked for in a case."""
    return {CLASSES.index(name) for name in case.concepts}


def test_the_cases_of_a_pack(pack):
    cases = read_pack(pack)
    assert len(cases) == 14
    volume = next(case for case in cases if case.is_volume)
    assert volume.labels == {1: "right parotid gland", 2: "left parotid gland"}
    assert volume.patient == "openkbp_headneck/pt_000"


def test_a_pack_without_tables_is_named(tmp_path):
    with pytest.raises(InputError, match=r"neither index\.csv nor volumes\.csv"):
        read_pack(tmp_path)


def test_a_pack_with_a_missing_mask_is_named(pack, tmp_path):
    table = (pack / "index.csv").read_text()
    (tmp_path / "index.csv").write_text(table)
    with pytest.raises(InputError, match=r"absent, first .*f0"):
        read_pack(tmp_path)


def test_the_split_is_fixed_and_has_the_shares_it_says():
    splits = [split_of(f"patient-{number}") for number in range(4000)]
    assert splits == [split_of(f"patient-{number}") for number in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.10, abs=0.02)
    assert splits.count("validation") / 4000 == pytest.approx(0.06, abs=0.02)


def test_the_cache_holds_every_slice_and_its_classes(cache):
    volumes = [record for record in cache.records if not record.rgb]
    assert len(volumes) == 6 * 8
    with_object = [record for record in volumes if record.present]
    assert len(with_object) == 6 * 4
    assert {CLASSES[c] for c in with_object[0].present} == {"left parotid gland", "right parotid gland"}
    assert cache.colour.shape[1:] == (48, 48, 3)


def test_a_second_run_maps_the_same_cache(cache, pack, tmp_path):
    first = build_cache(read_pack(pack), CLASSES, 48, tmp_path)
    second = build_cache(read_pack(pack), CLASSES, 48, tmp_path)
    assert isinstance(second.grey, np.memmap)
    np.testing.assert_array_equal(first.grey, second.grey)
    assert first.records == second.records


def test_negatives_are_surely_absent(sampler, cache):
    for _ in range(300):
        record, wanted = sampler.draw_slice()
        case = cache.cases[record.case]
        for query in sampler.draw_queries(record, wanted, 4):
            if query.classes:
                assert set(query.classes) <= set(record.present)
            elif query.phrase in cache.classes and query.phrase in case.concepts:
                assert cache.classes.index(query.phrase) not in record.present
            elif query.phrase in sampler.groups and set(sampler.groups[query.phrase]) <= known_in(case):
                assert not set(sampler.groups[query.phrase]) & set(record.present)
            elif query.phrase not in DISTRACTORS:
                assert not CONCEPT_REGIONS[query.phrase] & SOURCE_REGIONS[case.source]


def test_only_train_patients_are_drawn(sampler, cache):
    drawn = {cache.cases[sampler.draw_slice()[0].case].patient for _ in range(300)}
    assert {split_of(patient) for patient in drawn} == {"train"}


def test_a_broader_term_is_absent_where_all_its_parts_are(sampler):
    ends = [r for r in sampler.cache.records if not r.present]
    assert ends, "the volumes have slices without anything"
    asked = {sampler.draw_absent(r) for r in ends for _ in range(40)}
    assert Query("parotid gland", ()) in asked
    both = next(r for r in sampler.cache.records if len(r.present) == 2)
    assert "parotid gland" not in {sampler.draw_absent(both).phrase for _ in range(100)}


def test_a_broader_term_is_the_union_of_its_parts(sampler):
    record = next(r for r in sampler.cache.records if len(r.present) == 2)
    found = {
        query.phrase: query.classes
        for _ in range(60)
        for query in [sampler._positive(record, record.present[0])]
    }
    assert set(found["parotid gland"]) == set(record.present)


def test_mirroring_swaps_sides():
    table = mirrored_classes(CLASSES)
    assert table.tolist() == [0, 3, 2, 1]


def test_an_unaugmented_batch_answers_its_phrases(sampler, cache):
    batches = BatchMaker(sampler, None, 32, 16)
    record = next(r for r in cache.records if len(r.present) == 2)
    _, labels = batches.render([record], torch.tensor([False]))
    left = batches.answer(labels[0], Query("left parotid gland", (0,)))
    right = batches.answer(labels[0], Query("right parotid gland", (2,)))
    columns = torch.arange(16.0)
    assert (left.sum(0) * columns).sum() / left.sum() > 8 > (right.sum(0) * columns).sum() / right.sum()
    assert batches.answer(labels[0], Query("polyp", ())).sum() == 0


def test_a_mirrored_slice_keeps_left_and_right_apart(sampler, cache):
    still = Augmentation(rotation=0, scale=(1, 1), shift=0, aspect=0, tone=0, gamma=1, noise=0)
    batches = BatchMaker(sampler, still, 48, 16)
    record = next(r for r in cache.records if len(r.present) == 2)
    _, plain = batches.render([record], torch.tensor([False]))
    _, mirrored = batches.render([record], torch.tensor([True]))
    # The picture of both glands is symmetric: mirrored, each name must sit where it sat before.
    agree = (plain == mirrored).float().mean()
    assert agree > 0.97
    assert (plain != plain.flip(-1)).any()
