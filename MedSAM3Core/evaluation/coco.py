"""COCO JSON, as MedSAM3's published training code and Roboflow write it: images and annotations in one file a split.

Masks are polygons or run lengths, drawn by pycocotools.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MedSAM3Core.errors import InputError, VolumeError
from MedSAM3Core.excerpts import excerpt

COCO_FILE = "_annotations.coco.json"
SPLIT_FOLDERS = {"train": "train", "valid": "validation", "val": "validation", "test": "test"}
"""Name of the folder that a file lies in, and the split that it means."""


def find_coco_files(folder: Path) -> list[Path]:
    """Annotation files of a folder or of its train, valid and test folders."""
    places = [folder, *(folder / name for name in SPLIT_FOLDERS)]
    return [place / COCO_FILE for place in places if (place / COCO_FILE).is_file()]


def read_coco(path: Path) -> Mapping[str, Any]:
    """An annotation file.

    Raises:
        InputError: If it is not COCO JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(content[name], list) for name in ("images", "annotations", "categories")):
            raise TypeError("not lists")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not COCO JSON ({type(error).__name__}: {excerpt(error)}); expected lists named images, "
            "annotations and categories."
        ) from error
    return content


def annotations_by_image(content: Mapping[str, Any]) -> dict[int, dict[str, list[int]]]:
    """Image id to category name to the ids of its annotations; crowds are left out."""
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    found: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for annotation in content["annotations"]:
        if annotation.get("segmentation") and not annotation.get("iscrowd"):
            found[annotation["image_id"]][names[annotation["category_id"]]].append(annotation["id"])
    return {image: dict(members) for image, members in found.items()}


def draw_annotations(path: Path, ids: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """Number some annotations and draw them, later ones on top.

    Args:
        path: The annotation file.
        ids: Annotations.
        shape: Of the image, (1, rows, columns).

    Returns:
        (1, rows, columns) of integers, 0 background.

    Raises:
        VolumeError: If an annotation's mask is of another size than the image, or cannot be drawn.
        InputError: If pycocotools is missing.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise InputError("COCO masks need pycocotools; run pip install 'MedSAM3Core[training]'.") from error
    wanted = set(ids)
    objects = np.zeros(shape, np.int64)
    number = 0
    for annotation in read_coco(path)["annotations"]:
        if annotation["id"] not in wanted:
            continue
        number += 1
        shapes = annotation["segmentation"]
        try:
            runs = _runs(coco_mask, shapes, shape[1], shape[2])
            drawn = coco_mask.decode(runs).astype(bool)
        except (TypeError, ValueError, KeyError) as error:
            raise VolumeError(
                f"{path.name}: the mask of annotation {annotation['id']} cannot be drawn ({excerpt(error)}); expected "
                "polygons or run lengths."
            ) from error
        if drawn.shape != shape[1:]:
            raise VolumeError(
                f"{path.name}: the mask of annotation {annotation['id']} has {drawn.shape[1]} x "
                f"{drawn.shape[0]} pixels, its image {shape[2]} x {shape[1]}; correct the file."
            )
        objects[0, drawn] = number
    return objects


def _runs(coco_mask: Any, shapes: Any, rows: int, columns: int) -> Any:
    if isinstance(shapes, list):
        return coco_mask.merge(coco_mask.frPyObjects(shapes, rows, columns))
    return coco_mask.frPyObjects(shapes, *shapes["size"]) if isinstance(shapes["counts"], list) else shapes
