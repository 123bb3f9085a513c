"""The simplest peer: a box of the reference, and a threshold in it (Otsu 1979)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from MedSAM3Core.evaluation.contenders import Desk, Mode
from MedSAM3Core.evaluation.scoring import Answer
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.segmentation import Extent
from MedSAM3Core.volume import Volume

NAME = "thresholding"


@dataclass(frozen=True)
class ThresholdContender:
    """Otsu's threshold within the reference's bounding box; the side that touches the box's faces less is the
    object.
    """

    name: str = NAME

    @contextmanager
    def open(self, volume: Volume) -> Iterator[Desk]:
        """A desk with the volume's grey values on it."""
        yield _ThresholdDesk(volume.array.mean(axis=-1) if volume.is_rgb else volume.array)


@dataclass(frozen=True, eq=False)
class _ThresholdDesk:
    grey: np.ndarray
    axis: int = 0

    def supports(self, mode: Mode) -> bool:
        return mode.kind == "text+box"

    def answer(
        self, questions: Mapping[str, np.ndarray], mode: Mode, cancel: CancelToken | None
    ) -> Iterator[Answer]:
        for reference in questions.values():
            if cancel is not None:
                cancel.check()
            started = time.monotonic()
            mask = np.zeros(reference.shape, bool)
            extent = Extent.of_mask(reference)
            if extent is not None:
                mask[extent.slices] = split(self.grey[extent.slices])
            yield Answer(mask, None, "box of the reference", time.monotonic() - started)


def split(grey: np.ndarray) -> np.ndarray:
    """The object in a box of grey values (slices, rows, columns), bool: what touches the box's faces less than the
    rest.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(grey, np.float32))
    bright = sitk.GetArrayFromImage(sitk.OtsuThreshold(image, 0, 1)) > 0
    edge = np.ones(grey.shape, bool)
    inner = tuple(slice(1, -1) if n > 2 else slice(None) for n in grey.shape)
    edge[inner] = False
    return bright if not edge.any() or bright[edge].mean() <= 0.5 else ~bright
