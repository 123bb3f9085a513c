"""The words that phrases are made of: plurals, spellings, sides, adjectives, fillers.

Only words stand here, no concepts; what a phrase means is in ``Resources/terminology/concepts.json``.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Latin and Greek plurals, and English ones that follow no rule.
IRREGULAR_PLURALS = {
    "adnexa": "adnexum",
    "alveoli": "alveolus",
    "apices": "apex",
    "appendices": "appendix",
    "atria": "atrium",
    "axillae": "axilla",
    "bronchi": "bronchus",
    "bronchioli": "bronchiolus",
    "bursae": "bursa",
    "calculi": "calculus",
    "calves": "calf",
    "cortices": "cortex",
    "costae": "costa",
    "crania": "cranium",
    "diverticula": "diverticulum",
    "emboli": "embolus",
    "fasciae": "fascia",
    "feet": "foot",
    "femora": "femur",
    "fibulae": "fibula",
    "foci": "focus",
    "ganglia": "ganglion",
    "gyri": "gyrus",
    "hila": "hilum",
    "hippocampi": "hippocampus",
    "humeri": "humerus",
    "larynges": "larynx",
    "lenses": "lens",
    "lobuli": "lobulus",
    "lungs": "lung",
    "maculae": "macula",
    "mandibulae": "mandible",
    "maxillae": "maxilla",
    "menisci": "meniscus",
    "metastases": "metastasis",
    "nevi": "nevus",
    "nuclei": "nucleus",
    "opacities": "opacity",
    "ova": "ovum",
    "ovaria": "ovary",
    "patellae": "patella",
    "pelves": "pelvis",
    "phalanges": "phalanx",
    "pharynges": "pharynx",
    "pleurae": "pleura",
    "radii": "radius",
    "retinae": "retina",
    "sacra": "sacrum",
    "scapulae": "scapula",
    "septa": "septum",
    "stenoses": "stenosis",
    "sterna": "sternum",
    "sulci": "sulcus",
    "teeth": "tooth",
    "testes": "testis",
    "thalami": "thalamus",
    "thrombi": "thrombus",
    "tibiae": "tibia",
    "tracheae": "trachea",
    "trabeculae": "trabecula",
    "ulnae": "ulna",
    "ureteres": "ureter",
    "uteri": "uterus",
    "venae": "vena",
    "vertebrae": "vertebra",
    "villi": "villus",
}

# Singular although they end like a plural.
NOT_PLURAL = _words("""
    adipose alias ascites atlas axis biceps brachialis bypass caries carnae cutis deferens diabetes facies
    fauces forceps ganglionaris glans iris lens mass meninges pancreas pectoralis pelvis penis pons pubis
    quadriceps series species suprarenalis testis triceps truncus vas yes
    """)

BRITISH = {
    "adenohypophyses": "adenohypophysis",
    "anaemia": "anemia",
    "caecum": "cecum",
    "centre": "center",
    "coeliac": "celiac",
    "colour": "color",
    "disk": "disc",
    "faecal": "fecal",
    "faeces": "feces",
    "fibre": "fiber",
    "foetal": "fetal",
    "foetus": "fetus",
    "grey": "gray",
    "gynaecological": "gynecological",
    "haemangioma": "hemangioma",
    "haematoma": "hematoma",
    "haemorrhage": "hemorrhage",
    "haemorrhagic": "hemorrhagic",
    "ischaemia": "ischemia",
    "ischaemic": "ischemic",
    "leukaemia": "leukemia",
    "naevus": "nevus",
    "oedema": "edema",
    "oesophageal": "esophageal",
    "oesophagus": "esophagus",
    "orthopaedic": "orthopedic",
    "tumour": "tumor",
}

# An adjective and the organ it speaks of; used only where the phrase with the adjective is not known itself.
ADJECTIVES = {
    "aortic": "aorta",
    "bronchial": "bronchus",
    "cardiac": "heart",
    "cerebellar": "cerebellum",
    "cerebral": "brain",
    "cervical": "cervix",
    "colonic": "colon",
    "costal": "rib",
    "cranial": "skull",
    "cutaneous": "skin",
    "dermal": "skin",
    "duodenal": "duodenum",
    "esophageal": "esophagus",
    "femoral": "femur",
    "gastric": "stomach",
    "hepatic": "liver",
    "hippocampal": "hippocampus",
    "humeral": "humerus",
    "hypophyseal": "pituitary",
    "intracranial": "brain",
    "laryngeal": "larynx",
    "lienal": "spleen",
    "mammary": "breast",
    "mandibular": "mandible",
    "maxillary": "maxilla",
    "mediastinal": "mediastinum",
    "nasal": "nose",
    "nuclear": "nucleus",
    "ocular": "eye",
    "osseous": "bone",
    "ovarian": "ovary",
    "pancreatic": "pancreas",
    "patellar": "patella",
    "pericardial": "pericardium",
    "pharyngeal": "pharynx",
    "pleural": "pleura",
    "prostatic": "prostate",
    "pulmonary": "lung",
    "rectal": "rectum",
    "renal": "kidney",
    "retinal": "retina",
    "sacral": "sacrum",
    "scapular": "scapula",
    "splenic": "spleen",
    "sternal": "sternum",
    "testicular": "testis",
    "thalamic": "thalamus",
    "thymic": "thymus",
    "thyroidal": "thyroid",
    "tibial": "tibia",
    "tracheal": "trachea",
    "ureteral": "ureter",
    "ureteric": "ureter",
    "uterine": "uterus",
    "vaginal": "vagina",
    "vascular": "vessel",
    "vertebral": "vertebra",
    "vesical": "bladder",
}

# The same thing in another word, in any phrase; used like the adjectives.
OTHER_WORDS = {
    "cancer": "tumor",
    "carcinoma": "tumor",
    "neoplasm": "tumor",
    "growth": "tumor",
    "haematoma": "hematoma",
}

SIDES = {
    "left": "left",
    "l": "left",
    "lt": "left",
    "lft": "left",
    "lhs": "left",
    "sinister": "left",
    "sinistra": "left",
    "sinistral": "left",
    "right": "right",
    "r": "right",
    "rt": "right",
    "rgt": "right",
    "rhs": "right",
    "dexter": "right",
    "dextra": "right",
    "dextral": "right",
}

# Follow a side and add nothing: "left-sided", "on the left side", "left hand side".
SIDE_ENDINGS = frozenset({"sided", "side"})

# Said in a request, not part of what is meant.
FILLERS = _words(
    "the a an of in on at to from within inside all any every each both bilateral my this that these those please"
)
LEADING_VERBS = _words(
    "segment find show outline delineate contour detect locate mark highlight label annotate"
)
PART_WORDS = _words("part portion region area aspect")
PREPOSITIONS = _words("of in on at from within inside near with under over behind around along to by")
