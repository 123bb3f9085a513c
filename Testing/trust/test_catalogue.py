"""Every test that docs/reliability.md and docs/security.md rely on exists, and every row names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(\w+/test_\w+\.py)::(test_\w+)`")


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_named_test_exists(page: str) -> None:
    named = NAMED.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(named) > 15
    absent = [f"{file}::{name}" for file, name in named if name not in names_in(ROOT / "Testing" / file)]
    assert absent == []


def test_every_fault_names_its_test() -> None:
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and line.count("|") == 5]
    faults = [row for row in rows if not row.startswith(("| fault", "|---"))]
    assert len(faults) > 50
    assert [row for row in faults if not NAMED.search(row)] == []
