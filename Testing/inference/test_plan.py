import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from MedSAM3Core.errors import PromptError, VolumeError
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.prompts import Box
from MedSAM3Core.volume.geometry import Geometry


def stored(
    shape_ras: tuple[int, int, int],
    spacing: tuple[float, ...],
    order: tuple[int, ...],
    signs: tuple[int, ...],
):
    """A grid whose columns, rows and slices run along the RAS axes ``order``, and a code of its voxels.

    The code of a voxel says where it is in the patient, so that an orientation can be read off an array.
    """
    affine = np.eye(4)
    affine[:3, :3] = 0
    for ijk, (ras, sign) in enumerate(zip(order, signs, strict=True)):
        affine[ras, ijk] = sign * spacing[ras]
    sizes = [shape_ras[ras] for ras in order]
    grid = np.indices(sizes[::-1])[::-1]
    code = np.zeros(sizes[::-1], int)
    for ijk, (ras, sign) in enumerate(zip(order, signs, strict=True)):
        index = grid[ijk] if sign > 0 else sizes[ijk] - 1 - grid[ijk]
        code += index * (1, 100, 10000)[ras]
    return Geometry(tuple(sizes[::-1]), affine), code


ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("name", ["axial", "coronal", "sagittal"])
def test_every_storage_order_looks_the_same(name: str) -> None:
    views = []
    for order, signs in ORIENTATIONS:
        geometry, code = stored((3, 4, 5), (1, 1, 1), order, signs)
        plan = SlicePlan.choose(geometry, name)
        views.append(plan.to_plane(code))
        assert plan.name == name
        assert np.array_equal(plan.to_grid(plan.to_plane(code)), code)
    assert all(np.array_equal(view, views[0]) for view in views)


def test_canonical_orientation_is_the_radiologists() -> None:
    geometry, code = stored((3, 4, 5), (1, 1, 1), (0, 1, 2), (1, 1, 1))
    axial = SlicePlan.choose(geometry, "axial").to_plane(code)
    assert axial[0, 0, 0] == 2 + 300  # inferior slice, anterior row, patient's right column
    assert axial[1, 0, 0] - axial[0, 0, 0] == 10000
    sagittal = SlicePlan.choose(geometry, "sagittal").to_plane(code)
    assert sagittal[0, 0, 0] % 10 == 2  # the patient's right first
    assert sagittal[0, 0, 0] // 10000 == 4  # head up
    assert sagittal[0, 0, 1] < sagittal[0, 0, 0]  # anterior on the left
    coronal = SlicePlan.choose(geometry, "coronal").to_plane(code)
    assert coronal[0, 0, 0] // 10000 == 4
    assert coronal[0, 0, 0] % 10 == 2


def test_axis_follows_spacing_in_mm() -> None:
    for order, signs in ORIENTATIONS:
        for spacing, expected in (
            ((1, 1, 1), "axial"),
            ((0.7, 0.7, 5), "axial"),
            ((4, 0.5, 0.5), "sagittal"),
            ((0.6, 3, 0.6), "coronal"),
            ((3.9, 3.9, 2.5), "axial"),
        ):
            geometry, _ = stored((6, 6, 6), spacing, order, signs)
            assert SlicePlan.choose(geometry).name == expected
    single, _ = stored((6, 1, 6), (1, 1, 1), (0, 1, 2), (1, 1, 1))
    assert SlicePlan.choose(single).name == "coronal"


def test_images_without_orientation_are_looked_at_as_stored() -> None:
    geometry = Geometry.identity((1, 4, 5))
    array = np.arange(20).reshape(1, 4, 5)
    assert np.array_equal(SlicePlan.choose(geometry, modality="US").to_plane(array), array)
    assert np.array_equal(SlicePlan.choose(geometry, is_rgb=True).to_plane(array), array)
    assert not np.array_equal(SlicePlan.choose(geometry, modality="CT").to_plane(array), array)


def test_a_tilted_volume_is_cut_along_its_own_grid() -> None:
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    plan = SlicePlan.choose(Geometry((5, 6, 7), affine))
    assert (plan.name, plan.axes) == ("axial", (0, 1, 2))


def test_unknown_axis() -> None:
    with pytest.raises(VolumeError, match="expected auto, axial"):
        SlicePlan.choose(Geometry.identity((2, 2, 2)), "oblique")


@given(st.sampled_from(ORIENTATIONS), st.sampled_from(["axial", "coronal", "sagittal"]), st.data())
def test_boxes_go_where_their_voxels_go(orientation, name: str, data: st.DataObject) -> None:
    geometry, code = stored((3, 4, 5), (1, 1, 1), *orientation)
    ends = [tuple(sorted(data.draw(st.tuples(*[st.integers(0, n - 1)] * 2)))) for n in geometry.shape]
    box = Box(k=ends[0], j=ends[1], i=ends[2], positive=data.draw(st.booleans()))
    plan = SlicePlan.choose(geometry, name)
    plane = plan.box_to_plane(box)
    inside = code[tuple(slice(a, b + 1) for a, b in ends)]
    assert set(plan.to_plane(code)[plane.index].ravel()) == set(inside.ravel())
    assert plan.box_to_grid(plane) == box
    assert all(plan.grid_slice(plan.grid_slice(n)) == n for n in range(plan.count))


def test_box_outside_says_the_extent() -> None:
    plan = SlicePlan.choose(Geometry.identity((2, 3, 4)))
    with pytest.raises(PromptError, match=r"i=0\.\.3, j=0\.\.2, k=0\.\.1"):
        plan.box_to_plane(Box.on_slice(k=2, i=(0, 1), j=(0, 1)))


def test_relative_box() -> None:
    box = PlaneBox((0, 0), (2, 3), (0, 9))
    assert box.relative(rows=8, columns=10) == pytest.approx((0.5, 0.375, 1.0, 0.25))
