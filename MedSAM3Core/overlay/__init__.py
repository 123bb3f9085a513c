"""Pictures of segmentations that somebody wants to look at; Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from MedSAM3Core.overlay.sheet import render_overlay
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.atomic import atomic_file
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.windowing import Window

__all__ = ["render_overlay", "write_overlay"]


def write_overlay(
    path: str | Path,
    volume: Volume,
    segmentations: Sequence[Segmentation],
    window: Window | None = None,
    axis: str = "auto",
    tiles: int = 6,
) -> None:
    """Write `render_overlay`'s picture as a PNG, whole or not at all.

    Args:
        path: Where to.
        volume: As for `render_overlay`.
        segmentations: As for `render_overlay`.
        window: As for `render_overlay`.
        axis: As for `render_overlay`.
        tiles: As for `render_overlay`.

    Raises:
        OutputError: If it cannot be written.
    """
    image = render_overlay(volume, segmentations, window, axis, tiles)
    with atomic_file(path) as stream:
        image.save(stream, format="PNG", optimize=False)
