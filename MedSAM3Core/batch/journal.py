"""What a batch has done so far, in a file that survives the death of its process at any moment.

One JSON document a line, only ever appended. A line is written in one piece and counts when its line end is there; what
a kill left of a line is cut off when the journal is opened next. Lines that say how a case ended are on the disk before
the next case is reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from MedSAM3Core.batch.cases import OWN_FOLDER, Outcome
from MedSAM3Core.errors import OutputError
from MedSAM3Core.plurals import counted

VERSION = 1
JOURNAL = "journal.jsonl"
LOCK = "lock"
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part")
"""Names that `MedSAM3Core.volume.atomic` gives to files that it has not finished."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of an output folder. The system lifts the lock when the process ends, however it ends.

    Raises:
        OutputError: If another run works in it, or the folder cannot be made.
    """
    own = folder / OWN_FOLDER
    try:
        own.mkdir(parents=True, exist_ok=True)
        stream = os.open(own / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"The folder {folder} cannot be used ({reason}); choose another one.") from error
    try:
        _take_lock(stream)
    except OSError as error:
        os.close(stream)
        raise OutputError(
            f"Another run is working in {folder}; wait for it to end, or choose another folder."
        ) from error
    try:
        yield
    finally:
        os.close(stream)


def _take_lock(stream: int) -> None:
    """Lock a file for this process, or raise `OSError`. Slicer's Python has no package for it, so the system's own."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(stream, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Journal:
    """The journal of one output folder. Open it under `locked`, in a ``with`` block.

    Args:
        folder: The output folder.
        facts: What must be the same in all runs of this batch; written with the first line.
        resume: Whether a batch that is there already is to be gone on with.

    Attributes:
        outcomes: Case key to how it ended last.
        deaths: Case key to how often a process died while it was the last one begun.

    Raises:
        OutputError: If there is a batch already and ``resume`` is not set, if it was made with other settings, or if
            the journal cannot be written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], resume: bool = False) -> None:
        self.path = folder / OWN_FOLDER / JOURNAL
        self.outcomes: dict[str, Outcome] = {}
        self.deaths: Counter[str] = Counter()
        self._last_begun = ""
        self.damaged_lines = 0
        known = self._read()
        if known is not None and not resume:
            raise OutputError(
                f"{folder} holds a batch of {counted(len(self.outcomes), 'case')} already; add --resume to go on with "
                "it, or choose another folder."
            )
        if known is not None:
            _check_same(folder, known, facts)
        _sweep(folder)
        self._stream = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if known is None:
            self._append({"batch": VERSION, "settings": facts}, durable=True)
        self._append({"run": "begun"}, durable=False)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OutputError):
            self._append({"run": "ended"}, durable=False)
        os.close(self._stream)

    def begin(self, key: str) -> None:
        """Say that a case's inference begins, so that one that kills its process is known by it."""
        self._append({"begun": key}, durable=False)

    def finish(self, outcome: Outcome) -> None:
        """Say how a case ended; on return it is on the disk.

        Raises:
            OutputError: If it cannot be written.
        """
        self._append({"case": asdict(outcome)}, durable=True)
        self.outcomes[outcome.key] = outcome

    def _append(self, document: dict[str, Any], durable: bool) -> None:
        line = (json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n").encode(
            "utf-8", "surrogateescape"
        )
        try:
            written = os.write(self._stream, line)
            if durable:
                os.fsync(self._stream)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(
                f"The journal {self.path} cannot be written ({reason}); make room and run again with --resume."
            ) from error
        if written != len(line):
            raise OutputError(f"The disk of {self.path} is full; make room and run again with --resume.")

    def _read(self) -> dict[str, Any] | None:
        """Take in what is there; gives the settings of its first line, None where there is no batch yet."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        settings = None
        for line in content[:whole].splitlines():
            try:
                document = json.loads(line.decode("utf-8", "surrogateescape"))
                settings = document.get("settings", settings)
                self._take(document)
            except (ValueError, TypeError, AttributeError):
                self.damaged_lines += 1
        self._count_death()
        return settings

    def _count_death(self) -> None:
        """A run that left without a word died at the case that it had begun last; others only waited to be written."""
        if self._last_begun:
            self.deaths[self._last_begun] += 1
        self._last_begun = ""

    def _take(self, document: dict[str, Any]) -> None:
        if "begun" in document:
            self._last_begun = document["begun"]
        elif document.get("run") == "begun":
            self._count_death()
        elif document.get("run") == "ended":
            self._last_begun = ""
        elif "case" in document:
            fields = document["case"]
            outcome = Outcome(
                **{**fields, "rows": tuple(fields["rows"]), "notices": tuple(fields["notices"])}
            )
            self.outcomes[outcome.key] = outcome
            self.deaths.pop(outcome.key, None)
            if self._last_begun == outcome.key:
                self._last_begun = ""


def _check_same(folder: Path, known: dict[str, Any], facts: dict[str, Any]) -> None:
    differing = [name for name in sorted({*known, *facts}) if known.get(name) != facts.get(name)]
    if differing:
        name = differing[0]
        before, now = (_in_words(name, values.get(name)) for values in (known, facts))
        raise OutputError(
            f"The batch in {folder} was made with {before}, but this run is to use {now}; use the same settings, "
            "or another folder."
        )


_NAMES = {"suffix": "format", "model_sha256": "weights"}
"""Facts that a user knows by another name."""


def _in_words(name: str, value: Any) -> str:
    """A setting of a batch, as the command line calls it."""
    if value is None:
        return f"the model's own {name}" if name == "threshold" else f"unknown {_NAMES.get(name, name)}"
    shown = f"{value}"[:12] if name == "model_sha256" else value
    return f"the {_NAMES.get(name, name)} {shown}"


def _sweep(folder: Path) -> None:
    """Remove what killed runs left of files they were writing."""
    for root, _, names in os.walk(folder):
        for name in names:
            if _LEFTOVER.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(root, name))
