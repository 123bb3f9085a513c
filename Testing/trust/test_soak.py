"""A small soak in every run of the tests, and proof that growth would be seen. The large one: docs/reliability.md."""

from __future__ import annotations

import sys

import pytest
import soak
from soak import Look, grown


def looks(**growth: int) -> list[Look]:
    steady = {"memory": 500 << 20, "descriptors": 20, "threads": 4, "files": 3}
    return [
        Look(n, **{name: value + growth.get(name, 0) * n for name, value in steady.items()})
        for n in range(20)
    ]


def test_nothing_grew() -> None:
    assert grown(looks()) == []


@pytest.mark.parametrize(
    ("name", "each"), [("memory", 8 << 20), ("descriptors", 1), ("threads", 1), ("files", 1)]
)
def test_growth_is_seen(name: str, each: int) -> None:
    [said] = grown(looks(**{name: each}))
    assert said.startswith(name)


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are counted on POSIX")
def test_sixty_cycles_in_one_worker_hold_what_they_held() -> None:
    found, _ = soak.soak_worker(60, "double")
    assert grown(found) == []
