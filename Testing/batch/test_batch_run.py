from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from batch_doubles import ThresholdSegmenter, write_damaged, write_scan
from PIL import Image

from MedSAM3Core.batch import BatchSettings, Case, LocalEngine, Tally, find_cases, run_batch
from MedSAM3Core.batch.contact import CAPTION, GAP, TILE
from MedSAM3Core.batch.journal import JOURNAL, Journal, locked
from MedSAM3Core.batch.run import MOST_ATTEMPTS
from MedSAM3Core.cli.batch import facts_of
from MedSAM3Core.errors import Cancelled, OutputError
from MedSAM3Core.progress import CancelToken


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for n in range(4):
        write_scan(tmp_path / "in" / f"s{n}.nrrd", n)
    write_damaged(tmp_path / "in" / "s4.nrrd", 1)
    return tmp_path / "in"


class Batch:
    """One output folder and the runs in it."""

    def __init__(self, source: Path, output: Path, concepts=("liver", "nothing"), **settings) -> None:
        self.settings = BatchSettings(output, **settings)
        self.cases = find_cases([str(source)], concepts, output).cases
        self.segmenter = ThresholdSegmenter()

    def run(self, **options):
        engine = LocalEngine(self.segmenter, self.settings)
        return run_batch(self.cases, self.settings, engine, **options)

    def rows(self) -> list[dict[str, str]]:
        with (self.settings.output / "results.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))


def test_one_failure_does_not_stop_the_rest(scans: Path, tmp_path: Path) -> None:
    batch = Batch(scans, tmp_path / "out")
    summary = batch.run()
    assert (summary.done, [one.key for one in summary.failures]) == (4, ["s4"])
    assert "s4.nrrd is empty" in summary.failures[0].problem
    rows = batch.rows()
    assert [row["case"] for row in rows] == ["s0", "s0", "s1", "s1", "s2", "s2", "s3", "s3", "s4"]
    assert [row["found"] for row in rows[:2]] == ["True", "False"]
    assert float(rows[0]["ml"]) == 36.0
    assert rows[0]["output"] == "s0.seg.nrrd"
    assert rows[0]["code"] == "10200004"


def test_faults_and_bugs_of_the_model_are_cases_too(scans: Path, tmp_path: Path) -> None:
    batch = Batch(scans, tmp_path / "out", concepts=["trouble"])
    assert {one.problem for one in batch.run().failures} > {
        "The model has no answer; ask for something else."
    }
    bug = Batch(scans, tmp_path / "bug", concepts=["bug"])
    assert "ZeroDivisionError: a bug" in bug.run().failures[0].problem


def test_parquet_says_the_same_with_types(scans: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    batch = Batch(scans, tmp_path / "out")
    batch.run()
    table = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    rows = batch.rows()
    assert [row["case"] for row in table] == [row["case"] for row in rows]
    assert (table[0]["voxels"], table[0]["found"], table[-1]["ml"]) == (36, True, None)


def test_resume_repeats_nothing_and_sees_what_changed(scans: Path, tmp_path: Path) -> None:
    batch = Batch(scans, tmp_path / "out")
    batch.run()
    with pytest.raises(OutputError, match="holds a batch of 5 cases already; add --resume"):
        batch.run()
    batch.segmenter.asked.clear()
    assert batch.run(resume=True).resumed == 5
    assert batch.segmenter.asked == []
    write_scan(scans / "s1.nrrd", 6)
    again = Batch(scans, tmp_path / "out")
    assert again.run(resume=True).resumed == 4
    assert [name for name, _ in again.segmenter.asked] == ["s1"]
    write_scan(scans / "s4.nrrd", 3)  # a damaged file that was replaced is new too
    assert Batch(scans, tmp_path / "out").run(resume=True).failures == ()


def test_failed_cases_are_run_again_only_if_asked(scans: Path, tmp_path: Path) -> None:
    batch = Batch(scans, tmp_path / "out", concepts=["trouble"])
    batch.run()
    asked = len(batch.segmenter.asked)
    batch.run(resume=True)
    assert len(batch.segmenter.asked) == asked
    batch.run(resume=True, retry_failed=True)
    assert len(batch.segmenter.asked) == 2 * asked


def test_other_settings_do_not_mix(scans: Path, tmp_path: Path) -> None:
    Batch(scans, tmp_path / "out").run()
    with pytest.raises(OutputError, match=r"with the model's own threshold, but .* the threshold 0\.7;"):
        Batch(scans, tmp_path / "out", threshold=0.7).run(resume=True)


def test_a_folder_has_one_run_at_a_time(scans: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(OutputError, match="Another run is working"):
        Batch(scans, tmp_path / "out").run()
    assert Batch(scans, tmp_path / "out").run().done == 4


def test_cancelling_keeps_what_is_done(scans: Path, tmp_path: Path) -> None:
    batch, token = Batch(scans, tmp_path / "out"), CancelToken()
    batch.segmenter.seconds = 0.05

    def stop(tally: Tally) -> None:
        if tally.ended == 1:
            token.cancel()

    with pytest.raises(Cancelled, match=r"Cancelled after \d of 5 cases\. Run again with --resume"):
        batch.run(report=stop, cancel=token)
    kept = len({row["case"] for row in batch.rows()})
    assert 1 <= kept < 5
    assert batch.run(resume=True).resumed == kept


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_is_no_line(tmp_path: Path, cut: int) -> None:
    case = Case("a", tmp_path / "a.nrrd", ("liver",))
    (tmp_path / "out" / ".batch").mkdir(parents=True)
    from MedSAM3Core.batch.work import failed

    with Journal(tmp_path / "out", {"model": "x"}) as journal:
        journal.finish(failed(case, "no"))
    path = tmp_path / "out" / ".batch" / JOURNAL
    whole = path.read_bytes()
    line = next(line for line in whole.splitlines() if b'"case"' in line)
    path.write_bytes(whole + line[:cut])
    with Journal(tmp_path / "out", {"model": "x"}, resume=True) as journal:
        assert list(journal.outcomes) == ["a"]
        journal.begin("b")
    assert path.read_bytes().startswith(whole + b'{"run": "begun"}\n{"begun": "b"}\n')


def test_a_case_that_kills_its_process_is_left_behind(scans: Path, tmp_path: Path) -> None:
    batch = Batch(scans, tmp_path / "out")
    (tmp_path / "out" / ".batch").mkdir(parents=True)
    with Journal(tmp_path / "out", {**batch.settings.as_facts()}):
        pass
    with (tmp_path / "out" / ".batch" / JOURNAL).open("a") as stream:
        for _ in range(MOST_ATTEMPTS):  # s1 waits to be written each time that s2 ends the process
            stream.write('{"run": "begun"}\n{"begun": "s1"}\n{"begun": "s2"}\n')
    summary = batch.run(resume=True)
    assert [one.key for one in summary.failures] == ["s2", "s4"]
    assert "ended 3 times while this case" in summary.failures[0].problem
    assert batch.run(resume=True, retry_failed=True).done == 4


def test_the_contact_sheet_shows_every_case(scans: Path, tmp_path: Path) -> None:
    summary = Batch(scans, tmp_path / "out").run()
    [sheet] = summary.sheets
    with Image.open(sheet) as image:
        assert image.size == (5 * (TILE + GAP) + GAP, TILE + CAPTION + 2 * GAP)
        last = image.crop((4 * (TILE + GAP) + GAP, GAP, 5 * (TILE + GAP), GAP + TILE))
        assert last.getpixel((TILE - 3, TILE - 3)) == (70, 16, 16)
        colours = image.crop((GAP, GAP, GAP + TILE, GAP + TILE)).convert("HSV").getchannel("S").getextrema()
        assert colours[1] > 100  # something coloured lies on the grey


def test_a_format_that_does_not_fit_costs_no_inference(scans: Path, tmp_path: Path) -> None:
    batch = Batch(scans, tmp_path / "out", suffix=".png")
    assert "A PNG cannot hold the 6 slices" in batch.run().failures[0].problem
    assert batch.segmenter.asked == []


def test_a_full_disk_ends_the_batch(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from MedSAM3Core.batch import work

    batch = Batch(scans, tmp_path / "out")
    monkeypatch.setattr(work, "LEAST_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(work.CaseWorker, "_write", _refuse)
    with pytest.raises(OutputError, match="is full; make room and run again with --resume"):
        batch.run()
    monkeypatch.undo()
    assert batch.run(resume=True).done == 4


def _refuse(*_: object) -> tuple[str, ...]:
    raise OutputError("no room")


def test_the_bar_speaks_of_rate_and_time(scans: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    Batch(scans, tmp_path / "out").run(report=lambda tally: seen.append(facts_of(tally)))
    assert "1 failed" in seen[-1]
    assert " a minute" in seen[-1]
    assert "0:00 left" in seen[-1]


def test_journal_lines_are_plain_json(scans: Path, tmp_path: Path) -> None:
    Batch(scans, tmp_path / "out").run()
    lines = [json.loads(line) for line in (tmp_path / "out" / ".batch" / JOURNAL).open()]
    assert lines[0]["batch"] == 1
    assert sum("case" in line for line in lines) == 5
    assert lines[1:3] == [{"run": "begun"}, {"begun": "s0"}]
    assert lines[-1] == {"run": "ended"}
