"""A folder to labelled cases, whichever way it is laid out.

::

    read_dataset ──> cases.csv            a table of one's own
                 ──> _annotations.coco.json   COCO, whole or in train, valid and test
                 ──> index.csv, volumes.csv   this project's pack, with its split by patient
                 ──> a published layout   recognised, or named
                 ──> images/ and masks/   one concept, named by the caller
                 ──> *.mrml, *.mrb        saved scenes of Slicer
                 ──> *.seg.nrrd           each beside its image, as an annotator leaves them
"""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.cases import LabelledCase, Reference, ReferenceKind
from MedSAM3Core.evaluation.coco import (
    SPLIT_FOLDERS,
    annotations_by_image,
    find_coco_files,
    read_coco,
)
from MedSAM3Core.evaluation.heldout import absent_concepts
from MedSAM3Core.evaluation.layouts import count_notice, known_layouts, read_layout, read_published, recognise
from MedSAM3Core.evaluation.patients import check_names, check_patients
from MedSAM3Core.evaluation.scenes import find_scenes, segmentations_of
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.plurals import counted
from MedSAM3Core.training.pack import Case, read_pack, split_of
from MedSAM3Core.volume.reading import SUFFIXES, stem
from MedSAM3Core.volume.reference import read_segmentation

TABLE = "cases.csv"
NEEDED_COLUMNS = ("image", "concept", "mask")
SEGMENTATION_SUFFIX = ".seg.nrrd"


@dataclass(frozen=True)
class DataSet:
    """Labelled cases and what is to be known of them.

    Attributes:
        name: Short name; published figures are looked up under it.
        title: For display.
        cases: All cases, of every split.
        notices: Sentences for the user.
        homepage: Where it is published, or an empty string.
        citation: What to cite.
        patient_note: What counts as a patient.
    """

    name: str
    title: str
    cases: tuple[LabelledCase, ...]
    notices: tuple[str, ...] = ()
    homepage: str = ""
    citation: str = ""
    patient_note: str = ""

    def of_split(self, split: str) -> tuple[LabelledCase, ...]:
        """Cases of a split, or of all of them for "all".

        Raises:
            InputError: If there is none, naming the splits that there are.
        """
        chosen = self.cases if split == "all" else tuple(case for case in self.cases if case.split == split)
        if not chosen:
            counts: dict[str, int] = defaultdict(int)
            for case in self.cases:
                counts[case.split or "without a split"] += 1
            have = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            raise InputError(
                f"The split {split!r} of {self.title} is empty; it has {have}: choose another, or all."
            )
        return chosen


def read_dataset(folder: Path, layout: str | None = None, concept: str | None = None) -> DataSet:
    """Read a folder of labelled images.

    Args:
        folder: The folder.
        layout: Name of a published layout, or path of a YAML file with one; None looks at what is there.
        concept: What the masks of an images-and-masks folder show.

    Raises:
        InputError: If the folder is missing or of no known layout, or its cases cannot be used, with the reason.
    """
    if not folder.is_dir():
        raise InputError(f"The data set {folder} does not exist; give a folder of images with masks.")
    if layout is not None:
        found = _read_layout(folder, layout)
    elif (folder / TABLE).is_file():
        found = _read_table(folder)
    elif find_coco_files(folder):
        found = _read_coco(folder)
    elif any((folder / name).is_file() for name in ("index.csv", "volumes.csv")):
        found = _read_pack(folder)
    elif published := recognise(folder):
        found = _read_layout(folder, published.name)
    elif (folder / "images").is_dir() and (folder / "masks").is_dir():
        found = _read_pairs(folder, concept)
    elif any(any(folder.rglob(pattern)) for pattern in (f"*{SEGMENTATION_SUFFIX}", "*.mrb")):
        found = read_segmented(folder)
    else:
        raise InputError(
            f"{folder} is of no known layout; expected {TABLE} with the columns image, concept and mask, the "
            f"folders images and masks, images with {SEGMENTATION_SUFFIX} files beside them, or one of "
            f"{', '.join(known_layouts())}."
        )
    check_patients(found.cases)
    return found


def _read_layout(folder: Path, name: str) -> DataSet:
    known = known_layouts()
    if name in known:
        layout = known[name]
    elif name.endswith((".yaml", ".yml")):
        layout = read_layout(Path(name))
    else:
        raise InputError(
            f"The layout {name!r} is unknown; expected one of {', '.join(known)}, or a YAML file."
        )
    cases = read_published(folder, layout)
    notice = count_notice(layout, cases)
    return DataSet(
        layout.name,
        layout.title,
        tuple(cases),
        (notice,) if notice else (),
        layout.homepage,
        layout.citation,
        layout.patient_note,
    )


def _read_pack(folder: Path) -> DataSet:
    path = folder / "concept_groups.json"
    groups = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    groups = {term: parts for term, parts in groups.items() if term not in parts}
    cases = [_pack_case(case, folder, groups, number) for number, case in enumerate(read_pack(folder))]
    note = "By file name, or by cluster of look-alikes where no patient is published."
    return DataSet(folder.name, f"data pack {folder.name}", tuple(cases), patient_note=note)


def _pack_case(case: Case, folder: Path, groups: Mapping[str, Sequence[str]], seed: int) -> LabelledCase:
    if case.is_volume:
        labels = next(iter(case.masks.values()))
        references = {
            concept: Reference((labels,), "labels", (value,)) for value, concept in case.labels.items()
        }
        values = {concept: value for value, concept in case.labels.items()}
        for term, parts in groups.items():
            if all(part in values for part in parts):
                references[term] = Reference((labels,), "labels", tuple(values[part] for part in parts))
    else:
        kind: ReferenceKind = "instances" if case.instances else "mask"
        references = {concept: Reference((path,), kind) for concept, path in case.masks.items()}
    return LabelledCase(
        name=case.image.relative_to(folder).as_posix(),
        image=case.image,
        references=references,
        patient=case.patient,
        source=case.source,
        split=split_of(case.patient),
        absent=tuple(absent_concepts(case, seed)),
        licence=case.licence,
    )


def _read_table(folder: Path) -> DataSet:
    """``cases.csv``: image, concept, mask, and optionally value, segment, kind, patient, split, modality."""
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"The table {folder / TABLE} cannot be read ({excerpt(error)}); expected a CSV in UTF-8."
        ) from error
    columns = set(rows[0]) if rows else set()
    lacking = [name for name in NEEDED_COLUMNS if name not in columns]
    if lacking:
        raise InputError(
            f"{folder / TABLE} has no column {lacking[0]!r}; expected at least {', '.join(NEEDED_COLUMNS)}, and "
            "a row for "
            "each image and concept."
        )
    grouped: dict[str, list[dict[str, str]]] = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        if short := [name for name in NEEDED_COLUMNS if row[name] is None]:
            raise InputError(
                f"Row {number} of {folder / TABLE} ends before its column {short[0]!r}; fill it in."
            )
        grouped[row["image"]].append(row)
    cases = tuple(_table_case(folder, image, members) for image, members in grouped.items())
    if "patient" not in columns:
        _check_names(cases, folder)
    return DataSet(
        folder.name, folder.name, cases, patient_note=f"The column 'patient' of {TABLE}, or the image."
    )


def _table_case(folder: Path, image: str, rows: Sequence[dict[str, str]]) -> LabelledCase:
    first = rows[0]
    if not os.path.exists(folder / image):  # false also for names that no file system takes
        raise InputError(
            f"{folder / TABLE} names the image {excerpt(image)}, which does not exist; correct the table."
        )
    return LabelledCase(
        name=image,
        image=folder / image,
        references={row["concept"].strip(): _table_reference(folder, row) for row in rows},
        patient=(first.get("patient") or "").strip() or stem(Path(image)),
        source=folder.name,
        modality=(first.get("modality") or "").strip() or None,
        split=(first.get("split") or "").strip(),
    )


def _table_reference(folder: Path, row: Mapping[str, str]) -> Reference:
    mask = (row["mask"] or "").strip()
    if not mask:  # looked for, and not there
        return Reference(())
    path = folder / mask
    if not os.path.isfile(path):
        raise InputError(
            f"{folder / TABLE} names the mask {excerpt(mask)} of {excerpt(row['image'])}, which does not exist; "
            "correct the table, or leave the mask empty if the concept is absent."
        )
    if segment := (row.get("segment") or "").strip():
        return Reference((path,), "segment", segment=segment)
    if value := (row.get("value") or "").strip():
        if not value.isdecimal() or len(value) > 9:
            raise InputError(
                f"{folder / TABLE} gives {excerpt(row['image'])} the label value {excerpt(repr(value))}; expected a "
                "whole number."
            )
        return Reference((path,), "labels", (int(value),))
    kind: ReferenceKind = "instances" if (row.get("kind") or "").strip() == "instance" else "mask"
    return Reference((path,), kind)


def _read_coco(folder: Path) -> DataSet:
    """COCO files; a category without an annotation in an image is unknown there, as the format has no word for
    absent.
    """
    cases = []
    for path in find_coco_files(folder):
        content = read_coco(path)
        annotations = annotations_by_image(content)
        for entry in content["images"]:
            image = path.parent / str(entry.get("file_name", ""))
            if not os.path.isfile(image):
                raise InputError(
                    f"{path} names the image {excerpt(image.name)}, which does not exist; correct the file."
                )
            references = {
                name.strip().lower().replace("_", " "): Reference((path,), "coco", ids=tuple(ids))
                for name, ids in annotations.get(entry["id"], {}).items()
            }
            if references:
                where = image.relative_to(folder)
                split = SPLIT_FOLDERS.get(path.parent.name, "") if path.parent != folder else ""
                patient = str(entry.get("patient") or entry.get("patient_id") or where.name)
                cases.append(
                    LabelledCase(where.as_posix(), image, references, patient, folder.name, split=split)
                )
    if not cases:
        raise InputError(
            f"The COCO files in {folder} hold no annotation with a mask; check their segmentations."
        )
    note = "The field 'patient' of an image, where it has one; otherwise each image is taken alone."
    return DataSet(folder.name, folder.name, tuple(cases), patient_note=note)


def _read_pairs(folder: Path, concept: str | None) -> DataSet:
    """``images/`` and ``masks/`` with the same names; the concept is said by the caller."""
    if concept is None:
        raise InputError(
            f"{folder} holds images and masks but does not say what they show; name it with one --concept, or write "
            f"{TABLE}."
        )
    masks = {stem(path): path for path in sorted((folder / "masks").iterdir()) if _is_image(path)}
    cases = []
    for image in sorted(path for path in (folder / "images").iterdir() if _is_image(path)):
        if stem(image) not in masks:
            raise InputError(
                f"The image {image.name} has no mask of the same name in {folder / 'masks'}; add it or remove "
                "the image."
            )
        reference = Reference((masks[stem(image)],))
        cases.append(LabelledCase(image.name, image, {concept: reference}, stem(image), folder.name))
    if not cases:
        raise InputError(
            f"{folder / 'images'} holds no image of a known kind; expected one of {', '.join(SUFFIXES)}."
        )
    return DataSet(folder.name, folder.name, tuple(cases), patient_note="Each image is taken as a patient.")


def read_segmented(folder: Path) -> DataSet:
    """Saved scenes of Slicer, and images with a ``.seg.nrrd`` beside them, as "Save" and a corrected case leave them.

    A scene (``.mrml``, ``.mrb``) says which segmentation belongs to which image. Without one ``ct.nrrd`` goes with
    ``ct.seg.nrrd``, and with ``ct-segmentation.seg.nrrd`` or ``ct_anything.seg.nrrd``; in a folder with one image and
    one segmentation the two go together whatever their names. Segments without a voxel are concepts that were looked
    for and are absent.

    Raises:
        InputError: If a segmentation has no image, or several, or a scene cannot be read.
    """
    cases = []
    known: set[Path] = set()
    for scene in find_scenes(folder):
        inside = scene.is_relative_to(folder)
        for path, image in segmentations_of(scene).items():
            known.add(path)
            cases.append(_segmented_case(path, image, folder if inside else scene.parent.parent, folder.name))
    for path in sorted(folder.rglob(f"*{SEGMENTATION_SUFFIX}")):
        if path not in known:
            cases.append(_segmented_case(path, _image_of(path), folder, folder.name))
    if not cases:
        raise InputError(
            f"The scenes in {folder} hold no segmentation with an image; save the scene with its data."
        )
    return DataSet(
        folder.name,
        folder.name,
        tuple(_merge(cases)),
        patient_note="The first folder of an image's path is its patient; without folders, each image is one.",
    )


def _segmented_case(path: Path, image: Path, folder: Path, source: str) -> LabelledCase:
    references = {
        segment.name.lower(): Reference((path,), "segment", segment=segment.name)
        for segment in read_segmentation(path)
    }
    where = image.relative_to(folder)
    patient = where.parts[0] if len(where.parts) > 1 else stem(image)
    return LabelledCase(where.as_posix(), image, references, patient, source)


def _image_of(segmentation: Path) -> Path:
    images = [
        path
        for path in sorted(segmentation.parent.iterdir())
        if path.is_file() and _is_image(path) and not path.name.endswith(SEGMENTATION_SUFFIX)
    ]
    name = stem(segmentation)
    close = [
        path for path in images if name == stem(path) or name.startswith((f"{stem(path)}-", f"{stem(path)}_"))
    ]
    close = sorted(close, key=lambda path: -len(stem(path)))[:1] or (images if len(images) == 1 else [])
    if not close:
        raise InputError(
            f"{segmentation.name} has no image beside it in {segmentation.parent} "
            f"({counted(len(images), 'image')} there); save the volume as {name}.nrrd next to it."
        )
    return close[0]


def _merge(cases: Sequence[LabelledCase]) -> list[LabelledCase]:
    """Several segmentations of one image are one case."""
    merged: dict[Path, LabelledCase] = {}
    for case in cases:
        known = merged.get(case.image)
        merged[case.image] = (
            replace(known, references={**known.references, **case.references}) if known else case
        )
    return list(merged.values())


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _check_names(cases: Sequence[LabelledCase], folder: Path) -> None:
    folders: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        folders[case.patient].add(case.image.parent.relative_to(folder).as_posix())
    check_names(folders)


def choose_some(cases: Sequence[LabelledCase], limit: int) -> list[LabelledCase]:
    """At most ``limit`` cases of each source, spread evenly over it, always the same ones."""
    by_source: dict[str, list[LabelledCase]] = defaultdict(list)
    for case in cases:
        by_source[case.source].append(case)
    chosen = []
    for members in by_source.values():
        count = min(limit, len(members))
        places = {round(n * (len(members) - 1) / max(count - 1, 1)) for n in range(count)}
        chosen += [members[place] for place in sorted(places)]
    return chosen
