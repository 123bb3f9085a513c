"""How a count is said, so that no message reads "1 slices are missing"."""

from __future__ import annotations


def counted(count: int, one: str, several: str = "") -> str:
    """A count with its noun, and with whatever else agrees with it.

    ``counted(1, "slice")`` is "1 slice", ``counted(3, "slice")`` "3 slices", and
    ``counted(n, "file was", "files were")`` is either.

    Args:
        count: How many.
        one: What stands behind 1.
        several: What stands behind any other number; ``one`` with an s when empty.
    """
    return f"{count} {one if count == 1 else several or one + 's'}"
