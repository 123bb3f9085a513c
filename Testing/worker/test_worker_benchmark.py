"""The measuring of `medsam3 benchmark --worker`, on the double and with small numbers: that it measures, not what."""

from dataclasses import asdict

from double_worker import DoubleSegmenter
from worker_helpers import DOUBLE

from MedSAM3Core.cli.benchmark_worker import rows
from MedSAM3Core.prompts import Concept
from MedSAM3Core.worker.benchmark import WorkerBenchmark, small


def test_everything_is_measured(volume):
    benchmark = WorkerBenchmark(
        volume,
        [Concept("slow", "slow", ("slow",))],
        "double",
        "cpu",
        DOUBLE,
        runs=1,
        fuzz_lines=150,
        cycles=24,
    )
    figures = benchmark.measure(DoubleSegmenter("double", "cpu"))
    assert 0 < figures.round_trip.median <= figures.round_trip.p95
    assert 0.2 < figures.overhead.inside < figures.overhead.behind < 2, "12 slices of 20 ms each"
    assert 0.015 < figures.cancel.slice_mean < 0.1
    assert 0 < figures.cancel.median <= figures.cancel.worst < 1
    assert 0 < figures.death.noticed_median <= figures.death.noticed_worst
    assert figures.death.next_call > 0
    assert (figures.fuzz.lines, figures.fuzz.survived, figures.fuzz.same_answer) == (150, True, True)
    # Fewer is no leak: this process also runs other tests, and what they left may be given back meanwhile.
    assert figures.growth.worker_descriptors <= 0
    assert figures.growth.client_descriptors <= 0
    assert figures.growth.files == 0
    assert figures.growth.worker_bytes < 5_000_000
    assert all(len(row) == 3 for row in rows(figures))
    assert asdict(figures)["device"] == "cpu (a double)"


def test_the_small_volume_lies_where_it_lay(volume):
    part = small(volume)
    assert part.array.shape == (4, 20, 24)
    whole = volume.geometry.ijk_to_ras @ [3, 5, 4 + 2, 1]
    assert abs(part.geometry.ijk_to_ras @ [3, 5, 2, 1] - whole).max() < 1e-9
