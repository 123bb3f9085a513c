"""The header of an NRRD file, checked field by field before ITK sees it.

ITK's parser trusts what it reads: SimpleITK 2.5.7 ended the process (segmentation fault) on a line of space directions
with something behind its last vector, and on each line of more than 1,000 characters that it did not understand and
repeated in its message; Testing/trust/fuzz.py found both. The grammar is that of the format's definition,
teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from collections import Counter

from MedSAM3Core.errors import VolumeError

FIELD = re.compile(r"^([a-z][a-z ]*):\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE)

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)"
_VECTOR = rf"(?:none|\(\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*\))"
_WORD = r"[^\s\"]{1,40}"
_TEXT = r'"(?:[^"\\]|\\.){0,200}"'
_ONE_EACH_AXIS = {
    "sizes": r"\d{1,18}",
    "spacings": _NUMBER,
    "thicknesses": _NUMBER,
    "axis mins": _NUMBER,
    "axismins": _NUMBER,
    "axis maxs": _NUMBER,
    "axismaxs": _NUMBER,
    "kinds": _WORD,
    "centers": _WORD,
    "centerings": _WORD,
    "labels": _TEXT,
    "units": _TEXT,
    "space directions": _VECTOR,
}
_ANY_NUMBER = {"space origin": _VECTOR, "measurement frame": _VECTOR, "space units": _TEXT}
_SINGLE = {
    "dimension": r"\d{1,2}",
    "type": r"[\w ]{1,40}",
    "space dimension": r"\d{1,2}",
    "endian": r"little|big",
    "encoding": r"raw|gz|gzip|bz2|bzip2|txt|text|ascii|hex",
    "line skip": r"\d{1,9}",
    "lineskip": r"\d{1,9}",
    "byte skip": r"-1|\d{1,9}",
    "byteskip": r"-1|\d{1,9}",
    "space": r"[\w-]{1,60}",
}
_FREE_TEXT = ("content", "data file", "datafile")
_NUMBERS = (
    "number", "min", "max", "old min", "oldmin", "old max", "oldmax", "block size", "blocksize",
)  # fmt: skip
_KNOWN = frozenset(
    [*_ONE_EACH_AXIS, *_ANY_NUMBER, *_SINGLE, *_FREE_TEXT, *_NUMBERS, "sample units", "sampleunits"]
)
_KEY_AND_VALUE = ":="
_LONGEST_LINE = 100_000
_LONGEST_FIELD = 500
"""Characters of a line that ITK might repeat in a message."""


def fields_of(text: str) -> dict[str, str]:
    """Fields of a header, names in lower case.

    Args:
        text: All up to the blank line, line ends as ``\\n``.

    Raises:
        VolumeError: If a field is there twice, or not written as the format says.
    """
    found = [(name.lower(), value) for name, value in FIELD.findall(text)]
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        raise VolumeError(
            f"The header has the field {twice[0]!r} twice; expected it once: copy the file again."
        )
    if max(map(len, text.split("\n"))) > _LONGEST_LINE or "\0" in text:
        raise VolumeError("The header has a line that is not text; copy the file again.")
    _check_lines(text)
    fields = dict(found)
    for name, value in found:
        _check(name, value, fields.get("dimension", ""))
    return fields


def _check_lines(text: str) -> None:
    """Refuse lines that are no comment, no field of the format's and no key with a value, such as Slicer's own."""
    for line in text.split("\n")[1:]:
        name = line.partition(":")[0].lower()
        is_key = _KEY_AND_VALUE in line.partition(": ")[0]
        if not line or line.startswith("#") or is_key:
            continue
        if name not in _KNOWN or len(line) > _LONGEST_FIELD:
            raise VolumeError(
                f"The header has the line {line[:60]!r}; expected a field that the format knows, of at most "
                f"{_LONGEST_FIELD} characters: the file is damaged, copy it again."
            )
        if name in ("data file", "datafile") and line.partition(":")[2].strip().startswith("LIST"):
            return  # names of files follow


def _check(name: str, value: str, dimension: str) -> None:
    item = _ONE_EACH_AXIS.get(name) or _ANY_NUMBER.get(name)
    if item:
        items = re.findall(item, value, re.IGNORECASE)
        separator = r"\s*" if item == _VECTOR else r"\s+"
        whole = re.fullmatch(rf"\s*{item}(?:{separator}{item})*\s*", value, re.IGNORECASE)
        wanted = dimension if name in _ONE_EACH_AXIS else str(len(items))
        lengths = {one.count(",") for one in items if one.startswith("(")}
        good = bool(whole) and str(len(items)) == wanted.lstrip("0") and len(lengths) <= 1
    else:
        good = name not in _SINGLE or bool(re.fullmatch(_SINGLE[name], value, re.IGNORECASE))
    if not good:
        raise VolumeError(
            f"The header's field {name!r} is {value[:60]!r}; expected what the format allows there for an image of "
            f"dimension {dimension[:9] or 'unknown'}: the file is damaged, copy it again."
        )
