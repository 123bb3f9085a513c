"""Slicer's ``.seq.nrrd``: labels through time, that 3D Slicer opens as a sequence with a browser.

The header is what Slicer 5's ``vtkMRMLVolumeSequenceStorageNode`` writes for labelmaps: the times are the last axis, of
kind "list", with their values beside it. So frames can be written as they come.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from MedSAM3Core.errors import OutputError
from MedSAM3Core.volume.atomic import atomic_file
from MedSAM3Core.volume.geometry import LPS_FROM_RAS, Geometry
from MedSAM3Core.volume.segnrrd import COMPRESSION

SUFFIX = ".seq.nrrd"


class LabelSequence:
    """Takes the labels of one time after the other. Made by `write_label_sequence`.

    Args:
        geometry: The grid of every time.
        packed: Where the compressed voxels go until the number of times is known.
    """

    def __init__(self, geometry: Geometry, packed: IO[bytes]) -> None:
        self.geometry = geometry
        self.times: list[float] = []
        self._stream = gzip.GzipFile("", "wb", COMPRESSION, packed, mtime=0)

    def add(self, labels: np.ndarray, time_s: float) -> None:
        """Add a time.

        Args:
            labels: Whole numbers (slices, rows, columns) below 65,536.
            time_s: Its time in seconds.
        """
        if labels.shape != self.geometry.shape:
            raise OutputError(f"The labels have the shape {labels.shape}; expected {self.geometry.shape}.")
        self._stream.write(labels.astype("<u2").tobytes())
        self.times.append(time_s)

    def header(self) -> bytes:
        """The file's header; nothing can be added after it."""
        self._stream.close()
        slices, rows, columns = self.geometry.shape
        ijk_to_lps = LPS_FROM_RAS @ self.geometry.ijk_to_ras
        vectors = ["({:.17g},{:.17g},{:.17g})".format(*ijk_to_lps[:3, axis]) for axis in range(3)]
        lines = [
            "NRRD0004",
            "type: unsigned short",
            "dimension: 4",
            "space: left-posterior-superior",
            f"sizes: {columns} {rows} {slices} {len(self.times)}",
            f"space directions: {' '.join(vectors)} none",
            "kinds: domain domain domain list",
            'labels: "" "" "" "time"',
            'units: "" "" "" "s"',
            "endian: little",
            "encoding: gzip",
            "space origin: ({:.17g},{:.17g},{:.17g})".format(*ijk_to_lps[:3, 3]),
            "DataNodeClassName:=vtkMRMLLabelMapVolumeNode",
            "axis 3 index type:=numeric",
            f"axis 3 index values:={' '.join(f'{time:.6g}' for time in self.times)}",
        ]
        return ("\n".join(lines) + "\n\n").encode()


@contextmanager
def write_label_sequence(path: Path, geometry: Geometry) -> Iterator[LabelSequence]:
    """Write labels through time; the file is there whole when the block ends well, or not at all.

    Args:
        path: Ends in ``.seq.nrrd``.
        geometry: The grid of every time.

    Raises:
        OutputError: If it cannot be written, or the block adds nothing.
    """
    with atomic_file(path) as stream, tempfile.TemporaryFile(dir=path.parent) as packed:
        sequence = LabelSequence(geometry, packed)
        yield sequence
        if not sequence.times:
            raise OutputError(f"There is no time to write to {path.name}.")
        stream.write(sequence.header())
        packed.seek(0)
        shutil.copyfileobj(packed, stream, 1 << 20)
