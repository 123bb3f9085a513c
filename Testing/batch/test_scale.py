from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MedSAM3Core.batch.scale import Shared, Stages, duration, forecast, main, play_line
from MedSAM3Core.errors import InputError


def stages(read: float, infer: float, write: float) -> Stages:
    return Stages(np.full(4, read), np.full(4, infer), np.full(4, write))


def test_an_even_line_goes_at_the_pace_of_its_slowest_stage() -> None:
    rate, busy = play_line(stages(0.4, 1.0, 0.3))
    assert rate == pytest.approx(1.0, rel=0.01)
    assert busy == pytest.approx(1.0, rel=0.01)
    rate, busy = play_line(stages(2.0, 1.0, 0.3))
    assert (rate, busy) == (pytest.approx(0.5, rel=0.01), pytest.approx(0.5, rel=0.01))
    assert play_line(stages(0.1, 1.0, 3.0))[0] == pytest.approx(1 / 3, rel=0.01)


def test_buffers_ride_out_uneven_stages() -> None:
    uneven = Stages(np.array([0.1, 0.1, 0.1, 2.0]), np.full(4, 1.0), np.full(4, 0.1))
    rate, busy = play_line(uneven)
    assert 0.85 < busy <= 1.0
    assert rate <= 1.0


def test_what_is_shared_sets_the_pace_in_the_end() -> None:
    line, shared = stages(0.1, 1.0, 0.1), Shared(storage_mb_s=1500, megabytes_per_study=150)
    one, many = (forecast(line, shared, 100_000, gpus) for gpus in (1, 1000))
    assert (one.bound, many.bound) == ("inference", "storage")
    assert one.hours == pytest.approx(100_000 / 3600, rel=0.01)
    assert many.hours == pytest.approx(100_000 / 10 / 3600, rel=0.01)
    assert many.busy == pytest.approx(0.01, rel=0.02)
    fast = Shared(storage_mb_s=1e9, storage_files_s=1e9, journal_s=200)
    assert forecast(line, fast, 100_000, 1000).bound == "journal"
    assert forecast(stages(3.0, 1.0, 0.1), shared, 1000, 1).bound == "reading"


def test_the_table_of_a_batch(tmp_path: Path, capsys) -> None:
    path = tmp_path / "results.csv"
    path.write_text(
        "case,status,read_seconds,infer_seconds,write_seconds\na,done,0.1,2,0.1\na,done,0.1,2,0.1\nb,failed,,,\n"
    )
    main([str(path), "--infer-factor", "0.5"])
    said = capsys.readouterr().out
    assert said.startswith("1 cases: read 0.100 s, infer 1.000 s, write 0.100 s")
    assert "| 1,000 | 1 | 16.7 min | inference |" in said
    path.write_text("case,status,read_seconds,infer_seconds,write_seconds\nb,failed,,,\n")
    with pytest.raises(InputError, match="no case that ended well"):
        main([str(path)])


def test_hours_in_words() -> None:
    assert [duration(h) for h in (0.5, 30, 100, 20_000)] == ["30.0 min", "30.0 h", "4 days", "2 years"]
