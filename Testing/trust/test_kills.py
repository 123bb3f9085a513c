"""kill -9 in every stage: what was whole stays whole, what was begun has no name, the same command then succeeds."""

from __future__ import annotations

import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from acting import Acts
from doomed import write_ct

from MedSAM3Core.volume.reference import read_segmentation

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")


@pytest.mark.parametrize("stage", ["read", "load", "segment", "write"])
def test_a_killed_segment_command_leaves_the_former_files(acts: Acts, tmp_path: Path, stage: str) -> None:
    mask = write_ct(tmp_path / "ct.nrrd")
    former = {name: f"former {name}".encode() for name in ("out.seg.nrrd", "out.png", "out.json")}
    for name, content in former.items():
        (tmp_path / name).write_bytes(content)
    acts.killed("segment", stage, tmp_path)
    for name, content in former.items():
        assert (tmp_path / name).read_bytes() == content
    strangers = {p.name for p in tmp_path.iterdir()} - {"ct.nrrd", *former}
    assert all(name.startswith(".") for name in strangers)  # hidden, and never taken for a result
    if stage == "write":  # once is enough: the command that follows is the same
        acts.finished("segment", tmp_path)
        [found] = read_segmentation(tmp_path / "out.seg.nrrd")
        np.testing.assert_array_equal(found.mask, mask)


def test_killed_between_two_names_each_file_is_whole(acts: Acts, tmp_path: Path) -> None:
    mask = write_ct(tmp_path / "ct.nrrd")
    (tmp_path / "out.png").write_bytes(b"former")
    acts.killed("segment", "names", tmp_path)
    [found] = read_segmentation(tmp_path / "out.seg.nrrd")
    np.testing.assert_array_equal(found.mask, mask)
    assert (tmp_path / "out.png").read_bytes() == b"former"
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("stage", ["step", "save"])
def test_a_killed_training_run_goes_on_and_ends_the_same(acts: Acts, tmp_path: Path, stage: str) -> None:
    (tmp_path / "whole").mkdir()
    expected = acts.finished("finetune", tmp_path / "whole").split(" ", 1)[1]
    acts.killed("finetune", stage, tmp_path)
    steps, weights = acts.finished("finetune", tmp_path).split(" ", 1)
    assert int(steps) == 8  # from the first checkpoint, after four
    assert weights == expected


class Hub:
    """Doubles the Hugging Face hub for one file, sent slowly enough that a process can die in the middle."""

    def __init__(self, content: bytes) -> None:
        asked: list[str] = []
        self.asked = asked
        digest = hashlib.sha256(content).hexdigest()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._head(content)

            def do_GET(self) -> None:
                asked.append(self.headers.get("Range", ""))
                start = int(asked[-1].removeprefix("bytes=").partition("-")[0] or 0)
                self._head(content[start:], start)
                try:
                    for at in range(start, len(content), 1 << 20):
                        self.wfile.write(content[at : at + (1 << 20)])
                except OSError:
                    return

            def _head(self, part: bytes, start: int = 0) -> None:
                self.send_response(206 if start else 200)
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{digest}"')
                self.send_header("Content-Length", str(len(part)))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    content = np.random.default_rng(1).bytes(25 << 20)  # two pieces of huggingface_hub's and a half
    one = Hub(content)
    one.content = content
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_a_killed_download_goes_on_where_it_stopped(acts: Acts, tmp_path: Path, hub: Hub) -> None:
    store = tmp_path / "store"
    acts.killed("download", "transfer", store, hub.endpoint)
    [part] = store.iterdir()
    assert part.suffix == ".part"
    arrived = part.stat().st_size
    assert 0 < arrived < len(hub.content)
    acts.killed("download", "check", store, hub.endpoint)
    assert hub.asked[-1] == f"bytes={arrived}-"
    acts.finished("download", store, hub.endpoint)
    assert [p.name for p in store.iterdir()] == ["m.pt"]
    assert (store / "m.pt").read_bytes() == hub.content
    assert len(hub.asked) == 2  # the third process found the file whole


@pytest.mark.parametrize("stage", ["convert", "names"])
def test_a_model_whose_replacement_is_killed_is_not_lost(acts: Acts, tmp_path: Path, stage: str) -> None:
    acts.finished("install", tmp_path)
    (tmp_path / "model" / "card.json").write_text("old")
    acts.killed("install", stage, tmp_path)
    assert "No space left" in acts.finished("refuse", tmp_path)
    assert (tmp_path / "model" / "card.json").read_text() == "old"
    acts.finished("install", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "card.json").read_text() == "new"


def test_a_killed_consent_keeps_the_others(acts: Acts, tmp_path: Path) -> None:
    acts.killed("consent", "record", tmp_path)
    assert acts.finished("consent", tmp_path).split() == ["True", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux only")
@pytest.mark.parametrize("stage", ["volume", "model"])
def test_memory_that_runs_out_is_one_sentence(acts: Acts, tmp_path: Path, stage: str) -> None:
    write_ct(tmp_path / "ct.nrrd", 1_200_000 if stage == "volume" else 4)  # 288 MB, 64 MiB are left
    done = acts.run("overfill", stage, tmp_path)
    assert done.code in (1, 2), done.errors
    [line] = done.errors.splitlines()
    assert "emory" in line
    assert not (tmp_path / "out.seg.nrrd").exists()
