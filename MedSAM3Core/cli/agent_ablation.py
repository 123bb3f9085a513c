"""``medsam3 agent-ablation``: what an agent recovers from base results that are wrong on purpose."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.errors import InputError

if TYPE_CHECKING:
    from MedSAM3Core.training.pack import Case

DataFolder = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="A folder with index.csv and volumes.csv, see docs/finetune.md."),
]
Images = Annotated[int, typer.Option("--images", metavar="N", min=0, help="Most held-out 2D images.")]
Volumes = Annotated[int, typer.Option("--volumes", metavar="N", min=0, help="Most held-out volumes.")]
Rounds = Annotated[
    int,
    typer.Option(
        "--rounds",
        metavar="N",
        min=1,
        max=10,
        help="Most rounds of segmenting and checking for each structure, 1 to 10.",
    ),
]


def agent_ablation(
    data: DataFolder,
    images: Images = 12,
    volumes: Volumes = 2,
    rounds: Rounds = 3,
    model: options.ModelName = "demo",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Show what an agent with a good and with a poor judge recovers from base results degraded on purpose.

    The judge is simulated: it knows the reference and is right with a known probability. No language model is asked.
    """
    from MedSAM3Core import Segmenter
    from MedSAM3Core.evaluation.ablation import degrade_and_recover, summarise

    cases = choose(data, images, volumes)
    segmenter = Segmenter.from_pretrained(model, device=device)
    with terminal.cancel_on_interrupt() as cancel, terminal.progress_bar() as progress:
        scores = degrade_and_recover(segmenter, cases, rounds, progress=progress, cancel=cancel)
    rows = summarise(scores)
    if as_json:
        terminal.print_json(
            {"model": model, "rows": [asdict(r) for r in rows], "cases": [asdict(s) for s in scores]}
        )
        return
    judges = [(f"judge {accuracy:.0%}", "right") for accuracy in (rows[0].agent if rows else ())]
    columns = [("base result", "left"), ("cases", "right"), ("text", "right"), ("text+box", "right"), *judges]
    cells = [
        [r.degradation, str(r.cases), *(f"{n:.3f}" for n in (r.base, r.box, *r.agent.values()))] for r in rows
    ]
    terminal.print_table(f"Mean Dice, {model}, at most {rounds} rounds", columns, cells)


def choose(data: Path, images: int, volumes: int) -> list[Case]:
    """Test cases, those with several structures first, spread over the sources.

    Raises:
        InputError: If there is none.
    """
    from MedSAM3Core.training.pack import read_pack, split_of

    held_out = [c for c in read_pack(data) if split_of(c.patient) == "test"]
    held_out.sort(key=lambda case: len(case.concepts) < 2)
    flat = spread([c for c in held_out if not c.is_volume], images)
    deep = spread([c for c in held_out if c.is_volume], volumes)
    if not flat and not deep:
        raise InputError(f"The folder {data} holds no test case; give another one.")
    return [*flat, *deep]


def spread(cases: list[Case], most: int) -> list[Case]:
    """At most ``most`` cases, one of each source in turn, in the order of the table."""
    by_source: dict[str, list[Case]] = {}
    for case in cases:
        by_source.setdefault(case.source, []).append(case)
    longest = max(map(len, by_source.values()), default=0)
    turns = [group[n] for n in range(longest) for group in by_source.values() if n < len(group)]
    return turns[:most]
