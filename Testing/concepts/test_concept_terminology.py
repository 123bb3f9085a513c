"""The shipped terminology: complete, consistent, and read by Slicer's own Terminologies logic."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from MedSAM3Core.concepts import resolve
from MedSAM3Core.concepts.phrases import key_of
from MedSAM3Core.concepts.terminology import terminology
from MedSAM3Core.prompts import TERMINOLOGY_CONTEXT
from MedSAM3Core.resources import resource_path

SHARED = Path(__file__).resolve().parents[3] / "shared"
TERM_FILE = resource_path("terminology/SegmentationCategoryTypeModifier-MedSAM3.term.json")

STRUCTURES = """
adrenal_gland aorta autochthon brain clavicula colon duodenum esophagus face femur gallbladder gluteus_maximus
gluteus_medius gluteus_minimus heart_atrium_left heart_atrium_right heart_myocardium heart_ventricle_left
heart_ventricle_right hip humerus iliac_artery iliac_vena iliopsoas inferior_vena_cava kidney liver
lung_lower_lobe_left lung_middle_lobe_right lung_upper_lobe_right pancreas portal_vein_and_splenic_vein
pulmonary_artery sacrum scapula small_bowel spleen stomach trachea urinary_bladder vertebrae_S1 heart
pulmonary_vein brachiocephalic_trunk subclavian_artery common_carotid_artery brachiocephalic_vein
atrial_appendage_left superior_vena_cava kidney_cyst_left prostate patella tibia fibula tarsal metatarsal
phalanges_feet ulna radius carpal metacarpal phalanges_hand sternum skull subcutaneous_fat skeletal_muscle
torso_fat spinal_cord lung_covid_infiltrate intracerebral_hemorrhage hip_implant coronary_arteries
thyroid_gland vertebrae_lumbar vertebrae_thoracic vertebrae_cervical ribs lung_vessels lung_trachea_bronchia
body_trunc body_extremities vertebrae_body lung_pleural pleural_effusion pericardial_effusion liver_vessels
liver_tumor costal_cartilages
"""
TOTALSEGMENTATOR = STRUCTURES.split()
LEVELS = [f"C{n}" for n in range(1, 8)] + [f"T{n}" for n in range(1, 13)] + [f"L{n}" for n in range(1, 6)]
TOTALSEGMENTATOR += [f"vertebrae_{level}" for level in LEVELS]
TOTALSEGMENTATOR += [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]

PAPERS = """
breast tumor
optic disc
optic cup
retinal vessel
polyp
skin lesion
nucleus
prostate
thyroid nodule
fetal head
left lung
right lung
lung nodule
brain tumor
liver tumor
pancreas tumor
colon tumor
left atrium
left ventricle
myocardium
ground-glass opacity
lung infiltrate
pleural effusion
pneumothorax
carotid artery
nerve
white matter lesion
surgical instrument
hemorrhage
kidney tumor
kidney cyst
hippocampus
"""


@pytest.mark.parametrize("structure", TOTALSEGMENTATOR)
def test_totalsegmentator_structures_are_known_and_coded(structure: str) -> None:
    concept = resolve(structure)
    assert concept.phrase in terminology().terms
    assert concept.coding is not None


@pytest.mark.parametrize("phrase", PAPERS.strip().splitlines())
def test_the_papers_concepts_are_canonical(phrase: str) -> None:
    assert resolve(phrase).phrase == phrase
    assert phrase in terminology().terms


@pytest.mark.shared
def test_every_concept_of_the_data_pack_is_canonical() -> None:
    tables = [SHARED / "data/train/index.csv", SHARED / "data/train/volumes.csv"]
    if not all(table.exists() for table in tables):
        pytest.skip("needs ../shared/data/train")
    with tables[0].open() as images, tables[1].open() as volumes:
        phrases = {row["concept"] for row in csv.DictReader(images)}
        for row in csv.DictReader(volumes):
            phrases.update(part.strip() for part in row["concept list"].split(";"))
    assert len(phrases) == 102
    assert {phrase for phrase in phrases if resolve(phrase).phrase != phrase} == set()
    assert {phrase for phrase in phrases if phrase not in terminology().terms} == set()


def test_no_two_canonical_phrases_share_a_key() -> None:
    keys = [key_of(phrase) for phrase in terminology().terms]
    assert len(keys) == len(set(keys))


def test_every_synonym_leads_to_its_concept_unless_it_is_a_concept_itself() -> None:
    terms = terminology().terms
    astray = {
        (name, term.phrase)
        for term in terms.values()
        for name in (*term.synonyms, *term.aliases)
        if resolve(name).phrase != term.phrase and name not in terms
    }
    assert astray == set()


def test_codes_name_their_source_and_look_like_snomed_ct() -> None:
    for term in terminology().terms.values():
        if term.coding is None:
            assert term.sources == ()
            continue
        assert term.sources, term.phrase
        assert set(term.sources) <= {"slicer-general-anatomy", "slicer-dicom-master", "totalsegmentator"}
        assert re.fullmatch(r"\d{6,18}", term.coding.type.value)
        assert _verhoeff_ok(term.coding.type.value), term.phrase


def test_codes_agree_with_the_dictionary_of_dicom_ps3_16() -> None:
    concepts = pytest.importorskip("pydicom.sr._concepts_dict").concepts["SCT"]
    meanings: dict[str, str] = {}
    for entries in concepts.values():
        for value, entry in entries.items():
            meanings[value] = meanings.get(value, "") + " " + entry[0].lower()
    wordings_that_differ = {"Abdomen", "Chest", "Pelvis", "Tarsal bones"}
    disagree = {
        (code.value, code.meaning, meanings[code.value])
        for term in terminology().terms.values()
        if term.coding
        for code in (term.coding.type, term.coding.region, term.coding.category)
        if code and code.value in meanings and code.meaning not in wordings_that_differ
        if not any(word in meanings[code.value] for word in code.meaning.lower().split())
    }
    assert disagree == set()


def _verhoeff_ok(number: str) -> bool:
    """SNOMED CT identifiers end with a Verhoeff check digit; one mistyped or swapped digit fails it."""
    multiply = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
        [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
        [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
        [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
        [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
        [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
        [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
        [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
        [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    ]
    permute = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
        [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
        [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
        [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
        [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
        [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
        [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
    ]
    check = 0
    for position, digit in enumerate(reversed(number)):
        check = multiply[check][permute[position % 8][int(digit)]]
    return check == 0


def test_the_check_digit_test_itself_notices_a_wrong_digit() -> None:
    assert _verhoeff_ok("10200004")
    assert not _verhoeff_ok("10200014")


def test_every_coded_concept_stands_in_the_slicer_file() -> None:
    document = json.loads(TERM_FILE.read_text())
    assert document["SegmentationCategoryTypeContextName"] == TERMINOLOGY_CONTEXT
    in_file = {
        (category["CodeValue"], kind["CodeValue"], modifier)
        for category in document["SegmentationCodes"]["Category"]
        for kind in category["Type"]
        for modifier in [None, *(m["CodeValue"] for m in kind.get("Modifier", []))]
    }
    for term in terminology().terms.values():
        if term.coding and term.exact:
            modifier = term.coding.modifier.value if term.coding.modifier else None
            assert (term.coding.category.value, term.coding.type.value, modifier) in in_file, term.phrase


@pytest.fixture(scope="module")
def logic():
    slicer = pytest.importorskip("slicer")
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    assert logic.LoadTerminologyFromFile(str(TERM_FILE)) == TERMINOLOGY_CONTEXT
    return logic


@pytest.mark.parametrize(
    "label", ["liver", "left kidney", "tumor", "left parotid gland", "l1 vertebra", "brainstem", "polyp"]
)
def test_slicer_finds_types_by_label_with_our_codes_and_colours(logic, label: str) -> None:
    import slicer

    entry = slicer.vtkSlicerTerminologyEntry()
    concept = resolve(label)
    assert logic.FindTypeInTerminologyBy3dSlicerLabel(TERMINOLOGY_CONTEXT, label, entry) == (
        concept.coding is not None
    )
    if concept.coding is None:
        return
    modifier = entry.GetTypeModifierObject()
    sided = modifier if concept.coding.modifier else entry.GetTypeObject()
    assert entry.GetTypeObject().GetCodeValue() == concept.code
    assert tuple(sided.GetRecommendedDisplayRGBValue()) == concept.colour


@pytest.mark.parametrize(
    "phrase", ["liver", "left kidney", "left kidney tumor", "retinal vessel", "left lower lobe"]
)
def test_slicer_reads_our_terminology_tag(logic, phrase: str) -> None:
    import slicer

    coding = resolve(phrase).coding
    assert coding is not None
    entry = slicer.vtkSlicerTerminologyEntry()
    assert logic.DeserializeTerminologyEntry(coding.slicer_entry(), entry)
    assert entry.GetTypeObject().GetCodeValue() == coding.type.value
    assert entry.GetCategoryObject().GetCodeMeaning() == coding.category.meaning
    if coding.region:
        assert entry.GetRegionObject().GetCodeValue() == coding.region.value
