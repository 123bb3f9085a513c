"""From what a user names, folders, files, patterns, a CSV, to the cases of a batch.

Every image below a folder becomes a case, DICOM files by their series. The names of the cases mirror the folders, so
that results lie as their images do. What is left out is counted and said.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from MedSAM3Core.batch.cases import Case
from MedSAM3Core.concepts import resolve, split_concepts
from MedSAM3Core.errors import InputError, PromptError
from MedSAM3Core.plurals import counted
from MedSAM3Core.volume import video
from MedSAM3Core.volume.dicom.tree import SeriesFiles, check_whole, looks_like_dicom, sort_into_series
from MedSAM3Core.volume.reading import SUFFIXES

MANIFEST_COLUMNS = ("path", "concepts", "name", "modality")
_SEGMENTATIONS = (".seg.nrrd", ".seg.nhdr")
_DOUBLE_SUFFIXES = (".nii.gz", ".seg.nrrd")
_UNSAFE = re.compile(r"[^\w.\-+ ]+")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Wanted:
    """Which DICOM series are taken.

    Attributes:
        modalities: Modality codes, upper case; empty takes all.
        description: A part of the series description; "" takes all.
    """

    modalities: tuple[str, ...] = ()
    description: str = ""

    def takes(self, series: SeriesFiles) -> bool:
        """Whether a series is one of them."""
        if self.modalities and series.modality.upper() not in self.modalities:
            return False
        return self.description.lower() in series.description.lower()


@dataclass(frozen=True)
class Found:
    """The cases of a batch.

    Attributes:
        cases: In a fixed order, each with a key of its own.
        notices: Sentences about what was left out.
    """

    cases: tuple[Case, ...]
    notices: tuple[str, ...] = ()


@dataclass
class _Search:
    """What has been met so far."""

    concepts: tuple[str, ...]
    wanted: Wanted
    cases: list[Case] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    seen: set[Path] = field(default_factory=set)


def find_cases(
    inputs: Sequence[str], concepts: Sequence[str], output: Path, wanted: Wanted | None = None
) -> Found:
    """Cases of files, folders and patterns.

    Args:
        inputs: Files, folders, or patterns such as "data/**/*.nii.gz".
        concepts: What to look for in each, as typed.
        output: The folder of the results, which is not searched when it lies in an input.
        wanted: Which DICOM series are taken.

    Raises:
        InputError: If an input does not exist or holds nothing, or there is nothing at all.
        PromptError: If a concept cannot be used.
    """
    phrases = check_concepts(concepts)
    if not phrases:
        raise PromptError("There is no concept; give at least one with -c, such as -c liver.")
    search = _Search(phrases, wanted or Wanted())
    skipped = output.resolve()
    for text in inputs:
        for path in _expand(text):
            _take(search, path, skipped)
    if not search.cases:
        what = ", ".join(inputs)
        raise InputError(
            f"No image was found in {what}{_left_out_words(search)}; name image files or folders."
        )
    return Found(_with_own_keys(search.cases), _notices(search))


def check_concepts(concepts: Iterable[str]) -> tuple[str, ...]:
    """Phrases of texts that may list several, each concept once.

    Raises:
        PromptError: If one cannot be used.
    """
    found: dict[str, str] = {}
    for phrase in (part for text in concepts for part in split_concepts(text)):
        found.setdefault(resolve(phrase).phrase, phrase)
    return tuple(found.values())


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.exists():
        return [path]
    if not _GLOB.search(text):
        raise InputError(f"{text} does not exist; check the path.")
    found = sorted(Path(name) for name in glob.glob(text, recursive=True))
    if not found:
        raise InputError(
            f"Nothing matches {text}; check the pattern, and put it in quotes so that the shell passes it on as it is."
        )
    return found


def _take(search: _Search, path: Path, skipped: Path) -> None:
    if path.is_dir():
        _take_files(search, path, _walk(path, skipped))
    else:
        _take_files(search, path.parent, [path])


def _walk(folder: Path, skipped: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (Path(root) / name).resolve() != skipped
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root) / name


def _take_files(search: _Search, root: Path, files: Iterable[Path]) -> None:
    dicoms: list[Path] = []
    for path in files:
        place = path.resolve()
        if place in search.seen:
            search.left_out["file named twice", "files named twice"] += 1
            continue
        search.seen.add(place)
        name = path.name.lower()
        if name.endswith(_SEGMENTATIONS):
            search.left_out["segmentation", "segmentations"] += 1
        elif name.endswith(video.SUFFIXES):
            search.left_out[
                "film (follow it with medsam3 track)", "films (follow them with medsam3 track)"
            ] += 1
        elif name.endswith(SUFFIXES) and not name.endswith(".dcm"):
            search.cases.append(Case(_key_of_file(path, root), path, search.concepts))
        elif path.name == "DICOMDIR":
            continue
        elif _is_dicom(path):
            dicoms.append(path)
        elif name.endswith(".dcm"):
            search.cases.append(Case(_key_of_file(path, root), path, search.concepts))  # reading will say why
        else:
            search.left_out[_files_of(path.suffix.lower() or "suffixless")] += 1
    _take_series(search, root, dicoms)


def _files_of(kind: str) -> tuple[str, str]:
    """A kind of file in the singular and the plural."""
    return f"{kind} file", f"{kind} files"


def _is_dicom(path: Path) -> bool:
    try:
        return path.stat().st_size > 0 and looks_like_dicom(path)
    except OSError:
        return path.suffix.lower() == ".dcm"


def _take_series(search: _Search, root: Path, files: Sequence[Path]) -> None:
    tree = sort_into_series(files)
    for kind, count in tree.others.items():
        search.left_out[_files_of(kind)] += count
    for path, why in tree.damaged.items():
        problem = (
            f"The DICOM file {path.name} is damaged ({why}); copy it again, or remove it if it is not needed."
        )
        search.cases.append(Case(_key_of_file(path, root), path, search.concepts, problem=problem))
    taken = []
    for series in tree.series:
        if series.localizer:
            search.left_out["localizer series", "localizer series"] += 1
        elif not search.wanted.takes(series):
            kind = "series of another modality or description"
            search.left_out[kind, kind] += 1
        else:
            taken.append(series)
    folders = Counter(_folder_of(series) for series in taken)
    for series in taken:
        folder = _folder_of(series)
        search.cases.append(_case_of_series(search, root, series, folder, alone=folders[folder] == 1))


def _folder_of(series: SeriesFiles) -> Path:
    return Path(os.path.commonpath([file.parent for file in series.files]))


def _case_of_series(search: _Search, root: Path, series: SeriesFiles, folder: Path, alone: bool) -> Case:
    relative = PurePosixPath(folder.relative_to(root).as_posix())
    key = relative if relative.parts else PurePosixPath(root.resolve().name or "series")
    if not alone:
        key = key / (_slug(f"{series.number}_{series.description}".strip("_")) or "series")
    problem = ""
    try:
        check_whole(series)
    except InputError as error:
        problem = str(error)
    return Case(
        str(key), folder, search.concepts, files=series.files, series=series.describe(), problem=problem
    )


def _slug(text: str) -> str:
    """Text as a part of a file name."""
    return _UNSAFE.sub("_", text).strip(" ._")[:80]


def _key_of_file(path: Path, root: Path) -> str:
    relative = path.relative_to(root)
    return (relative.parent / _stem(relative.name)).as_posix()


def _stem(name: str) -> str:
    for suffix in _DOUBLE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def _with_own_keys(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Make keys unique, upper and lower case counted as one: by the file's suffix, then by a number."""
    count = Counter(case.key.casefold() for case in cases)
    taken: set[str] = set()
    result = []
    for case in cases:
        key = case.key
        if count[key.casefold()] > 1 and not case.files:
            key = (PurePosixPath(key).parent / case.path.name).as_posix()
        names = [key, *(f"{key}_{n}" for n in range(2, len(cases) + 2))]
        key = next(name for name in names if name.casefold() not in taken)
        taken.add(key.casefold())
        result.append(case if key == case.key else replace(case, key=key))
    return tuple(result)


def _left_out_words(search: _Search) -> str:
    return f" (left out: {_listed(search)})" if search.left_out else ""


def _notices(search: _Search) -> tuple[str, ...]:
    return (f"Left out: {_listed(search)}.",) if search.left_out else ()


def _listed(search: _Search) -> str:
    kinds = sorted(search.left_out.items(), key=lambda item: item[0][1])
    return ", ".join(counted(count, one, several) for (one, several), count in kinds)


# -- manifests ----------------------------------------------------------------------------------------------------


def read_manifest(path: Path, concepts: Sequence[str] = ()) -> Found:
    """Cases of a CSV with a heading line.

    Columns: ``path`` (relative to the CSV's own folder), and if wanted ``concepts`` (several separated by semicolons;
    the general ones where it is empty), ``name`` (of the result) and ``modality``. A row that cannot be used becomes a
    case that fails with the reason, so that no row is lost.

    Args:
        path: The CSV.
        concepts: For rows that name none.

    Raises:
        InputError: If it cannot be read, lacks the column ``path``, has an unknown column, or no row.
        PromptError: If one of ``concepts`` cannot be used.
    """
    general = check_concepts(concepts)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = [str(name).strip().lower() for name in reader.fieldnames or ()]
            rows = [
                [str(value or "").strip() for value in row.values()] for row in reader if any(row.values())
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"The manifest {path} cannot be read ({why}); expected a CSV in UTF-8.") from error
    unknown = [name for name in columns if name not in MANIFEST_COLUMNS]
    if "path" not in columns or unknown:
        raise InputError(
            f"The manifest {path.name} has the columns {_shown(columns) or 'none'}; expected path and any of "
            f"{', '.join(MANIFEST_COLUMNS[1:])}: correct its first line."
        )
    if not rows:
        raise InputError(f"The manifest {path.name} has no rows; add one for each image.")
    cases = [
        _case_of_row(dict(zip(columns, row, strict=False)), number, path.parent, general)
        for number, row in enumerate(rows, start=2)
    ]
    return Found(_with_own_keys(cases))


def _shown(columns: Sequence[str]) -> str:
    """The first of some names, each cut: a file of another kind may have anything in its first line."""
    text = ", ".join(name[:30] for name in columns[:8])
    return f"{text} and {len(columns) - 8} more" if len(columns) > 8 else text


def _case_of_row(row: dict[str, str], number: int, base: Path, general: tuple[str, ...]) -> Case:
    image = base / row["path"] if row["path"] else base
    key = _manifest_key(row, number)
    problem, phrases = "", general
    try:
        phrases = check_concepts([row["concepts"]]) if row.get("concepts") else general
    except PromptError as error:
        problem = f"Row {number} of the manifest: {error}"
    if not row["path"]:
        problem = f"Row {number} of the manifest names no image; fill in its path."
    elif not problem and not phrases:
        problem = f"Row {number} of the manifest names no concept; fill it in, or give one with -c."
    modality = row.get("modality", "").upper() or None
    return Case(key, image, phrases, modality=modality, problem=problem)


def _manifest_key(row: dict[str, str], number: int) -> str:
    """The name asked for, else the path's own, without ways out of the output folder."""
    text = row.get("name") or row["path"] or f"row {number}"
    parts = [part for part in PurePosixPath(text.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    parts = [part for part in parts if not part.endswith(":")] or [f"row {number}"]
    last = parts[-1] if row.get("name") else _stem(parts[-1])
    return PurePosixPath(*parts[:-1], last).as_posix()
