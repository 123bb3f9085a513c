"""Damage for files of every kind: bytes anywhere, and fields of a format with its checksums put right again.

Bytes alone are stopped by the first checksum or magic number. Each format therefore has a damage of its own that gets
past those: a header field with a value that cannot be, a compressed stream of other content, a zip with another pickle.
All of it is drawn from one `random.Random`, so that a seed gives the same file again.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import yaml

Damage = Callable[[bytes, random.Random], bytes]

ODD_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "65535",
    "65536",
    "2147483647",
    "-2147483648",
    "4294967296",
    "1e309",
    "nan",
)
ODD_NUMBERS += ("-inf", "1e-320", "0x10", "99999999999999999999999", "1.5", "１２", "", "true", "١")
ODD_WORDS = (
    "",
    "\x00",
    "../../../etc/passwd",
    "/dev/zero",
    "é" * 40,
    "\ud7ff",
    "x" * 5000,
    "%s%n",
    "{}",
    "[",
    "#",
)
ODD_WORDS += (
    "\r\n",
    "none",
    "lzma",
    "bzip2",
    "raw",
    "double",
    "int64",
    "'; --",
    "=1+1",
    "\u202e",
    "${HOME}",
    "~root",
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    1e308,
    float("nan"),
    "",
    "x" * 3000,
    [],
    {},
    [[]],
    [1],
)
ODD_VALUES += (
    {"a": {"b": []}},
    "../..",
    "\x00",
    "\u202e",
    "2001-13-45",
    [None] * 50,
    {"": ""},
    -0.0,
    "liver",
    512,
)
HEADER = 400
"""Bytes in which most formats say what they hold; two damages of three are made there."""


class Planted:
    """A pickle of this runs `open` on the canary: what a checkpoint with code would do first."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.canary, "w")


def damage_bytes(data: bytes, source: random.Random) -> bytes:
    """Up to six changes of bytes: flipped, set, cut, left out, repeated, put in."""
    content = bytearray(data)
    for _ in range(source.randint(1, 6)):
        if not content:
            break
        reach = min(HEADER, len(content)) if source.random() < 0.67 else len(content)
        place, size = source.randrange(reach), source.choice((1, 2, 4, 8, source.randint(1, 300)))
        kind = source.choice(("flip", "flip", "set", "set", "cut", "drop", "repeat", "insert"))
        if kind == "flip":
            content[place] ^= 1 << source.randrange(8)
        elif kind == "set":
            content[place : place + size] = bytes([source.choice((0, 1, 127, 128, 255))]) * size
        elif kind == "cut":
            del content[source.randrange(len(content)) :]
        elif kind == "drop":
            del content[place : place + size]
        elif kind == "repeat":
            content[place:place] = content[place : place + size]
        else:
            content[place:place] = source.randbytes(size)
    return bytes(content)


def damage_text(data: bytes, source: random.Random) -> bytes:
    """Lines taken out, doubled and exchanged, numbers and words replaced by odd ones, a byte that is no UTF-8."""
    lines = data.decode("latin-1").split("\n")
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(lines))
        kind = source.choice(("number", "number", "number", "word", "drop", "double", "swap", "nest", "byte"))
        if kind == "number":
            numbers = list(re.finditer(r"-?\d+(\.\d+)?", lines[at]))
            if numbers:
                one = source.choice(numbers)
                lines[at] = (
                    lines[at][: one.start()] + _latin(source.choice(ODD_NUMBERS)) + lines[at][one.end() :]
                )
        elif kind == "word":
            head, mark, _ = lines[at].partition(source.choice((":", ",", " ", "=")))
            lines[at] = head + mark + _latin(source.choice(ODD_WORDS))
        elif kind == "drop" and len(lines) > 1:
            del lines[at]
        elif kind == "double":
            lines[at:at] = [lines[at]] * source.choice((1, 1, 500))
        elif kind == "swap":
            other = source.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "nest":
            lines[at] += source.choice("[{(\"'&*") * source.choice((1, 50, 3000))
        else:
            lines[at] += chr(source.choice((0x80, 0xC3, 0xFF)))
    return "\n".join(lines).encode("latin-1")


def _latin(text: str) -> str:
    """The text's UTF-8 bytes as Latin-1 letters, as `damage_text` works on bytes."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def damage_gzip(data: bytes, source: random.Random) -> bytes:
    """Other content in a stream whose checksum is right."""
    return gzip.compress(damage_nifti(gzip.decompress(data), source), 1)


_NIFTI_FIELDS = [
    (0, "i"),
    (70, "h"),
    (72, "h"),
    (108, "f"),
    (112, "f"),
    (116, "f"),
    (123, "b"),
    (252, "h"),
    (254, "h"),
]
_NIFTI_FIELDS += [(40 + 2 * n, "h") for n in range(8)] + [(76 + 4 * n, "f") for n in range(8)]
_NIFTI_FIELDS += [(256 + 4 * n, "f") for n in range(6)] + [(280 + 4 * n, "f") for n in range(12)]
_ODD_OF = {
    "b": (0, 1, 2, 3, 127, -1),
    "h": (0, 1, 2, 4, 8, 16, 64, 128, 256, 1024, 1536, 2048, 32767, -1, -32768),
    "i": (0, 348, 540, 1, -1, 2**31 - 1),
    "f": (0.0, -1.0, 1e38, -1e38, float("nan"), float("inf"), 1e-40, 352.0, 1.0),
}


def damage_nifti(data: bytes, source: random.Random) -> bytes:
    """Header fields with odd values, or bytes."""
    if source.random() < 0.3 or len(data) < 352:
        return damage_bytes(data, source)
    content = bytearray(data)
    for offset, kind in source.sample(_NIFTI_FIELDS, source.randint(1, 4)):
        struct.pack_into("<" + kind, content, offset, source.choice(_ODD_OF[kind]))
    return bytes(content)


def damage_nrrd(data: bytes, source: random.Random) -> bytes:
    """The header's lines, the voxels behind it, or bytes anywhere."""
    head, blank, voxels = data.partition(b"\n\n")
    choice = source.random()
    if choice < 0.6:
        return damage_text(head, source) + blank + voxels
    if choice < 0.7 and voxels[:2] == b"\x1f\x8b":
        return head + blank + gzip.compress(damage_bytes(gzip.decompress(voxels), source), 1)
    return damage_bytes(data, source)


def damage_png(data: bytes, source: random.Random) -> bytes:
    """Chunks changed, left out, doubled, with checksums that are right; or bytes."""
    if data[:4] != b"\x89PNG" or source.random() < 0.3:
        return damage_bytes(data, source)
    chunks, at = [], 8
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(source.randint(1, 2)):
        n = source.randrange(len(chunks))
        kind = source.choice(("change", "change", "header", "drop", "double", "name", "stream"))
        name, body = chunks[n]
        if kind == "change":
            chunks[n] = (name, damage_bytes(body, source))
        elif kind == "header":
            odd = (source.choice((0, 1, 13, 2**16, 2**31 - 1)), source.choice((1, 12, 2**15)))
            depth, colour = source.choice((1, 2, 4, 8, 16, 32)), source.choice((0, 2, 3, 4, 6, 7))
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *odd, depth, colour, 0, 0, source.choice((0, 1))))
        elif kind == "drop" and len(chunks) > 1:
            del chunks[n]
        elif kind == "double":
            chunks[n:n] = [chunks[n]] * source.choice((1, 40))
        elif kind == "name":
            chunks[n] = (
                source.choice((b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"eXIf", b"gAMA")),
                body,
            )
        elif name == b"IDAT":
            chunks[n] = (name, zlib.compress(bytes(source.choice((0, 10, 10**6)))))
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return data[:8] + b"".join(parts)


_DICOM_VALUES: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 65535),
    "Columns": (0, 1, 65535),
    "BitsAllocated": (0, 1, 7, 8, 12, 16, 32, 64),
    "BitsStored": (0, 1, 33),
    "PixelRepresentation": (0, 1, 2),
    "SamplesPerPixel": (0, 1, 2, 3, 4, 65535),
    "PlanarConfiguration": (0, 1, 9),
    "NumberOfFrames": ("0", "1", "-3", "1000000", "99999999", "x"),
    "PhotometricInterpretation": ("MONOCHROME1", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "HSV", ""),
    "ImagePositionPatient": (["nan", "0", "0"], ["1e400", "0", "0"], [], ["1", "2"]),
    "ImageOrientationPatient": (
        ["0"] * 6,
        ["1", "0", "0", "1", "0", "0"],
        ["nan"] * 6,
        ["2", "0", "0", "0", "2", "0"],
    ),
    "PixelSpacing": (["0", "0"], ["-1", "1"], ["1e-30", "1"], ["nan", "1"], []),
    "RescaleSlope": ("0", "nan", "1e308", "-1", "x"),
    "RescaleIntercept": ("nan", "1e308", "-1e308"),
    "SliceThickness": ("0", "-1", "nan"),
    "Modality": ("", "SEG", "RTSTRUCT", "US", "MR\\CT"),
    "SOPClassUID": ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.3", ""),
    "SpecificCharacterSet": ("ISO 2022 IR 87", "nonsense", ""),
}
_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.3",
)
_SYNTAXES += (
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.70",
)


def damage_dicom(data: bytes, source: random.Random) -> bytes:
    """Elements with odd values, other transfer syntaxes, elements and pixels left out; or bytes."""
    import pydicom

    if source.random() < 0.4:
        return damage_bytes(data, source)
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    stream = io.BytesIO()
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        for _ in range(source.randint(1, 3)):
            kind = source.choice(("value", "value", "value", "drop", "syntax", "pixels"))
            if kind == "value":
                name = source.choice(sorted(_DICOM_VALUES))
                setattr(dataset, name, source.choice(_DICOM_VALUES[name]))
            elif kind == "drop":
                del dataset[source.choice(list(dataset.keys()))]
            elif kind == "syntax":
                dataset.file_meta.TransferSyntaxUID = source.choice(_SYNTAXES)
            elif "PixelData" in dataset:
                dataset.PixelData = dataset.PixelData[: source.randrange(len(dataset.PixelData) or 1)]
        dataset.save_as(stream, enforce_file_format=False)
    except Exception:  # what pydicom will not write is damaged as bytes instead
        return damage_bytes(data, source)
    return stream.getvalue()


def damage_tree(value: Any, source: random.Random) -> Any:
    """A JSON or YAML document with one node replaced, left out, doubled or buried."""
    places = list(_places(value))
    parent, key = source.choice(places) if places else (None, None)
    if parent is None:
        return source.choice(ODD_VALUES)
    kind = source.choice(("odd", "odd", "odd", "drop", "extra", "bury"))
    if kind == "odd":
        parent[key] = source.choice(ODD_VALUES)
    elif kind == "drop":
        del parent[key]
    elif kind == "extra" and isinstance(parent, dict):
        parent[source.choice(("extra", "__class__", "", "a" * 2000))] = source.choice(ODD_VALUES)
    else:
        for _ in range(source.choice((1, 30, 900))):
            parent[key] = [parent[key]]
    return value


def _places(value: Any) -> Any:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in list(children):
        yield value, key
        yield from _places(child)


def damage_json(data: bytes, source: random.Random) -> bytes:
    """One node of the document, or its text."""
    if source.random() < 0.35:
        return damage_text(data, source)
    try:
        return json.dumps(damage_tree(json.loads(data), source)).encode()
    except (RecursionError, ValueError):
        return damage_bytes(data, source)


_YAML_TRICKS = (
    b"\nx: !!python/object/apply:builtins.open ['%s', w]\n",
    b"\na: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n",
    b"\n? [a, b]\n: c\n",
    b"\nname: &n [*n]\n",
    b"\nwhen: 2001-13-45\n",
    b"\nnumber: 1_0:99:99\n",
    b"\n<<: [1, 2]\n",
    b"\n--- second document\n",
    b"\nx: !!binary ====\n",
    b"\nx: !!set {a, a}\n",
    b"\nx: !!timestamp nonsense\n",
    b"\nx: !!int nonsense\n",
)


def damage_yaml(data: bytes, source: random.Random, canary: str = "") -> bytes:
    """One node of the document, its text, or one of YAML's own traps."""
    choice = source.random()
    if choice < 0.25:
        trick = source.choice(_YAML_TRICKS)
        return data + (trick % canary.encode() if b"%s" in trick else trick)
    if choice < 0.6:
        return damage_text(data, source)
    try:
        return yaml.safe_dump(damage_tree(yaml.safe_load(data), source)).encode()
    except (RecursionError, ValueError, yaml.YAMLError):
        return damage_bytes(data, source)


def damage_checkpoint(data: bytes, source: random.Random, canary: str = "") -> bytes:
    """A zip with another pickle in it, a safetensors header with other figures, or bytes."""
    choice = source.random()
    if data[:2] == b"PK" and choice < 0.7:
        return _damage_zip(data, source, canary)
    if data[8:9] == b"{" and choice < 0.7:
        size = int.from_bytes(data[:8], "little")
        header = damage_json(data[8 : 8 + size], source)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    return damage_bytes(data, source)


def _damage_zip(data: bytes, source: random.Random, canary: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = source.choice([n for n in members if n.endswith("data.pkl")] * 3 + sorted(members))
    kind = source.choice(("bytes", "bytes", "bytes", "drop", "code", "hidden code", "other"))
    if kind == "bytes":
        members[name] = damage_bytes(members[name], source)
    elif kind == "drop":
        del members[name]
    elif kind == "code":
        members[name] = pickle.dumps({"model": Planted(canary)}, protocol=2)
    elif (
        kind == "hidden code"
    ):  # behind the honest pickle's start, where a scan of the first opcodes does not look
        members[name] = members[name][:-1] + pickle.dumps(Planted(canary), protocol=2)[2:]
    else:
        members[name] = pickle.dumps(source.choice((None, [1], {}, {"a": 1}, "text", 5)), protocol=2)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return stream.getvalue()
