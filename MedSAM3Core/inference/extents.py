"""How long organs are from head to foot: a long scan need not be searched in steps made for small ones.

Lengths are well below those of adults in textbooks of anatomy (a liver spans 130 to 150 mm, a kidney 100 to 120), so
that at least two looks fall on the organ at a third of them. A wrong length costs time, or a part of the scan that is
searched coarsely; what is near something found is searched as finely as ever.
"""

from __future__ import annotations

LEAST_MM = {
    "aorta": 120.0,
    "bladder": 45.0,
    "brain": 90.0,
    "brainstem": 45.0,
    "colon": 150.0,
    "esophagus": 120.0,
    "femur": 90.0,
    "gluteus maximus": 90.0,
    "heart": 80.0,
    "hip bone": 120.0,
    "inferior vena cava": 120.0,
    "kidney": 75.0,
    "liver": 105.0,
    "lung": 150.0,
    "mandible": 45.0,
    "pancreas": 45.0,
    "spinal cord": 120.0,
    "spine": 120.0,
    "spleen": 60.0,
    "stomach": 75.0,
    "trachea": 75.0,
}
"""Phrase without its side to the least length along the body, in mm."""

LOOKS = 3
"""Coarse looks that fall on an organ of that length."""

SIDES = ("left ", "right ")

BODY_MODALITIES = frozenset({"CT", "MR", "PT"})
"""Modalities whose slices are a patient's, in mm."""


def coarse_step_mm(phrase: str) -> float:
    """Distance of coarse looks for a concept, in mm; 0 where its length is not known."""
    lowered = phrase.lower()
    for side in SIDES:
        lowered = lowered.removeprefix(side)
    return LEAST_MM.get(lowered, 0.0) / LOOKS
