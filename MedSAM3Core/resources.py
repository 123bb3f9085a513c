"""Files that ship with the package: the demo model, the terminology, the sample data."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_path(relative: str) -> Path:
    """Path of a shipped file or folder, whether installed (``MedSAM3Core/Resources``) or run from a checkout.

    Args:
        relative: Path below ``Resources``, for example ``"models/demo"``.

    Raises:
        FileNotFoundError: If the installation is incomplete.
    """
    for root in (_PACKAGE / "Resources", _PACKAGE.parent / "Resources"):
        if (root / relative).exists():
            return root / relative
    raise FileNotFoundError(
        f"Resources/{relative} is missing from this installation; install MedSAM3Core again."
    )
