from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MedSAM3Core.errors import OutputError, VolumeError
from MedSAM3Core.volume import read_sequence, read_volume, video
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.seqnrrd import write_label_sequence
from MedSAM3Core.volume.video import open_film, write_film

av = pytest.importorskip("av", reason="PyAV is not installed; pip install 'MedSAM3Core[video]'")


def pictures(count: int, rows: int = 48, columns: int = 64):
    """A red block on grey that moves two pixels a frame."""
    for t in range(count):
        picture = np.full((rows, columns, 3), 60, np.uint8)
        picture[16:32, 2 * t : 2 * t + 16] = (220, 40, 40)
        yield picture


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    write_film(path, pictures(12), 10.0)
    film = open_film(path)
    assert (film.rows, film.columns, film.promised, film.rate) == (48, 64, 12, 10.0)
    frames = list(film.frames())
    assert [round(one.time_s, 3) for one in frames] == [t / 10 for t in range(12)]
    for t, (frame, picture) in enumerate(zip(frames, pictures(12), strict=True)):
        assert frame.is_2d
        assert frame.is_rgb
        assert not frame.calibrated
        assert np.abs(frame.array[0].astype(int) - picture).mean() < 8, f"frame {t}"
    assert film.notices == []


def test_odd_sizes_are_evened(tmp_path: Path) -> None:
    write_film(tmp_path / "film.mp4", pictures(2, 47, 63), 25)
    assert (open_film(tmp_path / "film.mp4").rows, open_film(tmp_path / "film.mp4").columns) == (48, 64)


def test_a_film_is_an_image_of_many_times(tmp_path: Path) -> None:
    write_film(tmp_path / "film.mp4", pictures(5), 25)
    with pytest.raises(VolumeError, match=r"holds 5 volumes \(frames\)"):
        read_volume(tmp_path / "film.mp4")
    assert read_volume(tmp_path / "film.mp4", time=3).array.shape == (1, 48, 64, 3)
    assert len(read_sequence(tmp_path / "film.mp4")) == 5


def test_frames_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    import tracemalloc

    write_film(tmp_path / "film.mp4", pictures(60, 240, 320), 25)
    frames = open_film(tmp_path / "film.mp4").frames()
    next(frames)
    tracemalloc.start()
    for _ in frames:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 240 * 320 * 3


def test_damaged_films(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no film" * 500)
    with pytest.raises(VolumeError, match=r"film\.mp4 cannot be read as a film"):
        open_film(path)
    write_film(tmp_path / "film.avi", pictures(40, 240, 320), 25)
    whole = (tmp_path / "film.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 2 // 3])
    film = open_film(tmp_path / "cut.avi")
    assert 0 < sum(1 for _ in film.frames()) < 40
    assert "promises 40 frames" in film.notices[0]
    with pytest.raises(VolumeError, match="does not exist"):
        open_film(tmp_path / "absent.mp4")


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write_film(tmp_path / "real.mp4", pictures(3), 25)
    (tmp_path / "list.mp4").write_text(
        f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/real.mp4\nfile:{tmp_path}/real.mp4\n"
    )
    with pytest.raises(VolumeError, match="cannot be read as a film"):
        list(open_film(tmp_path / "list.mp4").frames())


def test_too_long_for_reading_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_film(tmp_path / "film.mp4", pictures(5), 25)
    monkeypatch.setattr(video, "MOST_BYTES", 4 * 48 * 64 * 3)
    with pytest.raises(VolumeError, match="too many to be read at once; follow it with medsam3 track"):
        read_sequence(tmp_path / "film.mp4")


def test_films_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a name that ends in \.mp4 or \.avi"):
        write_film(tmp_path / "film.gif", pictures(2), 25)
    with pytest.raises(OutputError, match="no picture"):
        write_film(tmp_path / "film.mp4", [], 25)
    assert list(tmp_path.iterdir()) == []


def labels_at(t: int) -> np.ndarray:
    labels = np.zeros((2, 5, 6), np.uint16)
    labels[t % 2, 1:3, t : t + 2] = t + 1
    return labels


def test_label_sequences_are_read_back(tmp_path: Path, tilted: np.ndarray) -> None:
    path = tmp_path / "labels.seq.nrrd"
    with write_label_sequence(path, Geometry((2, 5, 6), tilted)) as sequence:
        for t in range(4):
            sequence.add(labels_at(t), t * 0.5)
    volumes = read_sequence(path)
    assert len(volumes) == 4
    for t, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.array, labels_at(t))
        np.testing.assert_allclose(volume.geometry.ijk_to_ras, tilted, atol=1e-9)


def test_slicer_reads_label_sequences(tmp_path: Path, tilted: np.ndarray) -> None:
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    path = tmp_path / "labels.seq.nrrd"
    with write_label_sequence(path, Geometry((2, 5, 6), tilted)) as sequence:
        for t in range(4):
            sequence.add(labels_at(t), t * 0.5)
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    storage = slicer.vtkMRMLVolumeSequenceStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    assert node.GetNumberOfDataNodes() == 4
    assert (node.GetIndexName(), node.GetIndexUnit(), node.GetNthIndexValue(2)) == ("time", "s", "1")
    for t in range(4):
        frame = node.GetNthDataNode(t)
        assert frame.IsA("vtkMRMLLabelMapVolumeNode")
        image = frame.GetImageData()
        array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
        np.testing.assert_array_equal(array, labels_at(t))
        matrix = (
            slicer.vtkMatrix4x4() if hasattr(slicer, "vtkMatrix4x4") else __import__("vtk").vtkMatrix4x4()
        )
        frame.GetIJKToRASMatrix(matrix)
        values = [[matrix.GetElement(r, c) for c in range(4)] for r in range(4)]
        np.testing.assert_allclose(values, tilted, atol=1e-6)


def test_an_empty_sequence_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="no time to write"),
        write_label_sequence(tmp_path / "x.seq.nrrd", Geometry((1, 4, 4), np.eye(4))),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
