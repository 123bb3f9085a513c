"""``medsam3 segment`` with a double of the model: inputs, outputs, report, cancelling, bad input."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_writes_segmentation_and_report_and_prints_a_table(run, fake, ct: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "segment",
        ct,
        "-c",
        "Liver",
        "-c",
        "spleen",
        "-o",
        tmp_path / "out.seg.nrrd",
        "--report",
        tmp_path / "r.json",
    )
    assert code == 0
    assert "SCT 10200004" in out
    assert "not found" in out
    assert err.count("note: ") == 1
    assert files(tmp_path) == {"ct.nrrd", "out.seg.nrrd", "r.json"}


def test_the_report_holds_what_design_asks_for(run, fake, ct: Path, tmp_path: Path) -> None:
    code, _, _ = run(
        "segment",
        ct,
        "-c",
        "liver",
        "-c",
        "spleen",
        "-o",
        tmp_path / "o.nii.gz",
        "--report",
        tmp_path / "r.json",
    )
    assert code == 0
    document = json.loads((tmp_path / "r.json").read_text())
    liver, spleen = document["concepts"]
    assert (liver["label"], liver["voxels"], liver["ml"]) == (1, 40, 0.08)
    assert liver["slice_range"] == [1, 2]
    assert liver["extent"] == {"i": [3, 7], "j": [2, 5], "k": [1, 2]}
    assert liver["model"] == {"name": "fake", "sha256": "0" * 64}
    assert liver["prompts"] == ["liver"]
    assert liver["thresholds"] == {"score": 0.5}
    assert liver["coding"]["type"] == {"value": "10200004", "meaning": "Liver", "scheme": "SCT"}
    assert (spleen["found"], spleen["voxels"], spleen["slice_range"]) == (False, 0, None)
    assert document["stage_seconds"] == {"encoding": 1.0, "detecting": 0.5}
    assert set(document["seconds"]) == {"read", "load", "segment", "write"}
    assert document["input"]["shape"] == {"slices": 4, "rows": 12, "columns": 10}


def test_a_labelmap_holds_one_value_a_concept_in_the_order_given(run, fake, ct: Path, tmp_path: Path) -> None:
    code, _, _ = run("segment", ct, "-c", "spleen", "-c", "liver", "-o", tmp_path / "o.nrrd")
    assert code == 0
    written = sitk.ReadImage(str(tmp_path / "o.nrrd"))
    labels = sitk.GetArrayFromImage(written)
    assert set(np.unique(labels)) == {0, 2}
    assert int((labels == 2).sum()) == 40
    assert written.GetSpacing() == (1.0, 1.0, 2.0)


def test_json_prints_the_report_and_nothing_else(run, fake, ct: Path, tmp_path: Path) -> None:
    code, out, _ = run("segment", ct, "-c", "liver", "-o", tmp_path / "o.nrrd", "--json")
    assert code == 0
    assert json.loads(out)["concepts"][0]["code"] == "10200004"


def test_every_flag_reaches_the_model(run, fake, ct: Path, tmp_path: Path) -> None:
    code, _, _ = run(
        *("segment", ct, "-c", "liver", "-o", tmp_path / "o.nrrd", "--axis", "coronal", "--window", "400,40"),
        *("--threshold", "0.3", "--mode", "thorough", "--box", "1,2,2,5,5", "--box3d", "0,0,0,3,3,3,-"),
        *("--point", "1,3,4", "--point", "2,9,11,-"),
    )
    assert code == 0
    assert fake.opened == [{"axis": "coronal", "window": "400,40", "mode": "thorough"}]
    assert fake.asked == [("liver", 4, 0.3)]


def test_a_named_mark_is_for_its_concept_only(run, fake, ct: Path, tmp_path: Path) -> None:
    code, out, err = run(
        *("segment", ct, "-c", "spleen", "-c", "left kidney, liver", "-o", tmp_path / "o.nrrd", "--json"),
        *("--box", "Hepar=1,2,2,5,5", "--box3d", "Kidney, left=0,0,0,3,3,3,-", "--point", "livers = 1,3,4"),
    )
    assert code == 0
    assert fake.marked == {
        "spleen": [],
        "liver": ["2,2,1,5,5,1,+", "1,3,4,+"],
        "left kidney": ["0,0,0,3,3,3,-"],
    }
    assert [entry["concept"] for entry in json.loads(out)["concepts"]] == ["spleen", "left kidney", "liver"]
    assert "without a name" not in err


def test_marks_without_a_name_count_for_every_concept_and_a_note_says_so(
    run, fake, ct: Path, tmp_path: Path
) -> None:
    code, _, err = run(
        *("segment", ct, "-c", "liver", "-c", "spleen", "-o", tmp_path / "o.nrrd"),
        *("--box", "1,2,2,5,5", "--box", "spleen=2,2,2,5,5", "--point", "spleen=1,3,4"),
    )
    assert code == 0
    assert fake.marked == {
        "liver": ["2,2,1,5,5,1,+"],
        "spleen": ["2,2,1,5,5,1,+", "2,2,2,5,5,2,+", "1,3,4,+"],
    }
    assert "note: The boxes without a name are used for each of the 2 concepts; 'liver='" in err


def test_concepts_that_ran_together_count_once_beside_one_with_a_box(
    run, fake, ct: Path, tmp_path: Path
) -> None:
    fake.seconds = {"spleen": 0.5, "left kidney": 0.5, "liver": 2.0}
    code, out, _ = run(
        *("segment", ct, "-c", "spleen, liver", "-c", "left kidney", "-o", tmp_path / "o.nrrd", "--json"),
        *("--box", "liver=1,2,2,5,5"),
    )
    assert code == 0
    assert json.loads(out)["stage_seconds"] == {"encoding": 2.0, "detecting": 2.5}


def test_concepts_may_come_in_one_list_and_each_is_segmented_once(
    run, fake, ct: Path, tmp_path: Path
) -> None:
    code, _, err = run("segment", ct, "-c", "liver, spleen", "-c", "Hepar", "-o", tmp_path / "o.nrrd")
    assert code == 0
    assert [phrase for phrase, _, _ in fake.asked] == ["liver", "spleen"]
    assert "'Hepar' means 'liver'" in err


def test_a_long_phrase_is_noted_with_a_shorter_one(run, fake, ct: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "segment", ct, "-c", "cyst in the upper pole of the left kidney", "-o", tmp_path / "o.nrrd"
    )
    assert code == 0
    assert "try 'left kidney cyst'" in err


def test_an_interrupt_in_the_middle_leaves_nothing_and_exits_130(run, fake, ct: Path, tmp_path: Path) -> None:
    fake.on_segment = lambda: os.kill(os.getpid(), signal.SIGINT)
    (tmp_path / "o.nrrd").write_text("older")
    code, out, err = run(
        "segment", ct, "-c", "liver", "-o", tmp_path / "o.nrrd", "--report", tmp_path / "r.json"
    )
    assert (code, out, err) == (130, "", "medsam3: Cancelled.\n")
    assert files(tmp_path) == {"ct.nrrd", "o.nrrd"}
    assert (tmp_path / "o.nrrd").read_text() == "older"


def test_an_interrupt_while_writing_leaves_nothing(
    run, fake, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MedSAM3Core.cli import segment

    real = segment.write_segmentation

    def interrupted(path, volume, found):
        os.kill(os.getpid(), signal.SIGINT)
        return real(path, volume, found)

    monkeypatch.setattr(segment, "write_segmentation", interrupted)
    assert run("segment", ct, "-c", "liver", "-o", tmp_path / "o.nrrd")[0] == 130
    assert files(tmp_path) == {"ct.nrrd"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-c", " ", "-o", "o.nrrd"], "No concept"),
        (["-c", "123", "-o", "o.nrrd"], "noun phrase"),
        (["-c", "left", "-o", "o.nrrd"], "names no structure"),
        (["-c", "liver", "-o", "o.xyz"], "ends in"),
        (["-c", "liver", "-o", "absent/o.nrrd"], "does not exist"),
        (["-c", "liver", "-o", "o.nrrd", "--overlay", "o.jpg"], "ends in .png"),
        (["-c", "liver", "-o", "o.nrrd", "--report", "o.txt"], "ends in .json"),
        (["-c", "liver", "-o", "o.png", "--overlay", "o.png"], "same name"),
        (["-c", "liver", "-o", "o.nrrd", "--box", "1,2,3"], "expected K,I0,J0,I1,J1"),
        (["-c", "liver", "-o", "o.nrrd", "--box", "1,5,2,3,4"], "first <= last"),
        (["-c", "liver", "-o", "o.nrrd", "--box", "9,0,0,3,3"], "extent is i=0..9, j=0..11, k=0..3"),
        (["-c", "liver", "-o", "o.nrrd", "--box3d", "0,0,0,10,3,3"], "extent is i=0..9"),
        (["-c", "liver", "-o", "o.nrrd", "--point", "1,2"], "expected K,I,J"),
        (["-c", "liver", "-o", "o.nrrd", "--point", "4,0,0"], "k=0..3; click inside"),
        (["-c", "liver", "-o", "o.nrrd", "--box", "liver=1,2,3"], "expected K,I0,J0,I1,J1"),
        (
            ["-c", "liver, spleen", "-o", "o.nrrd", "--box", "Kidneys=1,2,2,5,5"],
            "is for 'kidney', but what is segmented is liver, spleen; name one of these",
        ),
        (["-c", "liver", "-o", "o.nrrd", "--point", "spleen=1,2,2"], "ask for it with -c too"),
        (["-c", "liver", "-o", "o.nrrd", "--box3d", "=0,0,0,3,3,3"], "The concept is ''"),
        (["-c", "liver", "-o", "o.png"], "PNG cannot hold"),
        (["-c", "liver", "-o", "o.nrrd", "--time", "3"], "has one time only"),
    ],
)
def test_bad_input_is_one_line_code_2_and_nothing_written(
    run, fake, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("segment", ct, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert files(tmp_path) == {"ct.nrrd"}
    assert fake.asked == []


def test_an_image_that_is_not_there(run, fake, tmp_path: Path) -> None:
    code, _, err = run("segment", tmp_path / "no.nrrd", "-c", "liver", "-o", tmp_path / "o.nrrd")
    assert code == 2
    assert "does not exist" in err
    assert files(tmp_path) == set()


def test_a_model_that_is_unknown(run, ct: Path, tmp_path: Path) -> None:
    code, _, err = run("segment", ct, "-c", "liver", "-o", tmp_path / "o.nrrd", "--model", "no-such-model")
    assert code == 2
    assert "no-such-model" in err
    assert err.count("\n") == 1


def test_a_device_that_is_unknown(run, ct: Path, tmp_path: Path) -> None:
    code, _, err = run("segment", ct, "-c", "liver", "-o", tmp_path / "o.nrrd", "--device", "tpu")
    assert code == 2
    assert "tpu" in err


def test_an_overlay_is_a_png(run, fake, ct: Path, tmp_path: Path) -> None:
    code, _, _ = run("segment", ct, "-c", "liver", "-o", tmp_path / "o.nrrd", "--overlay", tmp_path / "o.png")
    assert code == 0
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_a_concept_given_twice_is_segmented_once(run, fake, ct: Path, tmp_path: Path) -> None:
    _, _, err = run("segment", ct, "-c", "liver", "-c", "Liver", "-c", "hepar", "-o", tmp_path / "out.nrrd")
    assert "note: 'Liver' was given before; it is segmented once." in err
    assert [phrase for phrase, _, _ in fake.asked].count("liver") == 1


def test_a_series_of_a_file_that_has_none_is_bad_input(run, fake, ct: Path, tmp_path: Path) -> None:
    code, _, err = run("segment", ct, "-c", "liver", "-o", tmp_path / "out.nrrd", "--series", "2")
    assert code == 2
    assert "--series chooses among the series of a folder, but ct.nrrd is a file" in err
    assert files(tmp_path) == {"ct.nrrd"}
