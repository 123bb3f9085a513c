"""Compressed transfer syntaxes as the plugins of pydicom write them, grey and colour, in loops too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
)

from MedSAM3Core.volume import read_sequence, read_volume

Make = Callable[..., Dataset]
Save = Callable[..., Path]
PLUGINS = {JPEGLSLossless: "jpeg_ls", JPEG2000Lossless: "openjpeg"}
SYNTAXES = [JPEGLSLossless, JPEG2000Lossless, RLELossless]


def compress(dataset: Dataset, syntax: str) -> None:
    if syntax in PLUGINS:
        pytest.importorskip(PLUGINS[syntax], reason="the decoder's package is not installed")
    dataset.compress(syntax, generate_instance_uid=False)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_a_ct_series(make_slice: Make, save_series: Save, syntax: str) -> None:
    rng = np.random.default_rng(3)
    slices = []
    for n in range(3):
        one = make_slice(2.0 * n, n, Rows=64, Columns=80)
        one.PixelData = rng.integers(0, 4095, (64, 80)).astype(np.uint16).tobytes()
        slices.append(one)
    expected = read_volume(save_series(slices, "plain"))
    for one in slices:
        compress(one, syntax)
    volume = read_volume(save_series(slices, "compressed"))
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.geometry.same_grid(expected.geometry)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_an_ultrasound_loop_in_colour(make_slice: Make, save_series: Save, syntax: str) -> None:
    pixels = np.random.default_rng(5).integers(0, 255, (4, 64, 80, 3), dtype=np.uint8)
    loop = make_slice(
        0, 1, SOPClassUID=UltrasoundMultiFrameImageStorage, Modality="US", NumberOfFrames=4, SamplesPerPixel=3,
        PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7, Rows=64,
        Columns=80, ImagePositionPatient=None, ImageOrientationPatient=None, RescaleSlope=None,
        RescaleIntercept=None, FrameTime=40.0, PixelData=pixels.tobytes(),
    )  # fmt: skip
    compress(loop, syntax)
    sequence = read_sequence(next(save_series([loop]).iterdir()))
    np.testing.assert_array_equal(np.concatenate([one.array for one in sequence]), pixels)
    assert [one.time_s for one in sequence] == pytest.approx([0, 0.04, 0.08, 0.12])


def test_planes_of_colour(make_slice: Make, save_series: Save) -> None:
    pixels = np.random.default_rng(6).integers(0, 255, (16, 20, 3), dtype=np.uint8)
    picture = make_slice(
        0, 1, Modality="ES", SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=1, Rows=16,
        Columns=20, BitsAllocated=8, BitsStored=8, HighBit=7, RescaleSlope=None, RescaleIntercept=None,
        PixelData=np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).tobytes(),
    )  # fmt: skip
    volume = read_volume(next(save_series([picture]).iterdir()))
    np.testing.assert_array_equal(volume.array[0], pixels)
    assert volume.modality == "ENDO"


@pytest.mark.parametrize(
    ("bits", "colours"), [(10, "MONOCHROME1"), (12, "MONOCHROME2"), (8, "PALETTE COLOR")]
)
def test_jpeg_ls_gives_the_stored_values(
    make_slice: Make, save_series: Save, bits: int, colours: str
) -> None:
    """GDCM would turn MONOCHROME1 round, apply palettes, and mistake 10 bits that are said to be 12."""
    rng, dtype = np.random.default_rng(7), np.uint8 if bits == 8 else np.uint16
    picture = make_slice(
        0, 1, Modality="CR", Rows=64, Columns=80, BitsAllocated=8 * dtype().itemsize, BitsStored=bits, HighBit=bits - 1,
        PhotometricInterpretation=colours, RescaleSlope=None, RescaleIntercept=None,
        PixelData=rng.integers(0, 2**bits, (64, 80)).astype(dtype).tobytes(),
    )  # fmt: skip
    if colours == "PALETTE COLOR":
        for colour in ("Red", "Green", "Blue"):
            setattr(picture, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            table = rng.integers(0, 2**16, 256).astype(np.uint16)
            setattr(picture, f"{colour}PaletteColorLookupTableData", table.tobytes())
    plain = read_volume(save_series([picture], "plain"))
    compress(picture, JPEGLSLossless)
    small = read_volume(save_series([picture], "small"))
    np.testing.assert_array_equal(small.array, plain.array)
    assert small.notices == plain.notices
