from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import JPEGLSLossless, UltrasoundMultiFrameImageStorage

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume import read_sequence
from MedSAM3Core.volume.dicom.cine import open_cine

Make = Callable[..., Dataset]


def loop(make_slice: Make, path: Path, frames: int = 5, **tags: object) -> np.ndarray:
    pixels = np.random.default_rng(5).integers(0, 255, (frames, 64, 80, 3), dtype=np.uint8)
    one = make_slice(
        0, 1, SOPClassUID=UltrasoundMultiFrameImageStorage, Modality="US", NumberOfFrames=frames, SamplesPerPixel=3,
        PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7, Rows=64,
        Columns=80, ImagePositionPatient=None, ImageOrientationPatient=None, RescaleSlope=None,
        RescaleIntercept=None, FrameTime=40.0, PixelData=pixels.tobytes(), **tags,
    )  # fmt: skip
    one.save_as(path, enforce_file_format=True)
    return pixels


def test_frames_are_those_of_the_whole(make_slice: Make, tmp_path: Path) -> None:
    pixels = loop(make_slice, tmp_path / "loop.dcm")
    cine = open_cine(tmp_path / "loop.dcm")
    assert cine is not None
    assert cine.count == 5
    for frame, whole in zip(cine.frames(), read_sequence(tmp_path / "loop.dcm"), strict=True):
        np.testing.assert_array_equal(frame.array, whole.array)
        assert frame.geometry.same_grid(whole.geometry)
        assert (frame.time_s, frame.modality) == (pytest.approx(whole.time_s), whole.modality)
    assert np.array_equal(next(cine.frames()).array[0], pixels[0])


def test_a_compressed_loop(make_slice: Make, tmp_path: Path) -> None:
    pytest.importorskip("jpeg_ls")
    from pydicom import dcmread

    pixels = loop(make_slice, tmp_path / "loop.dcm")
    one = dcmread(tmp_path / "loop.dcm")
    one.compress(JPEGLSLossless, generate_instance_uid=False)
    one.save_as(tmp_path / "small.dcm", enforce_file_format=True)
    cine = open_cine(tmp_path / "small.dcm")
    assert np.array_equal(np.concatenate([frame.array for frame in cine.frames()]), pixels)


def test_a_long_loop_costs_no_memory(make_slice: Make, tmp_path: Path) -> None:
    loop(make_slice, tmp_path / "loop.dcm", 400)
    frames = open_cine(tmp_path / "loop.dcm").frames()
    next(frames)
    tracemalloc.start()
    assert sum(1 for _ in frames) == 399
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 64 * 80 * 3  # of 400


def test_what_is_read_as_a_whole(make_slice: Make, tmp_path: Path) -> None:
    make_slice(0, 1).save_as(tmp_path / "slice.dcm", enforce_file_format=True)
    assert open_cine(tmp_path / "slice.dcm") is None
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "slice.dcm").read_bytes()[:300])
    with pytest.raises(VolumeError):
        open_cine(tmp_path / "cut.dcm")


def test_a_loop_that_is_cut_short(make_slice: Make, tmp_path: Path) -> None:
    loop(make_slice, tmp_path / "loop.dcm", 20)
    whole = (tmp_path / "loop.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError, match=r"cut\.dcm"):
        list(open_cine(tmp_path / "cut.dcm").frames())
