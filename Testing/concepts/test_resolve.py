"""What users type, and what it must become."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from MedSAM3Core.concepts import complete, resolve, shorten, split_concepts
from MedSAM3Core.concepts.terminology import terminology
from MedSAM3Core.errors import PromptError


@pytest.mark.parametrize(
    ("typed", "phrase"),
    [
        ("Liver", "liver"),
        ("  the   LIVER ", "liver"),
        ("kidney left", "left kidney"),
        ("Kidney, left", "left kidney"),
        ("l kidney", "left kidney"),
        ("lt. kidney", "left kidney"),
        ("left-sided kidneys", "left kidney"),
        ("kidney on the left side", "left kidney"),
        ("R. kidney", "right kidney"),
        ("both kidneys", "kidney"),
        ("gland parotid", "parotid gland"),
        ("parotid, rt", "right parotid gland"),
        ("windpipe", "trachea"),
        ("gullet", "esophagus"),
        ("oesophagus", "esophagus"),
        ("lien", "spleen"),
        ("renal", "kidney"),
        ("hepatic tumour", "liver tumor"),
        ("liver cancer", "liver tumor"),
        ("nuclei", "nucleus"),
        ("cell nucleus", "nucleus"),
        ("vertebrae", "vertebra"),
        ("L1", "l1 vertebra"),
        ("L 1", "l1 vertebra"),
        ("vertebrae_L1", "l1 vertebra"),
        ("first lumbar vertebra", "l1 vertebra"),
        ("rib_left_1", "left first rib"),
        ("teeth", "tooth"),
        ("optic disk", "optic disc"),
        ("grey matter", "gray matter"),
        ("lower lobe of the left lung", "left lower lobe"),
        ("IVC", "inferior vena cava"),
        ("brain stem", "brainstem"),
        ("ground glass opacities", "ground-glass opacity"),
        ("Segment the spleen", "spleen"),
    ],
)
def test_ways_of_saying_the_same(typed: str, phrase: str) -> None:
    assert resolve(typed).phrase == phrase


@pytest.mark.parametrize(
    "word",
    [
        "pancreas",
        "pelvis",
        "humerus",
        "meninges",
        "uterus",
        "larynx",
        "biceps",
        "pons",
        "testis",
        "lens",
        "abscess",
    ],
)
def test_a_singular_that_ends_like_a_plural_is_left_alone(word: str) -> None:
    assert resolve(word).phrase == word


def test_an_adjective_keeps_its_own_concept_where_there_is_one() -> None:
    assert resolve("renal artery").phrase == "renal artery"
    assert resolve("renal artery").code != resolve("kidney").code


def test_the_left_kidney_is_coded_with_its_side() -> None:
    concept = resolve("kidney, left")
    assert concept.code == "64033007"
    assert concept.coding is not None
    assert concept.coding.modifier is not None
    assert concept.coding.modifier.meaning == "Left"
    assert concept.coding.slicer_entry() == (
        "Segmentation category and type - MedSAM3 list~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney"
        "~SCT^7771000^Left~Anatomic codes - DICOM master list~^^~^^"
    )


def test_a_tumor_of_the_left_kidney_is_a_neoplasm_whose_region_has_a_side() -> None:
    coding = resolve("renal tumours, left").coding
    assert coding is not None
    assert (coding.type.value, coding.modifier) == ("108369006", None)
    assert coding.region is not None
    assert coding.region_modifier is not None
    assert (coding.region.meaning, coding.region_modifier.meaning) == ("Kidney", "Left")


def test_an_unknown_phrase_passes_as_typed() -> None:
    concept = resolve("  Zenker   Diverticula ")
    assert concept.phrase == "zenker diverticula"
    assert concept.name == "Zenker Diverticula"
    assert concept.prompts == ("zenker diverticula", "zenker diverticulum")
    assert concept.code is None
    assert concept.coding is None


def test_the_colour_of_an_unknown_phrase_is_its_own_and_stays() -> None:
    assert resolve("zenker diverticulum").colour == resolve("Zenker Diverticulum").colour == (235, 65, 192)
    assert resolve("zenker diverticulum").colour != resolve("meckel diverticulum").colour


def test_a_phrase_of_more_than_three_words_is_passed_on_with_a_shorter_one_offered() -> None:
    concept = resolve("tumor in the upper pole of the left kidney")
    assert concept.phrase == "tumor in the upper pole of the left kidney"
    assert concept.shorter == "left kidney tumor"
    assert len(concept.notices) == 1
    assert "'left kidney tumor'" in concept.notices[0]


@pytest.mark.parametrize(
    ("typed", "shorter"),
    [
        ("the anterior part of hippocampus", "anterior hippocampus"),
        ("the anterior part of the left hippocampus", "left anterior hippocampus"),
        ("posterior portion of the basal ganglia", "posterior basal ganglion"),
        ("upper region of the anterior part of hippocampus", "upper anterior hippocampus"),
        ("tumor in the anterior part of the left kidney", "left kidney tumor"),
    ],
)
def test_a_part_is_offered_by_its_whole_not_as_a_part(typed: str, shorter: str) -> None:
    assert resolve(typed).shorter == shorter


def test_a_long_way_of_saying_a_known_concept_needs_no_notice() -> None:
    assert resolve("the lower lobe of the left lung").notices == ()


def test_shortening_prefers_an_organ_to_an_adjective_but_not_a_bare_lesion() -> None:
    assert shorten("enlarged heterogeneous fatty liver") == "liver"
    assert shorten("large cystic septated lesion") == "cystic septated lesion"


@pytest.mark.parametrize(
    "text", ["", "   ", "123", "?!", "\x00\n", "left", "the", "on the left side", "liver " * 40]
)
def test_what_names_nothing_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(PromptError) as caught:
        resolve(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_letters_beyond_english_get_a_notice() -> None:
    assert "English" in resolve("schilddrüse").notices[0]


@settings(max_examples=400)
@given(st.text(max_size=60))
@example("İstanbul")
@example("ﬁbula")
@example("l l l")
@example("left left kidney right")
@example("''s")
@example("\u2160")
@example("kidney s")
def test_any_text_is_a_concept_or_a_prompt_error_and_resolving_twice_changes_nothing(text: str) -> None:
    try:
        concept = resolve(text)
    except PromptError:
        return
    assert resolve(concept.phrase).phrase == concept.phrase
    assert concept.prompts[0] == concept.phrase
    assert all(0 <= channel <= 255 for channel in concept.colour)


@settings(max_examples=200)
@given(st.permutations(["left", "lower", "lobe"]), st.sampled_from([" ", "_", ", ", " - "]), st.booleans())
def test_order_case_and_punctuation_do_not_matter(words: list[str], between: str, upper: bool) -> None:
    text = between.join(words)
    assert resolve(text.upper() if upper else text).phrase == "left lower lobe"


@settings(max_examples=200)
@given(st.sampled_from(sorted(terminology().terms)), st.sampled_from(["the {}", "{}.", " {} ", "{} please"]))
def test_every_canonical_phrase_stands_for_itself(phrase: str, frame: str) -> None:
    assert resolve(frame.format(phrase)).phrase == phrase


def test_completion_begins_with_what_was_typed_and_knows_synonyms() -> None:
    assert complete("kid")[0] == "kidney"
    assert "left kidney" in complete("kid")
    assert complete("left ki")[0] == "left kidney"
    assert complete("windp") == ["trachea"]
    assert complete("") == []
    assert complete("xyzzy") == []
    assert len(complete("l", limit=5)) == 5


def test_a_list_of_concepts_is_split_and_repetitions_dropped() -> None:
    assert split_concepts("liver, spleen; left kidney") == ["liver", "spleen", "left kidney"]
    assert split_concepts("kidney, left; liver\nliver |") == ["kidney left", "liver"]
    with pytest.raises(PromptError):
        split_concepts(" ,; ")
