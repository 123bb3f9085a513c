"""Needs the pack's table of what cannot be in a picture, so the case claims to come from one of its sources."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from inference_doubles import BRIGHT, GREY, BrightModel, phantom_array

import MedSAM3Core.evaluation.choices as choices
from MedSAM3Core import Segmenter
from MedSAM3Core.training.pack import Case


def test_variants_are_scored_on_one_set_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, array in (("image", phantom_array()), ("labels", BRIGHT.astype(np.uint8))):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), tmp_path / f"{name}.nii.gz")
    (tmp_path / "labels.json").write_text(json.dumps({"1": "bright thing"}))
    labels = tmp_path / "labels.nii.gz"
    case = Case(tmp_path / "image.nii.gz", {"bright thing": labels}, {1: "bright thing"}, "MR", "double", "p")
    monkeypatch.setattr(choices, "absent_concepts", lambda case, seed: ["absent thing"])
    monkeypatch.setitem(GREY, "bright thing", 200)
    model = BrightModel()
    good, bad = choices.compare_settings(
        Segmenter(model),
        [case],
        {},
        {"plain": {"synonyms": False}, "no islands": {"island_share": 2.0, "synonyms": False}},
    )
    assert (good.variant, good.dice["double"], good.clean_share, good.foreign_share) == (
        "plain",
        1.0,
        1.0,
        1.0,
    )
    assert bad.mean == 0.0
    assert model.network.encoded <= 31
