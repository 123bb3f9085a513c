"""MetaImage, which PROMISE12 and others are published in."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume import read_volume


@pytest.fixture
def image():
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.6, 0.7, 3.5))
    image.SetOrigin((10, -20, 30))
    angle = np.radians(20)
    image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
    return image


@pytest.mark.parametrize("name", ["case.mha", "case.mhd"])
def test_voxels_and_place_are_those_of_the_nrrd(image, name, tmp_path):
    for file in (name, "case.nrrd"):
        sitk.WriteImage(image, str(tmp_path / file))
    meta, nrrd = read_volume(tmp_path / name), read_volume(tmp_path / "case.nrrd")
    np.testing.assert_array_equal(meta.array, nrrd.array)
    assert meta.geometry.same_grid(nrrd.geometry)
    assert meta.geometry.spacing == pytest.approx((0.6, 0.7, 3.5))


def test_a_header_without_its_voxels_is_told(image, tmp_path):
    sitk.WriteImage(image, str(tmp_path / "case.mhd"))
    (tmp_path / "case.raw").unlink()
    with pytest.raises(VolumeError, match=r"names case\.raw as its voxels"):
        read_volume(tmp_path / "case.mhd")


def test_voxels_that_are_cut_short_are_told(image, tmp_path):
    sitk.WriteImage(image, str(tmp_path / "case.mhd"))
    raw = tmp_path / "case.raw"
    raw.write_bytes(raw.read_bytes()[:100])
    with pytest.raises(VolumeError, match=r"case\.mhd cannot be read as MetaImage"):
        read_volume(tmp_path / "case.mhd")
