from __future__ import annotations

import json


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
