"""Promptable concept segmentation of medical images with the SAM 3 family.

::

    from MedSAM3Core import Box, Segmenter, read_volume

    segmenter = Segmenter.from_pretrained("demo")
    with segmenter.open(read_volume("ct.nii.gz")) as session:
        liver = session.segment("liver")
        liver = session.refine(liver, boxes=[Box.on_slice(k=40, i=(60, 110), j=(30, 80))])

Names are imported when they are first used, so that ``import MedSAM3Core`` needs neither torch nor SimpleITK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MedSAM3Core.errors import (
        Cancelled,
        CheckpointError,
        InputError,
        MedSAM3Error,
        ModelError,
        OutputError,
        PromptError,
        ResourceError,
        VolumeError,
        WorkerError,
    )
    from MedSAM3Core.inference.session import Segmenter, Session
    from MedSAM3Core.inference.settings import InferenceSettings
    from MedSAM3Core.progress import CancelToken, Progress
    from MedSAM3Core.prompts import Box, Concept, Point, PromptSet
    from MedSAM3Core.segmentation import Extent, Provenance, Segmentation
    from MedSAM3Core.version import __version__
    from MedSAM3Core.volume.geometry import Geometry
    from MedSAM3Core.volume.reading import read_sequence, read_volume
    from MedSAM3Core.volume.volume import Volume

_HOMES = {
    "MedSAM3Core.errors": (
        "Cancelled",
        "CheckpointError",
        "InputError",
        "MedSAM3Error",
        "ModelError",
        "OutputError",
        "PromptError",
        "ResourceError",
        "VolumeError",
        "WorkerError",
    ),
    "MedSAM3Core.inference.session": ("Segmenter", "Session"),
    "MedSAM3Core.inference.settings": ("InferenceSettings",),
    "MedSAM3Core.progress": ("CancelToken", "Progress"),
    "MedSAM3Core.prompts": ("Box", "Concept", "Point", "PromptSet"),
    "MedSAM3Core.segmentation": ("Extent", "Provenance", "Segmentation"),
    "MedSAM3Core.version": ("__version__",),
    "MedSAM3Core.volume.geometry": ("Geometry",),
    "MedSAM3Core.volume.reading": ("read_sequence", "read_volume"),
    "MedSAM3Core.volume.volume": ("Volume",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Box",
    "CancelToken",
    "Cancelled",
    "CheckpointError",
    "Concept",
    "Extent",
    "Geometry",
    "InferenceSettings",
    "InputError",
    "MedSAM3Error",
    "ModelError",
    "OutputError",
    "Point",
    "Progress",
    "PromptError",
    "PromptSet",
    "Provenance",
    "ResourceError",
    "Segmentation",
    "Segmenter",
    "Session",
    "Volume",
    "VolumeError",
    "WorkerError",
    "__version__",
    "read_sequence",
    "read_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
