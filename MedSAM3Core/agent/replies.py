"""From a language model's text to plans and verdicts. Whatever stands in the text, nothing else comes out.

The text is data. Names that are not on the lists, phrases that name nothing, boxes outside of the pictures and ranges
outside of the volume are set aside with a sentence each; the rest of the answer counts. An answer without a usable
core raises `EndpointError`, which asks the caller to ask once more or to do without.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from MedSAM3Core.agent.facts import (
    MAX_ACTIONS,
    MAX_TARGETS,
    MOST_COUNT,
    THRESHOLDS,
    Action,
    AddBox,
    Judgement,
    KeepSlices,
    MeasureKind,
    Picture,
    Plan,
    Question,
    Rephrase,
    SetThreshold,
    Stop,
    Synonym,
    Target,
    Verdict,
)
from MedSAM3Core.agent.pictures import PictureMaker
from MedSAM3Core.concepts import resolve, shorten
from MedSAM3Core.concepts.phrases import MAX_WORDS
from MedSAM3Core.errors import EndpointError, PromptError
from MedSAM3Core.prompts import Concept

MOST_TEXT = 100_000
"""Letters of an answer that are looked at."""
MOST_REASON = 300
MOST_PLACE = 80
_PHRASE = re.compile(r"[\w ,'’()/-]+")
"""Letters and what stands between them in a name of anatomy; a phrase with anything else is none."""
_MEASURES = {kind.value for kind in MeasureKind} | {"area", "number", "size", "length", "width"}
"""Words for what is to be computed; small models name them as structures."""
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)


def read_json(text: str) -> dict[str, Any]:
    """The first JSON object in a text; what stands around it (fences, thoughts, politeness) is dropped.

    Raises:
        EndpointError: If there is none.
    """
    shown = _THINKING.sub("", text[:MOST_TEXT])
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", shown)):
        try:
            value, _ = decoder.raw_decode(shown, start)
        except (ValueError, RecursionError):
            if start > 2000:  # an answer that does not get to the point
                break
            continue
        if isinstance(value, dict):
            return value
    raise EndpointError("The answer holds no JSON object.")


def read_plan(document: dict[str, Any]) -> Plan:
    """A plan from an answer.

    Raises:
        EndpointError: If it names no target that can be looked for.
    """
    entries = document.get("targets")
    if not isinstance(entries, list):
        raise EndpointError("The answer has no list of targets.")
    notices: list[str] = []
    if len(entries) > MAX_TARGETS:
        notices.append(f"The plan has {len(entries)} targets; the first {MAX_TARGETS} are used.")
    targets: list[Target] = []
    places: dict[int, int] = {}
    for number, entry in enumerate(entries[:MAX_TARGETS], start=1):
        target = _target(entry, notices)
        phrases = [one.concept.phrase for one in targets]
        if target is None:
            continue
        if target.concept.phrase in phrases:
            places[number] = phrases.index(target.concept.phrase)
            continue
        places[number] = len(targets)
        targets.append(target)
    if not targets:
        raise EndpointError(" ".join(["The answer names nothing that can be segmented.", *notices]))
    questions = _questions(document.get("questions"), places, notices)
    return Plan(tuple(targets), clean(document.get("modality"), 40), questions, tuple(notices))


def _target(entry: Any, notices: list[str]) -> Target | None:
    if not isinstance(entry, dict):
        notices.append("A target that is not a JSON object was set aside.")
        return None
    concept = usable_concept(entry.get("phrase"))
    if concept is None:
        notices.append(
            f"The target {clean(entry.get('phrase'), 60)!r} is not a short name of a structure; it was set aside."
        )
        return None
    count = entry.get("expected_number")
    known = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MOST_COUNT
    return Target(concept, count if known else None, clean(entry.get("place"), MOST_PLACE))


def _questions(entries: Any, places: dict[int, int], notices: list[str]) -> tuple[Question, ...]:
    found: list[Question] = []
    for entry in entries[: 2 * MAX_TARGETS] if isinstance(entries, list) else ():
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if kind not in set(MeasureKind):
            notices.append(f"The question {clean(kind, 40)!r} does not exist; it was set aside.")
            continue
        target, whole = entry.get("target"), entry.get("of")
        if not _is_whole(target) or target not in places:
            notices.append(f"The question {kind!r} is about a target that does not exist; it was set aside.")
            continue
        of = places.get(whole) if _is_whole(whole) else None
        if kind == MeasureKind.SHARE and (of is None or of == places[target]):
            notices.append("A share needs a second target as the whole; the question was set aside.")
            continue
        found.append(Question(MeasureKind(kind), places[target], of if kind == MeasureKind.SHARE else None))
    return tuple(dict.fromkeys(found))


def usable_concept(phrase: Any) -> Concept | None:
    """A phrase of at most three words that the segmenter may be told, shortened if need be; None if it is none."""
    if not isinstance(phrase, str):
        return None
    text = clean(phrase, 100)
    if not _PHRASE.fullmatch(text) or text.lower() in _MEASURES:
        return None
    try:
        if len(text.split()) > MAX_WORDS:
            text = shorten(text) or ""
        concept = resolve(text)
    except PromptError:
        return None
    return concept if len(concept.phrase.split()) <= MAX_WORDS + 1 else None


def read_judgement(document: dict[str, Any], pictures: Sequence[Picture], maker: PictureMaker) -> Judgement:
    """A verdict from an answer.

    Args:
        document: The answer.
        pictures: Those that the model was shown; none, and then no box can be drawn.
        maker: Drew them.

    Raises:
        EndpointError: If the verdict is none of those on the list.
    """
    word = clean(document.get("verdict"), 40).lower().replace(" ", "_").replace("-", "_")
    if word not in set(Verdict) or word == Verdict.UNJUDGED:
        known = ", ".join(one for one in Verdict if one is not Verdict.UNJUDGED)
        raise EndpointError(f"The verdict is {word!r}; expected one of {known}.")
    notices: list[str] = []
    entries = document.get("actions")
    listed = entries if isinstance(entries, list) else []
    if len(listed) > MAX_ACTIONS:
        notices.append(f"The answer has {len(listed)} actions; the first {MAX_ACTIONS} are used.")
    reader = _ActionReader(tuple(pictures), maker)
    actions = []
    for entry in listed[:MAX_ACTIONS]:
        action = reader.read(entry)
        if isinstance(action, str):
            notices.append(f"{action}; it was set aside.")
        else:
            actions.append(action)
    return Judgement(
        Verdict(word), clean(document.get("reason"), MOST_REASON), tuple(actions), tuple(notices)
    )


class _ActionReader:
    """Reads actions; each reader gives the action, or a phrase that says what is wrong with it."""

    def __init__(self, pictures: tuple[Picture, ...], maker: PictureMaker) -> None:
        self._pictures = {one.number: one for one in pictures}
        self._maker = maker
        self._readers: dict[str, Callable[[dict[str, Any]], Action | str]] = {
            "rephrase": self._rephrase,
            "synonym": lambda _: Synonym(),
            "box": self._box,
            "slice_range": self._slices,
            "threshold": self._threshold,
            "stop": lambda _: Stop(),
        }

    def read(self, entry: Any) -> Action | str:
        name = entry.get("action") if isinstance(entry, dict) else None
        reader = self._readers.get(name) if isinstance(name, str) else None
        if reader is None:
            return f"The action {clean(name, 40)!r} does not exist"
        return reader(entry)

    def _rephrase(self, entry: dict[str, Any]) -> Action | str:
        concept = usable_concept(entry.get("phrase"))
        if concept is None:
            return f"The phrase {clean(entry.get('phrase'), 60)!r} names no structure"
        return Rephrase(concept)

    def _box(self, entry: dict[str, Any]) -> Action | str:
        number = entry.get("picture")
        picture = self._pictures.get(number) if _is_whole(number) else None
        if picture is None:
            return f"There is no picture {clean(number, 20)!r} to draw a box on"
        corners = [entry.get(side) for side in ("left", "top", "right", "bottom")]
        if not all(_is_number(n) for n in corners):
            return "A box has corners that are not numbers"
        positive = entry.get("holds_target", True)
        if not isinstance(positive, bool):
            return "A box does not say whether it holds the target"
        try:
            return AddBox(self._maker.box(picture, tuple(map(float, corners)), positive))  # type: ignore[arg-type]
        except PromptError as fault:
            return str(fault).rstrip(".")

    def _slices(self, entry: dict[str, Any]) -> Action | str:
        first, last = entry.get("first"), entry.get("last")
        count = self._maker.plan.count
        if not (_is_whole(first) and _is_whole(last) and 0 <= first <= last < count):
            return f"The slices {clean(first, 20)} to {clean(last, 20)} are not within 0 to {count - 1}"
        return KeepSlices(first, last)

    def _threshold(self, entry: dict[str, Any]) -> Action | str:
        value = entry.get("value")
        if not _is_number(value) or not THRESHOLDS[0] <= value <= THRESHOLDS[1]:
            return f"The threshold {clean(value, 20)} is not within {THRESHOLDS[0]} to {THRESHOLDS[1]}"
        return SetThreshold(round(float(value), 4))


def clean(value: Any, most: int) -> str:
    """A value as one line of plain text: no control or format characters, single blanks, at most ``most`` letters."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value)[: 4 * most]
    shown = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text[: 8 * most])
    line = " ".join(shown.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
