"""The steps of DESIGN decision 6, each with and without: what the volume gives that a single image lacks."""

from __future__ import annotations

from collections.abc import Mapping

from MedSAM3Core.evaluation.contenders import ModelContender, SessionPool

STEPS: Mapping[str, Mapping[str, object]] = {
    "as recommended": {},
    "without synonyms": {"synonyms": False},
    "without agreement": {"agreement_mm": 0.0, "low_share": 1.0},
    "without smoothing": {"smoothing_mm": 0.0},
    "with exemplars": {"exemplars": True},
    "without propagation": {"propagate": False},
    "slices alone": {
        "synonyms": False,
        "agreement_mm": 0.0,
        "low_share": 1.0,
        "smoothing_mm": 0.0,
        "exemplars": False,
        "propagate": False,
        "thorough": True,
    },
}
"""Variant to the attributes of `InferenceSettings` that it changes. Exemplars are off in the recommended settings, so
their variant switches them on."""


def ablation_contenders(name: str, pool: SessionPool) -> list[ModelContender]:
    """One contender a variant, all on the same features."""
    return [ModelContender(f"{name}, {variant}", pool, changes) for variant, changes in STEPS.items()]
