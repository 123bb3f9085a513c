"""The contact sheet: tiles of key slices, where they lie, and a legend."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.overlay.slices import areas_by_slice, key_slices, mask_in_slice
from MedSAM3Core.overlay.tile import (
    FAINT,
    TEXT,
    Colour,
    View,
    draw_scale,
    edge_letters,
    font,
    name_edges,
    paint_slice,
    write_text,
)
from MedSAM3Core.prompts import Box
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.labelmap import name_of
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.windowing import Window, choose_window

BACKGROUND: Colour = (18, 18, 20)
LINE: Colour = (225, 225, 225)
TILE_PIXELS = 380
"""Longer side of a tile of a volume."""
PHOTO_PIXELS = 720
"""Longer side of a 2D image, of which there are two beside each other."""
LEGEND_PIXELS = 300
MARGIN = 14
ROW_PIXELS = 44
TOP_PIXELS = 64
NOTE_PIXELS = 40
ALIKE = 60.0
"""Colours nearer than this in RGB are hard to tell apart on a picture."""
AGAINST_BACKGROUND = 130.0
"""An outline nearer than this to what it lies on is hard to see on a colour image."""
CONTEXT = 2.2
"""A picture is at least this many times as wide as the objects, so that they are seen where they are."""
LEAST_VIEW_MM = 160.0
WORTH_CROPPING = 0.75
"""A crop that would keep more than this share of a side is not made."""
MIN_LOCATOR_SLICES = 8
LEAST_LOCATOR_PIXELS = 60


@dataclass(frozen=True, eq=False)
class _Case:
    """All that painting needs.

    Attributes:
        volume: The volume.
        segmentations: What was found in it.
        colours: A colour for each segmentation, all well apart.
        window: Intensities to 8 bits.
    """

    volume: Volume
    segmentations: Sequence[Segmentation]
    colours: list[Colour]
    window: Window

    def tile(
        self, plan: SlicePlan, index: int, view: View, size: tuple[int, int], painted: bool = True
    ) -> Image.Image:
        """One slice of a plan."""
        pixels = self.window.apply(plan.to_plane(self.volume.array)[index][view.index])
        masks = [
            (mask[view.index], colour)
            for one, colour in zip(self.segmentations, self.colours, strict=True)
            if painted and (mask := mask_in_slice(one, plan, index)) is not None
        ]
        return paint_slice(np.ascontiguousarray(pixels), masks, size)


def render_overlay(
    volume: Volume,
    segmentations: Sequence[Segmentation],
    window: Window | None = None,
    axis: str = "auto",
    tiles: int = 6,
) -> Image.Image:
    """Show segmentations on their volume, as a radiologist looks at it.

    A volume becomes a sheet of key slices, seen from the feet with the patient's right on the left (sagittal slices
    with the front on the left), in true proportions, with the sides named, a scale bar, and a second view that shows
    where the slices lie. A 2D image stands beside itself, without and with the objects.

    Args:
        volume: What was segmented.
        segmentations: Any number, all on the volume's grid; empty ones are listed as not found.
        window: Intensities to 8 bits; None chooses what suits most of the concepts.
        axis: "auto", "axial", "coronal" or "sagittal".
        tiles: How many slices at most.

    Returns:
        RGB image.
    """
    case = _Case(
        volume,
        segmentations,
        distinct_colours([one.concept.colour for one in segmentations], _backgrounds(volume, segmentations)),
        window or _common_window(volume, segmentations),
    )
    plan = SlicePlan.for_volume(volume, axis)
    pictures, locator = (_photo(case, plan), None) if volume.is_2d else _slices(case, plan, tiles)
    return _compose(pictures, locator, case, plan)


def _common_window(volume: Volume, segmentations: Sequence[Segmentation]) -> Window:
    """The window that suits the most concepts, of equals the first."""
    windows = [choose_window(volume, one.concept.phrase) for one in segmentations] or [choose_window(volume)]
    name = Counter(window.name for window in windows).most_common(1)[0][0]
    return next(window for window in windows if window.name == name)


def distinct_colours(colours: Sequence[Colour], backgrounds: Sequence[Colour | None]) -> list[Colour]:
    """Colours as given, but turned along the colour circle where they are too dark or cannot be told apart.

    The terminology gives both kidneys one colour; on a picture with a legend they need two. And its red of
    vessels is not seen on a red retina.

    Args:
        colours: One for each object.
        backgrounds: What each object lies on, None where that is grey.

    Returns:
        One for each object.
    """
    result: list[Colour] = []
    for colour, background in zip(colours, backgrounds, strict=True):
        candidates = _candidates(colour)
        clear = (c for c in candidates if _clearance(c, result, background) >= 1.0)
        best = max(candidates, key=lambda c: _clearance(c, result, background))
        result.append(next(clear, best))
    return result


def _candidates(colour: Colour) -> list[Colour]:
    """The colour, brightened if it is dark, then others by golden-section steps round the colour circle."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    value = max(value, 0.7)
    turned = [
        _rgb((hue + 0.382 * turn) % 1.0, strength, brightness)
        for strength, brightness in ((max(saturation, 0.55), value), (0.9, 1.0), (0.35, 1.0))
        for turn in range(1, 12)
    ]
    return [_rgb(hue, saturation, value), *turned]


def _clearance(colour: Colour, others: Sequence[Colour], background: Colour | None) -> float:
    """How far a colour is from all that it must be told apart from; 1 is enough."""
    shares = [_distance(colour, other) / ALIKE for other in others]
    if background is not None:
        shares.append(_distance(colour, background) / AGAINST_BACKGROUND)
    return min(shares, default=1.0)


def _distance(a: Colour, b: Colour) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


def _backgrounds(volume: Volume, segmentations: Sequence[Segmentation]) -> list[Colour | None]:
    """Mean colour of a colour image under each segmentation; None where there is none."""
    result: list[Colour | None] = []
    for one in segmentations:
        if one.extent is None or not volume.is_rgb or volume.array.dtype != np.uint8:
            result.append(None)
            continue
        red, green, blue = (round(float(n)) for n in volume.array[one.extent.slices][one.mask].mean(axis=0))
        result.append((red, green, blue))
    return result


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _photo(case: _Case, plan: SlicePlan) -> list[Image.Image]:
    """The image without and with the objects."""
    view = View((0, plan.shape[1] - 1), (0, plan.shape[2] - 1))
    size = _pixels(view, plan, PHOTO_PIXELS)
    pictures = [case.tile(plan, 0, view, size, painted) for painted in (False, True)]
    if case.volume.calibrated:
        for picture in pictures:
            name_edges(picture, edge_letters(plan))
            draw_scale(picture, view.size_mm(plan)[0] / size[0])
    return pictures


def _slices(case: _Case, plan: SlicePlan, tiles: int) -> tuple[list[Image.Image], Image.Image | None]:
    """Key slices, and a crossing plane with their places."""
    chosen = key_slices(areas_by_slice(case.segmentations, plan), tiles)
    view = _view(case, plan)
    size = _pixels(view, plan, TILE_PIXELS)
    letter = "kji"[plan.axes[0]]
    pictures = []
    for index in chosen:
        picture = case.tile(plan, index, view, size)
        label = f"{letter} = {plan.grid_slice(index)}"
        write_text(ImageDraw.Draw(picture), (8, size[1] - 6), label, "ld", 15)
        if case.volume.calibrated:
            name_edges(picture, edge_letters(plan))
            draw_scale(picture, view.size_mm(plan)[0] / size[0])
        pictures.append(picture)
    placed = case.volume.calibrated and plan.count >= MIN_LOCATOR_SLICES and not case.volume.is_rgb
    return pictures, _locator(case, plan, chosen) if placed else None


def _view(case: _Case, plan: SlicePlan) -> View:
    """The part of the slices that is shown: all of it, or around objects that are small in it."""
    boxes = [
        plan.box_to_plane(Box(one.extent.i, one.extent.j, one.extent.k))
        for one in case.segmentations
        if one.extent is not None
    ]
    ranges = []
    for axis, (size, step) in enumerate(zip(plan.shape[1:], plan.spacing[1:], strict=True)):
        ends = [(box.rows, box.columns)[axis] for box in boxes]
        if not ends:
            ranges.append((0, size - 1))
            continue
        first, last = min(end[0] for end in ends), max(end[1] for end in ends)
        width = max(CONTEXT * (last - first + 1), LEAST_VIEW_MM / step)
        ranges.append(_range_around((first + last) / 2, width, size))
    return View(ranges[0], ranges[1])


def _range_around(middle: float, width: float, size: int) -> tuple[int, int]:
    """First and last index of a range of ``width`` about ``middle``, moved inside; all where little would go."""
    if width >= WORTH_CROPPING * size:
        return 0, size - 1
    first = min(max(0, round(middle - width / 2)), size - 1 - round(width))
    return first, first + round(width)


def _pixels(view: View, plan: SlicePlan, longest: int) -> tuple[int, int]:
    """Width and height of a picture in true proportions."""
    width, height = view.size_mm(plan)
    scale = longest / max(width, height)
    return max(48, round(width * scale)), max(48, round(height * scale))


def _locator(case: _Case, plan: SlicePlan, chosen: Sequence[int]) -> Image.Image | None:
    """A crossing plane through the objects' largest section, with a line where each key slice lies.

    None of a thin slab, in which nothing would be seen.
    """
    crossing = SlicePlan.choose(case.volume.geometry, "axial" if plan.name == "coronal" else "coronal")
    areas = areas_by_slice(case.segmentations, crossing).sum(axis=0)
    index = int(areas.argmax()) if areas.any() else crossing.count // 2
    whole = View((0, crossing.shape[1] - 1), (0, crossing.shape[2] - 1))
    width_mm, height_mm = whole.size_mm(crossing)
    scale = (LEGEND_PIXELS - 2 * MARGIN) / max(width_mm, height_mm)
    size = round(width_mm * scale), round(height_mm * scale)
    if min(size) < LEAST_LOCATOR_PIXELS:
        return None
    picture = case.tile(crossing, index, whole, size)
    _draw_lines(picture, plan, crossing, chosen)
    name_edges(picture, edge_letters(crossing))
    return picture


def _draw_lines(picture: Image.Image, plan: SlicePlan, crossing: SlicePlan, chosen: Sequence[int]) -> None:
    draw = ImageDraw.Draw(picture)
    across = crossing.axes.index(plan.axes[0])  # 1: the slices are seen as rows, 2: as columns
    for index in chosen:
        grid = plan.grid_slice(index)
        place = crossing.shape[across] - 1 - grid if crossing.flips[across] else grid
        along = (place + 0.5) / crossing.shape[across]
        if across == 1:
            draw.line((0, along * picture.height, picture.width, along * picture.height), LINE)
        else:
            draw.line((along * picture.width, 0, along * picture.width, picture.height), LINE)


def _compose(
    pictures: list[Image.Image], locator: Image.Image | None, case: _Case, plan: SlicePlan
) -> Image.Image:
    """Pictures in rows, a title above, the legend on the right and the locator below it."""
    columns = len(pictures) if len(pictures) <= 3 else (2 if len(pictures) == 4 else 3)
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    grid_width = columns * (width + MARGIN) + MARGIN
    side_height = ROW_PIXELS * len(case.segmentations) + NOTE_PIXELS
    if locator is not None:
        side_height += locator.height + MARGIN
    sheet_height = TOP_PIXELS + max(rows * (height + MARGIN), side_height)
    sheet = Image.new("RGB", (grid_width + LEGEND_PIXELS, sheet_height), BACKGROUND)
    for n, picture in enumerate(pictures):
        row, column = divmod(n, columns)
        sheet.paste(picture, (MARGIN + column * (width + MARGIN), TOP_PIXELS + row * (height + MARGIN)))
    if locator is not None:
        sheet.paste(locator, (grid_width + 6, sheet_height - NOTE_PIXELS - locator.height))
    _write_title(sheet, case, plan)
    _write_legend(sheet, case, plan, grid_width + 6)
    return sheet


def _write_title(sheet: Image.Image, case: _Case, plan: SlicePlan) -> None:
    draw = ImageDraw.Draw(sheet)
    volume = case.volume
    draw.text((MARGIN, 10), _fit(volume.name, sheet.width - 2 * MARGIN, 20), TEXT, font(20))
    slices, rows, columns = volume.geometry.shape
    facts = [volume.modality or ("colour image" if volume.is_rgb else "image")]
    if volume.is_2d:
        facts.append(f"{columns} x {rows} pixels")
    else:
        facts.append(f"{plan.name} slices of {columns} x {rows} x {slices} voxels")
    if volume.calibrated:
        facts.append(" x ".join(f"{n:.3g}" for n in volume.geometry.spacing) + " mm")
    window = case.window
    facts.append(
        "as stored" if window.name == "as is" else f"{window.name} {window.low:.4g} to {window.high:.4g}"
    )
    draw.text((MARGIN, 38), _fit(" | ".join(facts), sheet.width - 2 * MARGIN, 14), FAINT, font(14))


def _write_legend(sheet: Image.Image, case: _Case, plan: SlicePlan, left: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for n, (one, colour) in enumerate(zip(case.segmentations, case.colours, strict=True)):
        y = TOP_PIXELS + n * ROW_PIXELS
        draw.rounded_rectangle(
            (left, y + 2, left + 22, y + 24), 4, fill=colour if not one.empty else None, outline=colour
        )
        width = LEGEND_PIXELS - 46
        draw.text((left + 32, y), _fit(name_of(one), width, 16), TEXT if not one.empty else FAINT, font(16))
        draw.text((left + 32, y + 20), _fit(_amount(one, case.volume, plan), width, 13), FAINT, font(13))
    models = sorted({one.provenance.model for one in case.segmentations if one.provenance.model})
    note = f"{', '.join(models)} | not for clinical use" if models else "not for clinical use"
    draw.text((left, sheet.height - MARGIN), _fit(note, LEGEND_PIXELS - 20, 12), FAINT, font(12), "ld")


def _amount(segmentation: Segmentation, volume: Volume, plan: SlicePlan) -> str:
    """How much was found and where, in words."""
    extent = segmentation.extent
    if extent is None:
        return "not found"
    if not volume.calibrated:
        share = segmentation.voxels / np.prod(volume.geometry.shape)
        return f"{segmentation.voxels:,} pixels | {100 * share:.3g}% of the image"
    if volume.is_2d:
        area = segmentation.voxels * volume.geometry.spacing[0] * volume.geometry.spacing[1] / 100
        return f"{area:.3g} cm2"
    axis = plan.axes[0]
    first, last = (extent.k, extent.j, extent.i)[axis]
    ml = segmentation.volume_ml
    amount = f"{ml:.0f} ml" if ml >= 100 else f"{ml:.3g} ml"
    score = f" | score {segmentation.score:.2f}" if segmentation.score else ""
    return f"{amount} | {'kji'[axis]} {first} to {last}{score}"


def _fit(text: str, width: int, size: int) -> str:
    """Text cut to a width in pixels."""
    face = font(size)
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
