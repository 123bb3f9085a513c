"""``medsam3 track`` from a film to labels, a film and a table, on the double of the model."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from inference_doubles import BrightModel

from MedSAM3Core.cli import main
from MedSAM3Core.inference.session import Segmenter
from MedSAM3Core.models.card import Policy
from MedSAM3Core.volume import read_sequence
from MedSAM3Core.volume.video import open_film, write_film

pytest.importorskip("av", reason="PyAV is not installed; pip install 'MedSAM3Core[video]'")


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch):
    model = BrightModel()
    policy = Policy(score_rule="presence", mask_source="semantic")
    model.card = model.card.model_copy(update={"recommended": policy})
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda name, device="auto": Segmenter(model))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def pictures(count: int):
    for t in range(count):
        picture = np.full((64, 64, 3), 20, np.uint8)
        picture[10:26, 4 + t : 20 + t] = 200
        picture[40:52, 40 - t : 52 - t] = 200
        yield picture


def test_a_film_becomes_labels_a_film_and_a_table(tmp_path: Path, capfd) -> None:
    write_film(tmp_path / "in.mp4", pictures(14), 10)
    names = ("out.seq.nrrd", "out.mp4", "out.csv")
    labels, film, table = (str(tmp_path / name) for name in names)
    arguments = ["track", str(tmp_path / "in.mp4"), "-c", "bright thing", "-o", labels]
    assert main([*arguments, "--film", film, "--table", table]) == 0, capfd.readouterr().err
    volumes = read_sequence(tmp_path / "out.seq.nrrd")
    assert len(volumes) == 14
    first = volumes[0].array[0]
    upper, lower = first[18, 12], first[46, 46]
    assert {upper, lower} == {1, 2}
    for t, volume in enumerate(volumes):
        assert volume.array[0, 18, 12 + t] == upper
        assert volume.array[0, 46, 46 - t] == lower
    assert sum(1 for _ in open_film(tmp_path / "out.mp4").frames()) == 14
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 28
    assert rows[0]["object"] == "1"
    assert [row["frame"] for row in rows[:3]] == ["0", "0", "1"]


def test_nothing_is_left_of_a_run_that_fails(tmp_path: Path, capfd) -> None:
    (tmp_path / "in.mp4").write_bytes(b"x" * 2000)
    code = main(["track", str(tmp_path / "in.mp4"), "-c", "liver", "-o", str(tmp_path / "o.seq.nrrd")])
    assert code == 2
    assert "cannot be read as a film" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_what_cannot_be_asked(tmp_path: Path, capfd) -> None:
    write_film(tmp_path / "in.mp4", pictures(2), 10)
    source = str(tmp_path / "in.mp4")
    assert main(["track", source, "-c", "liver", "-o", str(tmp_path / "o.nrrd")]) == 2
    assert "expected a name that ends in .seq.nrrd" in capfd.readouterr().err
