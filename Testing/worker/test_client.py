"""The client against real worker processes that die, hang, babble, run out of disk or sit behind a pipe."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from worker_helpers import DOUBLE, is_alive, wait_until

from MedSAM3Core.errors import Cancelled, ModelError, PromptError, ResourceError, VolumeError, WorkerError
from MedSAM3Core.prompts import Concept
from MedSAM3Core.worker import WorkerEnded, WorkerStarted, default_command, split_command
from MedSAM3Core.worker.protocol import NeedEvent, Question, SteppedDown


def expected(volume):
    return volume.array > volume.array.mean() + volume.array.std()


def assert_serves(client, volume):
    """The next call succeeds, whatever happened before."""
    with client.open(volume, model="double") as session:
        np.testing.assert_array_equal(session.segment("ball").to_array(), expected(volume))


# Dying -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_at_its_start_is_reported_with_its_last_words(make_client):
    client = make_client("--die")
    with pytest.raises(WorkerError, match=r"SIGKILL.*last words of the double"):
        client.start().result(60)
    assert "last words of the double" in client.log


@pytest.mark.parametrize(
    ("stage", "act"),
    [
        ("load", lambda client, volume: client.load_model("die")),
        ("open", lambda client, volume: client.open(volume, model="double", axis="die on open")),
        ("segment", lambda client, volume: client.open(volume, model="double").segment("die")),
        (
            "refine",
            lambda client, volume: (s := client.open(volume, model="double")).refine(
                s.segment("die on refine")
            ),
        ),
        ("close", lambda client, volume: _close_then_ask(client, volume)),
    ],
)
def test_a_worker_killed_in_any_stage_is_noticed_and_the_next_call_succeeds(client, volume, stage, act):
    with pytest.raises(WorkerError, match="SIGKILL"):
        act(client, volume)
    assert_serves(client, volume)


def _close_then_ask(client, volume):
    client.open(volume, model="double", axis="die on close").close()
    client.memory()


def test_a_worker_killed_while_idle_or_running_is_noticed(client, volume):
    session = client.open(volume, model="double")
    pending = session.submit_segment("deaf")
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(WorkerError):
        pending.result(60)  # how soon is measured by `medsam3 benchmark --worker`
    os.kill(client.start().result(60).pid, signal.SIGKILL)
    wait_until(lambda: not client.running)
    np.testing.assert_array_equal(session.segment("ball").to_array(), expected(volume))


def test_an_open_session_survives_its_worker(client, volume):
    with client.open(volume, model="double") as session:
        first = session.segment("ball")
        client.restart()
        refined = session.refine(first)
        np.testing.assert_array_equal(refined.to_array(), first.to_array())
        assert client.memory().sessions == 1


STUB = """
import json, os, sys
def say(text): os.write(1, text.encode())
def hear(): return json.loads(sys.stdin.buffer.readline())
hello = hear()
reply = {"type": "hello_reply", "id": hello["id"], "protocol": 1, "data": "bytes", "codec": "zlib"}
"""


def stub(body):
    """A worker of a few lines that doubles the protocol's other side, to say what the real one never would."""
    return [sys.executable, "-c", STUB + body]


def test_a_worker_that_dies_in_the_middle_of_an_answer(make_client):
    client = make_client(
        command=stub("""say(json.dumps(reply) + '\\n'); hear(); say('{"type": "memory_rep')""")
    )
    with pytest.raises(WorkerError, match="exit code 0"):
        client.memory(60)


def test_garbage_on_standard_output_is_skipped_and_logged(make_client):
    body = """
say("Welcome to the cluster!\\n\\xff\\x00 { \\n[1,2,3]\\n{\\"type\\": \\"dance\\"}\\nno newline at the end of this")
say("\\n" + json.dumps(reply) + "\\nmore garbage\\n")
request = hear()
say('{"type":"pong","id":' + str(request["id"]) + ',"news":1}\\n{"type":"pong","id":999}\\n')
"""
    client = make_client(command=stub(body))
    assert client.ping(60) > 0
    wait_until(lambda: "Welcome to the cluster" in client.log and "dance" in client.log)


def test_another_protocol_is_refused_in_words(make_client):
    client = make_client(command=stub("reply['protocol'] = 7; say(json.dumps(reply) + '\\n'); hear()"))
    with pytest.raises(WorkerError, match=r"protocol 7.*same version"):
        client.memory(60)


@pytest.mark.parametrize(
    "answer",
    [
        '{"mask": {"file": "../../secret.npy"}, "extent": {"i": [0, 1], "j": [0, 1], "k": [0, 1]}}',
        '{"mask": {"stream": "never sent"}, "extent": {"i": [0, 1], "j": [0, 1], "k": [0, 1]}}',
        '{"extent": {"i": [0, 1], "j": [0, 1], "k": [0, 1]}}',
    ],
)
def test_a_damaged_answer_fails_its_own_request_only(make_client, volume, answer):
    body = """
say(json.dumps(reply) + "\\n")
data = json.loads(ANSWER) | {"concept": {"typed": "x", "phrase": "x"}}
for line in iter(sys.stdin.buffer.readline, b""):
    request = json.loads(line)
    number = request.get("id")
    if request["type"] == "array_chunk":
        sys.stdin.buffer.read(request["size"])
    if request["type"] == "open_volume":
        say(json.dumps({"type": "opened", "id": number, "session": 1}) + "\\n")
    if request["type"] == "segment":
        say(json.dumps({"type": "segmented", "id": number, "index": 0, "segmentation": data}) + "\\n")
        say(json.dumps({"type": "done", "id": number}) + "\\n")
    if request["type"] == "ping":
        say(json.dumps({"type": "pong", "id": number}) + "\\n")
"""
    client = make_client(command=stub(body.replace("ANSWER", repr(answer))))
    session = client.open(volume, timeout=60)
    with pytest.raises(WorkerError):
        session.segment("ball")
    assert client.ping(60) > 0


@pytest.mark.parametrize(
    "command", [["/no/such/program"], [sys.executable, "-c", "raise SystemExit('no torch here')"]]
)
def test_a_command_that_does_not_start_is_one_sentence(make_client, command):
    client = make_client(command=command)
    with pytest.raises(WorkerError, match=r"could not be started|no torch here"):
        client.memory(60)
    with pytest.raises(WorkerError):
        client.open(np.zeros((2, 3, 4)), timeout=60)


def test_commands_are_read_as_typed():
    assert split_command("ssh 'my host' medsam3 worker") == ["ssh", "my host", "medsam3", "worker"]
    assert default_command()[1:] == ["-m", "MedSAM3Core.worker"]
    for text in ("", "   ", "ssh 'host"):
        with pytest.raises(WorkerError):
            split_command(text)


# Hanging ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_does_not_hear_a_cancel_is_stopped_with_all_it_started(make_client, volume):
    launcher = [
        "sh",
        "-c",
        '"$@"; exit $?',
        "launcher",
        *DOUBLE,
    ]  # as PythonSlicer, a parent of the real worker
    client = make_client(command=launcher, cancel_timeout_s=0.3)
    session = client.open(volume, model="double")
    worker = client.hello.pid
    assert worker != client.pid
    seen = []
    pending = session.submit_segment("deaf with a child", progress=seen.append)
    other = session.submit_segment("ball")
    wait_until(lambda: client.poll() and seen)
    wait_until(psutil.Process(worker).children)
    family = [client.pid, worker, *(child.pid for child in psutil.Process(worker).children())]
    pending.cancel()
    pending.cancel()
    with pytest.raises(Cancelled):
        pending.result(60)
    with pytest.raises(WorkerError, match=r"did not answer a cancel within 0\.3 s"):
        other.result(60)
    wait_until(lambda: not any(is_alive(pid) for pid in family))
    np.testing.assert_array_equal(session.segment("ball").to_array(), expected(volume))


def test_a_launcher_that_dies_takes_its_worker_along(make_client, volume):
    client = make_client(command=["sh", "-c", '"$@"; exit $?', "launcher", *DOUBLE])
    pending = client.open(volume, model="double").submit_segment("deaf")
    worker = client.hello.pid
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(WorkerError):
        pending.result(60)
    wait_until(lambda: not is_alive(worker))


def test_a_worker_that_never_introduces_itself_is_stopped(make_client):
    client = make_client("--hang", start_timeout_s=0.5)
    with pytest.raises(WorkerError, match=r"did not introduce itself within 0\.5 s"):
        client.memory(60)


@pytest.mark.parametrize("concept", ["endless", "deaf"])
def test_closing_the_client_in_the_middle_of_a_run_ends_it(make_client, volume, concept):
    client = make_client()
    pending = client.open(volume, model="double").submit_segment(concept)
    pid = client.pid
    client.close()
    with pytest.raises((WorkerError, Cancelled)):
        pending.result(60)
    wait_until(lambda: not is_alive(pid))
    with pytest.raises(WorkerError, match="closed"):
        client.memory()


def test_a_dropped_client_ends_its_worker(tmp_path):
    from MedSAM3Core.worker import WorkerClient

    client = WorkerClient(DOUBLE, temporary=tmp_path)
    pid = client.start().result(60).pid
    del client
    wait_until(lambda: not is_alive(pid))
    wait_until(lambda: not any(tmp_path.iterdir()))  # the reader's thread may be the one that drops it


# Waiting, polling, cancelling ------------------------------------------------------------------------------------


def test_a_panel_polls_and_nothing_runs_on_another_thread(client, volume):
    threads, finished, events = set(), [], []

    def note(thing, into):
        threads.add(threading.get_ident())
        into.append(thing)

    client._on_event = lambda event: note(event, events)
    session = client.session(volume, model="double")  # opens with the first request
    progress = []
    pending = session.submit_segment(
        "slow", progress=lambda p: note(p, progress), on_done=lambda p: note(p, finished)
    )
    assert not pending.done
    wait_until(lambda: client.poll() == 0)
    assert threads == {threading.get_ident()}
    assert finished == [pending]
    assert progress[-1].fraction == 1
    assert pending.exception() is None
    assert not pending.result(0).empty
    assert isinstance(events[0], WorkerStarted)
    needs = [(event.device, event.need, event.free) for event in events if isinstance(event, NeedEvent)]
    assert needs == [("cuda:0", 1000, 4), ("cpu", 7, 2)]
    os.kill(client.pid, signal.SIGKILL)
    wait_until(lambda: client.poll() == 0 and isinstance(events[-1], WorkerEnded))
    assert "SIGKILL" in events[-1].reason


def test_results_that_are_not_there_in_time_leave_the_run_going(client, volume, tmp_path):
    now = tmp_path / "now"
    concept = Concept("ball", f"until {now}")
    pending = client.open(volume, model="double").submit_segment(concept)
    with pytest.raises(TimeoutError):
        pending.result(0.01)
    now.touch()
    assert not pending.result(60).empty


def test_what_was_not_sent_yet_is_cancelled_without_the_worker(make_client, volume):
    client = make_client("--hang")
    session = client.session(volume, model="double")
    pending = session.submit_segment("ball")
    pending.cancel()
    with pytest.raises(Cancelled):
        pending.result(60)
    client.restart()


def test_many_threads_share_one_client(client, volume):
    session = client.open(volume, model="double")
    right = []

    def work(threshold):
        found = session.segment("ball", threshold=threshold)
        if np.array_equal(found.to_array(), volume.array > threshold):
            right.append(threshold)

    thresholds = [float(n) for n in range(0, 300, 40)]
    threads = [threading.Thread(target=work, args=(threshold,)) for threshold in thresholds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(right) == thresholds


def test_results_for_a_volume_that_changed_since_are_dropped(client, volume):
    state = {"time": 1}
    session = client.open(volume, model="double", revision=lambda: state["time"])
    pending = session.submit_segment("slow")
    state["time"] = 2
    with pytest.raises(Cancelled, match="changed"):
        pending.result(60)
    with pytest.raises(VolumeError, match="changed since it was opened"):
        session.segment("ball")
    assert_serves(client, volume)


def test_results_for_a_closed_session_are_dropped(client, volume):
    session = client.open(volume, model="double")
    pending = session.submit_segment("slow")
    session.close()
    with pytest.raises(Cancelled):
        pending.result(60)
    with pytest.raises(PromptError, match="closed"):
        session.segment("ball")


def test_why_a_volume_was_refused_reaches_the_request_behind_it(client, volume):
    session = client.session(volume, model="absent")
    with pytest.raises(ModelError, match="unknown"):
        session.segment("ball")


# Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hungry", "steps", "asked"),
    [
        ("large batches", ["smaller batches"], 0),
        ("features", ["smaller batches", "features in host memory"], 0),
        ("gpu", ["smaller batches", "features in host memory", "cpu"], 1),
    ],
)
def test_a_gpu_without_memory_steps_down_and_finishes(make_client, volume, hungry, steps, asked):
    events, questions = [], []
    client = make_client(on_event=events.append, on_question=lambda text: questions.append(text) or True)
    with client.open(volume, model="double", device="cuda", hungry=hungry) as session:
        found = session.segment("hungry")
        np.testing.assert_array_equal(found.to_array(), expected(volume))
        assert [e.step for e in events if isinstance(e, SteppedDown)] == steps
        assert len(questions) == asked
        assert found.provenance.device == ("cpu" if asked else "cuda")
        session.segment("hungry")
        assert len([e for e in events if isinstance(e, SteppedDown)]) == len(steps), "the step is remembered"


def test_the_cpu_needs_leave(make_client, volume):
    events = []
    client = make_client(on_event=events.append)  # nobody answers questions: that is a no
    with client.open(volume, model="double", device="cuda", hungry="gpu") as session:
        with pytest.raises(ResourceError, match="declined"):
            session.segment("hungry")
        assert any(isinstance(event, Question) for event in events)
        assert not session.segment("ball").empty


def test_a_question_can_be_answered_by_cancelling(make_client, volume):
    asked = []
    client = make_client(on_question=lambda text: asked.append(text) or pending.cancel())
    with client.open(volume, model="double", device="cuda", hungry="gpu") as session:
        pending = session.submit_segment("hungry")
        with pytest.raises(Cancelled):
            pending.result(60)
    assert len(asked) == 1


def test_released_memory_comes_back_with_the_next_call(client, volume):
    with client.open(volume, model="double") as session:
        assert client.memory().models == ("double (auto)",)
        client.release()
        assert client.memory().models == ()
        assert client.memory().sessions == 1
        assert not session.segment("ball").empty
        assert client.memory().models == ("double (auto)",)


def test_faults_of_the_worker_arrive_as_ours(client, volume):
    with client.open(volume, model="double") as session:
        with pytest.raises(WorkerError, match="KeyError"):
            session.segment("fault")
        with pytest.raises(ResourceError, match="out of memory"):
            session.segment("memory error")
        wait_until(lambda: "Traceback" in client.log)


def test_the_log_is_bounded(make_client):
    client = make_client(
        command=stub(
            "say(json.dumps(reply) + '\\n')\nfor n in range(5000): print('x' * 5000, file=sys.stderr)\n"
            "print('the end', file=sys.stderr, flush=True)\nhear()"
        )
    )
    client.start().result(60)
    wait_until(lambda: client.log.endswith("the end"))
    assert client.log.count("\n") == 399
    assert len(client.log) <= 400 * 2001


# Places ----------------------------------------------------------------------------------------------------------


def test_paths_with_spaces_and_letters_of_all_languages(make_client, volume, tmp_path):
    place = tmp_path / "Größe und Ärger 肝臓 'x'"
    place.mkdir()
    script = place / "der Arbeiter é.py"
    script.write_bytes(Path(DOUBLE[1]).read_bytes())
    client = make_client(command=[sys.executable, str(script)], temporary=place)
    assert client.start().result(60).data == "files"
    assert_serves(client, volume)
    client.close()
    assert list(place.iterdir()) == [script]


def test_two_clients_do_not_disturb_each_other(make_client, volume):
    one, other = make_client(), make_client()
    with one.open(volume, model="double") as a, other.open(volume, model="double") as b:
        assert one.pid != other.pid
        pending = a.submit_segment("slow"), b.submit_segment("deaf")
        os.kill(other.pid, signal.SIGKILL)
        np.testing.assert_array_equal(pending[0].result(60).to_array(), expected(volume))
        with pytest.raises(WorkerError):
            pending[1].result(60)
        assert not b.segment("ball").empty


def test_a_remote_worker_is_the_same_worker_behind_a_pipe(make_client, volume, tmp_path):
    """`ssh host medsam3 worker` is doubled by `sh` and two `cat`: other file descriptors, no common folder.

    What it cannot show is SSH's own behaviour: latency, passwords, a lost connection that is not closed.
    """
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\necho "Last login: Monday"\nshift\ncat | TMPDIR=/nowhere "$@" | cat\n')
    ssh.chmod(0o755)
    client = make_client(command=[str(ssh), "host", *DOUBLE], bytes_only=True)
    assert client.start().result(60).data == "bytes"
    with client.open(volume, model="double") as session:
        found = session.segment_many(["ball", "nothing"])
        np.testing.assert_array_equal(found[0].to_array(), expected(volume))
        assert found[1].empty
        refined = session.refine(found[0])
        np.testing.assert_array_equal(refined.probability, found[0].probability)
        pending = session.submit_segment("endless")
        pending.cancel()
        with pytest.raises(Cancelled):
            pending.result(60)
    worker = client.hello.pid
    client.close()
    wait_until(lambda: not is_alive(worker))


# Disk ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_on_the_clients_side_costs_nothing_but_time(client, volume):
    resource = pytest.importorskip("resource")
    client.start().result(60)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        session = client.open(volume, model="double", timeout=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(session.segment("ball").to_array(), expected(volume))


def test_a_full_disk_on_the_workers_side_costs_nothing_but_time(make_client, volume):
    client = make_client(command=["sh", "-c", 'ulimit -f 0; exec "$@"', "limited", *DOUBLE])
    assert client.start().result(60).data == "files"
    with client.open(volume, model="double") as session:
        np.testing.assert_array_equal(session.segment("ball").to_array(), expected(volume))
        wait_until(lambda: "it goes through the pipe" in client.log)  # standard error has a reader of its own


@pytest.fixture
def tiny_disk(tmp_path):
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_disk_that_is_really_full(make_client, volume, tiny_disk):
    client = make_client(temporary=tiny_disk)
    array = np.repeat(volume.array, 4, axis=0)
    with client.open(array, model="double", timeout=60) as session:
        np.testing.assert_array_equal(session.segment("ball").to_array(), array > array.mean() + array.std())
        (tiny_disk / "filler").write_bytes(b"x" * 4096)
        assert not session.segment("ball").empty
    client.close()


def test_no_disk_at_all(make_client, volume, tmp_path):
    client = make_client(temporary=tmp_path / "absent")
    assert client.start().result(60).data == "bytes"
    assert_serves(client, volume)


def test_nothing_is_left_after_many_volumes(client, volume, tmp_path):
    with client.open(volume, model="double"):
        pass
    wait_until(lambda: client.poll() == 0)
    gc.collect()  # what other tests left is given back before the count, not after it
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with client.open(volume, model="double") as session:
            session.segment("ball")
    assert client.memory().sessions == 0
    assert [p.name for p in tmp_path.glob("*/*")] == ["lock"]
    assert threading.active_count() <= threads
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    wait_until(lambda: client.poll() == 0)


def test_the_client_needs_neither_torch_nor_qt_nor_psutil():
    code = """
import sys
for absent in ("psutil", "zstandard", "torch", "scipy", "SimpleITK", "transformers", "pydicom", "PIL", "yaml"):
    sys.modules[absent] = None
import numpy as np
from MedSAM3Core.worker import WorkerClient
with WorkerClient(sys.argv[1:]) as client:
    with client.open(np.arange(24.0).reshape(2, 3, 4), model="double") as session:
        assert session.segment("ball").voxels == 5
    assert client.hello.codec == "zlib"
"""
    done = subprocess.run([sys.executable, "-c", code, *DOUBLE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
