"""Clocks that jump, two of everything, and paths that are long, foreign or both."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from doomed import BrightSegmenter, write_ct

from MedSAM3Core.cli import main
from MedSAM3Core.volume.atomic import atomic_file
from MedSAM3Core.volume.reference import read_segmentation
from MedSAM3Core.worker.folder import LOCK_NAME, PREFIX, PrivateFolder, sweep

ROOT = Path(__file__).resolve().parents[2]
LONG = "très-long-名前-" * 4


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double in the place of `Segmenter.from_pretrained`."""
    from MedSAM3Core.inference.session import Segmenter

    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: BrightSegmenter())


# Paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "肝臓のCT画像",
        "جگر سی‌تی",
        "печень (снимок 1)",
        "with  two blanks, a ' and a \" and a %s",
        "-starts-with-a-dash",
        "🫀" * 40,  # 160 bytes in 40 characters
        "肝" * 75,  # 225 bytes in 75 characters
        "n" * 240,
    ],
)
def test_names_that_the_file_system_takes_are_taken(bright: None, tmp_path: Path, name: str) -> None:
    if sys.platform == "win32" and '"' in name:
        pytest.skip("Windows forbids that character")
    mask = write_ct(tmp_path / "ct.nrrd")
    image = tmp_path / f"{name}.nrrd"
    (tmp_path / "ct.nrrd").rename(image)
    output, report = tmp_path / f"{name}.seg.nrrd", tmp_path / f"{name}.json"
    assert main(["segment", str(image), "-c", "liver", "-o", str(output), "--report", str(report)]) == 0
    [found] = read_segmentation(output)
    np.testing.assert_array_equal(found.mask, mask)
    assert json.loads(report.read_text(encoding="utf-8"))["input"]["path"].endswith(image.name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([image.name, output.name, report.name])


def test_paths_beyond_260_characters(bright: None, tmp_path: Path) -> None:
    folder = tmp_path
    while len(str(folder)) < 300:
        folder = folder / LONG
    folder.mkdir(parents=True)
    mask = write_ct(tmp_path / "ct.nrrd")
    (tmp_path / "ct.nrrd").rename(folder / "ct.nrrd")
    output = folder / "out.seg.nrrd"
    if sys.platform == "win32" and len(str(output)) > 259:
        pytest.skip("long paths have to be switched on in Windows")
    arguments = ["segment", str(folder / "ct.nrrd"), "-c", "liver", "-o", str(output)]
    assert main([*arguments, "--overlay", str(folder / "out.png")]) == 0
    [found] = read_segmentation(output)
    np.testing.assert_array_equal(found.mask, mask)


def test_names_that_are_too_long_are_one_sentence(
    bright: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_ct(tmp_path / "ct.nrrd")
    output = tmp_path / ("n" * 300 + ".seg.nrrd")
    assert main(["segment", str(tmp_path / "ct.nrrd"), "-c", "liver", "-o", str(output)]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "too long" in line.lower()


# Clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-3 * 365 * 86400, 3 * 365 * 86400])
def test_a_clock_that_jumps_removes_no_living_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    living = PrivateFolder(tmp_path)
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / LOCK_NAME).touch()
    os.utime(dead, (time.time() - 60, time.time() - 60))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    sweep(tmp_path)
    assert living.path.is_dir()
    monkeypatch.undo()
    sweep(tmp_path)
    assert not dead.exists()
    assert living.path.is_dir()
    living.discard()


def test_durations_and_deadlines_do_not_use_the_wall_clock() -> None:
    """A clock that is set during a run must not end it: `time.time` is for comparing with files' times only."""
    allowed = {"MedSAM3Core/worker/folder.py"}
    found = set()
    for folder in ("MedSAM3Core", "MedSAM3Slicer"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time":
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == allowed


# Two of everything -----------------------------------------------------------------------------------------------


def test_two_writers_of_one_file_leave_one_of_the_two_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.nrrd"
    with atomic_file(target) as first, atomic_file(target) as second:
        first.write(b"first" * 1000)
        second.write(b"second" * 1000)
    assert target.read_bytes() == b"first" * 1000  # the one that ended last
    assert [p.name for p in tmp_path.iterdir()] == ["out.nrrd"]


def test_two_downloads_of_one_model_do_not_mix(tmp_path: Path) -> None:
    from MedSAM3Core.errors import ModelError
    from MedSAM3Core.models import hub

    with hub.only_one(tmp_path / "store", "sam3"):
        with pytest.raises(ModelError, match="another process"), hub.only_one(tmp_path / "store", "sam3"):
            pass
        with hub.only_one(tmp_path / "other", "medsam3-v1"):
            pass
    with hub.only_one(tmp_path / "store", "sam3"):
        pass
