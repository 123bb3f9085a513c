"""A folder of images and masks with concept names, read into cases that know their patient.

Layout: ``index.csv`` (columns image, mask, concept, modality, kind, source) for 2D images and ``volumes.csv`` (image,
labels, concept list, modality, source; a ``labels.json`` in the image's folder maps label values to concepts) for
volumes.
Paths are relative to the folder. A concept without a row for an image is unknown there, not absent.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from MedSAM3Core.errors import InputError
from MedSAM3Core.plurals import counted

_PATIENT_PATTERNS = {
    "nih_pancreas_ct": re.compile(r"(pancreas_\d+)"),
    "ccaus": re.compile(r"^(\d+)vas"),
    "chase_db1": re.compile(r"(Image_\d+)"),
    "msd_spleen": re.compile(r"(spleen_\d+)"),
}
LOOKALIKE_SOURCES = frozenset({"kvasir_seg"})
"""Sources without patients whose frames come in runs of look-alikes: split by cluster."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Case:
    """One image or volume with its masks.

    Attributes:
        image: File of the image.
        masks: Concept to mask file; for a volume, one file holds all.
        labels: For a volume, label value to concept; empty for an image.
        modality: As the table writes it, for example "CT".
        source: Name of the data set.
        patient: What must not be split: a patient, a recording, a cluster of look-alikes, or the image itself.
        instances: Whether mask values are instance ids.
        licence: Of the image and its masks.
    """

    image: Path
    masks: dict[str, Path]
    labels: dict[int, str] = field(default_factory=dict)
    modality: str = ""
    source: str = ""
    patient: str = ""
    instances: bool = False
    licence: str = ""

    @property
    def is_volume(self) -> bool:
        """Whether the case has slices."""
        return bool(self.labels)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concepts that were looked for in this case."""
        return tuple(self.labels.values()) if self.is_volume else tuple(self.masks)


def split_of(patient: str, validation: float = 0.06, test: float = 0.10) -> str:
    """Which of `SPLITS` a patient belongs to, by a hash of the name, so that every run on every machine agrees."""
    value = int(hashlib.sha256(f"medsam3:{patient}".encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    if value < test:
        return "test"
    return "validation" if value < test + validation else "train"


def read_pack(folder: Path) -> list[Case]:
    """All cases of a folder of this layout.

    Raises:
        InputError: If neither table is there, or a table names a file that is not.
    """
    tables = [folder / "index.csv", folder / "volumes.csv"]
    if not any(table.exists() for table in tables):
        raise InputError(
            f"The data folder {folder} holds neither index.csv nor volumes.csv; give the folder that has them."
        )
    cases = _read_images(folder) + _read_volumes(folder)
    missing = [
        str(path) for case in cases for path in (case.image, *case.masks.values()) if not path.exists()
    ]
    if missing:
        raise InputError(
            f"The tables in {folder} name {counted(len(missing), 'file that is', 'files that are')} absent, first "
            f"{missing[0]}; copy what is missing, or correct the tables."
        )
    return _cluster_lookalikes(cases)


def _read_images(folder: Path) -> list[Case]:
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in _read_table(folder / "index.csv"):
        rows[row["image"]].append(row)
    return [
        Case(
            image=folder / image,
            masks={row["concept"]: folder / row["mask"] for row in group},
            modality=group[0]["modality"],
            source=group[0]["source"],
            patient=_patient(group[0]["source"], image),
            instances=group[0]["kind"] == "instance",
            licence=group[0].get("licence", ""),
        )
        for image, group in rows.items()
    ]


def _read_volumes(folder: Path) -> list[Case]:
    cases = []
    for row in _read_table(folder / "volumes.csv"):
        image = folder / row["image"]
        names = json.loads((image.parent / "labels.json").read_text())
        present = {name.strip() for name in row["concept list"].split(";")}
        labels = {int(value): name for value, name in names.items() if name in present}
        cases.append(
            Case(
                image=image,
                masks=dict.fromkeys(labels.values(), folder / row["labels"]),
                labels=labels,
                modality=row["modality"],
                source=row["source"],
                patient=_patient(row["source"], row["image"]),
                licence=row.get("licence", ""),
            )
        )
    return cases


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _patient(source: str, image: str) -> str:
    name = Path(image).name.split(".")[0]
    pattern = _PATIENT_PATTERNS.get(source)
    match = pattern.search(name) if pattern else None
    return f"{source}/{match.group(1) if match else name}"


def _cluster_lookalikes(cases: list[Case]) -> list[Case]:
    """Give look-alike frames of `LOOKALIKE_SOURCES` one patient: the first name of their cluster."""
    frames = [case for case in cases if case.source in LOOKALIKE_SOURCES]
    if not frames:
        return cases
    patients = _cluster_names([case.image for case in frames])
    renamed = {case.image: f"{case.source}/{name}" for case, name in zip(frames, patients, strict=True)}
    return [
        Case(**{**case.__dict__, "patient": renamed[case.image]}) if case.image in renamed else case
        for case in cases
    ]


def _cluster_names(images: Iterable[Path], threshold: float = 0.93) -> list[str]:
    """First name of each image's cluster; images are linked where their 16x16 thumbnails correlate."""
    images = list(images)
    thumbs = np.stack(
        [np.asarray(Image.open(path).convert("L").resize((16, 16)), np.float32).ravel() for path in images]
    )
    thumbs -= thumbs.mean(axis=1, keepdims=True)
    thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True) + 1e-6
    parent = list(range(len(images)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for a, b in zip(*np.nonzero(np.triu(thumbs @ thumbs.T > threshold, 1)), strict=True):
        first, second = sorted((root(int(a)), root(int(b))))
        parent[second] = first
    return [images[root(index)].name.split(".")[0] for index in range(len(images))]
