"""Plots as SVG, written by hand: they stand in the page itself, need no library to look at, and print sharp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from MedSAM3Core.evaluation.calibration import Calibration
from MedSAM3Core.evaluation.statistics import Estimate

COLOURS = ("#3b6fb6", "#d1702a", "#3f9455", "#8a4fa3", "#b33a4b", "#5f7380", "#9a7d1b", "#2d9aa0")
"""Of contestants in the order of the report; told apart by position and label as well."""

GRID, INK, FAINT = "#d9dee3", "#1d2329", "#66717c"
FONT = 'font-family="system-ui, DejaVu Sans, sans-serif" font-size="11"'
_STYLES = {
    "grid": f'stroke="{GRID}" stroke-width="1"',
    "frame": f'stroke="{GRID}" stroke-width="1" fill="none"',
    "interval": 'stroke="#111111" stroke-width="1.6"',
    "mean": 'stroke="#111111" stroke-width="2.4"',
    "tick": f'{FONT} fill="{FAINT}" text-anchor="middle"',
    "note": f'{FONT} fill="{FAINT}"',
    "row": f'{FONT} fill="{INK}" text-anchor="end"',
}
"""Attributes instead of a style sheet: a plot that is copied out of the page keeps its looks."""

LABEL_WIDTH = 300
PLOT_WIDTH = 560
ROW = 26
DOT = 3.2


@dataclass(frozen=True)
class Strip:
    """One row of dots.

    Attributes:
        label: At the left.
        values: Of single cases, 0..1.
        names: Of the cases, shown on hovering.
        estimate: Mean and interval over patients.
        colour: Index into `COLOURS`.
    """

    label: str
    values: Sequence[float]
    names: Sequence[str]
    estimate: Estimate
    colour: int


def strip_plot(strips: Sequence[Strip], title: str) -> str:
    """Every case as a dot, the mean over patients as a bar with its 95% interval."""
    height = ROW * len(strips) + 46
    parts = [_open(LABEL_WIDTH + PLOT_WIDTH + 30, height, title)]
    for tick in range(0, 11, 2):
        x = _x(tick / 10)
        parts.append(f'<line x1="{x}" y1="6" x2="{x}" y2="{height - 34}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{height - 18}" class="tick">{tick / 10:g}</text>')
    parts.append(f'<text x="{_x(0.5)}" y="{height - 3}" class="tick">Dice</text>')
    for row, strip in enumerate(strips):
        parts += _strip(strip, 6 + ROW * row + ROW / 2)
    return _close(parts)


def _strip(strip: Strip, y: float) -> list[str]:
    colour = COLOURS[strip.colour % len(COLOURS)]
    # The same cases lie at the same height in every row, so that the eye can follow them.
    offsets = np.random.default_rng(0).uniform(-6, 6, len(strip.values))
    parts = [f'<text x="{LABEL_WIDTH - 8}" y="{y + 4}" class="row">{escape(strip.label)}</text>']
    for value, name, offset in zip(strip.values, strip.names, offsets, strict=True):
        parts.append(
            f'<circle cx="{_x(value)}" cy="{y + offset:.1f}" r="{DOT}" fill="{colour}" fill-opacity="0.45">'
            f"<title>{escape(name)}: {value:.3f}</title></circle>"
        )
    if strip.estimate.low is not None and strip.estimate.high is not None:
        parts.append(
            f'<line x1="{_x(strip.estimate.low)}" y1="{y}" x2="{_x(strip.estimate.high)}" y2="{y}" class="interval"/>'
        )
    mean = _x(strip.estimate.mean)
    parts.append(f'<line x1="{mean}" y1="{y - 8}" x2="{mean}" y2="{y + 8}" class="mean"/>')
    return parts


def reliability_plot(calibration: Calibration, title: str, colour: int) -> str:
    """Share of right answers over confidence; the area of a dot is the number of answers."""
    side, margin = 220, 34
    parts = [_open(side + 2 * margin, side + 2 * margin, title)]
    low, high = margin, margin + side
    parts.append(f'<rect x="{low}" y="{low}" width="{side}" height="{side}" class="frame"/>')
    parts.append(f'<line x1="{low}" y1="{high}" x2="{high}" y2="{low}" class="grid"/>')
    for tick in (0, 0.5, 1):
        parts.append(f'<text x="{low + tick * side}" y="{high + 14}" class="tick">{tick:g}</text>')
        parts.append(f'<text x="{low - 14}" y="{high - tick * side + 4}" class="tick">{tick:g}</text>')
    parts.append(f'<text x="{low + side / 2}" y="{high + 28}" class="tick">score</text>')
    parts.append(f'<text x="{low}" y="{low - 8}" class="note">share with Dice of at least .5</text>')
    for one in calibration.bins:
        x, y = low + one.confidence * side, high - one.right * side
        radius = 3 + 12 * (one.count / calibration.count) ** 0.5
        fill = COLOURS[colour % len(COLOURS)]
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" fill-opacity="0.6">'
            f"<title>{one.count} answers, score {one.confidence:.2f}, right {one.right:.2f}</title></circle>"
        )
    return _close(parts)


def curve_plot(points: Sequence[tuple[float, float]], title: str, unit: str) -> str:
    """A line through (step, value) points, scaled to its own range."""
    width, height, margin = 420, 160, 36
    parts = [_open(width + 2 * margin, height + 2 * margin, title)]
    parts.append(f'<rect x="{margin}" y="{margin}" width="{width}" height="{height}" class="frame"/>')
    if points:
        xs, ys = np.array(points, float).T
        x_range, y_range = max(np.ptp(xs), 1e-9), max(np.ptp(ys), 1e-9)
        line = " ".join(
            f"{margin + (x - xs.min()) / x_range * width:.1f},{margin + height - (y - ys.min()) / y_range * height:.1f}"
            for x, y in points
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[0]}" stroke-width="1.6"/>')
        for value, y in ((ys.max(), margin + 10), (ys.min(), margin + height - 3)):
            parts.append(f'<text x="{margin + 4}" y="{y}" class="note">{value:.3g}</text>')
        parts.append(
            f'<text x="{margin + width}" y="{margin + height + 14}" class="tick">{xs.max():g} {escape(unit)}</text>'
        )
    parts.append(f'<text x="{margin}" y="{margin - 10}" class="note">{escape(title)}</text>')
    return _close(parts)


def _close(parts: Sequence[str]) -> str:
    """The plot with its kinds of lines and texts as attributes."""
    text = "".join([*parts, "</svg>"])
    for name, attributes in _STYLES.items():
        text = text.replace(f'class="{name}"', attributes)
    return text


def _x(value: float) -> float:
    return round(LABEL_WIDTH + min(max(value, 0.0), 1.0) * PLOT_WIDTH, 1)


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(title)}</title>'
    )
