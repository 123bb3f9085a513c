"""The grid: spacing, volume of a voxel, comparison, and affines that are none."""

import numpy as np
import pytest

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume.geometry import Geometry


def test_spacing_and_voxel_volume_of_a_tilted_grid(tilted: np.ndarray, left_handed: np.ndarray) -> None:
    for affine in (tilted, left_handed):
        grid = Geometry((4, 5, 6), affine)
        assert grid.spacing == pytest.approx((0.7, 0.9, 2.5))
        assert grid.voxel_volume_ml == pytest.approx(0.7 * 0.9 * 2.5 / 1000)


def test_shear_does_not_change_the_volume_of_a_voxel(tilted: np.ndarray) -> None:
    sheared = tilted.copy()
    sheared[:3, 2] += 0.8 * tilted[:3, 1]
    assert Geometry((4, 5, 6), sheared).voxel_volume_ml == pytest.approx(0.7 * 0.9 * 2.5 / 1000)


def test_same_grid_looks_at_the_far_corners(tilted: np.ndarray) -> None:
    grid = Geometry((40, 50, 60), tilted)
    turned = tilted.copy()
    turned[:3, 0] *= 1 + 1e-5  # 0.4 micrometres on one voxel, 0.4 millimetres are not reached at the far side
    assert grid.same_grid(Geometry((40, 50, 60), turned))
    turned[:3, 0] *= 1 + 1e-3
    assert not grid.same_grid(Geometry((40, 50, 60), turned))
    assert not grid.same_grid(Geometry((40, 50, 61), tilted))


@pytest.mark.parametrize(
    "affine", [np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan), np.eye(3)]
)
def test_affines_that_are_none(affine: np.ndarray) -> None:
    with pytest.raises(VolumeError, match="affine"):
        Geometry((4, 5, 6), affine)


def test_the_affine_cannot_be_changed_afterwards(tilted: np.ndarray) -> None:
    grid = Geometry((4, 5, 6), tilted)
    tilted[0, 0] = 99
    assert grid.ijk_to_ras[0, 0] != 99
    with pytest.raises(ValueError, match="read-only"):
        grid.ijk_to_ras[0, 0] = 1
