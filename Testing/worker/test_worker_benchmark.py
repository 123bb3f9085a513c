"""The measuring of `medsam3 benchmark --worker`, on the double and with small numbers: that it measures, not what."""

from dataclasses import asdict

import numpy as np
import pytest
from double_worker import DoubleSegmenter
from worker_helpers import DOUBLE

from MedSAM3Core.cli.benchmark_worker import rows
from MedSAM3Core.errors import Cancelled
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Concept
from MedSAM3Core.volume.volume import Volume
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
    reports = []
    figures = benchmark.measure(DoubleSegmenter("double", "cpu"), reports.append)
    assert {report.stage for report in reports} == set(benchmark.expected_seconds)
    assert [report.fraction for report in reports] == sorted(report.fraction for report in reports)
    assert reports[-1].fraction == pytest.approx(1)
    assert (figures.slices, figures.concepts) == (12, 1)
    assert 0 < figures.round_trip.median <= figures.round_trip.p95
    assert min(figures.overhead.inside, figures.overhead.behind) > 0.2, "12 slices of 20 ms each"
    assert figures.cancel.slice_mean > 0.015
    assert 0 < figures.cancel.median <= figures.cancel.worst
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


def test_ctrl_c_ends_it_between_two_runs(volume):
    benchmark = WorkerBenchmark(
        volume, [Concept("liver", "liver", ("liver",))], "double", "cpu", DOUBLE, cycles=10**9
    )
    cancel = CancelToken()

    def stop(report):
        if report.stage == "open, segment, close" and report.step == 3:
            cancel.cancel()

    with pytest.raises(Cancelled):
        benchmark.measure(progress=stop, cancel=cancel)


def test_small_runs_bring_a_mask_back(volume):
    """The middle of this volume is dark: memory and files of a mask would not be seen there."""
    array = np.roll(volume.array, 5, axis=0)
    dark = Volume.from_array(array, ijk_to_ras=volume.geometry.ijk_to_ras, modality="CT")
    benchmark = WorkerBenchmark(dark, [Concept("nothing", "nothing"), Concept("ball", "ball")], "double")
    segmenter = DoubleSegmenter("double", "cpu")
    found = segmenter.open(dark).segment_many(benchmark.concepts)
    part, concept = benchmark._part(found)
    assert concept.phrase == "ball"
    assert not segmenter.open(part).segment(concept).empty
    assert part.array.max() == 300 > small(dark).array.max()


@pytest.mark.parametrize(("middle", "first"), [(None, 5), (0, 0), (4, 3), (11, 10)])
def test_the_small_volume_lies_where_it_lay(volume, middle, first):
    part = small(volume, middle=middle)
    assert part.array.shape == (2, 20, 24)
    assert np.array_equal(part.array, volume.array[first : first + 2])
    whole = volume.geometry.ijk_to_ras @ [3, 5, first + 1, 1]
    assert abs(part.geometry.ijk_to_ras @ [3, 5, 1, 1] - whole).max() < 1e-9
