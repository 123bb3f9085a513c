"""What a batch of any size costs, from the stage times of one that was run.

``python -m MedSAM3Core.batch.scale results.csv`` reads the stages of the cases of a batch, plays one model's line
(read, infer, write, with the buffers of `MedSAM3Core.batch.pipeline`) with them, and multiplies it until something that
all lines share is full: the storage, or the one process that keeps the journal. ``--infer-factor`` scales the
inference, for a GPU that was measured elsewhere.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedSAM3Core.batch.pipeline import AHEAD, BEHIND
from MedSAM3Core.errors import InputError

STUDIES = (1_000, 100_000, 10_000_000)
GPUS = (1, 8, 1_000)
PLAYED = 2_000
"""Cases that a line is played with; the rate is steady after some tens."""


@dataclass(frozen=True)
class Stages:
    """Seconds of each case's stages, (cases,) each."""

    read: np.ndarray
    infer: np.ndarray
    write: np.ndarray

    @classmethod
    def from_table(cls, path: Path) -> Stages:
        """Stages of the cases that ended well in a batch's ``results.csv``.

        Raises:
            InputError: If there is none.
        """
        with path.open(newline="", encoding="utf-8") as stream:
            cases = {row["case"]: row for row in csv.DictReader(stream) if row["status"] == "done"}
        if not cases:
            raise InputError(f"{path} holds no case that ended well; run a batch first.")
        columns = [
            np.array([float(row[f"{stage}_seconds"]) for row in cases.values()])
            for stage in ("read", "infer", "write")
        ]
        return cls(*columns)

    def scaled(self, infer_factor: float) -> Stages:
        """The same with another inference."""
        return Stages(self.read, self.infer * infer_factor, self.write)


@dataclass(frozen=True)
class Shared:
    """What all lines share.

    Attributes:
        megabytes_per_study: Read from the storage.
        files_per_study: Opened.
        storage_mb_s: What the storage gives in MB a second.
        storage_files_s: Files it opens a second.
        journal_s: Outcomes that one process writes to its journal a second.
        hours_between_faults: Of one GPU or its node.
    """

    megabytes_per_study: float = 150.0
    files_per_study: float = 300.0
    storage_mb_s: float = 2_000.0
    storage_files_s: float = 20_000.0
    journal_s: float = 100.0
    hours_between_faults: float = 20_000.0


@dataclass(frozen=True)
class Forecast:
    """One cell of the table.

    Attributes:
        studies: How many.
        gpus: How many.
        hours: How long it takes.
        bound: What sets the pace: "inference", "reading", "writing", "storage" or "journal".
        gpu_hours: What it costs.
        faults: Lost GPUs or nodes to be expected.
        busy: Share of the time that a GPU computes.
    """

    studies: int
    gpus: int
    hours: float
    bound: str
    gpu_hours: float
    faults: float
    busy: float


def play_line(stages: Stages, count: int = PLAYED, seed: int = 0) -> tuple[float, float]:
    """Play one model's line: three stages with buffers between them, cases drawn from those that were measured.

    Args:
        stages: What was measured.
        count: Cases to play.
        seed: Of the draw.

    Returns:
        Studies a second, and the share of the time that the model computes.
    """
    drawn = np.random.default_rng(seed).integers(0, len(stages.infer), count)
    read, infer, write = stages.read[drawn], stages.infer[drawn], stages.write[drawn]
    read_end, infer_start, infer_end, write_end = (np.zeros(count) for _ in range(4))
    for n in range(count):
        free = infer_start[n - AHEAD - 1] if n > AHEAD else 0.0  # a place among the images that wait
        read_end[n] = max(read_end[n - 1] if n else 0.0, free) + read[n]
        written = write_end[n - BEHIND - 1] if n > BEHIND else 0.0  # a place among the results that wait
        infer_start[n] = max(infer_end[n - 1] if n else 0.0, read_end[n], written)
        infer_end[n] = infer_start[n] + infer[n]
        write_end[n] = max(write_end[n - 1] if n else 0.0, infer_end[n]) + write[n]
    return count / write_end[-1], float(infer.sum() / write_end[-1])


def forecast(stages: Stages, shared: Shared, studies: int, gpus: int) -> Forecast:
    """How long a batch takes, and what sets its pace."""
    rate, busy = play_line(stages)
    slowest = max(
        ("reading", stages.read), ("inference", stages.infer), ("writing", stages.write), key=_mean
    )[0]
    limits = {
        slowest: gpus * rate,
        "storage": min(
            shared.storage_mb_s / shared.megabytes_per_study, shared.storage_files_s / shared.files_per_study
        ),
        "journal": shared.journal_s,
    }
    bound = min(limits, key=limits.__getitem__)
    seconds = studies / limits[bound]
    hours = seconds / 3600
    return Forecast(
        studies,
        gpus,
        hours,
        bound,
        hours * gpus,
        hours * gpus / shared.hours_between_faults,
        busy * limits[bound] / (gpus * rate),
    )


def _mean(stage: tuple[str, np.ndarray]) -> float:
    return float(stage[1].mean())


def table(stages: Stages, shared: Shared) -> str:
    """Forecasts for all sizes, as a Markdown table."""
    lines = [
        "| studies | GPUs | time | what sets the pace | GPU busy | GPU hours | lost GPUs or nodes |",
        "|---|---|---|---|---|---|---|",
    ]
    for studies in STUDIES:
        for gpus in GPUS:
            one = forecast(stages, shared, studies, gpus)
            lines.append(
                f"| {studies:,} | {gpus:,} | {duration(one.hours)} | {one.bound} | {one.busy:.0%} | "
                f"{one.gpu_hours:,.0f} | {one.faults:.1f} |"
            )
    return "\n".join(lines)


def duration(hours: float) -> str:
    """Hours in words."""
    if hours < 1:
        return f"{60 * hours:.1f} min"
    if hours < 72:
        return f"{hours:.1f} h"
    return f"{hours / 24:.0f} days" if hours < 24 * 700 else f"{hours / 24 / 365:.0f} years"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table to stdout."""
    options = argparse.ArgumentParser(prog="python -m MedSAM3Core.batch.scale", description=__doc__)
    options.add_argument("results", type=Path, help="results.csv of a batch")
    options.add_argument(
        "--infer-factor", type=float, default=1.0, help="inference there / inference measured"
    )
    for name, value in vars(Shared()).items():
        options.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    given = vars(options.parse_args(arguments))
    stages = Stages.from_table(given.pop("results")).scaled(given.pop("infer_factor"))
    means = ", ".join(f"{name} {getattr(stages, name).mean():.3f} s" for name in ("read", "infer", "write"))
    sys.stdout.write(f"{len(stages.infer)} cases: {means}\n\n{table(stages, Shared(**given))}\n")


if __name__ == "__main__":
    main()
