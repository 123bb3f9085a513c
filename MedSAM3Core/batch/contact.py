"""The contact sheet: every case as one small picture, two hundred to a page, to be looked through in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from MedSAM3Core.batch.cases import BatchSettings, Outcome
from MedSAM3Core.volume.atomic import atomic_file

if TYPE_CHECKING:
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume.volume import Volume

TILE = 176
"""Side of a picture in pixels; twenty fill the width of a large screen."""
CAPTION = 34
PER_ROW, ROWS = 20, 10
PER_PAGE = PER_ROW * ROWS
GAP = 4
BACKGROUND, FAILED = (18, 18, 20), (70, 16, 16)
TEXT, FAINT = (235, 235, 235), (150, 150, 150)


def render_tile(
    volume: Volume, found: Sequence[Segmentation], axis: str = "auto", window: str = "auto"
) -> Image.Image:
    """The slice that shows most of what was found, in true proportions.

    Args:
        volume: The image.
        found: What was found in it.
        axis: As `Segmenter.open` takes it.
        window: As `Segmenter.open` takes it.

    Returns:
        RGB image of `TILE` x `TILE` pixels.
    """
    from MedSAM3Core.inference.plan import SlicePlan
    from MedSAM3Core.overlay.sheet import distinct_colours
    from MedSAM3Core.overlay.slices import areas_by_slice, key_slices, mask_in_slice
    from MedSAM3Core.overlay.tile import paint_slice
    from MedSAM3Core.windowing import choose_window

    plan = SlicePlan.for_volume(volume, axis)
    index = key_slices(areas_by_slice(found, plan), 1)[0]
    shown = next((one for one in found if not one.empty), found[0]).concept.phrase if found else None
    grey = choose_window(volume, shown, window).apply(plan.to_plane(volume.array)[index])
    colours = distinct_colours([one.concept.colour for one in found], [None] * len(found))
    masks = [
        (mask, colour)
        for one, colour in zip(found, colours, strict=True)
        if (mask := mask_in_slice(one, plan, index)) is not None
    ]
    _, row_mm, column_mm = plan.spacing
    height, width = grey.shape[0] * row_mm, grey.shape[1] * column_mm
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tile = Image.new("RGB", (TILE, TILE))
    picture = paint_slice(np.ascontiguousarray(grey), masks, size)
    tile.paste(picture, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile


def write_tile(path: Path, volume: Volume, found: Sequence[Segmentation], axis: str, window: str) -> None:
    """Write `render_tile`'s picture, whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    tile = render_tile(volume, found, axis, window)
    with atomic_file(path) as stream:
        tile.save(stream, format="PNG", compress_level=1)


def write_sheets(settings: BatchSettings, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write the pages of the contact sheet, ``contact-001.png`` and on, failed cases in dark red with their reason.

    Raises:
        OutputError: If one cannot be written.
    """
    pages = []
    for number, start in enumerate(range(0, len(outcomes), PER_PAGE), start=1):
        page = settings.output / f"contact-{number:03d}.png"
        image = _page(settings, outcomes[start : start + PER_PAGE])
        with atomic_file(page) as stream:
            image.save(stream, format="PNG", compress_level=3)
        pages.append(page)
    return pages


def _page(settings: BatchSettings, outcomes: Sequence[Outcome]) -> Image.Image:
    columns = min(PER_ROW, len(outcomes))
    rows = -(-len(outcomes) // columns)
    page = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + CAPTION + GAP) + GAP), BACKGROUND)
    for n, outcome in enumerate(outcomes):
        row, column = divmod(n, columns)
        place = (GAP + column * (TILE + GAP), GAP + row * (TILE + CAPTION + GAP))
        page.paste(_picture(settings, outcome), place)
        _caption(page, outcome, (place[0], place[1] + TILE))
    return page


def _picture(settings: BatchSettings, outcome: Outcome) -> Image.Image:
    if outcome.status == "done":
        try:
            with Image.open(settings.tile_of(outcome.key)) as tile:
                return tile.convert("RGB")
        except OSError:
            return Image.new("RGB", (TILE, TILE))
    blank = Image.new("RGB", (TILE, TILE), FAILED)
    draw = ImageDraw.Draw(blank)
    for n, line in enumerate(_wrapped(outcome.problem, TILE - 12, 11)[:10]):
        draw.text((6, 6 + 15 * n), line, TEXT, _font(11))
    return blank


def _caption(page: Image.Image, outcome: Outcome, place: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(page)
    name = outcome.key if _font(11).getlength(outcome.key) <= TILE else _cut(outcome.key)
    draw.text(place, name, TEXT, _font(11))
    draw.text((place[0], place[1] + 15), _cut_end(_amounts(outcome)), FAINT, _font(11))


def _amounts(outcome: Outcome) -> str:
    if outcome.status == "failed":
        return "failed"
    parts = []
    for row in outcome.rows:
        if not row["found"]:
            parts.append(f"no {row['name']}")
        elif row["ml"] is None:
            parts.append(f"{row['name']} {row['voxels']:,} px")
        else:
            parts.append(f"{row['name']} {row['ml']:.3g} ml")
    return ", ".join(parts)


def _cut(text: str) -> str:
    """A long name by its end, which tells cases apart."""
    while len(text) > 1 and _font(11).getlength("..." + text) > TILE:
        text = text[1:]
    return "..." + text


def _cut_end(text: str) -> str:
    if _font(11).getlength(text) <= TILE:
        return text
    while len(text) > 1 and _font(11).getlength(text + "...") > TILE:
        text = text[:-1]
    return text + "..."


def _wrapped(text: str, width: int, size: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(size).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int):  # type: ignore[no-untyped-def]
    from MedSAM3Core.overlay.tile import font

    return font(size)
