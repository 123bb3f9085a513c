from __future__ import annotations

from pathlib import Path


def test_a_configuration_that_is_not_there(run, tmp_path: Path) -> None:
    code, _, err = run("finetune", tmp_path / "no.yaml")
    assert code == 2
    assert "does not exist" in err
    assert err.count("\n") == 1


def test_a_configuration_with_an_unknown_field_names_it(run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: x\ndata: .\noutput: out\nstages: []\nsped: 3\n")
    code, _, err = run("finetune", tmp_path / "c.yaml")
    assert code == 2
    assert "is wrong at" in err
    assert not (tmp_path / "out").exists()
