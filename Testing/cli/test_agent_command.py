"""``medsam3 agent`` as a user types it, with a scripted language model over real HTTP."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from MedSAM3Core.agent import chat as chat_module

pytest.importorskip("openai", reason="the extra 'agent' is not installed")

sys.path.append(str(Path(__file__).resolve().parents[1] / "agent"))
from chat_server import ChatServer, Status, plan, verdict

SECRET = "sk-cli-0123456789"
VOLUME = [{"kind": "volume", "target": 1, "of": None}]


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("MEDSAM3_AGENT_KEY", SECRET)


@pytest.fixture
def ask(run, fake, ct, tmp_path):
    """Run the command against a server; gives exit code, stdout, stderr."""

    def call(server, *more, text="how large is the liver?"):
        output = tmp_path / "out.seg.nrrd"
        where = ("--endpoint", server.url, "--mllm", "scripted", "--retries", "0")
        return run("agent", ct, text, "-o", output, *where, *more)

    return call


def test_the_whole_way(ask, tmp_path):
    with ChatServer(
        plan("liver", questions=VOLUME), verdict("accept", reason="It fits [bold]well[/bold].")
    ) as server:
        code, out, err = ask(server, "--yes", "--price", "2,10", "--overlay", tmp_path / "o.png")
    assert code == 0, err
    assert "The liver has a volume of 0.08 ml." in out
    assert "It fits [bold]well[/bold]." in out
    assert "2 requests" in out
    assert "cost 0.0008" in out
    assert (tmp_path / "out.seg.nrrd").exists()
    assert (tmp_path / "o.png").exists()
    assert "judged by scripted: accept" in err
    record = json.loads((tmp_path / "out.seg.nrrd.agent.json").read_text())
    assert record["language_model"] == "scripted"
    assert [r["purpose"] for r in record["requests"]] == ["plan", "judge"]
    assert record["rounds"][0]["verdict"] == "accept"
    assert record["answers"][0]["value"] == pytest.approx(0.08)
    everything = out + err + json.dumps(record)
    assert SECRET not in everything
    assert "base64" not in everything


def test_json_holds_rounds_answers_and_what_was_found(ask, tmp_path):
    with ChatServer(plan("liver", questions=VOLUME), verdict("accept")) as server:
        code, out, _ = ask(server, "--yes", "--json", "--report", tmp_path / "r.json")
    document = json.loads(out)
    assert code == 0
    assert document["concepts"][0]["voxels"] == 40
    assert document["agent"]["answers"][0]["unit"] == "ml"
    assert document["agent"]["usage"]["tokens_sent"] == 200
    assert json.loads((tmp_path / "r.json").read_text())["agent"]["chosen"] == [1]


def test_nothing_is_sent_before_the_user_agrees(ask, tmp_path, monkeypatch):
    with ChatServer(plan("liver"), verdict("accept")) as server:
        code, _, err = ask(server)
        assert code == 2
        assert server.url in err
        assert "PNG" in err
        assert "--yes" in err
        assert server.requests == []
    assert not (tmp_path / "out.seg.nrrd").exists()


def test_a_dry_run_sends_nothing_and_writes_what_would_be_sent(ask, tmp_path):
    with ChatServer("x") as server:
        code, out, err = ask(server, "--dry-run")
        assert code == 0, err
        assert server.requests == []
    folder = tmp_path / "out.seg.nrrd.dry-run"
    names = sorted(path.name for path in folder.iterdir())
    assert [name for name in names if name.endswith(".json")] == ["1-plan.json", "2-judge.json"]
    for request in ("1-plan", "2-judge"):
        text = (folder / f"{request}.json").read_text()
        shown = [folder / name for name in names if name.startswith(request) and name.endswith(".png")]
        assert shown
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() in text for path in shown)
        assert "ct.nrrd" not in text
    assert "nothing was sent" in out
    assert not (tmp_path / "out.seg.nrrd").exists()
    assert SECRET not in out + err


def test_what_a_dry_run_writes_is_what_is_sent(ask, tmp_path):
    with ChatServer("no", "no", verdict("accept")) as server:
        ask(server, "--dry-run", text="liver")
        ask(server, "--yes", text="liver")
    written = json.loads((tmp_path / "out.seg.nrrd.dry-run" / "1-plan.json").read_text())["body"]
    from MedSAM3Core.agent.transcript import without_pictures

    assert written == without_pictures(server.requests[0])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--endpoint", "ftp://x"), "expected an address"),
        (("--endpoint", "https://me:hunter2@host/v1"), "user name"),
        (("--endpoint", "https://host/v1?key=hunter2"), "query"),
        (("--mllm", " "), "no name"),
        (("--rounds", "99"), "rounds is 99"),
        (("--price", "cheap"), "two numbers"),
        (("--timeout", "0"), "timeout is 0"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_sent(ask, more, words):
    with ChatServer("x") as server:
        code, _, err = ask(server, *more, "--yes")
        assert code == 2
        assert words in err
        assert "hunter2" not in err
        assert server.requests == []


def test_an_empty_request(ask):
    with ChatServer("x") as server:
        code, _, err = ask(server, "--yes", text="  ")
    assert code == 2
    assert "empty" in err


def test_an_endpoint_that_fails_is_a_fault_and_writes_nothing(ask, tmp_path):
    with ChatServer(Status(401, f"bad key {SECRET}")) as server:
        code, out, err = ask(server, "--yes", "--debug")
    assert code == 1
    assert "does not accept the key" in err
    assert SECRET not in out + err
    assert not list(tmp_path.glob("*.seg.nrrd*"))


def test_debug_logs_neither_key_nor_pictures(ask):
    with ChatServer(plan("liver"), verdict("accept")) as server:
        code, out, err = ask(server, "--yes", "--debug")
    assert code == 0
    assert SECRET not in out + err
    assert "base64" not in out + err


def test_without_the_package_it_says_what_to_install(ask, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setattr(chat_module, "_NOISY", ())
    with ChatServer("x") as server:
        code, _, err = ask(server, "--yes")
    assert code == 1
    assert "pip install openai" in err


def test_help_says_what_leaves(run):
    code, out, _ = run("agent", "--help")
    assert code == 0
    assert "header" in out
    assert "--dry-run" in out
