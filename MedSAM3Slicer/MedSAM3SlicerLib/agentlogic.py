"""The agent in Slicer: the machine's steps as a run that a timer drives.

What needs the segmenter goes to the worker. What needs the language model, pictures or measuring goes to a thread of
its own and is waited for like an answer of the worker, so the window never waits for either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from MedSAM3Core.agent import advisor, machine, transcript
from MedSAM3Core.agent.endpoint import Endpoint, find_key
from MedSAM3Core.agent.facts import Outcome, Round
from MedSAM3Core.agent.run import STAGES, perform_aside, picture_maker
from MedSAM3Core.errors import InputError
from MedSAM3Core.progress import CancelToken, Progress
from MedSAM3Core.segmentation import Segmentation
from MedSAM3SlicerLib.logic import SegmentationLogic
from MedSAM3SlicerLib.parameter import RunSettings
from MedSAM3SlicerLib.runs import InThread, Run, State, Work, waitFor
from MedSAM3SlicerLib.signals import Signal

PICTURES = 4
"""Most pictures a round."""


@dataclass(frozen=True)
class AgentSettings:
    """What the page holds.

    Attributes:
        request: In plain words.
        endpoint: Address of the language model.
        model: Its name there.
        rounds: Most rounds for each structure.
        pictures: Whether it is shown pictures.
        consent: Whether the user has agreed to what leaves.
    """

    request: str
    endpoint: str
    model: str
    rounds: int = 3
    pictures: bool = True
    consent: bool = False

    def place(self) -> Endpoint:
        """The endpoint.

        Raises:
            InputError: If address or name cannot be used.
        """
        return Endpoint.parse(self.endpoint, self.model, pictures=self.pictures)


class AgentLogic:
    """Runs requests through a `SegmentationLogic`.

    Args:
        logic: Does what runs on the worker, and writes to the scene.
        connect: Makes a chat model for an endpoint and a transcript; None asks the endpoint. Called on a thread.
    """

    def __init__(
        self,
        logic: SegmentationLogic,
        connect: Callable[[Endpoint, transcript.Transcript], Any] | None = None,
    ) -> None:
        self.logic = logic
        self.changed = Signal()
        self.outcome: Outcome | None = None
        self.run: Run | None = None
        self._connect = connect or _connect
        self._machine: machine.Machine | None = None
        self._transcript = transcript.Transcript()
        self._settings = AgentSettings("", "", "")
        self._runSettings = RunSettings()
        self._wishes: list[Callable[[machine.Machine], None]] = []
        self._volumeNode: Any = None
        self._segmentIds: dict[int, str] = {}

    @property
    def isBusy(self) -> bool:
        """Whether a request is being worked on."""
        return self.run is not None and not self.run.isOver

    @property
    def rounds(self) -> Sequence[Round]:
        """All rounds so far."""
        return self._machine.rounds if self._machine is not None else ()

    @property
    def chosen(self) -> set[int]:
        """Numbers of the rounds that are, or would now be, the result."""
        if self.outcome is None:
            return set()
        return {one.number for one in self.outcome.chosen if one is not None}

    def start(
        self,
        volumeNode: Any,
        settings: AgentSettings,
        runSettings: RunSettings,
        segmentationNode: Any = None,
    ) -> Run:
        """Begin and return at once; what is wrong raises here, before anything is sent.

        Raises:
            InputError: If there is no consent, or request, endpoint or image cannot be used.
        """
        if not settings.consent:
            raise InputError(
                _("Nothing was sent: read what would leave this computer and agree to it first.")
            )
        place = settings.place()
        if not settings.request.strip():
            raise InputError(_("Type what you want, for example: the liver, and its volume."))
        self._settings, self._runSettings, self._volumeNode = settings, runSettings, volumeNode
        self._machine, self.outcome, self._wishes, self._segmentIds = None, None, [], {}
        self._transcript = transcript.Transcript()

        def find(
            work: Work, session: Generator[None, None, Any]
        ) -> Generator[None, None, list[Segmentation]]:
            return (yield from self._find(work, session, place))

        self.run = self.logic.startWith(
            volumeNode, find, settings.request.strip(), segmentationNode, runSettings
        )
        self.run.ended.connect(self._onEnded)
        self.changed.emit()
        return self.run

    def cancel(self) -> None:
        """Stop; nothing is changed."""
        if self.run is not None:
            self.run.cancel()

    def accept(self, number: int) -> None:
        """Use a round: while the agent works its structure is then done; afterwards the segment is replaced."""
        self._wish(lambda m: m.accept(number), number)

    def discard(self, number: int) -> None:
        """Leave a round out: the best of the others is used, or, where there is none, the change is taken back."""
        self._wish(lambda m: m.discard(number), number)

    def document(self) -> str:
        """The transcript as JSON: endpoint, requests with picture hashes, answers, rounds. No key."""
        content: dict[str, Any] = {
            "endpoint": self._settings.endpoint,
            "language_model": self._settings.model,
            "requests": self._transcript.document(),
        }
        if self.outcome is not None:
            content |= transcript.outcome_document(self.outcome)
        return json.dumps(content, indent=2, ensure_ascii=False)

    # A run ----------------------------------------------------------------------------------------------------------

    def _find(
        self, work: Work, opening: Generator[None, None, Any], place: Endpoint
    ) -> Generator[None, None, list[Segmentation]]:
        session = yield from opening
        settings, run = self._settings, self._runSettings

        def prepare() -> tuple[machine.Machine, advisor.LanguageModelJudge]:
            maker = picture_maker(session, PICTURES)
            made = machine.Machine(
                settings.request, maker, settings.rounds, run.window or "auto", run.threshold
            )
            return made, advisor.LanguageModelJudge(self._connect(place, self._transcript))

        work.report(Progress("preparing", 0, 0, 0.0))
        self._machine, judge = yield from waitFor(work, InThread(prepare))
        while self._machine.step is not None:
            yield from self._step(work, session, judge)
        self.outcome = yield from waitFor(work, InThread(self._machine.outcome))
        return [self._signed(one) for one in self.outcome.chosen if one is not None]

    def _step(self, work: Work, session: Any, judge: Any) -> Generator[None, None, None]:
        """One step of the machine; a user's wish may end it early."""
        now = self._machine
        assert now is not None
        step = now.step
        work.report(Progress(STAGES[type(step)], 0, 0, now.fraction))
        pending = self._begin(step, session, judge, now)
        work.pending = pending
        while not pending.done:
            yield
            if self._grant(now) and now.step is not step:
                pending.cancel()
                work.pending = None
                return
        work.pending = None
        answer = pending.result(0)
        known = len(now.rounds)
        yield from waitFor(work, InThread(lambda: now.take(answer)))
        self._grant(now)
        if len(now.rounds) > known:
            self.changed.emit()

    def _begin(self, step: Any, session: Any, judge: Any, now: machine.Machine) -> Any:
        if not isinstance(step, machine.SegmentStep):
            return _Aside(lambda token: perform_aside(step, judge, now.maker, token))
        if step.is_cut:
            return InThread(lambda: step.previous)
        if step.previous is None:
            threshold = {} if step.threshold is None else {"threshold": step.threshold}
            return session.submit_segment(step.concept, step.boxes, **threshold)
        return session.submit_refine(step.previous, step.boxes)

    def _signed(self, one: Round) -> Segmentation:
        return transcript.signed(one, self._settings.model)

    # What the user wishes ---------------------------------------------------------------------------------------------

    def _wish(self, wish: Callable[[machine.Machine], None], number: int) -> None:
        if self._machine is None:
            return
        if self.isBusy:
            self._wishes.append(wish)  # granted between two steps: a thread may be inside the machine now
            return
        if self.logic.isBusy:
            return
        before = self.outcome
        wish(self._machine)
        self.outcome = self._machine.outcome()
        self._rewrite(before, self._machine.rounds[number - 1].target)
        self.changed.emit()

    def _grant(self, now: machine.Machine) -> bool:
        """Apply what was wished for; whether there was anything."""
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            wish(now)
        return bool(wishes)

    def _rewrite(self, before: Outcome | None, target: int) -> None:
        """Put the round that is chosen now in the place of the segment that was written."""
        assert self.outcome is not None
        old = before.chosen[target] if before is not None else None
        new = self.outcome.chosen[target]
        node = self.run.segmentationNode if self.run is not None else None
        if new is old:
            return
        if new is None or new.segmentation.empty:
            self.logic.writer.history.undo()
            return
        segmentId = self._segmentIds.get(target)
        known = node is not None and segmentId and node.GetSegmentation().GetSegment(segmentId) is not None

        def find(
            work: Work, opening: Generator[None, None, Any]
        ) -> Generator[None, None, list[Segmentation]]:
            opening.close()
            yield
            return [self._signed(new)]

        written = self.logic.startWith(
            self._volumeNode,
            find,
            _("round {n} of the agent").format(n=new.number),
            node if known else None,
            self._runSettings,
            [segmentId] if known else (),
        )
        written.ended.connect(lambda run: self._onRewritten(run, target))

    def _onRewritten(self, run: Run, target: int) -> None:
        if run.state is State.FINISHED and run.outcome.written:
            self._segmentIds[target] = run.outcome.written[0].segmentId
        self.changed.emit()

    def _onEnded(self, run: Run) -> None:
        if run.state is State.FINISHED and self.outcome is not None:
            filled = [
                n
                for n, one in enumerate(self.outcome.chosen)
                if one is not None and not one.segmentation.empty
            ]
            self._segmentIds = {
                target: written.segmentId
                for target, written in zip(filled, run.outcome.written, strict=False)
            }
        self.changed.emit()


class _Aside(InThread):
    """A call on a thread that hears a cancel.

    Args:
        function: Takes the token.
    """

    def __init__(self, function: Callable[[CancelToken], Any]) -> None:
        self._token = CancelToken()
        super().__init__(lambda: function(self._token))

    def cancel(self) -> None:
        """Raise the token."""
        self._token.cancel()


def _connect(place: Endpoint, record: transcript.Transcript) -> Any:
    from MedSAM3Core.agent.chat import OpenAIChat

    return OpenAIChat(place, find_key(place), record)
