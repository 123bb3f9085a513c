"""Trunk outputs on disk, if asked: an image that was opened before is not encoded again, whatever happened since.

A file is named by what its content depends on: the very pixels the model saw (so the data, the window, the axis and
the orientation are in it), the weights, the input side, the arithmetic and this package's version. Nothing has to be
declared stale: what has changed has another name. Files are safetensors; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from MedSAM3Core.errors import InputError
from MedSAM3Core.version import __version__

log = logging.getLogger(__name__)

SUFFIX = ".trunk.safetensors"
NAME = "trunk"

ROOM_AFTER_CLEARING = 0.9
"""Share of the bound that is left filled when old files are removed, so that not every write removes one."""


class DiskFeatures:
    """A folder of trunk outputs, bounded in bytes; the files used longest ago go first.

    Several processes may share a folder: files are put in place whole, and one that is gone is computed again.

    Args:
        folder: Is made where it is missing.
        most_bytes: Most bytes kept.
        weights: Hash of the model's weights.
        side: Input side in pixels.
        precision: As the settings name it.

    Raises:
        InputError: If the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, most_bytes: int, weights: str, side: int, precision: str) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self.hits = self.written = 0
        self._context = "|".join((weights, str(side), precision, __version__, NAME)).encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._held = sum(path.stat().st_size for path in folder.glob("*" + SUFFIX))
        except OSError as error:
            raise InputError(
                f"The folder for features {folder} cannot be used ({error.strerror}); name another one."
            ) from error

    def key(self, image: np.ndarray) -> str:
        """Name of what is computed from a windowed slice: uint8, (rows, columns[, 3])."""
        digest = hashlib.sha256(self._context)
        digest.update(str(image.shape).encode())
        digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()

    def read(self, key: str) -> Tensor | None:
        """The tensor of a key on the CPU, or None where it is not held or its file is damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            tensor = load_file(path)[NAME]
            os.utime(path)  # used just now: it goes last
        except (OSError, SafetensorError, KeyError) as error:
            log.warning("%s cannot be read (%s): it is computed again", path, error)
            path.unlink(missing_ok=True)
            return None
        self.hits += 1
        return tensor

    def write(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor; a full disk is logged and nothing more, because everything can be computed again."""
        name = ""
        try:
            descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            os.close(descriptor)
            save_file({NAME: tensor.detach().cpu().contiguous()}, name)
            size = os.path.getsize(name)
            os.replace(name, self._path(key))
        except (OSError, SafetensorError) as error:
            log.warning("features cannot be written to %s: %s", self.folder, error)
            if name:
                Path(name).unlink(missing_ok=True)
            return
        self.written += 1
        self._held += size
        if self._held > self.most_bytes:
            self._clear()

    def _clear(self) -> None:
        """Remove the files used longest ago; counts anew, because other processes write here too."""
        files = []
        for path in self.folder.glob("*" + SUFFIX):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            files.append((found.st_mtime_ns, found.st_size, path))
        self._held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if self._held <= ROOM_AFTER_CLEARING * self.most_bytes:
                break
            path.unlink(missing_ok=True)
            self._held -= size

    def _path(self, key: str) -> Path:
        return self.folder / (key + SUFFIX)
