"""``medsam3 demo`` on the sample data that ships, with a double of the model; the real model has its own test."""

from __future__ import annotations

import json
from pathlib import Path

import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses


def test_it_writes_a_segmentation_and_an_overlay_for_each_sample(run, fake, tmp_path: Path) -> None:
    code, out, _ = run("demo", "-o", tmp_path / "out")
    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        f"{name}{suffix}" for name in ("headneck_ct", "nuclei_histology") for suffix in (".seg.nrrd", ".png")
    }
    for heading in ("concept", "code", "voxels", "ml", "seconds", "Dice"):
        assert heading in out
    for concept in (
        "Brainstem",
        "Mandible",
        "Left parotid gland",
        "Right parotid gland",
        "Spinal cord",
        "Nucleus",
    ):
        assert concept in out


def test_json_gives_every_concept_with_its_dice(run, fake, tmp_path: Path) -> None:
    code, out, _ = run("demo", "-o", tmp_path, "--json")
    assert code == 0
    document = json.loads(out)
    ct, nuclei = document["samples"]
    assert [concept["concept"] for concept in ct["concepts"]][:2] == ["brainstem", "mandible"]
    assert all(concept["dice"] == 0 for concept in ct["concepts"] + nuclei["concepts"])
    assert ct["licence"] == "MIT"


def test_dice_is_one_when_the_answer_is_the_reference(run, fake, tmp_path: Path, monkeypatch) -> None:
    from MedSAM3Core.samples import read_samples
    from MedSAM3Core.segmentation import Segmentation

    references = read_samples()[0].read_reference()

    def perfect(concept, boxes=(), progress=None, cancel=None, threshold=None):
        mask = references.get(concept.typed)
        if mask is None or mask.shape != fake.volume.geometry.shape:
            mask = fake.volume.array[..., 0] < 0 if fake.volume.is_rgb else fake.volume.array < -9999
        return Segmentation.from_mask(concept, fake.volume.geometry, mask)

    monkeypatch.setattr(fake, "segment", perfect)
    code, out, _ = run("demo", "-o", tmp_path, "--json")
    assert code == 0
    assert [concept["dice"] for concept in json.loads(out)["samples"][0]["concepts"]] == [1.0] * 5


def test_the_written_segmentation_lies_on_the_sample_s_grid(run, fake, tmp_path: Path) -> None:
    from MedSAM3Core.samples import read_samples

    assert run("demo", "-o", tmp_path)[0] == 0
    sample = read_samples()[0]
    written = sitk.ReadImage(str(tmp_path / "headneck_ct.seg.nrrd"))
    assert written.GetSize()[-3:] == sitk.ReadImage(str(sample.image)).GetSize()


def test_a_folder_that_cannot_be_made_is_bad_input(run, fake, tmp_path: Path) -> None:
    code, _, err = run("demo", "-o", tmp_path / "no" / "where")
    assert code == 2
    assert "does not exist" in err
    assert fake.asked == []


def test_an_interrupt_leaves_no_folder(run, fake, tmp_path: Path) -> None:
    import os
    import signal

    fake.on_segment = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert run("demo", "-o", tmp_path / "out")[0] == 130
    assert list(tmp_path.iterdir()) == []
