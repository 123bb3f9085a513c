"""How fast a box is answered, and what boxes are worth; run by hand, its figures are in docs/benchmarks.md.

::

    python Testing/inference/benchmark_refine.py time [--model demo] [--slices 100] [--size 256]
    python Testing/inference/benchmark_refine.py dice DATA [--model demo] [--cases 4] [--boxes 3] [--lite FOLDER]

``time`` needs nothing but a model: a made-up volume with a bright tube through it, all features there already, as in
a session in which a concept was segmented. ``dice`` measures held-out patients of a data pack. ``--lite`` names the
folder that LiteMedSAM's package was installed in (MedSAM3Core/evaluation/baselines.py says how); without it that
comparison is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from MedSAM3Core import Box, Segmentation, Segmenter, Volume
from MedSAM3Core.evaluation.baselines import LiteMedSAM
from MedSAM3Core.evaluation.boxes import BoxScore, measure_boxes, summarise_boxes
from MedSAM3Core.inference.session import Session
from MedSAM3Core.training.pack import Case, read_pack, split_of


def tube(slices: int, size: int) -> np.ndarray:
    """uint8 (slices, rows, columns): a noisy ground with a bright tube through all slices."""
    rng = np.random.default_rng(3)
    rows, columns = np.indices((size, size))
    array = rng.normal(60, 12, (slices, size, size))
    for n in range(slices):
        middle = size * (0.5 + 0.1 * np.sin(n / 15))
        array[n] += 110 * ((rows - middle) ** 2 + (columns - size / 2) ** 2 < (size / 7) ** 2)
    return array.clip(0, 255).astype(np.uint8)


def seconds(call, repeats: int) -> list[tuple[float, float]]:
    """Wall and processor seconds of each repetition, after one that warms up."""
    call()
    taken = []
    for _ in range(repeats):
        started, computed = time.perf_counter(), time.process_time()
        call()
        taken.append((time.perf_counter() - started, time.process_time() - computed))
    return taken


def measure_time(arguments: argparse.Namespace) -> None:
    """Box to slice, and box to volume."""
    segmenter = Segmenter.from_pretrained(arguments.model, device=arguments.device)
    trained = segmenter.model.card.tracks
    if not trained:  # its answers are worth nothing, but it computes as much as a trained one
        card = segmenter.model.card.model_copy(update={"tracks": True})
        segmenter = Segmenter(dataclasses.replace(segmenter.model, card=card))
    volume = Volume.from_array(tube(arguments.slices, arguments.size), modality="MR")
    # Runs never end before their limit, and reach through the whole volume: the longest rerun there is.
    longest = {"end_score": 0.0, "end_area_share": -1.0, "reach_mm": 1e6, "anchor_spacing_mm": 1e6}
    with segmenter.open(volume, mode="thorough", **longest) as session:
        before = session.segment("liver")
        k, half = arguments.slices // 2, arguments.size // 6
        middle = arguments.size // 2
        box = Box.on_slice(k, (middle - half, middle + half), (middle - half, middle + half))
        settled, reached = through_all(session, before, box)
        on_slice = seconds(lambda: session.refine(settled, boxes=[box], propagate=False), arguments.repeats)
        on_volume = seconds(lambda: session.refine(settled, boxes=[box]), arguments.repeats)
    print(f"model {arguments.model}, {arguments.slices} slices of {arguments.size} x {arguments.size}")
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    note = "trained" if trained else "UNTRAINED: time only"
    print(f"the tracker is {note}; the rerun went through {reached} slices")
    for name, taken in (("box to slice", on_slice), ("box to volume", on_volume)):
        wall, computed = ([one[n] for one in taken] for n in (0, 1))
        print(
            f"{name}: least {min(wall):.3f} s, median {statistics.median(wall):.3f} s; "
            f"processor time, median {statistics.median(computed):.3f} s; n={len(taken)}"
        )


def through_all(session: Session, before: Segmentation, box: Box) -> tuple[Segmentation, int]:
    """A segmentation with the tube on every slice and both ends settled: the longest rerun there is."""
    array = session.plan.to_grid(session.plan.to_plane(session.volume.array) > 120)
    full = Segmentation.from_mask(
        before.concept,
        before.geometry,
        array,
        probability=array * 0.6,
        provenance=before.provenance,
        anchors=(0, session.plan.count - 1),
    )
    after = session.refine(full, boxes=[box])
    changed = (session.plan.to_plane(after.probability_map() != full.probability_map())).any(axis=(1, 2))
    return full, int(changed.sum())


def choose(data: Path, per_source: int) -> list[Case]:
    """Some held-out cases of every data set, always the same."""
    chosen = defaultdict(list)
    for case in sorted(read_pack(data), key=lambda case: str(case.image)):
        if split_of(case.patient) == "test" and len(chosen[case.source]) < per_source:
            chosen[case.source].append(case)
    return [case for cases in chosen.values() for case in cases]


def measure_dice(arguments: argparse.Namespace) -> None:
    """The table of Dice by boxes."""
    groups_file = arguments.data / "concept_groups.json"
    groups = json.loads(groups_file.read_text()) if groups_file.exists() else {}
    peer = LiteMedSAM(arguments.lite) if arguments.lite else None
    cases = [
        case
        for case in choose(arguments.data, arguments.cases)
        if case.source in arguments.sources or not arguments.sources
    ]
    segmenter = Segmenter.from_pretrained(arguments.model, device=arguments.device)
    scores = measure_boxes(segmenter, cases, groups, arguments.boxes, peer)
    show(scores, peer)
    if arguments.output:
        arguments.output.write_text(json.dumps([vars(score) for score in scores], indent=1))


def show(scores: list[BoxScore], peer: LiteMedSAM | None) -> None:
    """Markdown, as it stands in docs/benchmarks.md."""
    if peer is None:
        print("LiteMedSAM was left out; name its folder with --lite.")
    counts = range(len(scores[0].whole))
    columns = [f"Dice, {n} boxes" for n in counts] + [f"boxed slices, {n}" for n in counts[1:]]
    if peer:
        columns += [f"{peer.name}, {n}" for n in counts[1:]] + [
            f"{peer.name}, boxed slices, {n}" for n in counts[1:]
        ]
    columns += [f".90 within {n}" for n in counts]
    print("| data set | pairs | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * (len(columns) + 1))
    for row in summarise_boxes(scores):
        values = [*row.whole, *row.boxed[1:], *row.peer[1:], *row.peer_boxed[1:]]
        shares = [f"{100 * share:.0f}%" for share in row.enough]
        print(f"| {row.source} | {row.cases} | " + " | ".join([f"{v:.3f}" for v in values] + shares) + " |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    timing, worth = commands.add_parser("time"), commands.add_parser("dice")
    for command in (timing, worth):
        command.add_argument("--model", default="demo")
        command.add_argument("--device", default="auto")
    timing.add_argument("--slices", type=int, default=100)
    timing.add_argument("--size", type=int, default=256)
    timing.add_argument("--repeats", type=int, default=5)
    timing.set_defaults(run=measure_time)
    worth.add_argument("data", type=Path)
    worth.add_argument("--cases", type=int, default=4, help="of each data set")
    worth.add_argument("--sources", nargs="*", default=[], help="data sets; all when not given")
    worth.add_argument("--boxes", type=int, default=3)
    worth.add_argument("--lite", type=Path)
    worth.add_argument("--output", type=Path, help="every pair's figures as JSON")
    worth.set_defaults(run=measure_dice)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
