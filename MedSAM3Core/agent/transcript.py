"""The record of a conversation: every request with its pictures' hashes, every answer, every round. No key is in it."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from MedSAM3Core.agent.facts import Action, AddBox, KeepSlices, Outcome, Rephrase, Round, SetThreshold
from MedSAM3Core.segmentation import Segmentation

_DATA_URL = "data:image/png;base64,"
MOST_ANSWER = 20_000
"""Letters of an answer that are kept."""


@dataclass(frozen=True)
class Record:
    """One request and what came of it.

    Attributes:
        purpose: "plan" or "judge".
        structure: How the answer's form was asked for.
        request: The request's body as sent, headers apart.
        answer: What came back.
        refused: Whether the model declined.
        error: What went wrong, if something did.
        seconds: Until the answer was complete, retries included.
        tokens_sent: As the server counted, None when it did not.
        tokens_received: As the server counted.
        created: UTC time, ISO 8601.
    """

    purpose: str
    structure: str
    request: dict[str, Any] = field(repr=False)
    answer: str = ""
    refused: bool = False
    error: str = ""
    seconds: float = 0.0
    tokens_sent: int | None = None
    tokens_received: int | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Transcript:
    """Collects records; may be added to from any thread."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        """Keep a record."""
        with self._lock:
            self._records.append(record)

    @property
    def records(self) -> tuple[Record, ...]:
        """All so far, in order."""
        with self._lock:
            return tuple(self._records)

    def document(self) -> list[dict[str, Any]]:
        """All records as plain values, each picture replaced by its hash and size."""
        return [
            {
                "purpose": one.purpose,
                "structure": one.structure,
                "created": one.created,
                "seconds": one.seconds,
                "request": without_pictures(one.request),
                "answer": one.answer[:MOST_ANSWER],
                "refused": one.refused,
                "error": one.error,
                "tokens_sent": one.tokens_sent,
                "tokens_received": one.tokens_received,
            }
            for one in self.records
        ]


def without_pictures(value: Any) -> Any:
    """A request's body with the SHA-256 and the size of each picture in its place."""
    if isinstance(value, dict):
        return {key: without_pictures(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_pictures(inner) for inner in value]
    if isinstance(value, str) and value.startswith(_DATA_URL):
        try:
            png = base64.b64decode(value[len(_DATA_URL) :], validate=True)
        except binascii.Error:
            return value
        return {"png_sha256": hashlib.sha256(png).hexdigest(), "bytes": len(png)}
    return value


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """What a request came to, as plain values for a transcript or a report."""
    return {
        "plan": {
            "modality": outcome.plan.modality,
            "targets": [
                {"concept": one.concept.phrase, "expected_number": one.count, "place": one.place}
                for one in outcome.plan.targets
            ],
            "questions": [
                {
                    "kind": one.kind.value,
                    "target": one.target + 1,
                    "of": None if one.of is None else one.of + 1,
                }
                for one in outcome.plan.questions
            ],
        },
        "rounds": [round_document(one) for one in outcome.rounds],
        "chosen": [None if one is None else one.number for one in outcome.chosen],
        "answers": [
            {
                "kind": a.kind.value,
                "concept": a.concept,
                "value": a.value,
                "unit": a.unit,
                "sentence": a.sentence,
            }
            for a in outcome.answers
        ],
        "notices": list(outcome.notices),
    }


def signed(one: Round, model: str) -> Segmentation:
    """A round's segmentation whose provenance says which round it is and who judged it.

    Args:
        one: The round.
        model: Name of the language model.
    """
    said = (
        f"The agent's round {one.number} ({one.attempt.describe()}), judged by {model}: "
        f"{one.judgement.verdict.words}."
    )
    made = one.segmentation.provenance
    noted = dataclasses.replace(made, notices=(*made.notices, said))
    return dataclasses.replace(one.segmentation, provenance=noted)


def round_document(one: Round) -> dict[str, Any]:
    """A round as plain values."""
    found = one.segmentation
    return {
        "round": one.number,
        "target": one.target + 1,
        "tried": one.attempt.describe(),
        "voxels": found.voxels,
        "ml": round(found.volume_ml, 4),
        "presence_score": round(found.score, 4),
        "internal_score": round(one.score, 4),
        "pictures": [{"slice": p.slice_index, "png_sha256": p.sha256} for p in one.pictures],
        "verdict": one.judgement.verdict.value,
        "reason": one.judgement.reason,
        "actions": [action_words(action) for action in one.judgement.actions],
        "set_aside": list(one.judgement.notices),
    }


def action_words(action: Action) -> str:
    """An action in words."""
    if isinstance(action, Rephrase):
        return f"say '{action.concept.phrase}'"
    if isinstance(action, AddBox):
        box = action.box
        sign = "around it" if action.box.positive else "where it is not"
        return (
            f"box {sign}: i {box.i[0]} to {box.i[1]}, j {box.j[0]} to {box.j[1]}, k {box.k[0]} to {box.k[1]}"
        )
    if isinstance(action, KeepSlices):
        return f"keep slices {action.first} to {action.last}"
    if isinstance(action, SetThreshold):
        return f"threshold {action.value:g}"
    return {"Synonym": "another name", "Stop": "stop"}[type(action).__name__]
