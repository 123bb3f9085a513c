"""``medsam3 batch`` as it is typed, on the double of the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_doubles import ThresholdSegmenter, write_damaged, write_scan

from MedSAM3Core.cli import main


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    from MedSAM3Core.inference.session import Segmenter

    monkeypatch.setattr(Segmenter, "from_pretrained", lambda name, device="auto": ThresholdSegmenter())
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["batch", *(str(one) for one in arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for n in range(3):
        write_scan(tmp_path / "in" / f"s{n}.nrrd", n)
    return tmp_path / "in"


def test_all_done_is_zero_and_says_where(run, scans: Path, tmp_path: Path) -> None:
    code, out, err = run(scans, "-c", "liver", "-o", tmp_path / "out")
    assert code == 0, err
    assert "results.csv" in out
    assert "contact-001.png" in out
    assert (tmp_path / "out" / "s1.seg.nrrd").is_file()


def test_a_failed_case_is_one_line_and_exit_code_one(run, scans: Path, tmp_path: Path) -> None:
    write_damaged(scans / "bad.nrrd", 1)
    code, out, err = run(scans, "-c", "liver", "-o", tmp_path / "out", "--json")
    document = json.loads(out)
    assert code == 1
    assert (document["done"], [one["case"] for one in document["failed"]]) == (3, ["bad"])
    assert "note: bad: bad.nrrd is empty" in err
    assert "1 of 4 cases failed" in err


def test_resume_and_what_is_refused(run, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(scans, "-c", "liver", "-o", output)[0] == 0
    code, _, err = run(scans, "-c", "liver", "-o", output)
    assert (code, "add --resume" in err) == (2, True)
    code, out, _ = run(scans, "-c", "liver", "-o", output, "--resume", "--json")
    assert (code, json.loads(out)["resumed"]) == (0, 3)


def test_a_dry_run_lists_and_writes_nothing(run, scans: Path, tmp_path: Path) -> None:
    code, out, _ = run(scans, "-c", "liver", "-o", tmp_path / "out", "--dry-run", "--json")
    assert code == 0
    assert [one["case"] for one in json.loads(out)["cases"]] == ["s0", "s1", "s2"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-c", "liver"], "There is no input"),
        (["in", "-c", "liver", "--manifest", "x.csv"], "--manifest names the images itself"),
        (["in", "-c", "liver", "--engine", "spark"], "expected local or ray"),
        (["in", "-c", "liver", "--actors", "2"], "belong to --engine ray"),
        (["in", "-c", "liver", "--retry-failed"], "add --resume"),
        (["in", "-c", "liver", "--format", ".gipl"], "The format is '.gipl'"),
        (["nowhere", "-c", "liver"], "nowhere does not exist"),
        (["in"], "There is no concept"),
    ],
)
def test_bad_input_is_one_sentence(
    run, tmp_path: Path, monkeypatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "in" / "a.nrrd", 1)
    code, _, err = run(*arguments, "-o", "out")
    assert code == 2
    assert err.startswith("medsam3: ")
    assert sentence in err
