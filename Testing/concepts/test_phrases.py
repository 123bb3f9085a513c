from __future__ import annotations

import pytest

from MedSAM3Core.concepts.phrases import Key, candidates_for_shortening, in_other_words, key_of, say, words_of
from MedSAM3Core.concepts.words import IRREGULAR_PLURALS, NOT_PLURAL


def test_a_key_forgets_order_and_keeps_the_side() -> None:
    assert key_of("Kidneys, LEFT") == Key("left", ("kidney",)) == key_of("left kidney")
    assert key_of("right kidney") != key_of("left kidney") != key_of("kidney")


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("arteries", "artery"),
        ("masses", "mass"),
        ("abscesses", "abscess"),
        ("sinuses", "sinus"),
        ("veins", "vein"),
        ("metastases", "metastasis"),
        ("tumours", "tumor"),
        ("haemorrhages", "hemorrhage"),
    ],
)
def test_plurals(plural: str, singular: str) -> None:
    assert words_of(plural) == [singular]


@pytest.mark.parametrize("word", sorted(NOT_PLURAL | set(IRREGULAR_PLURALS.values())))
def test_a_singular_stays_one(word: str) -> None:
    assert words_of(word) == words_of(words_of(word)[0])


def test_a_single_letter_before_a_number_is_a_spinal_level_not_a_side() -> None:
    assert key_of("L 4") == Key("", ("l4",))
    assert key_of("l kidney") == Key("left", ("kidney",))


def test_possessives_and_request_words_say_nothing() -> None:
    assert key_of("the patient's liver") == Key("", ("liver", "patient"))
    assert words_of("Find the liver") == ["the", "liver"]


def test_other_words_turn_adjectives_into_organs() -> None:
    assert in_other_words(key_of("hepatic carcinoma")) == key_of("liver tumor")


def test_what_is_said_has_its_side_first() -> None:
    assert say("kidney stones, left") == "left kidney stone"


def test_shortened_candidates_have_at_most_three_words() -> None:
    candidates = candidates_for_shortening("large irregular mass within the right upper lobe near the hilum")
    assert candidates
    assert all(1 <= len(candidate.split()) <= 3 for candidate in candidates)
