"""From a typed phrase to what it has in common with every other way of saying the same.

`Key` is that common part: the side, and the words without order, plural, spelling variants and fillers. "The kidneys",
"Kidney, left", "lt. kidney" and "left-sided kidneys" differ only in what a key forgets or keeps on purpose.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from MedSAM3Core.concepts.words import (
    ADJECTIVES,
    BRITISH,
    FILLERS,
    IRREGULAR_PLURALS,
    LEADING_VERBS,
    NOT_PLURAL,
    OTHER_WORDS,
    PART_WORDS,
    PREPOSITIONS,
    SIDE_ENDINGS,
    SIDES,
)
from MedSAM3Core.errors import PromptError

MAX_WORDS = 3
"""The published models were trained on noun phrases of at most three words."""

MAX_CHARACTERS = 100
"""Longer than the longest term of the terminology by far; the text encoder reads 32 tokens."""


@dataclass(frozen=True)
class Key:
    """What is left of a phrase when the way of saying it is taken away.

    Attributes:
        side: "left", "right" or "".
        words: The other words, singular, in alphabetical order, each once.
    """

    side: str
    words: tuple[str, ...]


def tidy(text: str) -> str:
    """The phrase in lower case with single blanks, without control characters and quotes around it.

    Raises:
        PromptError: If nothing that could name a thing is left, or if it is far too long to be a name.
    """
    phrase = _collapse(_collapse(text).lower())
    if not any(character.isalpha() for character in phrase):
        raise PromptError(
            f"The concept is {text[:40]!r}; expected a short noun phrase such as 'liver' or 'left kidney'."
        )
    if not content_words(phrase):
        raise PromptError(
            f"The concept is {text[:40]!r}, which names no structure; say of what, such as 'left kidney'."
        )
    if len(phrase) > MAX_CHARACTERS:
        raise PromptError(
            f"The concept has {len(phrase)} characters; expected a short noun phrase of at most {MAX_WORDS} words, "
            "such as 'left kidney tumor'."
        )
    return phrase


def _collapse(text: str) -> str:
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Zs") else c for c in text)
    visible = "".join(c for c in spaced if unicodedata.category(c) not in ("Cf", "Cs", "Co"))
    return " ".join(visible.split()).strip(" \"'`.,;:!?")


def key_of(phrase: str) -> Key:
    """The key of a phrase: sides, plurals, word order, punctuation and spelling variants resolved."""
    side, _ = split_side(words_of(phrase))
    return Key(side, tuple(sorted(set(content_words(phrase)))))


def content_words(phrase: str) -> list[str]:
    """The words of a phrase that say what is meant: no side, no filler; in order."""
    _, words = split_side(words_of(phrase))
    return [word for word in words if word not in FILLERS]


def words_of(phrase: str) -> list[str]:
    """The words of a phrase in order: lower case, singular, American spelling, without punctuation."""
    folded = unicodedata.normalize("NFKC", phrase).lower()
    folded = re.sub(r"['’]s\b", "", folded)
    words = [_normal_word(word) for word in re.findall(r"[^\W_]+", folded)]
    if len(words) > 1 and words[0] in LEADING_VERBS:
        words = words[1:]
    return words


def split_side(words: list[str]) -> tuple[str, list[str]]:
    """Take the side out of a list of words; the last side named counts, "l" before a number is a lumbar vertebra."""
    side, rest = "", []
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word in SIDES and not (len(word) == 1 and following.isdigit()):
            side = SIDES[word]
        elif not (word in SIDE_ENDINGS and side):
            rest.append(word)
    return side, _join_levels(rest)


def _join_levels(words: list[str]) -> list[str]:
    joined: list[str] = []
    for word in words:
        if word.isdigit() and joined and joined[-1] in ("c", "t", "l", "s"):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _normal_word(word: str) -> str:
    singular = _singular(word)
    return BRITISH.get(singular, singular)


def _singular(word: str) -> str:
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if len(word) <= 3 or word in NOT_PLURAL or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "uses")):
        return word[:-2]
    return word[:-1]


def in_other_words(key: Key) -> Key:
    """The same key with adjectives turned into organs and with one word for each kind of finding."""
    words = {ADJECTIVES.get(word, OTHER_WORDS.get(word, word)) for word in key.words}
    return Key(key.side, tuple(sorted(words)))


def say(phrase: str) -> str:
    """The phrase as the models are used to it: side first, singular, no punctuation, no fillers."""
    side, _ = split_side(words_of(phrase))
    return " ".join([side, *content_words(phrase)]).strip()


def _without_bare_parts(groups: list[list[str]]) -> list[list[str]]:
    """Groups of words, those that end in a word such as "part" joined with the whole that follows."""
    joined: list[list[str]] = []
    for group in groups:
        if joined and joined[-1] and joined[-1][-1] in PART_WORDS:
            joined[-1] = [*joined[-1][:-1], *group]
        else:
            joined.append(group)
    return joined


def candidates_for_shortening(phrase: str) -> list[str]:
    """Phrases of at most `MAX_WORDS` words that keep the head noun, the place and the side, best first.

    "tumor in the upper pole of the left kidney" gives "left kidney tumor", then shorter ones. A part without a name of
    its own is not kept for itself: "the anterior part of the hippocampus" gives "anterior hippocampus".
    """
    raw = words_of(phrase)
    groups: list[list[str]] = [[]]
    for word in raw:
        if word in PREPOSITIONS:
            groups.append([])
        else:
            groups[-1].append(word)
    groups = [[word for word in group if word not in FILLERS] for group in groups]
    side, flat = split_side([word for group in groups for word in group])
    groups = [split_side(group)[1] if group else [] for group in groups]
    groups = [
        [word for word in group if word in flat] for group in groups if any(word in flat for word in group)
    ]
    if not groups:
        return []
    room = MAX_WORDS - bool(side)
    prefix = [side] if side else []
    found = []
    *qualifiers, last = groups[0]
    groups = _without_bare_parts(groups)
    if (
        last in PART_WORDS and qualifiers and groups[0][-1] != last
    ):  # "anterior part of": the whole alone is less
        return [" ".join([*prefix, qualifiers[-1], *groups[0][len(qualifiers) :][1 - room :]])]
    if len(groups) > 1:
        found.append([*prefix, groups[-1][-1], groups[0][-1]])
    head = groups[0]
    found += [prefix + head[-n:] for n in range(min(room, len(head)), 0, -1)]
    unique = [" ".join(dict.fromkeys(words)) for words in found if len(words) <= MAX_WORDS]
    return list(dict.fromkeys(text for text in unique if text != phrase))
