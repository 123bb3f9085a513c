"""Outlines as XML, as Aperio ImageScope writes them and MoNuSeg is published in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.excerpts import excerpt


def draw_polygons(files: Iterable[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Number the regions of some annotation files and fill them, later ones on top.

    Args:
        files: XML files whose ``Region`` elements hold ``Vertex`` elements with X and Y in pixels.
        shape: Of the image, (1, rows, columns).

    Returns:
        (1, rows, columns) of integers, 0 background.

    Raises:
        VolumeError: If a file is not such an XML file.
    """
    canvas = Image.new("I", (shape[2], shape[1]), 0)
    draw = ImageDraw.Draw(canvas)
    number = 0
    for file in files:
        for corners in _regions(file):
            if len(corners) > 2:
                number += 1
                draw.polygon(corners, fill=number)
    return np.asarray(canvas, np.int64)[np.newaxis]


def _regions(file: Path) -> list[list[tuple[float, float]]]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        if (
            "<!DOCTYPE" in text or "<!ENTITY" in text
        ):  # entities can grow without bound, and outlines need none
            raise VolumeError(f"{file.name} declares XML entities; expected plain outlines.")
        root = ElementTree.fromstring(text)
        return [
            [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
            for region in root.iter("Region")
        ]
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise VolumeError(
            f"{file.name} cannot be read as outlines ({type(error).__name__}: {excerpt(error)}); expected an XML file "
            "with Region and Vertex elements."
        ) from error
