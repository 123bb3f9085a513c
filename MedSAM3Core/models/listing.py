"""Which models there are and what is known of them, for the command line and the panel; quick, without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.registry import (
    MANIFEST_FILE,
    find_entry,
    find_folder,
    installed_folder,
    known_names,
)


@dataclass(frozen=True)
class ModelStatus:
    """A model as a list shows it.

    Attributes:
        name: To ask for it by.
        card: What is known of it.
        folder: Where it is installed, None if it is not.
        installed_bytes: What it takes on disk.
        download_bytes: What a download would fetch, approximately; 0 when it cannot be downloaded.
        notices: Sentences from its conversion.
    """

    name: str
    card: ModelCard
    folder: Path | None
    installed_bytes: int = 0
    download_bytes: int = 0
    notices: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether it can be loaded."""
        return self.folder is not None


def list_models() -> list[ModelStatus]:
    """Every model of the registry, and what was imported beside it."""
    return [model_status(name) for name in known_names()]


def model_status(name: str) -> ModelStatus:
    """What is known of a model, by registry name, alias, or the path of its folder.

    Raises:
        ModelError: If it is unknown, naming the known ones.
    """
    entry, folder = find_entry(name), installed_folder(name)
    if entry is None:
        folder = find_folder(name)
        return _status_of_folder(folder.name if installed_folder(name) else name, folder)
    if folder is None:
        return ModelStatus(
            entry.name, entry.card, None, 0, entry.approximate_bytes if entry.repository else 0
        )
    return _status_of_folder(entry.name, folder, entry.approximate_bytes if entry.repository else 0)


def _status_of_folder(name: str, folder: Path, download_bytes: int = 0) -> ModelStatus:
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return ModelStatus(name, ModelCard.read(folder), folder, size, download_bytes, read_notices(folder))


def read_notices(folder: Path) -> tuple[str, ...]:
    """Sentences from a model's conversion, for example which tensors are its base's; none for other models."""
    try:
        return tuple(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")).get("notices", ()))
    except (OSError, ValueError, AttributeError):
        return ()
