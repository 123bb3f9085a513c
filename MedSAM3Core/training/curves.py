"""The log of a run: one CSV that a panel can draw while it grows, and TensorBoard's files if they are wanted."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from MedSAM3Core.errors import InputError

CURVES_FILE = "metrics.csv"
BACKGROUND, INK, LINE, CURVE = (252, 252, 252), (40, 45, 50), (150, 155, 160), (59, 111, 182)
COLUMNS = ("step", "seconds", "split", "name", "value")


@dataclass(frozen=True)
class Point:
    """One value of a run.

    Attributes:
        step: Optimiser step.
        split: "train" or "validation".
        name: "loss", "dice", "dice/liver", ...
        value: Its value.
    """

    step: int
    split: str
    name: str
    value: float


class CurveWriter:
    """Appends values.

    Args:
        folder: Of the run.
        tensorboard: Also write event files.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.path = folder / CURVES_FILE
        self._board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "TensorBoard is not installed; run pip install tensorboard, or set tensorboard: false."
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Drop what a run wrote after the checkpoint that it is taken up from."""
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row and row[0] != COLUMNS[0] and int(row[0]) <= step]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])

    def write(self, step: int, seconds: float, split: str, values: Mapping[str, float]) -> None:
        """Append values of one step."""
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(COLUMNS)
            writer.writerows(
                (step, round(seconds, 1), split, name, round(value, 5)) for name, value in values.items()
            )
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Finish the event files."""
        if self._board is not None:
            self._board.close()


def read_curves(folder: Path) -> list[Point]:
    """Values of a run so far; empty before the first. A line that is being written is passed over."""
    path = folder / CURVES_FILE
    if not path.is_file():
        return []
    points = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            try:
                points.append(Point(int(row[0]), row[2], row[3], float(row[4])))
            except (ValueError, IndexError):
                continue
    return points


def draw_curves(points: Sequence[Point], width: int = 440, height: int = 150) -> Image.Image:
    """Loss and validation Dice over the steps, side by side, for a panel.

    Args:
        points: Of a run.
        width: In pixels.
        height: In pixels.
    """
    picture = Image.new("RGB", (width, height), BACKGROUND)
    half = width // 2
    for number, (split, name) in enumerate((("train", "loss"), ("validation", "dice"))):
        chosen = [(p.step, p.value) for p in points if (p.split, p.name) == (split, name)]
        _draw_curve(ImageDraw.Draw(picture), chosen, f"{split} {name}", (number * half, 0, half, height))
    return picture


def _draw_curve(
    draw: ImageDraw.ImageDraw,
    points: Sequence[tuple[int, float]],
    title: str,
    place: tuple[int, int, int, int],
) -> None:
    left, top, width, height = place[0] + 8, place[1] + 22, place[2] - 16, place[3] - 42
    draw.text((left, 4), title, INK, ImageFont.load_default(12))
    draw.rectangle((left, top, left + width, top + height), outline=LINE)
    if not points:
        draw.text((left + width / 2, top + height / 2), "not yet", LINE, ImageFont.load_default(12), "mm")
        return
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    across, up = max(max(steps) - min(steps), 1), max(high - low, 1e-9)
    corners = [
        (left + 4 + (s - min(steps)) / across * (width - 8), top + height - 4 - (v - low) / up * (height - 8))
        for s, v in points
    ]
    if len(corners) > 1:
        draw.line(corners, CURVE, 2, "curve")
    for x, y in corners if len(corners) < 30 else corners[-1:]:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), CURVE)
    draw.text((left + width, 4), f"{values[-1]:.3g}", INK, ImageFont.load_default(12), "ra")
    draw.text((left, top + height + 3), f"{low:.3g} to {high:.3g}", LINE, ImageFont.load_default(11))
    draw.text((left + width, top + height + 3), f"step {steps[-1]}", LINE, ImageFont.load_default(11), "ra")
