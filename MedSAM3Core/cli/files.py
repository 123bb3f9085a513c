"""Segmentations and overlays to files: the volume room's writers under one name each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume import Volume


def check_segmentation_path(path: Path, volume: Volume | None = None) -> None:
    """Raise `OutputError` if a segmentation (of ``volume``, when known) could not be written to a path."""
    from MedSAM3Core.volume.writing import check_output

    check_output(path, volume)


def write_segmentation(path: Path, volume: Volume, found: Sequence[Segmentation]) -> tuple[str, ...]:
    """Write segmentations in the format that the suffix names; gives sentences for the user."""
    from MedSAM3Core.volume.writing import write_segmentations

    return write_segmentations(path, found, volume)


def write_overlay(
    path: Path, volume: Volume, found: Sequence[Segmentation], axis: str = "auto", window: str = "auto"
) -> None:
    """Write a PNG that shows segmentations on the image, cut and windowed as they were made.

    Args:
        path: Where to.
        volume: The image.
        found: What to show.
        axis: As `Segmenter.open` takes it.
        window: As `Segmenter.open` takes it; "auto" shows what suits the picture as a whole.
    """
    from MedSAM3Core.overlay import write_overlay
    from MedSAM3Core.windowing import choose_window

    shown = None if window == "auto" else choose_window(volume, None, window)
    write_overlay(path, volume, found, shown, axis)
