"""Plans and verdicts as a language model writes them, without a conversation."""

from __future__ import annotations

import pytest

from MedSAM3Core.agent.facts import MOST_COUNT
from MedSAM3Core.agent.replies import read_plan
from MedSAM3Core.agent.wording import PLAN_SCHEMA
from MedSAM3Core.errors import EndpointError


def plan(*phrases: str, count: object = None) -> dict:
    targets = [{"phrase": phrase, "expected_number": count, "place": ""} for phrase in phrases]
    return {"modality": "CT", "targets": targets, "questions": []}


@pytest.mark.parametrize("word", ["volume", "Diameter", "count", "size"])
def test_what_is_to_be_measured_is_no_structure(word: str) -> None:
    """A real small model answered "volume" when it was asked for the volume of the mandible."""
    found = read_plan(plan(word, "mandible"))
    assert [target.concept.phrase for target in found.targets] == ["mandible"]
    assert word in found.notices[0]
    with pytest.raises(EndpointError, match="names nothing that can be segmented"):
        read_plan(plan(word))


@pytest.mark.parametrize(("count", "kept"), [(3, 3), (0, None), (10**30, None), (True, None), ("two", None)])
def test_a_number_of_objects_is_a_small_count_or_none(count: object, kept: int | None) -> None:
    assert read_plan(plan("nucleus", count=count)).targets[0].count == kept


def test_the_schema_bounds_the_counts_that_an_answer_is_held_to() -> None:
    """Without a bound a model that is held to the schema wrote zeros until it was stopped."""
    count = PLAN_SCHEMA["properties"]["targets"]["items"]["properties"]["expected_number"]
    assert (count["minimum"], count["maximum"]) == (1, MOST_COUNT)
