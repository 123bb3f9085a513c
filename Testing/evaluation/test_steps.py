"""The variants of the search name settings that exist, and each changes what it says."""

from MedSAM3Core.evaluation.contenders import SessionPool
from MedSAM3Core.evaluation.steps import STEPS, ablation_contenders
from MedSAM3Core.inference.settings import InferenceSettings


def test_every_variant_changes_the_recommended_settings_and_shares_their_features():
    recommended = InferenceSettings.preset("recommended")
    for variant, changes in STEPS.items():
        changed = InferenceSettings.preset("recommended", **changes)
        assert (changed == recommended) is (variant == "as recommended"), variant
    pool = SessionPool(None)
    contenders = ablation_contenders("demo", pool)
    assert [one.name for one in contenders] == [f"demo, {variant}" for variant in STEPS]
    assert all(one.pool is pool for one in contenders)
