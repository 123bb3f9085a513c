"""Which models there are by name: those the package knows, and a user's own beside them.

The package's registry is ``Resources/models/registry.yaml``. A ``registry.yaml`` of the same form in the data folder
(`data_home`) adds entries and replaces those of the same name.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import platformdirs
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MedSAM3Core.errors import ModelError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.faults import first_fault, why_unreadable
from MedSAM3Core.models.card import CARD_FILE, ModelCard
from MedSAM3Core.resources import resource_path
from MedSAM3Core.yamlfile import read_yaml

HOME_VARIABLE = "MEDSAM3_HOME"
REGISTRY_FILE = "registry.yaml"
ADAPTER_CONFIG = "adapter.json"
MANIFEST_FILE = "manifest.json"


class LoraSettings(BaseModel):
    """What a LoRA file does not store.

    Attributes:
        rank: That the file must have; None takes the file's.
        alpha: The change is scaled by alpha / rank.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int | None = Field(default=None, gt=0)
    alpha: float = Field(gt=0)


class RegistryEntry(BaseModel):
    """A model that is known by name.

    Attributes:
        kind: "shipped" with the package, a published "checkpoint", or a "lora" on another model.
        card: What is known of it.
        repository: Its repository on the hub.
        revision: Branch, tag or commit there.
        file: The file in the repository.
        sha256: Of that file, where it is known; otherwise the hub's own is compared.
        approximate_bytes: Size of that file.
        gated: Whether its owners must grant access first.
        base: Registry name of the model that it needs: a LoRA's base, or the donor of what a checkpoint lacks.
        lora: Of a LoRA.
        holds: Of a checkpoint: whether its file is the "video" model or only the "image" model, so that one release's
            file is not installed as another; None takes either.
        aliases: Other names it is asked for by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["shipped", "checkpoint", "lora"]
    card: ModelCard
    repository: str = ""
    revision: str = "main"
    file: str = ""
    sha256: str = ""
    approximate_bytes: int = Field(default=0, ge=0)
    gated: bool = False
    base: str = ""
    lora: LoraSettings | None = None
    holds: Literal["image", "video"] | None = None
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the registry."""
        return self.card.name


def data_home() -> Path:
    """Where models, consents and the user's registry live: ``MEDSAM3_HOME``, or the user's data folder."""
    chosen = os.environ.get(HOME_VARIABLE)
    return (
        Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("medsam3", appauthor=False))
    )


def model_folder(name: str) -> Path:
    """Where an installed model of this name is."""
    return data_home() / "models" / name


def read_registry() -> dict[str, RegistryEntry]:
    """All entries by name, the user's own last and winning.

    Raises:
        ModelError: Naming the file and field, if the user's registry is wrong.
    """
    entries = dict(_shipped())
    own = data_home() / REGISTRY_FILE
    if own.is_file():
        entries |= _parse(own)
    return entries


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, RegistryEntry]:
    return _parse(resource_path("models/registry.yaml"))


def _parse(path: Path) -> dict[str, RegistryEntry]:
    try:
        values = read_yaml(path) or {}
        if not isinstance(values, dict):
            raise ModelError(
                f"The registry {path} does not list models by name; expected a name and an entry for each: "
                "correct it."
            )
        entries = {}
        for name, entry in values.items():
            place = name
            entries[str(name)] = RegistryEntry.model_validate(entry)
            if entries[str(name)].name != name:
                raise ModelError(
                    f"The registry {path} has an entry {excerpt(name)} whose card is named "
                    f"{excerpt(entries[str(name)].name)}; "
                    "give both the same name."
                )
    except (OSError, yaml.YAMLError) as error:
        raise ModelError(
            f"The registry {path} cannot be read ({why_unreadable(error)}); correct it."
        ) from error
    except ValidationError as error:
        raise ModelError(
            f"The registry {path} is wrong at {first_fault(error, str(place))}; correct it."
        ) from error
    return entries


def find_entry(name: str) -> RegistryEntry | None:
    """Entry of a name or an alias, None if there is none."""
    entries = read_registry()
    if name in entries:
        return entries[name]
    return next((entry for entry in entries.values() if name in entry.aliases), None)


def installed_folder(name: str) -> Path | None:
    """Folder of an installed model by registry name, alias, or the name it was imported under; None if it is absent."""
    entry = find_entry(name)
    canonical = entry.name if entry else name
    if entry and entry.kind == "shipped":
        try:
            folder = resource_path(f"models/{canonical}")
        except FileNotFoundError:
            return None
    elif canonical in ("", ".", "..") or Path(canonical).name != canonical:
        return None
    else:
        folder = model_folder(canonical)
    there = os.path.isfile(folder / CARD_FILE)  # false also for names that no file system takes
    return folder if there else None


def adapter_base(folder: Path) -> str | None:
    """Registry name of the base, when a model folder holds a LoRA; None for a whole model."""
    try:
        return str(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_folder(name_or_path: str | Path) -> Path:
    """Folder of an installed model, or of a path.

    Raises:
        ModelError: If it is unknown (naming the known ones) or not installed (saying how to install it).
    """
    text = str(name_or_path)
    if folder := installed_folder(text):
        return folder
    path = Path(name_or_path).expanduser()
    if text.strip() and os.path.isdir(path):
        return path
    if entry := find_entry(text):
        if entry.kind == "shipped":
            raise ModelError(
                f"The model {text!r} is missing from this installation; install the package again."
            )
        raise ModelError(
            f"The model {text!r} is not installed; run 'medsam3 models download {entry.name}', or "
            f"'medsam3 models import {entry.name} PATH' with its file {entry.file}."
        )
    if os.path.isfile(path):
        raise ModelError(
            f"{path} is a file, not a model folder; run 'medsam3 models import NAME {path}' first."
        )
    known = known_names()
    if close := difflib.get_close_matches(text, known, n=1):
        raise ModelError(f"The model {excerpt(repr(text))} is unknown; did you mean {close[0]!r}?")
    raise ModelError(
        f"The model {excerpt(repr(text))} is unknown; expected one of {', '.join(known)}, or the path of a model "
        "folder."
    )


def known_names() -> list[str]:
    """Names of the registry and of what is installed, the registry's first."""
    names = list(read_registry())
    folder = data_home() / "models"
    if folder.is_dir():
        installed = sorted(p.name for p in folder.iterdir() if (p / CARD_FILE).is_file())
        names += [name for name in installed if name not in names]
    return names
