from __future__ import annotations

import json

import pytest

from MedSAM3Core.cli.benchmark_progress import announced
from MedSAM3Core.errors import InputError
from MedSAM3Core.progress import Progress


def test_stages_and_memory_are_measured(run, fake) -> None:
    code, out, _ = run("benchmark", "--alone", "--repeats", "2", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["repeats"] == len(document["totals"]) == 2
    assert document["seconds"]["encoding"] == 1.0, (
        "concepts that ran together report one time, which counts once"
    )
    assert {"read", "load", "detecting", "writing", "total"} <= set(document["seconds"])
    assert document["peak_memory_mib"] > 50
    assert len(document["concepts"]) >= 4
    assert len(fake.opened) == 2, "every repetition opens the volume anew"


def test_the_table_names_the_stages_and_the_machine(run, fake) -> None:
    code, out, _ = run("benchmark", "--alone", "--repeats", "1")
    assert code == 0
    for word in ("encoding", "detecting", "writing", "peak memory", "torch"):
        assert word in out


def test_an_unknown_size_is_bad_input(run) -> None:
    code, _, err = run("benchmark", "--size", "huge")
    assert code == 2
    assert "huge" in err


def test_each_part_is_said_once_where_there_is_no_terminal(capfd) -> None:
    with announced() as progress:
        for stage, step, left in (("cancel", 0, None), ("cancel", 1, 9.0), ("killed worker", 0, 65.0)):
            progress(Progress(stage, step, 2, 0.5, left))
    said = capfd.readouterr().err.splitlines()
    assert said == ["note: measuring cancel", "note: measuring killed worker, about 1:05 left"]


@pytest.mark.parametrize(
    ("given", "slices", "lengths"),
    [
        ((), 80, [80, 100, 300, 600]),
        (("--slices", "90", "--longest", "2000"), 90, [90, 100, 300, 600, 2000]),
    ],
)
def test_the_study_of_the_length_has_a_size_that_ends(run, monkeypatch, given, slices, lengths) -> None:
    from MedSAM3Core.benchmark import studies, subject

    asked = {}

    def make(name, device, slices, *_):
        asked["slices"] = slices
        return Subject(slices)

    def grow(one, lengths, count, cancel, progress):
        asked.update(lengths=lengths, count=count)
        return []

    monkeypatch.setattr(subject, "demo_subject", make)
    monkeypatch.setattr(studies, "grow_scan", grow)
    code, out, err = run("benchmark", "--study", "length", *given, "--json")
    assert code == 0
    assert asked == {"slices": slices, "lengths": lengths, "count": slices}
    assert "min with the demo model" in err
    assert json.loads(out)["runs"] == []


def test_the_workers_runs_are_on_few_slices(run, monkeypatch, fake) -> None:
    from MedSAM3Core.worker.benchmark import WorkerBenchmark

    asked = []

    def measure(self, segmenter, progress, cancel):
        asked.append((self.volume.geometry.shape[0], len(self.concepts), self.runs, self.cycles))
        raise InputError("measured")

    monkeypatch.setattr(WorkerBenchmark, "measure", measure)
    assert run("benchmark", "--worker")[0] == 2
    assert run("benchmark", "--worker", "--slices", "128", "--repeats", "2", "--cycles", "50")[0] == 2
    assert asked == [(16, 5, 3, 200), (128, 5, 2, 50)]


class Subject:
    """As much of a subject as the command itself looks at."""

    title = "a double"
    concepts = ()

    def __init__(self, slices: int) -> None:
        self.volume = type("Volume", (), {"array": range(slices)})
