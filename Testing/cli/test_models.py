from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_list_names_models_licences_and_what_is_installed(run) -> None:
    code, out, _ = run("models", "list")
    assert code == 0
    for word in ("demo", "medsam3-v1", "SAM License", "no"):
        assert word in out


def test_the_list_as_json(run, home: Path) -> None:
    code, out, _ = run("models", "list", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["home"] == str(home)
    by_name = {model["name"]: model for model in document["models"]}
    assert by_name["sam3"]["installed"] is False
    assert by_name["sam3"]["licence"] == "SAM License"


def test_info_says_licence_citation_limits_and_that_it_is_no_medical_device(run) -> None:
    code, out, _ = run("models", "info", "medsam3-v1")
    assert code == 0
    for word in ("SAM License", "cite", "limit", "not for clinical use"):
        assert word in out


def test_info_as_json_holds_the_card(run) -> None:
    code, out, _ = run("models", "info", "medsam3-v1", "--json")
    assert code == 0
    assert json.loads(out)["card"]["base"] == "sam3"


def test_info_says_where_it_comes_from_and_how_its_outputs_are_read(run) -> None:
    _, out, _ = run("models", "info", "medsam3-v1")
    assert "lal-Joey/MedSAM3_v1, best_lora_weights.pt (74 MB)" in out
    assert "each slice on its own" in out  # as published
    assert "tracked through the volume" in out  # as we do
    _, out, _ = run("models", "info", "sam3")
    assert "access to be granted by its owners" in out


def test_what_a_conversion_took_from_the_base_is_shown(run, home: Path) -> None:
    folder = home / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text('{"name": "mine"}')
    notice = "Not finite in x.pt and taken from the base model: a.weight."
    (folder / "manifest.json").write_text(json.dumps({"notices": [notice]}))
    assert notice in run("models", "info", "mine")[1]
    assert json.loads(run("models", "list", "--json")[1])["models"][-1]["notices"] == [notice]


def test_an_unknown_model_is_bad_input_and_the_known_ones_are_named(run) -> None:
    code, _, err = run("models", "info", "medsam4")
    assert code == 2
    assert "medsam3-v1" in err
    assert err.count("\n") == 1


def test_a_download_asks_for_the_licence_first(run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("models", "download", "medsam3-v1")
    assert code == 2
    assert "SAM License" in err
    assert "--accept-licence" in err
    assert err.count("\n") == 1


def test_at_a_terminal_the_whole_licence_is_shown_and_no_means_no(
    run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MedSAM3Core.cli import models

    shown: list[str] = []
    monkeypatch.setattr(models.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(models.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(models.typer, "confirm", lambda question, err: shown.append(question) or False)
    code, _, err = run("models", "download", "medsam3-v1")
    assert code == 2
    assert "SAM License" in shown[0]
    assert "was not accepted" in err
    assert len(err) > 2000, "the text itself, not only its name"
    assert not (home / "models").exists()


def test_importing_what_is_not_there(run, tmp_path: Path) -> None:
    code, _, err = run("models", "import", "mine", tmp_path / "no.pt")
    assert code == 2
    assert "does not exist" in err


def test_importing_what_is_no_model_installs_nothing(run, tmp_path: Path, home: Path) -> None:
    (tmp_path / "file.pt").write_text("not a checkpoint")
    code, _, err = run("models", "import", "mine", tmp_path / "file.pt", "--accept-licence")
    assert code == 2
    assert err.count("\n") == 1
    assert not (home / "models" / "mine").exists()


@pytest.mark.parametrize("name", ["demo", "medsam3-v1"])
def test_what_ships_or_is_absent_cannot_be_removed(run, name: str) -> None:
    code, _, err = run("models", "remove", name)
    assert code == 2
    assert name in err
