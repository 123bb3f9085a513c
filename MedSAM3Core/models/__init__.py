"""Models: the networks, their checkpoints, where they come from and what they may be used for.

Names are imported when they are first used: a list of models needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MedSAM3Core.models.card import CLINICAL_WARNING, ModelCard, Policy
    from MedSAM3Core.models.loading import LoadedModel, load_model

_HOMES = {
    "CLINICAL_WARNING": "MedSAM3Core.models.card",
    "ModelCard": "MedSAM3Core.models.card",
    "Policy": "MedSAM3Core.models.card",
    "LoadedModel": "MedSAM3Core.models.loading",
    "load_model": "MedSAM3Core.models.loading",
}

__all__ = ["CLINICAL_WARNING", "LoadedModel", "ModelCard", "Policy", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
