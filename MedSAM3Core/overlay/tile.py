"""One slice as a picture: grey or colour, objects filled and outlined, sides named, a scale bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from MedSAM3Core.inference.plan import SlicePlan

Colour = tuple[int, int, int]

OVERSAMPLING = 2
"""Tiles are painted at twice their size and reduced, which smooths outlines and letters' surroundings."""
FILL_OPACITY = 0.30
OUTLINE_PIXELS = 2
TEXT: Colour = (235, 235, 235)
FAINT: Colour = (150, 150, 150)
SHADOW: Colour = (0, 0, 0)
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")
_DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))
_OBLIQUE = 0.35
"""Direction cosines from here on are named: an edge between right and front is "RA"."""
_BARS_MM = (50, 10, 5, 1)


@dataclass(frozen=True)
class View:
    """A rectangle of a plane, in pixels of the plane, both ends inclusive.

    Attributes:
        rows: First and last row.
        columns: First and last column.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def index(self) -> tuple[slice, slice]:
        """Index into an array (rows, columns)."""
        return slice(self.rows[0], self.rows[1] + 1), slice(self.columns[0], self.columns[1] + 1)

    def size_mm(self, plan: SlicePlan) -> tuple[float, float]:
        """Width and height in mm."""
        _, row_mm, column_mm = plan.spacing
        return (self.columns[1] - self.columns[0] + 1) * column_mm, (self.rows[1] - self.rows[0] + 1) * row_mm


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A sans-serif font of the system; Pillow's own, which has ASCII letters only, where none is found."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def paint_slice(
    pixels: np.ndarray, masks: Sequence[tuple[np.ndarray, Colour]], size: tuple[int, int]
) -> Image.Image:
    """Enlarge a slice and lay objects over it.

    Args:
        pixels: uint8 (rows, columns) or (rows, columns, 3).
        masks: Boolean (rows, columns) and colour of each object; later ones lie on top.
        size: Width and height of the picture in pixels; carries the aspect in mm.

    Returns:
        RGB image of ``size``.
    """
    large = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    picture = np.asarray(
        Image.fromarray(pixels).convert("RGB").resize(large, Image.Resampling.BICUBIC), np.float32
    ).copy()
    for mask, colour in masks:
        if not mask.any():
            continue
        inside = _enlarge(mask, large)
        picture[inside] += FILL_OPACITY * (np.array(colour, np.float32) - picture[inside])
    for mask, colour in masks:
        if not mask.any():
            continue
        inside = _enlarge(mask, large)
        width = OUTLINE_PIXELS * OVERSAMPLING
        picture[inside & ~ndimage.binary_erosion(inside, iterations=width)] = colour
    image = Image.fromarray(np.rint(picture).astype(np.uint8))
    return image.resize(size, Image.Resampling.LANCZOS)


def _enlarge(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size, its outline between voxels smoothed; reduced, nothing of it vanishes."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    if size[0] < mask.shape[1] or size[1] < mask.shape[0]:
        return np.asarray(image.resize(size, Image.Resampling.BOX)) > 0
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)) >= 128


def edge_letters(plan: SlicePlan) -> dict[str, str]:
    """Names of the patient's sides at the left, right, top and bottom edge of the plan's slices."""
    down, right = (_along(plan, axis) for axis in (1, 2))
    return {
        "left": _letters(-right),
        "right": _letters(right),
        "top": _letters(-down),
        "bottom": _letters(down),
    }


def _along(plan: SlicePlan, plane_axis: int) -> np.ndarray:
    """Unit vector in RAS along which rows (1) or columns (2) of the plane increase."""
    step = plan.geometry.ijk_to_ras[:3, 2 - plan.axes[plane_axis]] * (-1 if plan.flips[plane_axis] else 1)
    return step / np.linalg.norm(step)


def _letters(direction: np.ndarray) -> str:
    order = np.argsort(-np.abs(direction))
    return "".join(
        _DIRECTIONS[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) >= _OBLIQUE
    )


def write_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int
) -> None:
    """Write over a picture: light letters with a dark rim."""
    draw.text(place, text, TEXT, font(size), anchor, stroke_width=2, stroke_fill=SHADOW)


def name_edges(image: Image.Image, letters: dict[str, str]) -> None:
    """Write the patient's sides at the middle of each edge."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    places: dict[str, tuple[tuple[float, float], str]] = {
        "left": ((6, height / 2), "lm"),
        "right": ((width - 6, height / 2), "rm"),
        "top": ((width / 2, 6), "ma"),
        "bottom": ((width / 2, height - 6), "md"),
    }
    for edge, (place, anchor) in places.items():
        write_text(draw, place, letters[edge], anchor, 16)


def draw_scale(image: Image.Image, mm_per_pixel: float) -> None:
    """Draw a bar of a round length, at most a third of the picture's width, at its lower right."""
    third = image.width * mm_per_pixel / 3
    length = next((bar for bar in _BARS_MM if bar <= third), None)
    if length is None:
        return
    draw = ImageDraw.Draw(image)
    right, bottom = image.width - 12, image.height - 12
    left = right - length / mm_per_pixel
    draw.rectangle((left - 1, bottom - 5, right + 1, bottom + 1), fill=SHADOW)
    draw.rectangle((left, bottom - 4, right, bottom), fill=TEXT)
    write_text(draw, ((left + right) / 2, bottom - 8), f"{length} mm", "md", 14)
