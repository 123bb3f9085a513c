"""The sample data that ships with the package: images with reference masks, sources and licences.

``Resources/SampleData/samples.json`` is a list of entries::

    {"name": "headneck_ct", "title": "Head and neck CT", "image": "headneck_ct.nii.gz",
     "reference": "headneck_ct_labels.nii.gz", "labels": {"1": "brainstem", "7": "mandible"},
     "concepts": ["brainstem", "mandible"], "modality": "CT", "licence": "MIT", "source": "...", "split": "test: ..."}

``labels`` maps values of the reference to phrases, "*" stands for every value but 0; ``concepts`` are what the demo
asks for. The files lie beside the list.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM3Core.errors import ResourceError
from MedSAM3Core.resources import resource_path

if TYPE_CHECKING:
    from MedSAM3Core.volume import Volume


_MODALITIES = {
    "x-ray": "XR",
    "ultrasound": "US",
    "fundus": "FUNDUS",
    "dermoscopy": "DERM",
    "histopathology": "HISTO",
    "endoscopy": "ENDO",
}
"""Words for modalities, and the short names that `Volume` uses; any other word is taken as it is."""


@dataclass(frozen=True)
class Sample:
    """One image with its reference.

    Attributes:
        name: Short name, usable as a file name.
        title: A line for people.
        modality: As `Volume` names it, for example "CT".
        image: File of the image.
        reference: File of the label map on the same grid.
        labels: Phrase to its label value, None for every value but 0.
        concepts: Phrases that the demo asks for, each in ``labels``.
        licence: That it was published under.
        source: Where it was published, and what was changed.
        split: Whether a training run has seen it.
    """

    name: str
    title: str
    modality: str
    image: Path
    reference: Path
    labels: dict[str, int | None]
    concepts: tuple[str, ...]
    licence: str
    source: str
    split: str

    def read(self) -> Volume:
        """The image.

        Raises:
            VolumeError: If the file is missing or damaged.
        """
        from MedSAM3Core.volume.reading import read_volume

        return read_volume(self.image, modality=self.modality)

    def read_reference(self) -> dict[str, np.ndarray]:
        """Phrase to reference mask: bool, (slices, rows, columns), the image's own grid.

        Raises:
            VolumeError: If the file is missing or damaged.
        """
        from MedSAM3Core.volume.reading import read_volume

        values = read_volume(self.reference).array
        return {
            phrase: values != 0 if value is None else values == value for phrase, value in self.labels.items()
        }


def read_samples(folder: Path | None = None) -> list[Sample]:
    """The samples of a folder.

    Args:
        folder: Folder with a ``samples.json``; None is the one that ships.

    Raises:
        ResourceError: If the list is missing or cannot be read.
    """
    try:
        root = folder or resource_path("SampleData")
        return [
            _sample(root, entry) for entry in json.loads((root / "samples.json").read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResourceError(
            f"The list of sample data cannot be read ({type(error).__name__}: {error}); install MedSAM3Core again."
        ) from error


def _sample(root: Path, entry: dict[str, Any]) -> Sample:
    modality = entry["modality"]
    return Sample(
        name=entry["name"],
        title=entry["title"],
        modality=_MODALITIES.get(modality.lower(), modality),
        image=root / entry["image"],
        reference=root / entry["reference"],
        labels={phrase: None if value == "*" else int(value) for value, phrase in entry["labels"].items()},
        concepts=tuple(entry["concepts"]),
        licence=entry["licence"],
        source=entry["source"],
        split=entry.get("split", ""),
    )
