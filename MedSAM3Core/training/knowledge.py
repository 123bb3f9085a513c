"""What a source's images can show and where concepts are, so that an absent concept is known to be absent.

Coarse on purpose: a concept counts as surely absent from an image only if none of its regions can be in the picture.
"""

from __future__ import annotations

HEAD, NECK, CHEST, ABDOMEN, PELVIS = "head", "neck", "chest", "abdomen", "pelvis"
BRAIN = "brain"  # brain tissue as MR shows it; CT at radiotherapy windows does not
BREAST, EYE, SKIN, COLON_LUMEN, CELL, FETUS = "breast", "eye", "skin", "colon lumen", "cell", "fetus"
LIMB_US, NECK_US = "limb ultrasound", "neck ultrasound"

ANYWHERE: frozenset[str] = frozenset()
"""Regions of a concept that may be in any picture: never used as a negative."""

_TRUNK = frozenset({CHEST, ABDOMEN, PELVIS})

SOURCE_REGIONS: dict[str, frozenset[str]] = {
    "openkbp_headneck": frozenset({HEAD, NECK, CHEST}),
    "msd_hippocampus": frozenset({BRAIN, HEAD}),
    "mni152": frozenset({BRAIN, HEAD}),
    "ms_lesion_ljubljana": frozenset({BRAIN, HEAD}),
    "pyradiomics": frozenset({BRAIN, HEAD, BREAST, CHEST, ABDOMEN}),
    "sct_testing_data": frozenset({HEAD, NECK, CHEST}),
    "totalsegmentator_examples": _TRUNK,
    "dcmqi": _TRUNK,
    "msd_spleen": _TRUNK,
    "nih_pancreas_ct": _TRUNK,
    "msd_hepatic_vessel": _TRUNK,
    "msd_heart": frozenset({CHEST, ABDOMEN}),
    "covid_cxr_segmentations": frozenset({NECK, CHEST, ABDOMEN}),
    "usgra_seg": frozenset({LIMB_US, NECK_US, NECK}),
    "ccaus": frozenset({NECK_US, NECK}),
    "hc18": frozenset({FETUS}),
    "kvasir_seg": frozenset({COLON_LUMEN}),
    "dsb2018": frozenset({CELL}),
    "chase_db1": frozenset({EYE}),
    "fives": frozenset({EYE}),
    "isic2017": frozenset({SKIN}),
}

_IN_REGION: dict[frozenset[str], tuple[str, ...]] = {
    frozenset({HEAD}): (
        "brainstem",
        "mandible",
        "left parotid gland",
        "right parotid gland",
        "parotid gland",
    ),
    frozenset({BRAIN}): (
        "hippocampus",
        "anterior hippocampus",
        "posterior hippocampus",
        "gray matter",
        "white matter",
        "white matter lesion",
        "brain tumor",
        "brain",
    ),
    frozenset({HEAD, NECK, CHEST, ABDOMEN}): ("spinal cord",),
    frozenset({NECK}): ("larynx",),
    frozenset({NECK, CHEST, ABDOMEN}): ("esophagus", "airway"),
    frozenset({CHEST}): (
        "heart",
        "left atrium",
        "lung tumor",
        "ground-glass opacity",
        "mediastinum",
        "left lung",
        "right lung",
        "lung",
        "left upper lobe",
        "left lower lobe",
        "right lower lobe",
        "lung lobe",
        "left humerus",
    ),
    frozenset({BREAST}): ("breast tumor",),
    frozenset({ABDOMEN}): (
        "liver",
        "liver tumor",
        "liver vessel",
        "spleen",
        "pancreas",
        "gallbladder",
        "stomach",
        "duodenum",
        "kidney",
        "left kidney",
        "right kidney",
        "adrenal gland",
        "left adrenal gland",
        "right adrenal gland",
        "portal vein",
        "l1 vertebra",
        "l2 vertebra",
        "l3 vertebra",
        "l4 vertebra",
    ),
    frozenset({ABDOMEN, PELVIS}): ("small bowel", "colon", "visceral fat", "l5 vertebra", "s1 vertebra"),
    frozenset({PELVIS}): (
        "urinary bladder",
        "prostate",
        "sacrum",
        "femur",
        "left femur",
        "right femur",
        "hip bone",
        "left hip bone",
        "right hip bone",
        "gluteal muscle",
        "left gluteus maximus",
        "right gluteus maximus",
        "left gluteus medius",
        "right gluteus medius",
        "left gluteus minimus",
        "right gluteus minimus",
    ),
    frozenset({COLON_LUMEN}): ("polyp",),
    frozenset({CELL}): ("nucleus",),
    frozenset({EYE}): ("retinal vessel",),
    frozenset({SKIN}): ("skin lesion",),
    frozenset({FETUS}): ("fetal head",),
    frozenset({LIMB_US, NECK_US}): ("nerve",),
    frozenset({NECK_US, NECK}): ("carotid artery",),
    frozenset({LIMB_US, NECK_US, NECK, HEAD, BRAIN, CHEST, ABDOMEN, PELVIS, EYE, FETUS, BREAST}): (
        "blood vessel",
    ),
}

CONCEPT_REGIONS: dict[str, frozenset[str]] = {
    concept: regions for regions, concepts in _IN_REGION.items() for concept in concepts
}

TONED_ALIKE: dict[str, frozenset[str]] = {
    "CT": frozenset({HEAD, NECK, CHEST, ABDOMEN, PELVIS}),
    "MR": frozenset({HEAD, BRAIN, CHEST, ABDOMEN, PELVIS, BREAST}),
    "ultrasound": frozenset({LIMB_US, NECK_US, NECK, FETUS}),
    "endoscopy": frozenset({CELL, SKIN, EYE}),
    "histopathology": frozenset({COLON_LUMEN, SKIN, EYE}),
    "dermoscopy": frozenset({COLON_LUMEN, CELL, EYE}),
}
"""Modality to the regions whose concepts are its hard negatives."""

DISTRACTORS: tuple[str, ...] = (
    "optic disc",
    "optic cup",
    "thyroid nodule",
    "thyroid gland",
    "breast mass",
    "uterus",
    "ovary",
    "testis",
    "knee cartilage",
    "meniscus",
    "patella",
    "tibia",
    "fibula",
    "tooth",
    "tongue",
    "appendix",
    "lymph node",
    "kidney stone",
    "gallstone",
    "aneurysm",
    "hematoma",
    "pleural effusion",
    "pneumothorax",
    "embryo",
    "placenta",
    "retinal fluid",
    "drusen",
    "melanoma",
    "wart",
    "gastric ulcer",
    "surgical instrument",
    "catheter",
    "pacemaker",
    "bone fracture",
    "hand",
    "foot",
    "wrist",
    "ankle",
    "shoulder",
    "elbow",
    "mitochondria",
    "gland",
    "bacteria",
    "red blood cell",
    "something else",
    "dog",
    "car",
    "house",
    "text",
    "nothing",
)
"""Phrases that none of the sources shows or labels: the model learns that an unknown word finds nothing."""

LATERAL_PAIR = ("left ", "right ")
"""A mirrored image swaps these words."""
