"""Volumes: voxels with their place in the patient, read from and written to files.

Reading is imported when it is first used: what needs only the geometry, such as Slicer's panel, does not wait for
SimpleITK and pydicom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume

if TYPE_CHECKING:
    from MedSAM3Core.volume.reading import read_sequence, read_volume

__all__ = ["Geometry", "Volume", "read_sequence", "read_volume"]


def __getattr__(name: str) -> Any:
    if name in ("read_sequence", "read_volume"):
        from MedSAM3Core.volume import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
