"""The terminology that ships with the package: phrases, synonyms, SNOMED CT codes, colours.

Read once from ``Resources/terminology/concepts.json``; ``Resources/terminology/README.md`` says where every code and
colour comes from. A paired entry stands for three concepts: itself, its left and its right one.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from MedSAM3Core.concepts.phrases import Key, in_other_words, key_of
from MedSAM3Core.prompts import Code, Coding
from MedSAM3Core.resources import resource_path

_LATERALITY = {"left": Code("7771000", "Left"), "right": Code("24028007", "Right")}


@dataclass(frozen=True)
class Term:
    """A concept that the terminology knows.

    Attributes:
        phrase: The canonical phrase, lower case, side first.
        synonyms: Phrases that may be said to the model beside it.
        aliases: Phrases that are understood, but not said to the model.
        coding: Its code, or None where no source of ours codes it.
        colour: RGB, each 0..255.
        exact: False when the code is of a broader concept.
        sources: Names of the files the code was taken from.
    """

    phrase: str
    synonyms: tuple[str, ...]
    aliases: tuple[str, ...]
    coding: Coding | None
    colour: tuple[int, int, int]
    exact: bool
    sources: tuple[str, ...]


class Terminology:
    """All terms, found by canonical phrase or by key.

    Args:
        document: The parsed ``concepts.json``.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.terms: dict[str, Term] = {}
        self._by_key: dict[Key, str] = {}
        self._by_other_words: dict[Key, str] = {}
        entries = document["concepts"]
        known = {entry["phrase"] for entry in entries}
        for entry in entries:
            self._add(self._term(entry, ""))
        for entry in entries:
            if entry.get("paired"):
                for side in ("left", "right"):
                    if f"{side} {entry['phrase']}" not in known:
                        self._add(self._term(entry, side))
        self._index_names()

    def find(self, key: Key) -> Term | None:
        """The term with this key, in the key's own words or in other words; None when it is unknown."""
        phrase = self._by_key.get(key) or self._by_other_words.get(in_other_words(key))
        return self.terms[phrase] if phrase else None

    def _add(self, term: Term) -> None:
        self.terms[term.phrase] = term
        self._by_key.setdefault(key_of(term.phrase), term.phrase)

    def _index_names(self) -> None:
        """Canonical phrases come first, then synonyms, then aliases; the first to claim a key keeps it."""
        for kind in ("synonyms", "aliases"):
            for term in self.terms.values():
                for name in getattr(term, kind):
                    self._by_key.setdefault(key_of(name), term.phrase)
        for key, phrase in self._by_key.items():
            self._by_other_words.setdefault(in_other_words(key), phrase)

    def _term(self, entry: dict[str, Any], side: str) -> Term:
        prefix = f"{side} " if side else ""
        colour = entry.get("colour")
        phrase = prefix + entry["phrase"]
        return Term(
            phrase,
            tuple(prefix + name for name in entry.get("synonyms", ())),
            tuple(prefix + name for name in entry.get("aliases", ())),
            self._coding(entry, side),
            tuple(colour) if colour else derived_colour(phrase),  # type: ignore[arg-type]
            entry.get("match", "exact") == "exact",
            tuple(entry.get("sources", ())),
        )

    def _coding(self, entry: dict[str, Any], side: str) -> Coding | None:
        if not entry.get("type"):
            return None
        document = self._document
        region = entry.get("region")
        lateral = _LATERALITY.get(side)
        return Coding(
            Code(entry["category"], document["categories"][entry["category"]]),
            Code(entry["type"], document["types"][entry["type"]]),
            modifier=None if region else lateral,
            region=Code(region, document["regions"][region]) if region else None,
            region_modifier=lateral if region else None,
        )


@lru_cache(maxsize=1)
def terminology() -> Terminology:
    """The terminology of this installation.

    Raises:
        FileNotFoundError: If the installation is incomplete.
    """
    path = resource_path("terminology/concepts.json")
    return Terminology(json.loads(path.read_text(encoding="utf-8")))


def derived_colour(phrase: str) -> tuple[int, int, int]:
    """A bright colour from the phrase's hash: the same for the same phrase on every machine. RGB, each 0..255."""
    digest = hashlib.blake2b(phrase.encode("utf-8", "surrogatepass"), digest_size=3).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    saturation = 0.55 + 0.35 * digest[2] / 255
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.92)
    return round(red * 255), round(green * 255), round(blue * 255)
