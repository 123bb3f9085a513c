"""What is wrong with a document that somebody wrote, such as a configuration, in words for its writer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from MedSAM3Core.excerpts import excerpt

if TYPE_CHECKING:
    from pydantic import ValidationError

_WORDS = {"missing": "it must be given", "extra_forbidden": "there is no such entry"}
"""Kinds of pydantic's errors whose own words speak of fields and inputs."""
_MOST_SAID = 300
"""Characters of what is wrong; some rules list all that is allowed."""


def why_unreadable(error: OSError | yaml.YAMLError) -> str:
    """Why a YAML file cannot be read, in one line: with the line of the fault where it is known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {excerpt(error.problem, _MOST_SAID)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return excerpt((str(error).splitlines() or [type(error).__name__])[0], _MOST_SAID)


def first_fault(error: ValidationError, *within: str) -> str:
    """The first thing that is wrong, as "place: what".

    Args:
        error: What pydantic says.
        within: The place of the whole document in a larger one.
    """
    first = error.errors()[0]
    place = ".".join(str(part) for part in (*within, *first["loc"])) or "the file"
    what = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{excerpt(place)}: {excerpt(what, _MOST_SAID)}"
