"""The command as a user runs it: a process of its own, the demo model, the bundled CT, a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from MedSAM3Core.resources import resource_path

pty = pytest.importorskip("pty")


def _demo_is_here() -> bool:
    try:
        return (resource_path("models/demo") / "model.safetensors").is_file()
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not _demo_is_here(), reason="the demo model is not in this checkout")

CT = resource_path("SampleData") / "headneck_ct.nii.gz"
COMMAND = [sys.executable, "-m", "MedSAM3Core.cli"]


def test_segment_writes_what_slicer_reads_and_a_report(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *COMMAND,
            "segment",
            CT,
            "-c",
            "Mandible",
            "-c",
            "brain stem",
            "-o",
            tmp_path / "o.seg.nrrd",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    mandible, brainstem = json.loads(done.stdout)["concepts"]
    assert (mandible["concept"], brainstem["concept"]) == ("mandible", "brainstem")
    assert mandible["found"]
    assert re.fullmatch("[0-9a-f]{64}", mandible["model"]["sha256"])
    assert (tmp_path / "o.seg.nrrd").read_bytes().startswith(b"NRRD")


def test_ctrl_c_at_a_terminal_stops_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    screen, code = _interrupt_when(b"slice ", tmp_path)
    assert code == 130
    assert list(tmp_path.iterdir()) == []
    assert re.search(rb"slice \d+ of \d+", screen)
    assert b"Traceback" not in screen
    assert b"Cancelled." in screen


def _interrupt_when(seen: bytes, folder: Path) -> tuple[bytes, int]:
    """Run ``segment`` on a terminal, interrupt it when ``seen`` is on the screen; the screen and the exit code."""
    master, slave = pty.openpty()
    arguments = ["segment", CT, "-c", "brainstem", "-o", folder / "o.seg.nrrd", "--mode", "thorough"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | {"TERM": "xterm"},  # where the tests run it may be a dumb one, which shows no bar
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    screen, interrupted, deadline = b"", False, time.monotonic() + 600
    try:
        while time.monotonic() < deadline:
            try:
                screen += os.read(master, 65536)
            except OSError:  # the process has closed its end
                break
            if seen in screen and not interrupted:
                process.send_signal(signal.SIGINT)
                interrupted = True
        return screen, process.wait(timeout=300)
    finally:
        process.kill()
        os.close(master)
