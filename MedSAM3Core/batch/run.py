"""A batch from its first case to its table: the journal kept, the engine driven."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from MedSAM3Core.batch import contact, table
from MedSAM3Core.batch.cases import BatchSettings, Case, Outcome
from MedSAM3Core.batch.journal import Journal, locked
from MedSAM3Core.batch.pipeline import process
from MedSAM3Core.batch.work import CaseWorker, SegmenterLike, failed
from MedSAM3Core.errors import Cancelled
from MedSAM3Core.plurals import counted
from MedSAM3Core.progress import CancelToken

MOST_ATTEMPTS = 3
"""Deaths of the process during a case's inference after which the case counts as failed, so that one that always
exhausts the memory does not stop a batch for ever."""


class Engine(Protocol):
    """What runs cases.

    *Contract*: it yields one outcome for each case, in any order; it calls ``begin`` before a case's inference; a
    case's fault never ends it; when the token is cancelled it yields what was finished and raises `Cancelled`.
    """

    def identity(self) -> dict[str, Any]:
        """What else must be the same in all runs of a batch, such as the hash of the weights."""

    def run(
        self, cases: Sequence[Case], begin: Callable[[Case], None], cancel: CancelToken | None
    ) -> Iterator[Outcome]:
        """Run cases."""


class LocalEngine:
    """Runs cases in this process.

    Args:
        segmenter: A model, in process or behind a worker.
        settings: What holds for all cases.
    """

    def __init__(self, segmenter: SegmenterLike, settings: BatchSettings) -> None:
        self.worker = CaseWorker(segmenter, settings)

    def identity(self) -> dict[str, Any]:
        """The hash of the model's weights, where the model is in this process."""
        card = getattr(getattr(self.worker.segmenter, "model", None), "card", None)
        return {} if card is None else {"model_sha256": card.sha256}

    def run(
        self, cases: Sequence[Case], begin: Callable[[Case], None], cancel: CancelToken | None
    ) -> Iterator[Outcome]:
        """Run cases in their order."""
        for event in process(cases, self.worker, cancel):
            if isinstance(event, Case):
                begin(event)
            else:
                yield event


@dataclass
class Tally:
    """Where a batch stands.

    Attributes:
        total: Its cases.
        before: Ended in earlier runs.
        done: Ended well, earlier runs included.
        failed: Failed, earlier runs included.
        current: The case whose inference began last.
    """

    total: int
    before: int = 0
    done: int = 0
    failed: int = 0
    current: str = ""
    _started: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> int:
        """Cases that are over."""
        return self.done + self.failed

    @property
    def elapsed(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self._started

    @property
    def per_minute(self) -> float:
        """Cases of this run a minute."""
        return 60 * (self.ended - self.before) / max(self.elapsed, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Of this run, None while nothing of it is over."""
        ended = self.ended - self.before
        return None if ended == 0 else self.elapsed / ended * (self.total - self.ended)

    def count(self, outcome: Outcome) -> None:
        """Count a case that is over."""
        if outcome.status == "done":
            self.done += 1
        else:
            self.failed += 1


@dataclass(frozen=True)
class Summary:
    """What came of a run.

    Attributes:
        outcomes: One for each case, in the order of the cases.
        resumed: Cases that were over before.
        seconds: Of this run, the model's loading not included.
        tables: Files of the table.
        sheets: Pages of the contact sheet.
    """

    outcomes: tuple[Outcome, ...]
    resumed: int
    seconds: float
    tables: tuple[Path, ...]
    sheets: tuple[Path, ...]

    @property
    def done(self) -> int:
        """Cases that ended well."""
        return sum(one.status == "done" for one in self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Cases that failed."""
        return tuple(one for one in self.outcomes if one.status == "failed")


def run_batch(
    cases: Sequence[Case],
    settings: BatchSettings,
    engine: Engine,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    report: Callable[[Tally], None] = lambda tally: None,
    cancel: CancelToken | None = None,
) -> Summary:
    """Run a batch, or go on with one.

    Args:
        cases: All cases of the batch, those that are over included.
        settings: What holds for all.
        engine: Runs them.
        resume: Go on with what is in the output folder.
        retry_failed: Run cases again that failed before.
        report: Told whenever a case begins or ends.
        cancel: Stops the batch; what was finished counts, and the table is written.

    Raises:
        OutputError: If the folder cannot be used, is in use, holds another batch, or its disk is full.
        Cancelled: If the token was cancelled.
    """
    with (
        locked(settings.output),
        Journal(settings.output, {**settings.as_facts(), **engine.identity()}, resume) as journal,
    ):
        todo = [case for case in cases if _is_open(case, journal, retry_failed)]
        tally = Tally(len(cases), before=len(cases) - len(todo))
        waiting = {case.key for case in todo}
        for case in cases:
            if case.key not in waiting:
                tally.count(journal.outcomes[case.key])
        report(tally)
        try:
            _drive(todo, engine, journal, tally, report, cancel)
        except Cancelled as error:
            _write_reports(cases, settings, journal, sheets=False)
            raise Cancelled(
                f"Cancelled after {tally.ended} of {counted(tally.total, 'case')}.",
                "Run again with --resume to go on.",
            ) from error
        outcomes, tables, sheets = _write_reports(cases, settings, journal, settings.tiles)
        return Summary(outcomes, tally.before, tally.elapsed, tables, sheets)


def _is_open(case: Case, journal: Journal, retry_failed: bool) -> bool:
    """Whether a case is to be run: it is not over, or its image or its concepts have changed since."""
    known = journal.outcomes.get(case.key)
    if known is None or known.stamp != case.stamp():
        return True
    return retry_failed and known.status == "failed"


def _drive(
    todo: Sequence[Case],
    engine: Engine,
    journal: Journal,
    tally: Tally,
    report: Callable[[Tally], None],
    cancel: CancelToken | None,
) -> None:
    def end(outcome: Outcome) -> None:
        journal.finish(outcome)
        tally.count(outcome)
        report(tally)

    def begin(case: Case) -> None:
        journal.begin(case.key)
        tally.current = case.key
        report(tally)

    deadly = {case.key for case in todo if journal.deaths[case.key] >= MOST_ATTEMPTS}
    for case in todo:
        if case.key in deadly:
            end(failed(case, _DEADLY))
    for outcome in engine.run([case for case in todo if case.key not in deadly], begin, cancel):
        end(outcome)


_DEADLY = (
    f"The process ended {MOST_ATTEMPTS} times while this case was computed, probably for lack of memory; run it alone, "
    "or again with --retry-failed."
)


def _write_reports(
    cases: Sequence[Case], settings: BatchSettings, journal: Journal, sheets: bool
) -> tuple[tuple[Outcome, ...], tuple[Path, ...], tuple[Path, ...]]:
    outcomes = tuple(journal.outcomes[case.key] for case in cases if case.key in journal.outcomes)
    tables = table.write_tables(settings.output, outcomes)
    pages = contact.write_sheets(settings, outcomes) if sheets else []
    return outcomes, tuple(tables), tuple(pages)
