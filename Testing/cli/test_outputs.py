from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from MedSAM3Core.cli import outputs
from MedSAM3Core.cli.outputs import OutputSet, check_destination, check_folder
from MedSAM3Core.errors import OutputError, ResourceError


def test_files_appear_together_when_all_is_written(tmp_path: Path) -> None:
    with OutputSet() as out:
        out.write(tmp_path / "a.txt", lambda path: path.write_text("a"))
        out.write(tmp_path / "b.seg.nrrd", lambda path: path.write_text("b"))
        assert not (tmp_path / "a.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.seg.nrrd"]


def test_a_temporary_name_keeps_the_suffix_that_chooses_the_format(tmp_path: Path) -> None:
    seen = []
    with OutputSet() as out:
        out.write(tmp_path / "b.seg.nrrd", lambda path: (seen.append(path.name), path.write_text("b")))
    assert seen[0].endswith("b.seg.nrrd")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    old = tmp_path / "a.txt"
    old.write_text("old")

    def interrupted() -> None:
        with OutputSet() as out:
            out.write(old, lambda path: path.write_text("new"))
            raise error

    with pytest.raises(error):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert old.read_text() == "old"


def test_a_full_disk_is_said_and_the_partial_file_removed(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="is full") as caught, OutputSet() as out:
        out.write(tmp_path / "a.txt", fill)
    assert list(tmp_path.iterdir()) == []
    assert caught.value.exit_code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_real_full_device_is_recognised(tmp_path: Path) -> None:
    def fill(_: Path) -> None:
        with open("/dev/full", "wb") as device:
            device.write(b"x" * 100_000)

    with pytest.raises(OutputError, match="is full"), OutputSet() as out:
        out.write(tmp_path / "a.txt", fill)


def test_a_writer_that_hides_its_reason_is_not_believed_when_space_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("Exception thrown in SimpleITK\nsitk::ERROR: could not write")

    monkeypatch.setattr(outputs, "_free_bytes", lambda _: 1 << 30)
    with pytest.raises(OutputError, match="could not write"), OutputSet() as out:
        out.write(tmp_path / "a.nrrd", fail)
    monkeypatch.setattr(outputs, "_free_bytes", lambda _: 0)
    with pytest.raises(OutputError, match="is full"), OutputSet() as out:
        out.write(tmp_path / "a.nrrd", fail)


def test_our_own_errors_pass_through(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise ResourceError("No memory.")

    with pytest.raises(ResourceError), OutputSet() as out:
        out.write(tmp_path / "a.nrrd", fail)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("out.txt", "ends in .nrrd or .png"),
        ("folder.png", "is a folder"),
        ("absent/out.png", "does not exist"),
    ],
)
def test_places_that_cannot_be_written_to(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match=said):
        check_destination(tmp_path / name, (".nrrd", ".png"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_destination(tmp_path / "a.png", (".png",))


def test_a_folder_may_be_made_but_not_its_parents(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "new")
    with pytest.raises(OutputError, match="create that first"):
        check_folder(tmp_path / "new" / "deeper")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "file")
