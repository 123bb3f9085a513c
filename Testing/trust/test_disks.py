"""A disk that is full and a folder that is closed, at everything that writes: a sentence, and the former file stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from acting import Acts
from doomed import NO_STRANGERS
from writers import FORMER, WRITERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file size limits and users are POSIX's")


def before(folder: Path, kind: str) -> set[Path]:
    """The former file, and all that is in the folder."""
    for name in ("model", "run", "evaluation"):
        (folder / name).mkdir(exist_ok=True)
    if FORMER[kind]:
        (folder / FORMER[kind]).write_text("former")
    return set(folder.rglob("*"))


def check(done: object, folder: Path, kind: str, there: set[Path]) -> None:
    assert done.code in (1, 2), done.errors
    said = done.output
    assert said.split(":")[0] in ("OutputError", "ResourceError", "ModelError"), said
    assert "\n" not in said
    assert said.endswith(".")
    if FORMER[kind]:
        assert (folder / FORMER[kind]).read_text() == "former"
        assert set(folder.rglob("*")) == there  # not even a hidden file


def test_every_writer_has_a_former_file() -> None:
    assert set(WRITERS) == set(FORMER)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_file_that_may_not_grow(acts: Acts, tmp_path: Path, kind: str) -> None:
    """The system refuses the write in its middle, as a quota or a full disk does."""
    folder = tmp_path / "place"
    folder.mkdir()
    there = before(folder, kind)
    # A batch of one small case writes little: how much depends on the length of the paths in it.
    most = "600" if kind == "batch" else "2048"
    check(acts.run("disk", kind, folder, most), folder, kind, there)
    if kind == "batch":
        done = acts.run("disk", kind, folder, "none")  # a batch that was begun is not written over
        assert "--resume" in done.output


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() != 0, reason="to become a stranger to a folder needs root"
)
@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_folder_of_somebody_else(acts: Acts, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    there = before(folder, kind)
    for place in (tmp_path, *tmp_path.parents):  # a stranger gets as far as the folder
        if place == Path("/tmp") or place.stat().st_uid != 0:
            break
        place.chmod(place.stat().st_mode | 0o055)
    if kind == "batch":
        there = set()
    done = acts.run("disk", kind, folder, "closed")
    if done.code == NO_STRANGERS:
        pytest.skip("this container has one user only")
    check(done, folder, kind, there)


@pytest.mark.parametrize("stage", ["full", "gone"])
def test_features_that_cannot_be_kept_only_cost_time(acts: Acts, tmp_path: Path, stage: str) -> None:
    done = acts.run("features", stage, tmp_path)
    assert done.code == 0, done.errors
    assert done.output.split() == ["0", "None", "0"]


@pytest.fixture
def small_disk(tmp_path: Path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("kind", ["sequence", "report", "checkpoint"])
def test_a_disk_that_is_really_full(acts: Acts, small_disk: Path, kind: str) -> None:
    there = before(small_disk, kind)
    (small_disk / "filler").write_bytes(b"x" * 8192)
    done = acts.run("disk", kind, small_disk, "none")
    check(done, small_disk, kind, there | {small_disk / "filler"})
    assert "full" in done.output or "space" in done.output.lower()
