"""How much of a file, or of what a library says of it, is repeated in a message: a line, and no more."""

from __future__ import annotations

MOST = 120


def excerpt(text: object, most: int = MOST) -> str:
    """What is quoted of a text that may be of any length.

    Args:
        text: A value, a name or an error.
        most: Characters.

    Returns:
        One line of at most ``most`` characters, with dots where the rest was.
    """
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 3] + "..."
