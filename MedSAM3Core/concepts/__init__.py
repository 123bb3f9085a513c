"""What a typed phrase means: its normal form, what else to call it, its SNOMED CT code and its colour.

::

    >>> concept = resolve("Kidneys, LEFT-sided")
    >>> concept.phrase, concept.code, concept.prompts
    ('left kidney', '64033007', ('left kidney',))
"""

from __future__ import annotations

import re

from MedSAM3Core.concepts.phrases import MAX_WORDS, candidates_for_shortening, key_of, say, tidy
from MedSAM3Core.concepts.terminology import Term, derived_colour, terminology
from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Concept

_ANATOMY = "123037004"

__all__ = ["complete", "resolve", "shorten", "split_concepts"]


def resolve(text: str) -> Concept:
    """The concept that a typed phrase means.

    A phrase that the terminology knows, in any case, number and word order, with any of its synonyms and with the side
    said in any of the usual ways, becomes its canonical phrase with code and colour. Any other phrase is passed on as
    typed, in lower case and with single blanks, and gets a colour of its own that is always the same.

    Args:
        text: What the user typed, for one concept.

    Raises:
        PromptError: If the text is empty, has no letter, or is far too long to be a name.
    """
    phrase = tidy(text)
    term = terminology().find(key_of(phrase))
    return _known(text, term) if term else _unknown(text, phrase)


def _known(typed: str, term: Term) -> Concept:
    notice, shorter = _length_notice(term.phrase)
    return Concept(
        typed=typed,
        phrase=term.phrase,
        prompts=tuple(dict.fromkeys((term.phrase, *term.synonyms))),
        name=term.phrase[0].upper() + term.phrase[1:],
        code=term.coding.type.value if term.coding else None,
        colour=term.colour,
        notices=notice,
        coding=term.coding,
        shorter=shorter,
    )


def _unknown(typed: str, phrase: str) -> Concept:
    notices, shorter = _length_notice(phrase)
    if not phrase.isascii():
        notices += (
            f"'{phrase}' has letters beyond a to z; the models were trained on English names, so say it in English.",
        )
    prompts = tuple(dict.fromkeys((phrase, say(phrase) or phrase)))
    name = " ".join(typed.split())
    return Concept(typed, phrase, prompts, name, None, derived_colour(phrase), notices, None, shorter)


def _length_notice(phrase: str) -> tuple[tuple[str, ...], str | None]:
    count = len(phrase.split())
    if count <= MAX_WORDS:
        return (), None
    shorter = shorten(phrase)
    offer = f"; try '{shorter}'" if shorter else ""
    return (
        f"'{phrase}' has {count} words, but the models were trained on at most {MAX_WORDS}{offer}.",
    ), shorter


def shorten(text: str) -> str | None:
    """The phrase of at most three words that is closest to a longer one, or None if there is none.

    What the terminology knows comes first, then the head noun with its place and side.

    Raises:
        PromptError: As `resolve`.
    """
    candidates = [candidate for candidate in candidates_for_shortening(tidy(text)) if candidate.strip()]
    for candidate in candidates:
        term = terminology().find(key_of(candidate))
        if term is not None and _says_enough(term):
            return term.phrase
    return candidates[0] if candidates else None


def _says_enough(term: Term) -> bool:
    """A single word will do for an organ, but "lesion" alone says less than the phrase it came from."""
    words = len(term.phrase.split())
    return 1 < words <= MAX_WORDS or (
        words == 1 and term.coding is not None and term.coding.category.value == _ANATOMY
    )


def complete(prefix: str, limit: int = 12) -> list[str]:
    """Canonical phrases for what has been typed so far: those that begin with it, then those with a word that does.

    Synonyms count too ("wind" finds "trachea"). Shorter phrases come first, an empty prefix finds nothing.
    """
    wanted = " ".join(prefix.lower().split())
    if not wanted:
        return []
    ranked: list[tuple[int, int, str]] = []
    for term in terminology().terms.values():
        rank = min((_match(name, wanted) for name in (term.phrase, *term.synonyms, *term.aliases)), default=9)
        if term.phrase.startswith(wanted):
            rank = 0
        if rank < 9:
            ranked.append((rank, len(term.phrase), term.phrase))
    return [phrase for _, _, phrase in sorted(ranked)[:limit]]


def _match(name: str, wanted: str) -> int:
    if name.startswith(wanted):
        return 1
    return 2 if any(word.startswith(wanted) for word in name.split()) else 9


def split_concepts(text: str) -> list[str]:
    """The phrases in a list that is separated by commas, semicolons, bars or line ends, without repetitions.

    A comma before a side belongs to the phrase: "kidney, left; spleen" are two.

    Raises:
        PromptError: If nothing is left.
    """
    joined = re.sub(r",\s*(left|right)\s*(?=[,;|\n]|$)", r" \1", text, flags=re.IGNORECASE)
    parts = [" ".join(part.split()) for part in re.split(r"[,;|\n\r]+", joined)]
    found = list(dict.fromkeys(part for part in parts if part))
    if not found:
        raise PromptError("No concept was given; expected at least one, such as 'liver' or 'left kidney'.")
    return found
