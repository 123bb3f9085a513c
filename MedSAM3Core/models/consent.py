"""Licences that were shown and accepted, recorded for the text that was shown.

A consent belongs to one text: when a licence is revised it is asked for again. Models under the same text share it.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from MedSAM3Core.errors import ModelError
from MedSAM3Core.models.card import Licence
from MedSAM3Core.models.registry import RegistryEntry, data_home
from MedSAM3Core.resources import resource_path
from MedSAM3Core.version import __version__

CONSENTS_FILE = "consents.json"


@dataclass(frozen=True)
class LicenceRequest:
    """What a user is asked to accept before a model is installed.

    Attributes:
        model: Registry name.
        licence: Name, address and note.
        text: The whole licence, or its note where the package holds no text.
    """

    model: str
    licence: Licence
    text: str

    @property
    def text_sha256(self) -> str:
        """What a consent is recorded for."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def licence_request(entry: RegistryEntry) -> LicenceRequest:
    """The licence of a model with its text."""
    licence = entry.card.licence
    if licence.text_file:
        text = resource_path(f"licences/{licence.text_file}").read_text(encoding="utf-8")
    else:
        text = f"{licence.name}\n{licence.url}\n{licence.note}".strip()
    return LicenceRequest(entry.name, licence, text)


def has_consent(request: LicenceRequest) -> bool:
    """Whether exactly this text was accepted on this account."""
    return request.text_sha256 in _read()


def record_consent(request: LicenceRequest) -> None:
    """Remember that this text was accepted, for which model, when, and with which version of this package.

    Raises:
        ModelError: If the data folder cannot be written.
    """
    consents = _read()
    consents[request.text_sha256] = {
        "licence": request.licence.name,
        "model": request.model,
        "accepted": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
    path = data_home() / CONSENTS_FILE
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(consents, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise ModelError(
            f"The consent to the {request.licence.name} cannot be recorded in {path} ({error.strerror}); "
            "make the folder writable or set MEDSAM3_HOME to another."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _read() -> dict[str, dict[str, str]]:
    """Recorded consents by the hash of the text; an unreadable file counts as none, so the licence is shown again."""
    try:
        values = json.loads((data_home() / CONSENTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
