"""The worst answers as pictures: what the reference says in green, what the contender says in magenta."""

from __future__ import annotations

import base64
import heapq
import io
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from MedSAM3Core.evaluation.run import Exhibit
from MedSAM3Core.evaluation.scoring import Score
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.overlay.tile import paint_slice
from MedSAM3Core.windowing import choose_window

REFERENCE_COLOUR = (60, 220, 90)
ANSWER_COLOUR = (240, 60, 220)
PICTURE_PIXELS = 300
"""Longer side of a picture."""
JPEG_QUALITY = 88
WORST = 12
"""Pictures kept of each contender and mode."""


@dataclass(frozen=True)
class Picture:
    """A drawn answer.

    Attributes:
        score: The judgement.
        slice: Slice index of the grid along the slicing axis.
        jpeg: The file.
    """

    score: Score
    slice: int
    jpeg: bytes

    @property
    def data_uri(self) -> str:
        """For an HTML page."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode('ascii')}"


class Gallery:
    """Keeps the worst answers of each contender and mode, drawn when they are seen.

    Args:
        worst: How many of each.
    """

    def __init__(self, worst: int = WORST) -> None:
        self.worst = worst
        self._kept: dict[tuple[str, str], list[tuple[float, int, Picture]]] = defaultdict(list)
        self._count = 0

    def see(self, exhibit: Exhibit) -> None:
        """Draw an answer if it is among the worst so far; right answers about absent concepts are passed over."""
        score = exhibit.score
        if not score.present and not exhibit.answer.any():
            return
        badness = 1.0 - (score.dice if score.dice is not None else 0.0)
        kept = self._kept[score.model, score.mode]
        if len(kept) >= self.worst and badness <= kept[0][0]:
            return
        self._count += 1
        heapq.heappush(kept, (badness, -self._count, draw(exhibit)))
        if len(kept) > self.worst:
            heapq.heappop(kept)

    def pictures(self, model: str, mode: str) -> list[Picture]:
        """The worst first."""
        return [
            picture
            for _, _, picture in sorted(self._kept[model, mode], reverse=True, key=lambda item: item[:2])
        ]


def draw(exhibit: Exhibit) -> Picture:
    """The slice on which most is wrong; where nothing is wrong, the one with most of the reference."""
    volume = exhibit.volume
    plan = SlicePlan.for_volume(volume)
    reference, answer = plan.to_plane(exhibit.reference), plan.to_plane(exhibit.answer)
    wrong = (reference != answer).sum(axis=(1, 2))
    index = int((wrong if wrong.any() else reference.sum(axis=(1, 2))).argmax())
    window = choose_window(volume, exhibit.score.concept)
    pixels = np.ascontiguousarray(window.apply(plan.to_plane(volume.array)[index]))
    _, row_mm, column_mm = plan.spacing
    height, width = pixels.shape[0] * row_mm, pixels.shape[1] * column_mm
    scale = PICTURE_PIXELS / max(height, width)
    size = max(32, round(width * scale)), max(32, round(height * scale))
    masks = [(reference[index], REFERENCE_COLOUR), (answer[index], ANSWER_COLOUR)]
    stream = io.BytesIO()
    paint_slice(pixels, masks, size).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return Picture(exhibit.score, plan.grid_slice(index), stream.getvalue())
