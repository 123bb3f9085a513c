"""Saved scenes of 3D Slicer (``.mrml`` with its files, or ``.mrb``): which segmentation belongs to which image.

A scene says it itself, whatever the files are called: the segmentation node refers to its image, both refer to a
storage node, and that names the file.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from MedSAM3Core.errors import InputError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.models.registry import data_home

IMAGE_ROLE = "referenceImageGeometryRef"
"""Role of the reference from a segmentation to its image, as Slicer 5 writes it."""


def find_scenes(folder: Path) -> list[Path]:
    """Scene files below a folder; archives are unpacked into the user's data folder, once.

    Raises:
        InputError: If an archive is damaged.
    """
    scenes = list(folder.rglob("*.mrml"))
    for archive in folder.rglob("*.mrb"):
        scenes += _unpack(archive).rglob("*.mrml")
    return sorted(scenes)


def segmentations_of(scene: Path) -> dict[Path, Path]:
    """Segmentation files of a scene, each with the file of its image; those without an image on disk are left out.

    Raises:
        InputError: If the file is no scene.
    """
    nodes = _nodes(scene)
    pairs = {}
    for node in nodes.values():
        image = nodes.get(_references(node).get(IMAGE_ROLE, ""))
        files = [_file(one, nodes, scene) for one in (node, image) if one is not None]
        if len(files) == 2 and all(file is not None and file.is_file() for file in files):
            segmentation, picture = files
            assert segmentation is not None
            assert picture is not None
            pairs[segmentation] = picture
    return pairs


def _nodes(scene: Path) -> dict[str, ElementTree.Element]:
    try:
        text = scene.read_text(encoding="utf-8", errors="replace")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without bound, and scenes have none
            raise InputError(f"{scene.name} declares XML entities; expected a scene that Slicer saved.")
        return {
            node.attrib["id"]: node for node in ElementTree.fromstring(text).iter() if "id" in node.attrib
        }
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(
            f"{scene.name} cannot be read as a scene of Slicer ({excerpt(error)}); save it again."
        ) from error


def _references(node: ElementTree.Element) -> Mapping[str, str]:
    """Role to the id that a node refers to."""
    pairs = (part.split(":", 1) for part in node.attrib.get("references", "").split(";") if ":" in part)
    return {role: ids.split()[0] for role, ids in pairs if ids.strip()}


def _file(node: ElementTree.Element, nodes: Mapping[str, ElementTree.Element], scene: Path) -> Path | None:
    storage = nodes.get(_references(node).get("storage", ""))
    name = storage.attrib.get("fileName", "") if storage is not None else ""
    return scene.parent / unquote(name) if name else None


def _unpack(archive: Path) -> Path:
    """Folder with the content of an ``.mrb``."""
    facts = f"{archive.resolve()}:{archive.stat().st_mtime_ns}:{archive.stat().st_size}"
    place = data_home() / "scenes" / hashlib.sha256(facts.encode()).hexdigest()[:16]
    done = place / ".complete"
    if not done.exists():
        try:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(place)  # leaves out absolute paths and "..", see its documentation
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise InputError(
                f"{archive.name} cannot be unpacked ({excerpt(error)}); save the scene again."
            ) from error
        done.touch()
    return place
