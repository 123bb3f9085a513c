"""Who is compared: models of this library under several modes, and peers that are asked the same.

*Contract* of a contender: `open` takes a volume and gives a desk; a desk is asked for the concepts of one mode at a
time and answers for each, in the order asked; closing it frees what it holds. A desk that cannot answer in a mode
says so by `supports`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.instances import components
from MedSAM3Core.evaluation.scoring import Answer
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Box
from MedSAM3Core.segmentation import Extent, Segmentation
from MedSAM3Core.volume import Volume

if TYPE_CHECKING:
    from MedSAM3Core.inference.session import Segmenter, Session

ModeKind = Literal["text", "text+box", "boxes", "agent"]

MOST_REFERENCE_BOXES = 16
"""Largest objects of an image that get a box in "text+box"."""
LEAST_BOX_SHARE = 0.05
"""Objects smaller than this share of the largest get none."""


@dataclass(frozen=True)
class Mode:
    """How a contender is asked.

    Attributes:
        kind: "text" alone; "text+box", with a box of the reference; "boxes", text and then ``count`` boxes that a
            simulated annotator draws one after the other; or "agent".
        count: Boxes, for "boxes".
    """

    kind: ModeKind
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> Mode:
        """A mode as the command line writes it: text, text+box, boxes:N, agent.

        Raises:
            InputError: If it is none of these.
        """
        kind, _, number = text.partition(":")
        if kind == "boxes" and number.isdigit() and int(number) > 0:
            return cls("boxes", int(number))
        if kind in ("text", "text+box", "agent") and not number:
            return cls(kind)  # type: ignore[arg-type]
        raise InputError(f"The mode is {text!r}; expected text, text+box, agent, or boxes:N with a number N.")

    @property
    def name(self) -> str:
        """As `parse` takes it."""
        return f"boxes:{self.count}" if self.kind == "boxes" else self.kind


class Desk(Protocol):
    """A contender with one volume open."""

    @property
    def axis(self) -> int:
        """Array axis along which it cuts the volume."""

    def supports(self, mode: Mode) -> bool:
        """Whether it can be asked in this mode."""

    def answer(
        self, questions: Mapping[str, np.ndarray], mode: Mode, cancel: CancelToken | None
    ) -> Iterator[Answer]:
        """Answer for each concept; its reference is for modes that draw boxes, and may be empty."""


class Contender(Protocol):
    """Somebody who can be asked."""

    @property
    def name(self) -> str:
        """For tables."""

    def open(self, volume: Volume) -> AbstractContextManager[Desk]:
        """A desk with this volume on it."""


AgentRun = Callable[["Session", str, np.ndarray, CancelToken | None], Segmentation]
"""Session, phrase and reference to the agent's answer."""


class SessionPool:
    """The one volume that is open on a model: contenders that differ in settings share its features.

    Args:
        segmenter: The model.
        preset: "recommended", "thorough" or "published".
    """

    def __init__(self, segmenter: Segmenter, preset: str = "recommended") -> None:
        self.segmenter, self.preset = segmenter, preset
        self._volume: Volume | None = None
        self._session: Session | None = None

    def session(self, volume: Volume) -> Session:
        """The session of this volume; that of the volume before is closed."""
        if self._session is None or self._volume is not volume:
            self.close()
            self._volume, self._session = volume, self.segmenter.open(volume, mode=self.preset)
        return self._session

    def close(self) -> None:
        """Forget the volume and its features."""
        if self._session is not None:
            self._session.close()
        self._volume = self._session = None


@dataclass(frozen=True, eq=False)
class ModelContender:
    """A model of this library.

    Attributes:
        name: For tables.
        pool: The model, and the volume that is open on it.
        settings: Attributes of `InferenceSettings` to change, for a comparison of settings.
        agent: How the agent is run; None without one.
    """

    name: str
    pool: SessionPool
    settings: Mapping[str, object] = field(default_factory=dict)
    agent: AgentRun | None = None

    @contextmanager
    def open(self, volume: Volume) -> Iterator[Desk]:
        """A session on the volume; its features stay until another volume is opened."""
        session = self.pool.session(volume)
        yield _ModelDesk(session.with_settings(**self.settings) if self.settings else session, self.agent)


@dataclass(frozen=True, eq=False)
class _ModelDesk:
    session: Session
    agent: AgentRun | None

    @property
    def axis(self) -> int:
        return self.session.plan.axes[0]

    def supports(self, mode: Mode) -> bool:
        return mode.kind != "agent" or self.agent is not None

    def answer(
        self, questions: Mapping[str, np.ndarray], mode: Mode, cancel: CancelToken | None
    ) -> Iterator[Answer]:
        if mode.kind == "text":
            started = time.monotonic()
            found = self.session.segment_many(list(questions), cancel=cancel)
            for one in found:
                yield _answer_of(one, started)
                started = time.monotonic()
            return
        for concept, reference in questions.items():
            started = time.monotonic()
            yield _answer_of(self._ask(concept, reference, mode, cancel), started)

    def _ask(
        self, concept: str, reference: np.ndarray, mode: Mode, cancel: CancelToken | None
    ) -> Segmentation:
        if mode.kind == "agent":
            assert self.agent is not None
            return self.agent(self.session, concept, reference, cancel)
        if mode.kind == "text+box" or not reference.any():
            boxes = reference_boxes(reference, self.session.plan)
            return self.session.segment(concept, boxes, cancel=cancel)
        from MedSAM3Core.evaluation.simulated import simulate_boxes

        return simulate_boxes(self.session, concept, reference, mode.count)[-1]


def _answer_of(found: Segmentation, started: float) -> Answer:
    said = ", ".join(found.provenance.prompts) or found.concept.phrase
    return Answer(found.to_array(), found.score, said, time.monotonic() - started)


def reference_boxes(reference: np.ndarray, plan: SlicePlan) -> list[Box]:
    """Boxes as the papers' "text and box" gives them: around the object on its largest slice, one for each component.

    Args:
        reference: bool (slices, rows, columns) of the grid; empty gives no box.
        plan: How the grid is cut.

    Returns:
        Boxes on one slice, the largest first, at most `MOST_REFERENCE_BOXES`.
    """
    axis = plan.axes[0]
    areas = reference.sum(axis=tuple(a for a in range(3) if a != axis))
    if not areas.any():
        return []
    place = int(areas.argmax())
    chosen = np.zeros_like(reference)
    index = [slice(None)] * 3
    index[axis] = slice(place, place + 1)
    chosen[tuple(index)] = reference[tuple(index)]
    pieces = components(chosen)
    sizes = np.bincount(pieces.ravel())[1:]
    order = [n for n in np.argsort(-sizes) if sizes[n] >= LEAST_BOX_SHARE * sizes.max()]
    extents = [Extent.of_mask(pieces == n + 1) for n in order[:MOST_REFERENCE_BOXES]]
    return [Box(extent.i, extent.j, extent.k) for extent in extents if extent is not None]
