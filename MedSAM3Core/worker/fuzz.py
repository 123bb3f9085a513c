"""Lines that are nearly messages, to try a worker with. Used by the tests and by ``medsam3 benchmark --worker``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from MedSAM3Core.worker.protocol import KINDS

_EXCLUDED = ("shutdown", "hello", "load_model", "release", "close_volume")
"""Requests that, said well by accident, would rightly change what the worker holds."""
_JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "../../etc/passwd",
    "\ud800",
    "liver",
    [],
    [[]],
    [1, 2],
    {},
    {"type": "ping"},
    {"stream": "c1"},
    {"file": "c1.npy"},
    {"file": "/dev/zero"},
)


def fuzzed_lines(count: int, source: random.Random) -> Iterator[bytes]:
    """``count`` lines, newline included: bytes at random, damaged messages, and messages of the wrong content.

    None of them is a good request that ends the worker or changes its volumes and models.
    """
    makers = (_random_bytes, _wrong_fields, _wrong_fields, _wrong_fields, _cut, _flipped, _nested)
    for _ in range(count):
        line = source.choice(makers)(source).replace(b"\n", b" ")
        if not any(name.encode() in line for name in _EXCLUDED):
            yield line + b"\n"
        else:
            yield b"{}\n"


def _wrong_fields(source: random.Random) -> bytes:
    kind = source.choice([name for name in KINDS if name not in _EXCLUDED])
    plain: dict[str, Any] = {"type": kind}
    for field in fields(KINDS[kind]):
        if source.random() < 0.8:
            plain[field.name] = source.choice(_JUNK)
    if source.random() < 0.7:
        plain["id"] = source.randrange(10**6, 10**9)
    if kind == "array_chunk" and not isinstance(plain.get("size"), str):
        plain["size"] = source.choice(
            [-1, 2**40, "x", None]
        )  # a right size would swallow the lines behind it
    return json.dumps(plain).encode()


def _random_bytes(source: random.Random) -> bytes:
    return source.randbytes(source.randrange(0, 200))


def _cut(source: random.Random) -> bytes:
    line = _wrong_fields(source)
    return line[: source.randrange(len(line))]


def _flipped(source: random.Random) -> bytes:
    line = bytearray(_wrong_fields(source))
    for _ in range(source.randrange(1, 4)):
        line[source.randrange(len(line))] = source.randrange(256)
    return bytes(line) if b"array_chunk" not in line else b"{"


def _nested(source: random.Random) -> bytes:
    return source.choice([b"[", b'{"a":', b'{"type":"ping","id":']) * source.randrange(1, 3000)
