"""The bundled images, offered in Slicer's Sample Data module; they come with the extension, nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
import slicer.util

from MedSAM3Core.resources import resource_path

CATEGORY = "MedSAM3"


@dataclass(frozen=True)
class Sample:
    """One bundled image.

    Attributes:
        name: Short name, also that of the thumbnail.
        title: What Sample Data shows and what the node is called.
        image: The file.
        concepts: What can be looked for in it.
        licence: Of the image.
        source: Where it comes from.
    """

    name: str
    title: str
    image: Path
    concepts: tuple[str, ...]
    licence: str
    source: str


def samples() -> list[Sample]:
    """The images that ``Resources/SampleData/samples.json`` lists."""
    folder = resource_path("SampleData")
    entries = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [
        Sample(e["name"], e["title"], folder / e["image"], tuple(e["concepts"]), e["licence"], e["source"])
        for e in entries
    ]


def registerSampleData(icons: Path) -> None:
    """Offer the bundled images in the Sample Data module.

    Args:
        icons: Folder with a thumbnail NAME.png for each.
    """
    import SampleData

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):
        logic.registerCustomSampleDataCategory(CATEGORY, title=CATEGORY)
    for sample in samples():
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=sample.title,
            uris=sample.image.as_uri(),
            fileNames=sample.image.name,
            nodeNames=sample.title,
            thumbnailFileName=str(icons / f"{sample.name}.png"),
            customDownloader=lambda source, sample=sample: load(sample),
        )


def load(sample: Sample) -> Any:
    """Load a bundled image and show it."""
    return slicer.util.loadVolume(str(sample.image), {"name": sample.title})
