"""The command on small folders: what it writes, what it refuses; the model is doubled where one is needed."""

import csv
import json
import re

import miniatures
import numpy as np
import pytest

from MedSAM3Core.cli import main
from MedSAM3Core.errors import Cancelled
from MedSAM3Core.evaluation.contenders import Mode, ModelContender, SessionPool
from MedSAM3Core.evaluation.datasets import read_dataset
from MedSAM3Core.evaluation.report import Gallery, Provenance, write_report
from MedSAM3Core.evaluation.run import Plan, evaluate
from MedSAM3Core.evaluation.scoring import Answer
from MedSAM3Core.evaluation.summary import summarise
from MedSAM3Core.progress import CancelToken

PROVENANCE = Provenance(
    "Set <b>", "", "", "test", "", 1, 1, {"double": "a double"}, {"tolerance": "2 px"}, [], "now", "0"
)


@pytest.fixture
def folder(tmp_path):
    rows = []
    for number in range(6):
        name = f"{number}.png"
        mask = np.roll(miniatures.DISC, number - 3, axis=1)
        miniatures.picture(tmp_path / "data" / name, mask)
        miniatures.mask(tmp_path / "data" / f"m{name}", mask)
        rows.append([name, "polyp", f"m{name}", f"p{number // 2}", "test"])
    with (tmp_path / "data/cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "concept", "mask", "patient", "split"], *rows])
    return tmp_path / "data"


def run(capsys, *words):
    code = main([str(word) for word in ("evaluate", *words)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_report_is_written_and_its_figures_agree(folder, tmp_path, capsys):
    out = tmp_path / "report"
    code, text, err = run(capsys, folder, "--model", "thresholding", "--mode", "text+box", "-o", out)
    assert (code, err) == (0, "")
    assert "polyp" in text
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    figures = json.loads((out / "summary.json").read_text())
    assert len(rows) == 6
    (concept,) = figures["concepts"]
    assert concept["metrics"]["dice"]["patients"] == 3
    assert concept["metrics"]["dice"]["mean"] == pytest.approx(
        np.mean([float(row["dice"]) for row in rows]), abs=1e-4
    )
    assert concept["metrics"]["dice"]["mean"] > 0.9  # bright discs on dark ground are what Otsu is for
    page = (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)  # opens offline: nothing is loaded
    assert page.count("data:image/jpeg;base64,") == 6
    assert "<script" not in page


class Double:
    """A contender that finds what is brighter than it should be."""

    axis = 0

    def __init__(self, name, shift):
        self.name, self.shift = name, shift

    def open(self, volume):
        self.volume = volume
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def supports(self, mode):
        return mode.kind == "text"

    def answer(self, questions, mode, cancel):
        for _ in questions:
            if cancel is not None:
                cancel.check()
            mask = np.roll(self.volume.array[..., 0] > 100, self.shift, axis=2)
            yield Answer(mask, 0.9, "phrase")


def test_contenders_are_compared_and_the_page_escapes_names(folder, tmp_path):
    gallery = Gallery(worst=2)
    plan = Plan([Double("good", 0), Double("bad <i>", 5)], [Mode("text"), Mode("agent")])
    scores = evaluate(read_dataset(folder).cases, plan, on_exhibit=gallery.see)
    assert len(scores) == 12
    assert {s.dice for s in scores if s.model == "good"} == {1.0}
    worst = gallery.pictures("bad <i>", "text")
    assert len(worst) == 2
    assert [p.score.dice for p in worst] == sorted(s.dice for s in scores if s.model != "good")[:2]
    paths = write_report(tmp_path / "out", scores, summarise(scores), gallery, PROVENANCE)
    page = paths["report.html"].read_text()
    assert "bad <i>" not in page
    assert "bad &lt;i&gt;" in page
    assert "Set &lt;b&gt;" in page


def test_a_cancelled_comparison_writes_nothing(folder):
    token = CancelToken()
    with pytest.raises(Cancelled):
        evaluate(
            read_dataset(folder).cases,
            Plan([Double("x", 0)], [Mode("text")]),
            lambda _: token.cancel(),
            token,
        )


def test_settings_share_one_session_a_volume():
    opened = []

    class Session:
        def __init__(self):
            self.closed = False

        def close(self):
            self.closed = True

        def with_settings(self, **changes):
            return changes

    class Segmenter:
        def open(self, volume, mode):
            opened.append((volume, Session()))
            return opened[-1][1]

    pool = SessionPool(Segmenter())
    for volume in ("first", "first", "second"):
        with ModelContender("a", pool, {"synonyms": False}).open(volume) as desk:
            assert desk.session == {"synonyms": False}
    assert [volume for volume, _ in opened] == ["first", "second"]
    assert opened[0][1].closed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mode", "magic"], "expected text, text+box, agent"),
        (["--mode", "agent"], "needs a judge"),
        (["--split", "validation"], "is empty; it has 6 test"),
        (["-c", "liver"], "liver"),
        (["--layout", "nowhere"], "The layout 'nowhere' is unknown"),
        (["--model", "thresholding"], "need --mode text+box"),
        (["--model", "nonsense"], "The model 'nonsense' is unknown"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(folder, tmp_path, capsys, words, sentence):
    code, _, err = run(capsys, folder, "-o", tmp_path / "out", *words)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_folder_is_needed(capsys):
    assert run(capsys, "nowhere", "-o", "x")[0] == 2
    assert run(capsys)[0] == 2
    code, text, _ = run(capsys, "--layout", "list")
    assert code == 0
    assert "kvasir_seg" in text
