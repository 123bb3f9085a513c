"""An annotator's corrected cases as a training set: each image with the segments that were accepted, one folder a
patient.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from MedSAM3Core.errors import InputError, OutputError
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume import Volume
from MedSAM3Core.volume.geometry import LPS_FROM_RAS
from MedSAM3Core.volume.writing import write_segmentations

if TYPE_CHECKING:
    from MedSAM3Core.training.recipe import (
        Method,
    )  # at run time it would bring torch into the application's process

RECIPE_FILE = "recipe.yaml"
ORTHOGONAL = 1e-4
"""How far the axes of a grid may be from right angles (cosine) and still be written as an ITK image."""

_SETTINGS = {
    "frozen": {"learning_rate": 1e-4},
    "lora": {"learning_rate": 2e-4},
    "full": {"learning_rate": 5e-5},
    "tracker": {"learning_rate": 1e-4},
}


def write_case(folder: Path, patient: str, volume: Volume, segments: Sequence[Segmentation]) -> Path:
    """Write an image and its accepted segments as ``medsam3 finetune`` reads them.

    Args:
        folder: Of the training set.
        patient: Whose image it is; cases of one patient go into one folder and never into two splits.
        volume: The image.
        segments: Accepted segments on its grid; an empty one says that the concept was looked for and is absent.

    Returns:
        The image file; the segments are beside it.

    Raises:
        InputError: If there is no segment, or the grid is sheared and cannot be written.
        OutputError: If a file cannot be written.
    """
    if not segments:
        raise InputError(f"{volume.name} has no accepted segment; accept at least one.")
    place = folder / safe_name(patient)
    name = safe_name(volume.name)
    try:
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{name}.nrrd"
        sitk.WriteImage(_image(volume), str(path), useCompression=True)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"The case {name} cannot be written into {folder}; choose a folder that can be."
        ) from error
    write_segmentations(place / f"{name}.seg.nrrd", list(segments), volume)
    return path


def _image(volume: Volume) -> sitk.Image:
    ijk_to_lps = LPS_FROM_RAS @ volume.geometry.ijk_to_ras
    spacing = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    direction = ijk_to_lps[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > ORTHOGONAL:
        raise InputError(
            f"The grid of {volume.name} is sheared and cannot be exported; resample the volume first."
        )
    image = sitk.GetImageFromArray(volume.array, isVector=volume.is_rgb)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(ijk_to_lps[:3, 3].tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


def safe_name(text: str) -> str:
    """A name as a file name: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "case"


def write_recipe(
    folder: Path, cases: Path, name: str, base: str, method: Method, steps: int, several_patients: bool
) -> Path:
    """A recipe for corrected cases that a panel starts: small, with checks every few steps so that there is a curve
    to see.

    Args:
        folder: Of the run; the recipe goes there.
        cases: What `write_case` wrote.
        name: Of the model that comes out, which is installed.
        base: The model that was corrected.
        method: See `Recipe`.
        steps: Optimiser steps.
        several_patients: With one patient there is nobody to validate on.
    """
    values = {
        "name": name,
        "base": base,
        "method": method,
        "data": [{"folder": str(cases)}],
        "output": str(folder),
        "steps": steps,
        "batch": 2,
        "warmup": min(20, steps // 10),
        "save_every": 20,
        "validation": {
            "share": 0.25 if several_patients else 0.0,
            "every": max(5, steps // 20),
            "patience": 8,
        },
        "register": True,
    } | _SETTINGS[method]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECIPE_FILE
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")  # every JSON document is YAML
    return path
