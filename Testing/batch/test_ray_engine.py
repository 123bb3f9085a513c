"""The Ray engine on a cluster of this machine alone: one head, no dashboard, nothing reachable from elsewhere."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import threading
import time
from pathlib import Path

import batch_doubles
import numpy as np
import psutil
import pytest
from batch_doubles import ThresholdSegmenter, write_collection

from MedSAM3Core.batch import BatchSettings, LocalEngine, find_cases, rayengine, run_batch
from MedSAM3Core.batch.rayengine import LOOPBACK, _connect, ray_engine
from MedSAM3Core.errors import InputError
from MedSAM3Core.volume.reference import read_segmentation

os.environ[LOOPBACK[0]] = LOOPBACK[1]  # Ray looks at it when it is imported
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name; by default 15, which starves beside other work
ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'MedSAM3Core[ray]'")

CASES = 24


@pytest.fixture(scope="module")
def cluster():
    """One small cluster for all tests of the module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for module in (batch_doubles, sys.modules[__name__]):  # the actors cannot import the tests
        ray.cloudpickle.register_pickle_by_value(module)
    _connect(ray, None)
    yield
    ray.shutdown()


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_collection(tmp_path / "in", CASES)
    return tmp_path / "in"


class NotingSegmenter(ThresholdSegmenter):
    """Leaves its process number in a folder, and ends its process at a case of a certain name."""

    def __init__(self, notes: Path, seconds: float = 0.05, deadly: str = "") -> None:
        super().__init__(seconds)
        self.deadly = deadly
        (notes / str(os.getpid())).touch()

    def open(self, volume, **options):
        if self.deadly and volume.name == self.deadly:
            time.sleep(0.5)  # as a case that fills the memory takes a while to do so
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(volume, **options)


def run_on_ray(scans: Path, output: Path, factory, **options):
    settings = BatchSettings(output, tiles=False)
    cases = find_cases([str(scans)], ["liver"], output).cases
    with ray_engine(settings, actors=2, factory=factory) as engine:
        return run_batch(cases, settings, engine, **options)


def run_here(scans: Path, output: Path):
    settings = BatchSettings(output, tiles=False)
    cases = find_cases([str(scans)], ["liver"], output).cases
    return run_batch(cases, settings, LocalEngine(ThresholdSegmenter(), settings))


def same(one: Path, other: Path, outcomes) -> None:
    for outcome in outcomes:
        if outcome.status == "failed":
            continue
        [mine], [theirs] = (read_segmentation(folder / outcome.output) for folder in (one, other))
        np.testing.assert_array_equal(mine.mask, theirs.mask)


def facts(outcomes):
    return [(one.key, one.status, one.problem, one.rows) for one in outcomes]


def test_an_actor_killed_in_the_middle_changes_nothing(cluster, scans: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    killed = []

    def kill_one(tally) -> None:
        if tally.ended >= CASES // 3 and not killed:
            pid = int(next(notes.iterdir()).name)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with StoreWatch() as store:
        there = run_on_ray(scans, tmp_path / "ray", lambda: NotingSegmenter(notes), report=kill_one)
    here = run_here(scans, tmp_path / "here")
    assert killed
    assert store.peak - store.before < 1 << 20  # rows, and no image
    assert facts(there.outcomes) == facts(here.outcomes)
    same(tmp_path / "ray", tmp_path / "here", here.outcomes)
    begun = [line for line in (tmp_path / "ray" / ".batch" / "journal.jsonl").open() if '"case"' in line]
    assert len(begun) == CASES  # each case ended once


@pytest.mark.slow
def test_a_case_that_kills_every_actor_is_given_up(
    cluster, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rayengine, "MOST_LOSSES", 2)  # every actor takes seconds to start
    notes = tmp_path / "notes"
    notes.mkdir()
    summary = run_on_ray(scans, tmp_path / "ray", lambda: NotingSegmenter(notes, 0.0, "scan004"))
    problems = {one.key: one.problem for one in summary.failures}
    assert "lost 2 times at this case" in problems["site1/scan004"]
    assert summary.done == CASES - 2 - 1  # two damaged ones, and this
    assert len(list(notes.iterdir())) >= 3  # two actors, and at least one that took a lost one's place


class StoreWatch:
    """The most bytes that Ray's object store held during a block."""

    def __enter__(self) -> StoreWatch:
        self.before = self.peak = _store_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, _store_bytes())


def _store_bytes() -> int:
    total, free = (
        source().get("object_store_memory", 0) for source in (ray.cluster_resources, ray.available_resources)
    )
    return int(total - free)


def test_only_this_machine_reaches_the_cluster(cluster) -> None:
    """Whoever reaches a Ray cluster can run code on it."""
    heard = [
        ipaddress.ip_address(connection.laddr.ip)
        for process in psutil.Process().children(recursive=True)
        for connection in _connections(process)
        if connection.status == psutil.CONN_LISTEN
    ]
    assert heard
    mapped = [getattr(one, "ipv4_mapped", None) or one for one in heard]
    assert [one for one in mapped if not one.is_loopback] == []


def _connections(process: psutil.Process):
    try:
        return process.net_connections("inet")
    except psutil.Error:
        return []


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(InputError, match=r"cluster auto cannot be reached \(Could not find"),
        ray_engine(BatchSettings(tmp_path), address="auto"),
    ):
        pass
