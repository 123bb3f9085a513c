"""What the command line's tests share: a small CT on disk, and a double of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from MedSAM3Core.cli import main
from MedSAM3Core.errors import Cancelled
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Provenance, Segmentation


class FakeSegmenter:
    """Doubles `MedSAM3Core.Segmenter` and the session it opens.

    "Liver" is what is brighter than 100, anything else is nowhere. It takes the arguments, looks at the cancel token
    and fills the fields as the real ones do, but computes nothing.
    """

    def __init__(self) -> None:
        self.opened: list[dict] = []
        self.asked: list[tuple[str, int, float | None]] = []
        self.marked: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.on_segment: Callable[[], None] = lambda: None

    def open(self, volume, axis="auto", window="auto", mode="recommended"):
        self.opened.append({"axis": axis, "window": window, "mode": mode})
        self.volume = volume
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def segment_many(self, concepts, progress=None, cancel=None, threshold=None):
        return [self.segment(concept, (), progress, cancel, threshold) for concept in concepts]

    def segment(
        self, concept: Concept, boxes=(), progress=None, cancel=None, threshold=None, points=()
    ) -> Segmentation:
        self.asked.append((concept.phrase, len(boxes) + len(points), threshold))
        self.marked[concept.phrase] = [mark.written() for mark in (*boxes, *points)]
        self.on_segment()
        if cancel is not None and cancel.cancelled:
            raise Cancelled()
        mask = (
            self.volume.array > 100
            if concept.phrase == "liver"
            else np.zeros(self.volume.geometry.shape, bool)
        )
        notices = () if mask.any() else (f"{concept.phrase!r} was found nowhere in this volume.",)
        return Segmentation.from_mask(
            concept,
            self.volume.geometry,
            mask,
            score=0.9 if mask.any() else 0.0,
            slice_scores={0: 0.1, 1: 0.9},
            provenance=Provenance(
                concept.typed,
                "fake",
                "0" * 64,
                "0.1.0",
                (concept.phrase,),
                thresholds={"score": 0.5},
                axis="axial (grid axis k)",
                notices=notices,
            ),
            timings={"encoding": 1.0, "detecting": self.seconds.get(concept.phrase, 0.5)},
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSegmenter:
    """The double in the place of `Segmenter.from_pretrained`."""
    from MedSAM3Core.inference.session import Segmenter

    segmenter = FakeSegmenter()
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda name, device="auto": segmenter)
    return segmenter


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """A CT of 4 slices, 12 rows and 10 columns of 2 x 1 x 1 mm with a bright block of 2 x 4 x 5 voxels."""
    array = np.full((4, 12, 10), -1000, np.int16)
    array[1:3, 2:6, 3:8] = 150
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 2.0))
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``medsam3`` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def _root_logging_as_before():
    """The command line sets up logging for its process; here the process is everybody's."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
