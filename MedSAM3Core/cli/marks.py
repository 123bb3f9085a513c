"""Boxes and points as they are typed, and which concept each is for: ``liver=40,10,20,60,80``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Box, Concept, Point, PromptSet

Mark = TypeVar("Mark", Box, Point)


@dataclass(frozen=True)
class Addressed(Generic[Mark]):
    """A box or a point with its address.

    Attributes:
        mark: Where it is.
        phrase: Phrase of the concept that it is for, or None when it is for every concept.
    """

    mark: Mark
    phrase: str | None


@dataclass(frozen=True)
class Marks:
    """What was drawn in one call.

    Attributes:
        boxes: In the order given, those of one slice first.
        points: In the order given.
    """

    boxes: tuple[Addressed[Box], ...] = ()
    points: tuple[Addressed[Point], ...] = ()

    def prompts(self, concepts: Sequence[Concept]) -> tuple[PromptSet, ...]:
        """Each concept with what is for it: its own marks and those without an address."""
        return tuple(
            PromptSet(concept, _meant_for(concept, self.boxes), _meant_for(concept, self.points))
            for concept in concepts
        )

    @property
    def unaddressed(self) -> tuple[str, ...]:
        """Which kinds of marks, "boxes" or "points", are for every concept."""
        kinds: dict[str, Sequence[Addressed[Any]]] = {"boxes": self.boxes, "points": self.points}
        return tuple(kind for kind, given in kinds.items() if any(one.phrase is None for one in given))


def parse_marks(
    boxes: Sequence[str], boxes_3d: Sequence[str], points: Sequence[str], concepts: Sequence[Concept]
) -> Marks:
    """What ``--box``, ``--box3d`` and ``--point`` say.

    Args:
        boxes: As `Box.parse` takes them, ``CONCEPT=`` before them where they are for one concept.
        boxes_3d: The same for `Box.parse_3d`.
        points: The same for `Point.parse`.
        concepts: The concepts of the call.

    Raises:
        PromptError: For numbers that are none, or a concept that is not among ``concepts``.
    """
    phrases = [concept.phrase for concept in concepts]
    return Marks(
        tuple(_addressed(text, Box.parse, phrases) for text in boxes)
        + tuple(_addressed(text, Box.parse_3d, phrases) for text in boxes_3d),
        tuple(_addressed(text, Point.parse, phrases) for text in points),
    )


def _addressed(text: str, parse: Callable[[str], Mark], phrases: Sequence[str]) -> Addressed[Mark]:
    name, equals, numbers = text.rpartition("=")
    mark = parse(numbers)
    return Addressed(mark, _phrase(name, text, phrases) if equals else None)


def _phrase(name: str, text: str, phrases: Sequence[str]) -> str:
    """The concept that ``name`` means, said in any of the ways in which a concept can be typed."""
    from MedSAM3Core.concepts import resolve

    phrase = resolve(name).phrase
    if phrase not in phrases:
        raise PromptError(
            f"{text!r} is for '{phrase}', but what is segmented is {', '.join(phrases)}; "
            "name one of these, or ask for it with -c too."
        )
    return phrase


def _meant_for(concept: Concept, given: Sequence[Addressed[Mark]]) -> tuple[Mark, ...]:
    return tuple(one.mark for one in given if one.phrase in (None, concept.phrase))
