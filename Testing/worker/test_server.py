"""The worker spoke to directly, line by line, as a client in another language would."""

import contextlib
import json
import random
import subprocess
import time

import numpy as np
import pytest
from worker_helpers import DOUBLE, is_alive, wait_until

from MedSAM3Core.worker import protocol
from MedSAM3Core.worker.fuzz import fuzzed_lines

OPEN = {
    "type": "open_volume",
    "id": 2,
    "session": 1,
    "array": {"stream": "c1"},
    "grid": {"shape": [12, 4, 5], "ijk_to_ras": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]},
    "model": "double",
}


class Raw:
    """A worker and its pipes."""

    def __init__(self, *arguments):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.volume = None
        self.process = subprocess.Popen([*DOUBLE, *arguments], **pipes)

    def say(self, *messages):
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            self.process.stdin.write(line)
        self.process.stdin.flush()

    def hear(self, kind=None, number=None):
        """The next message, or the next of a kind or number."""
        while line := self.process.stdout.readline():
            if not line.strip():
                continue
            message = json.loads(line)
            if message["type"] == "array_chunk":
                self.process.stdout.read(message["size"])
            if kind in (None, message["type"]) and number in (None, message.get("id")):
                return message
        raise EOFError

    def open_volume(self, *next_messages):
        """Open the volume if none is; ``next_messages`` are there before it is opened."""
        if self.volume is not None:
            return
        from MedSAM3Core.worker.transport import chunks

        self.volume = np.random.default_rng(0).normal(size=(12, 4, 5)).astype(np.float32)
        for message, payload in chunks(self.volume, "c1", "zlib"):
            self.say(protocol.encode(message) + payload)
        self.say(OPEN, *next_messages)
        self.hear("opened", 2)

    def settle(self):
        """Leave nothing unheard, so that the next test can use the same worker."""
        self.say({"type": "ping", "id": 0})
        self.hear("pong", 0)

    def end(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()
        with contextlib.suppress(OSError):
            self.process.stdin.close()


@pytest.fixture
def start():
    workers = []

    def start(*arguments):
        workers.append(Raw(*arguments))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


@pytest.fixture(scope="module")
def shared_worker():
    worker = Raw()
    yield worker
    worker.end()


@pytest.fixture
def worker(shared_worker):
    """A worker that the test leaves alive and answering."""
    yield shared_worker
    shared_worker.settle()
    assert shared_worker.process.poll() is None


@pytest.fixture
def mortal(start):
    """A worker that the test may end."""
    return start()


def test_hello_tells_who_is_there(worker):
    worker.say({"type": "hello", "id": 1, "protocol": 1, "future": True})
    hello = worker.hear()
    assert hello["type"] == "hello_reply"
    assert hello["protocol"] == 1
    assert hello["device"] == "cpu (a double)"
    assert hello["data"] == "bytes"
    assert hello["pid"] == worker.process.pid
    assert {"segment", "cancel", "release"} <= set(hello["capabilities"])


def test_a_folder_it_cannot_see_means_bytes(worker, tmp_path):
    probe = {"folder": str(tmp_path / "elsewhere"), "probe": "p"}
    worker.say({"type": "hello", "id": 1, "protocol": 1, **probe})
    assert worker.hear()["data"] == "bytes"
    (tmp_path / "p").touch()
    worker.say({"type": "hello", "id": 1, "protocol": 1, "folder": str(tmp_path), "probe": "p"})
    assert worker.hear()["data"] == "files"


@pytest.mark.parametrize(
    ("line", "number", "words"),
    [
        (b"garbage\n", None, "not a message"),
        (b'{"type": "dance", "id": 9}\n', 9, "unknown"),
        (b'{"type": "segment", "id": 9}\n', 9, "cannot be used"),
        (b'{"type": "segment", "id": 9, "session": 77, "concepts": []}\n', 9, "not open"),
        (b'{"type": "pong", "id": 9}\n', None, "no request"),
        (b'{"type": "release", "id": 9, "what": "everything"}\n', 9, "everything"),
        (b"x" * (protocol.MAX_LINE + 2) + b"\n", None, "longer than"),
    ],
)
def test_nonsense_is_answered_and_survived(worker, line, number, words):
    worker.say(line, {"type": "ping", "id": 10})
    answers = [worker.hear(), worker.hear()]
    error = next(a for a in answers if a["type"] == "error")
    assert error["id"] == number
    assert words in error["message"]
    assert {"type": "pong", "id": 10} in answers


def test_a_run_is_cancelled_in_its_middle_and_pings_are_answered_meanwhile(worker):
    worker.open_volume()
    worker.say({"type": "segment", "id": 3, "session": 1, "concepts": [{"typed": "endless"}]})
    worker.hear("progress", 3)
    worker.say({"type": "ping", "id": 4})
    assert worker.hear("pong") == {"type": "pong", "id": 4}
    worker.say({"type": "cancel", "id": 5, "target": 3})
    assert worker.hear("error", 3)["error"] == "Cancelled"


def test_what_waits_is_cancelled_at_once(mortal):
    mortal.open_volume()
    mortal.say({"type": "segment", "id": 3, "session": 1, "concepts": [{"typed": "deaf"}]})
    mortal.hear("progress", 3)
    mortal.say({"type": "memory", "id": 4}, {"type": "cancel", "id": 5, "target": 4})
    assert mortal.hear("error", 4)["error"] == "Cancelled"


def test_a_number_in_use_is_refused(worker):
    worker.open_volume()
    run = {"type": "segment", "id": 3, "session": 1, "concepts": [{"typed": "endless"}]}
    worker.say(run, run)
    assert "not answered yet" in worker.hear("error")["message"]
    worker.say({"type": "cancel", "id": 4, "target": 3})
    assert worker.hear("error", 3)["error"] == "Cancelled"


def test_options_it_does_not_take_are_an_input_error(worker):
    worker.open_volume()
    concepts = [{"typed": "ball"}]
    worker.say({"type": "segment", "id": 3, "session": 1, "concepts": concepts, "options": {"colour": 1}})
    error = worker.hear("error", 3)
    assert error["error"] == "InputError"
    assert "colour" in error["message"]


def test_standard_output_belongs_to_the_protocol(mortal):
    """What libraries, C code and child processes print goes to standard error; what they read is empty."""
    mortal.open_volume()
    mortal.say({"type": "segment", "id": 3, "session": 1, "concepts": [{"typed": "noise"}]})
    assert mortal.hear("segmented", 3)["segmentation"]["score"] == 0.5
    mortal.say({"type": "shutdown", "id": 4})
    _, log = mortal.process.communicate(timeout=120)
    for words in (b"printed by a library", b"written to descriptor 1", b"echoed by a child"):
        assert words in log


@pytest.mark.parametrize(
    "last_words", [b"", b'{"type": "pi', b'{"type":"array_chunk","stream":"c1","size":9,"crc32":1}\nxyz']
)
def test_it_ends_when_its_input_ends_also_in_the_middle_of_a_message(mortal, last_words):
    mortal.say({"type": "ping", "id": 1})
    mortal.hear("pong")
    mortal.say(last_words)
    mortal.process.stdin.close()
    assert mortal.process.wait(60) == 0


@pytest.mark.parametrize("concept", ["endless", "deaf"])
def test_it_ends_in_the_middle_of_a_run_too(mortal, concept):
    mortal.open_volume()
    mortal.say({"type": "segment", "id": 3, "session": 1, "concepts": [{"typed": concept}]})
    mortal.hear("progress", 3)
    mortal.process.stdin.close()
    mortal.process.wait(60)


def test_it_ends_when_nobody_listens_any_more(mortal):
    mortal.open_volume()
    mortal.say({"type": "segment", "id": 3, "session": 1, "concepts": [{"typed": "endless"}]})
    mortal.process.stdout.close()
    mortal.process.wait(60)


def test_a_native_crash_leaves_its_stack_in_the_log(mortal):
    mortal.say({"type": "ping", "id": 1})
    mortal.hear("pong")
    mortal.process.send_signal(11)
    _, log = mortal.process.communicate(timeout=120)
    assert b"Fatal Python error" in log
    assert b"server.py" in log


def test_models_are_released_when_nobody_asks_for_a_while(start):
    worker = start("--idle=0.2")
    worker.open_volume({"type": "memory", "id": 3})
    assert worker.hear("memory_report")["models"] == ["double (auto)"]

    def report_after_a_pause():
        time.sleep(0.4)
        worker.say({"type": "memory", "id": 4})
        return worker.hear("memory_report")

    wait_until(lambda: report_after_a_pause()["models"] == [])
    assert report_after_a_pause()["sessions"] == 1
    worker.say({"type": "segment", "id": 5, "session": 1, "concepts": [{"typed": "ball"}]})
    assert worker.hear("segmented", 5)["segmentation"]["score"] == 0.5


def test_fuzzed_lines_neither_end_it_nor_change_an_answer(worker):
    worker.open_volume()
    run = {"type": "segment", "id": 3, "session": 1, "concepts": [{"typed": "ball"}]}
    worker.say(run)
    before = worker.hear("segmented", 3)["segmentation"]
    for number, line in enumerate(fuzzed_lines(300, random.Random(1))):
        worker.say(line, {"type": "ping", "id": 10**9 + number})
        worker.hear("pong", 10**9 + number)
    worker.say({**run, "id": 10**8})
    after = worker.hear("segmented", 10**8)["segmentation"]
    for changing in ("mask", "probability"):
        before.pop(changing), after.pop(changing)
    assert after == before


def test_the_module_can_be_run_and_imports_no_torch_before_it_is_needed(tmp_path):
    import sys

    code = "import runpy, sys; sys.argv = ['worker']; runpy.run_module('MedSAM3Core.worker', run_name='__main__')"
    code = (
        f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b'{"type":"ping","id":1}\n', capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"type": "pong", "id": 1}
    assert done.stderr.decode().splitlines()[-1] == "False"


def test_no_worker_outlives_its_client():
    """A client that is killed outright leaves neither a process nor, after the next start, a folder."""
    import os
    import sys
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as temporary:
        code = (
            "import sys, time; from pathlib import Path; from MedSAM3Core.worker import WorkerClient\n"
            f"c = WorkerClient({DOUBLE!r}, temporary=Path({temporary!r})); print(c.start().result().pid, flush=True)\n"
            "time.sleep(600)"
        )
        owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        pid = int(owner.stdout.readline())
        assert len(list(Path(temporary).iterdir())) == 1
        os.kill(owner.pid, 9)
        owner.communicate()
        wait_until(lambda: not is_alive(pid))
        wait_until(lambda: not any(Path(temporary).iterdir()))
