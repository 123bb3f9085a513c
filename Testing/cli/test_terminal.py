from __future__ import annotations

import io
import json
import os
import signal
import threading

import pytest
from rich.console import Console

from MedSAM3Core.cli import terminal
from MedSAM3Core.progress import Progress


@pytest.mark.parametrize(
    ("stage", "step", "total", "text"),
    [
        ("encoding", 12, 80, "slice 12 of 80"),
        ("downloading", 1_500_000, 3_000_000, "1.5 of 3.0 MB"),
        ("detector", 10, 2400, "step 10 of 2400"),
        ("loading", 0, 0, ""),
    ],
)
def test_counts_name_what_is_counted(stage: str, step: int, total: int, text: str) -> None:
    assert terminal.count_of(stage, step, total) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (5.2, "0:05 left"), (65, "1:05 left"), (3700, "1:01:40 left")]
)
def test_time_left_in_words(seconds: float | None, text: str) -> None:
    assert terminal.time_left(seconds) == text


def test_no_progress_bar_when_piped(capfd) -> None:
    with terminal.progress_bar() as progress:
        assert progress is None
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_stage_slice_count_and_time_left(monkeypatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        terminal,
        "Console",
        lambda **_: Console(file=screen, force_terminal=True, width=120, color_system=None),
    )
    with terminal.progress_bar() as progress:
        assert progress is not None
        progress(Progress("propagating", 7, 42, 0.5, 12.0))
    assert "propagating" in screen.getvalue()
    assert "slice 7 of 42" in screen.getvalue()
    assert "0:12 left" in screen.getvalue()


def test_the_first_interrupt_cancels_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with terminal.cancel_on_interrupt() as token:
        os.kill(os.getpid(), signal.SIGINT)
        assert token.cancelled
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_to_terminate_cancels_too() -> None:
    with terminal.cancel_on_interrupt() as token:
        os.kill(os.getpid(), signal.SIGTERM)
        assert token.cancelled


def test_off_the_main_thread_there_is_a_token_without_signals() -> None:
    tokens = []

    def work() -> None:
        with terminal.cancel_on_interrupt() as token:
            tokens.append(token.cancelled)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert tokens == [False]


def test_json_is_one_document_and_never_nan(capfd) -> None:
    terminal.print_json({"ml": 1.5, "name": "Leber größe"})
    assert json.loads(capfd.readouterr().out) == {"ml": 1.5, "name": "Leber größe"}
    with pytest.raises(ValueError, match="JSON compliant"):
        terminal.print_json({"ml": float("nan")})


def test_a_complaint_is_one_line_whatever_it_holds(capfd) -> None:
    terminal.complain("first\n  second")
    assert capfd.readouterr().err == "medsam3: first second\n"


def test_notices_are_said_once_each(capfd) -> None:
    terminal.notify(["a", "b", "a"])
    assert capfd.readouterr().err == "note: a\nnote: b\n"


def test_a_table_in_a_pipe_keeps_its_figures(capfd) -> None:
    terminal.print_table("", [("concept", "left"), ("voxels", "right")], [["left kidney " * 8, "1,234,567"]])
    assert "1,234,567" in capfd.readouterr().out
