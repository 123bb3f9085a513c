"""A plan without a language model: the terminology's names in the request, and the words that ask for a number.

Used where the model refuses or cannot be understood, and for a dry run, so that a request never ends with nothing.
"""

from __future__ import annotations

import re

from MedSAM3Core.agent.facts import MAX_TARGETS, MeasureKind, Plan, Question, Target
from MedSAM3Core.agent.replies import usable_concept
from MedSAM3Core.concepts import resolve
from MedSAM3Core.concepts.phrases import MAX_WORDS, key_of, say
from MedSAM3Core.concepts.terminology import terminology
from MedSAM3Core.errors import PromptError

LONGEST_NAME = 5
"""Words of the longest name that is looked for in a request."""
_ASKS = {
    MeasureKind.VOLUME: re.compile(r"\b(volume|how (large|big)|size|millilit\w+|ml)\b", re.IGNORECASE),
    MeasureKind.DIAMETER: re.compile(r"\b(diameter|how long|length)\b", re.IGNORECASE),
    MeasureKind.COUNT: re.compile(r"\b(how many|number of|count)\b", re.IGNORECASE),
    MeasureKind.INTENSITY: re.compile(r"\b(intensity|density|hounsfield|hu)\b", re.IGNORECASE),
}


def plan_by_words(text: str, why: str = "") -> Plan:
    """The longest names of the terminology in a text, in order; without any, the text itself as a phrase.

    Args:
        text: The request.
        why: A sentence for the user, added to the notices.

    Raises:
        PromptError: If nothing in the text can be looked for.
    """
    phrases = _known_names(text)
    if not phrases:
        concept = usable_concept(say(text)) if len(say(text).split()) <= MAX_WORDS else None
        if concept is None:
            raise PromptError(
                f"No structure was recognised in the request {text[:60]!r}; name one, such as 'liver'."
            )
        targets = [Target(concept)]
    else:
        targets = [Target(resolve(phrase)) for phrase in phrases[:MAX_TARGETS]]
    questions = [
        Question(kind, index)
        for kind, words in _ASKS.items()
        if words.search(text)
        for index in range(len(targets))
    ]
    return Plan(tuple(targets), "", tuple(questions), (why,) if why else ())


def _known_names(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text)
    found: list[str] = []
    start = 0
    while start < len(words):
        for length in range(min(LONGEST_NAME, len(words) - start), 0, -1):
            term = _term(" ".join(words[start : start + length]))
            if term is not None:
                found.append(term)
                start += length - 1
                break
        start += 1
    return list(dict.fromkeys(found))


def _term(phrase: str) -> str | None:
    try:
        key = key_of(phrase)
    except PromptError:
        return None
    term = terminology().find(key) if key.words else None
    return term.phrase if term is not None else None
