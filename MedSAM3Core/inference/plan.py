"""How a volume is cut into the slices a model sees, and how masks and boxes come back to its voxels.

Two frames: the **grid** is the volume's own array (slices, rows, columns), that is (k, j, i); the **plane**
frame is the same voxels with one grid axis in front, (slice, row, column), turned as a radiologist looks at
it. A plane is a permutation and flips of the grid and nothing else: no voxel is ever resampled, so the way
back is exact.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.prompts import Box
from MedSAM3Core.volume.geometry import Geometry

if TYPE_CHECKING:
    from MedSAM3Core.volume import Volume

AXIS_NAMES = ("sagittal", "coronal", "axial")
"""Name of the slices whose normal is the patient's x, y and z axis."""

COARSE_AXIS_RATIO = 1.5
"""At this ratio to the next coarser spacing, the coarsest axis is the one slices were stacked along."""

UNORIENTED_MODALITIES = frozenset({"US", "XR", "OCT", "FUNDUS", "DERM", "HISTO", "ENDO"})
"""Modalities that are looked at as stored: their files carry no patient orientation to turn them by."""

# For each name: the RAS direction along which slices, rows and columns increase, as (axis, sign). Axial:
# anterior up and the patient's right on the viewer's left; coronal: head up, the same side; sagittal: head
# up, anterior on the left.
_CANONICAL = {
    "axial": ((2, +1), (1, -1), (0, -1)),
    "coronal": ((1, +1), (2, -1), (0, -1)),
    "sagittal": ((0, -1), (2, -1), (1, -1)),
}


@dataclass(frozen=True)
class PlaneBox:
    """A box in the plane frame, voxel indices, both ends inclusive.

    Attributes:
        slices: First and last slice.
        rows: First and last row.
        columns: First and last column.
        positive: Whether the concept is inside.
    """

    slices: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    positive: bool = True

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Index of the box into a plane-frame array (slices, rows, columns)."""
        return tuple(slice(a, b + 1) for a, b in (self.slices, self.rows, self.columns))  # type: ignore[return-value]

    @property
    def middle(self) -> int:
        """Middle slice."""
        return (self.slices[0] + self.slices[1]) // 2

    def relative(self, rows: int, columns: int) -> tuple[float, float, float, float]:
        """Centre x, centre y, width and height relative to a slice of ``rows`` x ``columns`` pixels, 0..1."""
        x0, x1 = self.columns[0] / columns, (self.columns[1] + 1) / columns
        y0, y1 = self.rows[0] / rows, (self.rows[1] + 1) / rows
        return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


@dataclass(frozen=True)
class SlicePlan:
    """The cut of one grid into slices.

    Attributes:
        geometry: The grid.
        name: "axial", "coronal" or "sagittal", by the patient axis nearest to the slices' normal.
        axes: Grid array axes (of (k, j, i): 0, 1, 2) that become slice, row and column.
        flips: Which of slice, row and column run against the grid's index.
    """

    geometry: Geometry
    name: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def for_volume(cls, volume: Volume, axis: str = "auto") -> SlicePlan:
        """Plan of a volume; ``axis`` is "auto", "axial", "coronal" or "sagittal"."""
        return cls.choose(volume.geometry, axis, volume.modality, bool(volume.is_rgb))

    @classmethod
    def choose(
        cls, geometry: Geometry, axis: str = "auto", modality: str | None = None, is_rgb: bool = False
    ) -> SlicePlan:
        """Plan for a grid.

        "auto" takes the axis of a single slice; else the axis whose spacing in mm is clearly the coarsest
        (the one the scanner stacked slices along, so that the slices are sharp); else axial. Colour images
        and modalities without patient orientation are cut along the array's first axis and looked at as
        stored.

        Args:
            geometry: The volume's grid.
            axis: "auto", "axial", "coronal" or "sagittal".
            modality: The volume's modality, see `Volume`.
            is_rgb: Whether the volume is in colour.

        Raises:
            VolumeError: If ``axis`` is none of these.
        """
        names = _name_axes(geometry)
        if axis not in ("auto", *AXIS_NAMES):
            raise VolumeError(f"The axis is {axis!r}; expected auto, axial, coronal or sagittal.")
        unoriented = is_rgb or modality in UNORIENTED_MODALITIES
        if unoriented and axis in ("auto", names[0]):
            return cls(geometry, names[0], (0, 1, 2), (False, False, False))
        name = _choose_name(geometry, names) if axis == "auto" else axis
        directions = _CANONICAL[name]
        axes = tuple(names.index(AXIS_NAMES[ras]) for ras, _ in directions)
        flips = tuple(
            _along(geometry, array_axis)[ras] * sign < 0
            for array_axis, (ras, sign) in zip(axes, directions, strict=True)
        )
        return cls(geometry, name, axes, flips)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in the plane frame: (slices, rows, columns)."""
        return tuple(self.geometry.shape[a] for a in self.axes)  # type: ignore[return-value]

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.shape[0]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between slices, rows and columns."""
        return tuple(self.geometry.spacing[2 - a] for a in self.axes)  # type: ignore[return-value]

    @property
    def description(self) -> str:
        """Axis in words, for provenance: its name and the grid axis it fell on."""
        return f"{self.name} (grid axis {'kji'[self.axes[0]]})"

    def to_plane(self, array: np.ndarray) -> np.ndarray:
        """View of a grid array (slices, rows, columns[, channels]) in the plane frame."""
        order = (*self.axes, *range(3, array.ndim))
        return array.transpose(order)[self._flip_index]

    def to_grid(self, array: np.ndarray) -> np.ndarray:
        """View of a plane-frame array (slices, rows, columns[, channels]) in the grid order again."""
        inverse = (*np.argsort(self.axes), *range(3, array.ndim))
        return array[self._flip_index].transpose(inverse)

    @property
    def _flip_index(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)

    def grid_slice(self, index: int) -> int:
        """Grid index, along the slicing axis, of plane slice ``index``; the same formula leads back."""
        return self.count - 1 - index if self.flips[0] else index

    def box_to_plane(self, box: Box) -> PlaneBox:
        """A voxel box of the grid in the plane frame.

        Raises:
            PromptError: If it is outside the grid.
        """
        box.check_inside(self.geometry.shape)
        ends = (box.k, box.j, box.i)
        ranges = []
        for axis, flip, size in zip(self.axes, self.flips, self.shape, strict=True):
            first, last = ends[axis]
            ranges.append((size - 1 - last, size - 1 - first) if flip else (first, last))
        return PlaneBox(ranges[0], ranges[1], ranges[2], box.positive)

    def box_to_grid(self, box: PlaneBox) -> Box:
        """A plane-frame box as a voxel box of the grid; undoes `box_to_plane`."""
        ends: dict[int, tuple[int, int]] = {}
        for axis, flip, size, (first, last) in zip(
            self.axes, self.flips, self.shape, (box.slices, box.rows, box.columns), strict=True
        ):
            ends[axis] = (size - 1 - last, size - 1 - first) if flip else (first, last)
        return Box(i=ends[2], j=ends[1], k=ends[0], positive=box.positive)


def canonical_slices(volume: Volume, axis: str = "auto") -> np.ndarray:
    """The slices of a volume as the model is to see them, before windowing.

    Args:
        volume: The volume.
        axis: "auto", "axial", "coronal" or "sagittal".

    Returns:
        View (slices, rows, columns[, channels]) of the volume's array in the plane frame of
        `SlicePlan.for_volume`.
    """
    return SlicePlan.for_volume(volume, axis).to_plane(volume.array)


def _along(geometry: Geometry, array_axis: int) -> np.ndarray:
    """Unit vector in RAS along which the index of a grid array axis increases."""
    step = geometry.ijk_to_ras[:3, 2 - array_axis]
    return step / np.linalg.norm(step)


def _name_axes(geometry: Geometry) -> tuple[str, str, str]:
    """Name of the slices across each grid axis, each name once: the assignment of largest summed cosines."""
    cosines = np.abs([_along(geometry, axis) for axis in range(3)])
    # Rounded, and ordered so that a tie (a volume turned by 45 degrees) keeps the array's first axis axial.
    orders = sorted(itertools.permutations(range(3)), reverse=True)
    best = max(orders, key=lambda p: round(float(sum(cosines[a, p[a]] for a in range(3))), 6))
    return tuple(AXIS_NAMES[ras] for ras in best)  # type: ignore[return-value]


def _choose_name(geometry: Geometry, names: tuple[str, str, str]) -> str:
    single = [axis for axis in range(3) if geometry.shape[axis] == 1]
    if len(single) == 1:
        return names[single[0]]
    spacing = [geometry.spacing[2 - axis] for axis in range(3)]
    order = sorted(range(3), key=lambda axis: spacing[axis])
    if spacing[order[2]] >= COARSE_AXIS_RATIO * spacing[order[1]]:
        return names[order[2]]
    return "axial"
