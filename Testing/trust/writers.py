"""Everything that writes files for a user, each as a function of a folder that gives the writing itself.

What stands before the writing (the image, the result, the open run) is made by the function; what it returns is called
under the limit. `FORMER` says which file was there before and must stay.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Write = Callable[[], object]

FORMER = {
    "seg.nrrd": "out.seg.nrrd",
    "nrrd": "out.nrrd",
    "nii": "out.nii",
    "nii.gz": "out.nii.gz",
    "png": "out.png",
    "overlay": "over.png",
    "report": "report.json",
    "sequence": "out.seq.nrrd",
    "weights": "model/model.safetensors",
    "checkpoint": "run/checkpoint.pt",
    "consent": "consents.json",
    "evaluation": "evaluation/cases.csv",
    "batch": "",
}


def _noise(colour: bool = False) -> Any:
    """A volume that does not compress, so that every format of it is larger than the limit."""
    from MedSAM3Core.volume import Volume

    rng = np.random.default_rng(5)
    shape = (200, 200, 3) if colour else (8, 64, 64)
    return Volume.from_array(rng.integers(0, 255, shape, dtype=np.uint8))


def _found(volume: Any) -> list:
    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.segmentation import Segmentation

    grey = volume.array if volume.array.ndim == 3 else volume.array[..., 0]
    return [Segmentation.from_mask(Concept("liver", "liver"), volume.geometry, grey > 127, score=0.9)]


def _segmentation(suffix: str) -> Callable[[Path], Write]:
    def prepare(folder: Path) -> Write:
        from MedSAM3Core.volume.writing import write_segmentations

        volume = _noise(colour=suffix == "png")
        found = _found(volume)
        return lambda: write_segmentations(folder / f"out.{suffix}", found, volume)

    return prepare


def _overlay(folder: Path) -> Write:
    from PIL import Image

    from MedSAM3Core.cli.files import write_overlay

    Image.init()  # imports its formats now: a stranger may not be able to read them
    volume = _noise()
    found = _found(volume)
    return lambda: write_overlay(folder / "over.png", volume, found)


def _report(folder: Path) -> Write:
    from MedSAM3Core.cli.outputs import OutputSet

    def write() -> None:
        with OutputSet() as outputs:
            outputs.write(folder / "report.json", lambda path: path.write_text("x" * 20_000))

    return write


def _sequence(folder: Path) -> Write:
    from MedSAM3Core.volume.seqnrrd import write_label_sequence

    volume = _noise()
    labels = np.random.default_rng(1).integers(0, 60_000, volume.geometry.shape)

    def write() -> None:
        with write_label_sequence(folder / "out.seq.nrrd", volume.geometry) as sequence:
            sequence.add(labels, 0.0)

    return write


def _weights(folder: Path) -> Write:
    import torch

    from MedSAM3Core.models.folder import new_folder
    from MedSAM3Core.models.weights import write_tensors

    tensors = {"a": torch.arange(5000.0)}

    def write() -> None:
        with new_folder(folder / "model") as place:
            write_tensors(tensors, place / "model.safetensors")

    return write


def _checkpoint(folder: Path) -> Write:
    import torch

    from MedSAM3Core.training.checkpoints import write_checkpoint

    return lambda: write_checkpoint({"a": torch.arange(5000.0)}, folder / "run" / "checkpoint.pt")


def _consent(folder: Path) -> Write:
    from MedSAM3Core.models.card import Licence
    from MedSAM3Core.models.consent import LicenceRequest, record_consent

    os.environ["MEDSAM3_HOME"] = str(folder)
    return lambda: record_consent(LicenceRequest("m" * 9000, Licence(name="n"), "text"))


def _evaluation(folder: Path) -> Write:
    from MedSAM3Core.evaluation.report import files

    files.render = lambda *_: "x" * 20_000
    files._csv = lambda *_: "x" * 20_000
    files.as_json = lambda *_: {}
    return lambda: files.write_report(folder / "evaluation", [], None, None, None)


def _batch(folder: Path) -> Write:
    import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
    from doomed import BrightSegmenter

    from MedSAM3Core.batch import BatchSettings, LocalEngine, find_cases, run_batch

    (folder / "in").mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    for n in range(2):
        image = sitk.GetImageFromArray(rng.integers(0, 255, (8, 64, 64), dtype=np.uint8))
        sitk.WriteImage(image, str(folder / "in" / f"{n}.nrrd"))
    settings = BatchSettings(folder / "out", model="double", tiles=False)
    cases = find_cases([str(folder / "in")], ["liver"], folder / "out").cases
    segmenter = SimpleNamespace(open=lambda volume, *_, **__: BrightSegmenter().open(volume))
    return lambda: run_batch(cases, settings, LocalEngine(segmenter, settings))


WRITERS: dict[str, Callable[[Path], Write]] = {
    **{suffix: _segmentation(suffix) for suffix in ("seg.nrrd", "nrrd", "nii", "nii.gz", "png")},
    "overlay": _overlay,
    "report": _report,
    "sequence": _sequence,
    "weights": _weights,
    "checkpoint": _checkpoint,
    "consent": _consent,
    "evaluation": _evaluation,
    "batch": _batch,
}
