"""Real MRML for every test here: a scene of ``slicer-core`` with the classes that the modules would register."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

# slicer-core takes every folder named "slicer" on the path for a part of itself, and this one is named so.
_path, sys.path[:] = list(sys.path), [p for p in sys.path if Path(p).resolve() != ROOT / "Testing"]
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
sys.path[:] = _path

sys.path.append(str(ROOT / "MedSAM3Slicer"))  # Slicer does the same with a module's folder
sys.path.append(str(Path(__file__).resolve().parent))

from mrml_scene import Application, phantom  # noqa: E402


@pytest.fixture
def application():
    """A scene and the logics that Slicer would hand out."""
    app = Application()
    yield app
    app.close()


@pytest.fixture
def scene(application):
    return application.scene


@pytest.fixture
def ct(application):
    """A CT of 20 x 40 x 48 voxels, 1 x 1 x 3 mm, with a bright ball."""
    return application.addVolume(phantom((20, 40, 48)), spacing=(1.0, 1.0, 3.0), name="CT")


@pytest.fixture
def ball():
    """Mask (20, 40, 48) of the ball in the CT."""
    return phantom((20, 40, 48)) > 0


@pytest.fixture
def rng():
    return np.random.default_rng(5)
