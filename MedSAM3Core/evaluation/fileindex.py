"""The files of a folder, listed once and found by pattern: asking the disk for each of thousands of images takes
minutes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path


class FileIndex:
    """Paths below a folder, relative to it, with forward slashes.

    Args:
        folder: What is listed; hidden files are left out, as are the extra files that macOS puts into archives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        self.paths = sorted(
            path.as_posix() for path in found if not path.name.startswith(".") and path.parts[0] != "__MACOSX"
        )
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_folder: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            parent, _, name = path.rpartition("/")
            self._by_name[name].append(path)
            self._by_folder[parent].append(path)

    def find(self, pattern: str, groups: Mapping[str, str]) -> list[str]:
        """Paths that match a pattern.

        Args:
            pattern: ``**/`` stands for any folders, ``*`` for anything within a name, ``{name}`` for a group.
            groups: Texts to fill in, taken literally.
        """
        parent, _, name = pattern.rpartition("/")
        wanted = re.compile(_regular_expression(pattern, groups))
        if "*" not in name:
            candidates = self._by_name.get(name.format(**groups), [])
        elif "*" not in parent:
            candidates = self._by_folder.get(parent.format(**groups), [])
        else:
            candidates = self.paths
        return [path for path in candidates if wanted.fullmatch(path)]


def _regular_expression(pattern: str, groups: Mapping[str, str]) -> str:
    pieces = re.split(r"(\*\*/|\*|\{\w+\})", pattern)
    return "".join(_translate(piece, groups) for piece in pieces)


def _translate(piece: str, groups: Mapping[str, str]) -> str:
    if piece == "**/":
        return "(?:.*/)?"
    if piece == "*":
        return "[^/]*"
    return re.escape(groups[piece[1:-1]] if piece.startswith("{") else piece)
