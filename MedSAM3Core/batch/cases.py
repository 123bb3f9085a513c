"""The facts of a batch: what is to be done, how, and what came of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

OWN_FOLDER = ".batch"
"""Below the output folder: journal, lock and the tiles of the contact sheet."""

Status = Literal["done", "failed"]


@dataclass(frozen=True)
class Case:
    """One image of a batch.

    Attributes:
        key: Its name in the output folder, with forward slashes and without a suffix; unique in its batch.
        path: The file, or the folder of the DICOM series.
        concepts: What to look for, as typed.
        files: The files of a DICOM series; empty for any other image.
        series: The DICOM series in words.
        modality: What the image is, where its format does not say it.
        problem: Why it cannot be done, when that was seen before it was read: a sentence.
    """

    key: str
    path: Path
    concepts: tuple[str, ...]
    files: tuple[Path, ...] = ()
    series: str = ""
    modality: str | None = None
    problem: str = ""

    def stamp(self) -> str:
        """Changes when the image's files or what is asked of it change; 16 hexadecimal digits."""
        parts = [self.key, str(self.path), self.modality or "", *self.concepts]
        for file in self.files or (self.path,):
            try:
                facts = file.stat()
                parts.append(f"{file.name} {facts.st_size} {facts.st_mtime_ns}")
            except (OSError, ValueError):  # a name that no file system takes, a null byte in it
                parts.append(f"{file.name} absent")
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class BatchSettings:
    """What holds for all cases of a batch.

    Attributes:
        output: Folder of the results.
        suffix: Format of the segmentations; see `MedSAM3Core.volume.writing`.
        model: Registry name or folder.
        axis: As `Segmenter.open` takes it.
        window: As `Segmenter.open` takes it.
        mode: As `Segmenter.open` takes it.
        threshold: Score from which a slice shows the concept; None takes the model's.
        tiles: Make a small picture of each case for the contact sheet.
    """

    output: Path
    suffix: str = ".seg.nrrd"
    model: str = "demo"
    axis: str = "auto"
    window: str = "auto"
    mode: str = "recommended"
    threshold: float | None = None
    tiles: bool = True

    def output_of(self, case: Case) -> Path:
        """Where the case's segmentation goes."""
        return self.output / f"{case.key}{self.suffix}"

    def tile_of(self, key: str) -> Path:
        """Where a case's picture goes."""
        return self.output / OWN_FOLDER / "tiles" / f"{key}.png"

    def as_facts(self) -> dict[str, Any]:
        """What must be the same for all of a batch's results to be comparable."""
        names = ("suffix", "model", "axis", "window", "mode", "threshold")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        key: The case's.
        status: "done" or "failed".
        stamp: The case's stamp when it was run.
        path: The image.
        series: The DICOM series in words.
        output: What was written, relative to the output folder; empty when nothing was.
        problem: Why it failed: a sentence.
        rows: One for each concept, plain values; see `MedSAM3Core.batch.work`.
        seconds: Stage ("read", "infer", "write") to seconds.
        notices: Sentences for the user.
    """

    key: str
    status: Status
    stamp: str = ""
    path: str = ""
    series: str = ""
    output: str = ""
    problem: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
