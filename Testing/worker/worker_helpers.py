"""Where the double is, and how a test waits for another process."""

import os
import sys
import time
from pathlib import Path

DOUBLE = [sys.executable, str(Path(__file__).with_name("double_worker.py"))]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (
        FileNotFoundError,
        ProcessLookupError,
    ):  # it ended between the two looks, or this system has no /proc
        return not Path("/proc/self").exists()
    return state != "Z"


def wait_until(condition, seconds=30.0):
    """Wait for something another process does; fails the test when it does not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
