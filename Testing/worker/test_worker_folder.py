import os
import pickle
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from MedSAM3Core.worker.folder import PREFIX, PrivateFolder, SharedFolder, discard_if_abandoned, sweep
from MedSAM3Core.worker.protocol import ProtocolError


@pytest.fixture
def folder(tmp_path):
    made = PrivateFolder(tmp_path)
    yield made
    made.discard()


def make_old(path):
    then = time.time() - 3600
    os.utime(path, (then, then))


def test_nobody_else_can_look_into_it(folder):
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    name = folder.write(np.zeros(3))
    assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("mapped", [False, True])
def test_an_array_is_read_once_and_its_file_is_gone(folder, mapped):
    array = np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    other_side = SharedFolder(folder.path, "w")
    received = other_side.take(folder.write(array), mapped)
    np.testing.assert_array_equal(received, array)
    assert type(received) is np.ndarray
    assert [p.name for p in folder.path.iterdir()] == ["lock"]


def test_a_mapped_array_may_be_written_to_without_anybody_seeing(folder):
    received = folder.take(folder.write(np.zeros((2, 2))), mapped=True)
    received[:] = 1
    assert received.sum() == 4


@pytest.mark.parametrize(
    "name", ["", "..", "../c1.npy", "/etc/passwd", "c1.npy/..", "c1.npz", "lock", "C1.npy", "c1.npy\n"]
)
def test_only_its_own_files_are_read(folder, name):
    with pytest.raises(ProtocolError, match="cannot be meant"):
        folder.take(name)


def test_pickles_are_not_opened(folder):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(folder.path / "opened"),))

    (folder.path / "c9.npy").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ProtocolError, match="cannot be read"):
        folder.take("c9.npy")
    np.save(folder.path / "c8.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ProtocolError, match="cannot be read"):
        folder.take("c8.npy")
    assert not (folder.path / "opened").exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"x" * 100])
def test_damaged_files_are_refused(folder, content):
    (folder.path / "c9.npy").write_bytes(content)
    with pytest.raises(ProtocolError, match="cannot be read"):
        folder.take("c9.npy", mapped=True)


def test_a_living_client_keeps_its_folder_and_a_dead_one_loses_it(tmp_path):
    code = "import sys, time; from MedSAM3Core.worker.folder import PrivateFolder\n"
    code += "f = PrivateFolder(__import__('pathlib').Path(sys.argv[1])); print(f.path, flush=True); time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    path = tmp_path / owner.stdout.readline().strip().rsplit("/", 1)[-1]
    make_old(path)
    assert sweep(tmp_path) == []
    discard_if_abandoned(path)
    assert path.is_dir()
    owner.kill()
    owner.communicate()
    assert sweep(tmp_path) == [path]
    assert not path.exists()


def test_a_folder_that_is_just_being_made_is_left_alone(tmp_path):
    young = tmp_path / (PREFIX + "young")
    young.mkdir()
    assert sweep(tmp_path) == []
    make_old(young)
    assert sweep(tmp_path) == [young]


def test_links_and_strangers_are_left_alone(tmp_path):
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / (PREFIX + "link")).symlink_to(target)
    other = tmp_path / "other-folder"
    other.mkdir()
    make_old(other)
    discard_if_abandoned(other)
    assert sweep(tmp_path) == []
    assert target.is_dir()
    assert other.is_dir()


def test_a_failed_write_leaves_nothing(folder, monkeypatch):
    def full(*_, **__):
        raise OSError("12 requested and 3 written")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="requested"):
        folder.write(np.zeros(3))
    assert [p.name for p in folder.path.iterdir()] == ["lock"]
