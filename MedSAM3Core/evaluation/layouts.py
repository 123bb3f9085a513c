"""Published data sets in the layout they are published in: one YAML file a set in ``Resources/datasets``.

A description says where to get the data, how its images are found (a pattern on paths relative to the folder, whose
named groups fill the patterns of the masks), what a patient is there, and what should be found, which is checked.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.cases import LabelledCase, Reference, ReferenceKind
from MedSAM3Core.evaluation.fileindex import FileIndex
from MedSAM3Core.faults import first_fault, why_unreadable
from MedSAM3Core.plurals import counted
from MedSAM3Core.resources import resource_path
from MedSAM3Core.yamlfile import read_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Masks(_Strict):
    """Where a concept's masks are.

    Attributes:
        files: Glob patterns relative to the folder, with the image pattern's groups in braces; all that exist are
            united.
        kind: How the files are written, see `Reference`.
        values: Label values of the concept, for "labels".
        required: Whether an image without any such file is an error; if not, the concept is unknown there.
    """

    files: tuple[str, ...]
    kind: ReferenceKind = "mask"
    values: tuple[int, ...] = ()
    required: bool = True


class Layout(_Strict):
    """A published data set.

    Attributes:
        name: Short name, as ``--layout`` takes it.
        title: Its published title.
        modality: As `Volume.modality`; None where the files say it or it varies.
        homepage: Where it is published.
        obtain: How to get it, one sentence.
        licence: As its publishers state it.
        citation: What to cite.
        image: Regular expression that a whole image path matches, relative to the folder, with forward slashes.
        concepts: Concept to its masks.
        labels: Mask file of a labelmap whose names are in ``dataset.json`` (Decathlon, AMOS), instead of ``concepts``.
        names: Name in ``dataset.json`` to concept; a name that is not here is taken in lower case.
        includes: Concept to others that are part of it (a tumor is part of its organ), for ``labels``.
        patient: Template of the image pattern's groups that names the patient; empty takes each image alone.
        patient_note: What a patient is here.
        splits: Split to a regular expression on the image's path; the first that matches counts.
        by_array: Headers of images and masks disagree in the published files, their voxels do not.
        expected: Images in the complete set, by what was published; 0 where it varies.
    """

    name: str
    title: str
    modality: str | None = None
    homepage: str
    obtain: str
    licence: str = ""
    citation: str = ""
    image: str
    concepts: dict[str, Masks] = Field(default_factory=dict)
    labels: str = ""
    names: dict[str, str] = Field(default_factory=dict)
    includes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    patient: str = ""
    patient_note: str = "Each image is taken as a patient of its own."
    splits: dict[str, str] = Field(default_factory=dict)
    by_array: bool = False
    expected: int = 0


@lru_cache(maxsize=1)
def known_layouts() -> Mapping[str, Layout]:
    """All descriptions that ship, by name."""
    found = {}
    for path in sorted(resource_path("datasets").glob("*.yaml")):
        layout = read_layout(path)
        found[layout.name] = layout
    return found


def read_layout(path: Path) -> Layout:
    """A description from a file, for a set that does not ship.

    Raises:
        InputError: Naming the field that is wrong.
    """
    try:
        return Layout.model_validate(read_yaml(path))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"The layout {path} cannot be read ({why_unreadable(error)}); correct it."
        ) from error
    except ValidationError as error:
        raise InputError(f"The layout {path} is wrong at {first_fault(error)}; correct it.") from error


def recognise(folder: Path) -> Layout | None:
    """The published layout that most files of a folder fit; None when none fits.

    Only descriptions whose first matching image also has a mask count.
    """
    files = FileIndex(folder)
    best: tuple[int, Layout] | None = None
    for layout in known_layouts().values():
        images = _images(layout, files)
        if not images or not _has_masks(layout, files, next(iter(images.values()))):
            continue
        if best is None or len(images) > best[0]:
            best = (len(images), layout)
    return best[1] if best else None


def read_published(folder: Path, layout: Layout) -> list[LabelledCase]:
    """Cases of a published set.

    Raises:
        InputError: If no image is found, or an image lacks a mask that every image of the set has.
    """
    files = FileIndex(folder)
    images = _images(layout, files)
    if not images:
        raise InputError(
            f"{folder} holds no image of {layout.title} (paths like {layout.image}); {layout.obtain} "
            f"({layout.homepage})."
        )
    concepts = _labelled_concepts(layout, folder) if layout.labels else layout.concepts
    cases = [_case(layout, files, concepts, path, groups) for path, groups in images.items()]
    kept = [case for case in cases if case.references]
    if not kept:
        raise InputError(
            f"{folder} holds {counted(len(cases), 'image')} of {layout.title} but no mask; {layout.obtain} "
            f"({layout.homepage})."
        )
    return kept


def count_notice(layout: Layout, cases: Iterable[LabelledCase]) -> str | None:
    """A sentence when a set is not as large as it was published, None when it is."""
    count = len(list(cases))
    if layout.expected and count != layout.expected:
        found = f"{count} was" if count == 1 else f"{count} were"
        return f"{layout.title} has {layout.expected} labelled images as published; {found} found here."
    return None


def _case(
    layout: Layout, files: FileIndex, concepts: Mapping[str, Masks], path: str, groups: dict[str, str]
) -> LabelledCase:
    references = {}
    for concept, masks in concepts.items():
        found = _mask_files(files, masks, groups)
        if found:
            references[concept] = Reference(found, masks.kind, masks.values, by_array=layout.by_array)
        elif masks.required:
            wanted = ", ".join(pattern.format(**groups) for pattern in masks.files)
            raise InputError(
                f"The image {path} has no mask of {concept!r} (looked for {wanted} in {files.folder}); copy the "
                "masks of "
                f"{layout.title} beside the images as they are published, or remove the image."
            )
    patient = layout.patient.format(**groups) if layout.patient else path
    split = next((name for name, pattern in layout.splits.items() if re.search(pattern, path)), "")
    return LabelledCase(
        name=path,
        image=files.folder / path,
        references=references,
        patient=f"{layout.name}/{patient}",
        source=layout.name,
        modality=layout.modality,
        split=split,
        licence=layout.licence,
    )


def _images(layout: Layout, files: FileIndex) -> dict[str, dict[str, str]]:
    """Path of each image to the groups of its pattern."""
    pattern = re.compile(layout.image)
    matches = ((file, pattern.fullmatch(file)) for file in files.paths)
    return {
        file: {name: value or "" for name, value in match.groupdict().items()}
        for file, match in matches
        if match
    }


def _mask_files(files: FileIndex, masks: Masks, groups: Mapping[str, str]) -> tuple[Path, ...]:
    found = (path for pattern in masks.files for path in files.find(pattern, groups))
    return tuple(files.folder / path for path in sorted(dict.fromkeys(found)))


def _has_masks(layout: Layout, files: FileIndex, groups: Mapping[str, str]) -> bool:
    if layout.labels:
        return (files.folder / "dataset.json").is_file() and bool(files.find(layout.labels, groups))
    return any(_mask_files(files, masks, groups) for masks in layout.concepts.values())


def _labelled_concepts(layout: Layout, folder: Path) -> dict[str, Masks]:
    """Concepts of a folder's ``dataset.json``, whose labels are {"1": "name"} or {"name": 1}; several may share a
    name."""
    path = folder / "dataset.json"
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        pairs = [(k, v) if str(k).isdigit() else (v, k) for k, v in labels.items()]
        numbered = [(int(value), str(name)) for value, name in pairs]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} does not say what its labels are ({type(error).__name__}); copy dataset.json of {layout.title}."
        ) from error
    values: dict[str, list[int]] = defaultdict(list)
    for value, name in numbered:
        if value:
            values[layout.names.get(name, name.lower().replace("_", " "))].append(value)
    for concept, parts in layout.includes.items():
        if concept in values:
            values[concept] += [value for part in parts for value in values.get(part, [])]
    return {
        concept: Masks(files=(layout.labels,), kind="labels", values=tuple(members), required=False)
        for concept, members in values.items()
    }
