"""Lets the tests of this folder import its doubles, and draws small pictures: large ones are most of the time here."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

SMALL = 64


@pytest.fixture(autouse=True)
def _small_pictures(request, monkeypatch):
    if "large_pictures" in request.fixturenames:
        return
    from MedSAM3Core.agent import run

    real = run.picture_maker
    monkeypatch.setattr(run, "picture_maker", lambda *a: dataclasses.replace(real(*a), longest=SMALL))


@pytest.fixture
def large_pictures():
    """Ask for it to have pictures of the usual size."""
