"""The measured comparison as rows, as a table for the documentation, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from MedSAM3Core.errors import InputError

MEGABYTE = 1_000_000
NAMES = {
    "ours": "ours",
    "video": "transformers' Sam3VideoModel",
    "images": "transformers' Sam3Model, float32, one slice and concept at a time",
}

Row = list[str]


def path_rows(document: dict[str, Any]) -> list[Row]:
    """Each path: name, seconds, 95th percentile, processor seconds, memory, GPU memory, times ours, Dice with ours."""
    ours = document["paths"]["ours"]["seconds"]["median"]
    rows = []
    for name, path in document["paths"].items():
        seconds, processor = path["seconds"], path["processor_seconds"]
        agreement = "" if name == "ours" else _dice(document["dice"][name], document["synthetic"])
        rows.append(
            [
                NAMES[name] + _scaled(document, name),
                f"{seconds['median']:.2f}",
                f"{seconds['p95']:.2f}" if path["repeats"] > 1 else "",
                f"{processor['median']:.1f}",
                f"{path['host_bytes'] / MEGABYTE:.0f}",
                "" if path["device_bytes"] is None else f"{path['device_bytes'] / MEGABYTE:.0f}",
                f"{seconds['median'] / ours:.2f}",
                agreement,
                _truth(document, name),
            ]
        )
    floor = document["floor"]["seconds"]["total"]
    rows.append(["arithmetic floor", f"{floor:.2f}", "", "", "", "", f"{floor / ours:.2f}", "", ""])
    if (rerun := document["rerun_with_one_box"]) is not None:
        took, worked = rerun["seconds"], rerun["processor_seconds"]
        memory = f"{rerun['host_bytes'] / MEGABYTE:.0f}"
        rows.append(
            [
                "ours, a rerun with one box",
                f"{took['median']:.2f}",
                f"{took['p95']:.2f}",
                f"{worked['median']:.1f}",
                memory,
                *[""] * 4,
            ]
        )
    return rows


PATH_COLUMNS = (
    "path",
    "seconds",
    "p95",
    "processor s",
    "host MB",
    "GPU MB",
    "times ours",
    "Dice with ours",
    "Dice with reference",
)


def stage_rows(document: dict[str, Any]) -> list[Row]:
    """Stages of our path: name, median and 95th percentile in seconds."""
    stages = document["paths"]["ours"]["stages"]
    return [[name, f"{v['median']:.2f}", f"{v['p95']:.2f}"] for name, v in stages.items()]


STAGE_COLUMNS = ("stage of ours", "seconds", "p95")


def part_rows(document: dict[str, Any]) -> list[Row]:
    """Parts of the network: name, GFLOP, milliseconds, 95th percentile, and what share of the best rate that is."""
    rate = document["floor"]["flops"]
    rows = []
    for part in document["parts"]:
        seconds = part["seconds"]
        rows.append(
            [
                f"{part['name']}, a {part['unit']}",
                f"{part['flops'] / 1e9:.2f}",
                f"{seconds['median'] * 1e3:.2f}",
                f"{seconds['p95'] * 1e3:.2f}",
                f"{part['flops'] / seconds['median'] / rate:.0%}",
            ]
        )
    return rows


PART_COLUMNS = ("part", "GFLOP", "ms", "p95", "of the best rate")


def facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What the tables hold for."""
    work, floor = document["work"], document["floor"]
    return [
        ("subject", f"{document['subject']}; {', '.join(document['concepts'])}"),
        (
            "work of ours",
            f"{work['slices']} slices encoded, {work['pairs']} pairs detected, {work['steps']} tracker steps",
        ),
        (
            "best rates",
            f"{floor['flops'] / 1e9:.0f} GFLOP/s ({floor['dtype']}), copies {floor['bytes'] / 1e9:.1f} GB/s",
        ),
        ("precision", f"{document['precision']} on {document['device']}"),
        ("load", "unknown" if document["load"] is None else " ".join(map(str, document["load"]))),
        *[(name, f"{value:.2f}") for name, value in document["ratios"].items()],
    ]


def markdown(document: dict[str, Any]) -> str:
    """All tables, ready for ``docs/benchmarks.md``."""
    lines = [f"{name}: {value}  " for name, value in facts(document)]
    for columns, rows in (
        (PATH_COLUMNS, path_rows(document)),
        (STAGE_COLUMNS, stage_rows(document)),
        (PART_COLUMNS, part_rows(document)),
    ):
        lines += ["", as_table(columns, rows)]
    return "\n".join(lines)


def as_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table."""
    return "\n".join([_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]) + "\n"


def plot(document: dict[str, Any], path: Path) -> None:
    """Bars: seconds of every path, and where ours spends them.

    Raises:
        InputError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "The picture needs matplotlib, which is not installed; run: pip install matplotlib."
        ) from error
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = {"ours": "ours", "video": "Sam3VideoModel", "images": "Sam3Model,\nslice by slice"}
    bars = {names[name]: p["seconds"]["median"] for name, p in document["paths"].items()}
    bars["arithmetic\nfloor"] = document["floor"]["seconds"]["total"]
    colours = ["#1f77b4", *["#b0b0b0"] * (len(bars) - 2), "#dddddd"]
    drawn = left.barh(list(bars), list(bars.values()), color=colours)
    left.bar_label(drawn, fmt="%.1f s", padding=3)
    left.set(xlabel="seconds", title=f"{document['slices']} slices, {len(document['concepts'])} concepts")
    left.invert_yaxis()
    left.margins(x=0.15)
    stages = document["paths"]["ours"]["stages"]
    shown = right.barh(list(stages), [v["median"] for v in stages.values()], color="#1f77b4")
    right.bar_label(shown, fmt="%.2f s", padding=3)
    right.set(xlabel="seconds", title="stages of ours")
    right.invert_yaxis()
    right.margins(x=0.25)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{document['subject']} ({document['device']}, {document['precision']})", fontsize=9)
    figure.savefig(path, dpi=150)


def _scaled(document: dict[str, Any], name: str) -> str:
    seen, count = document["reference_slices"], document["slices"]
    return "" if name == "ours" or seen == count else f" (scaled from {seen} slices)"


def _dice(values: Sequence[float | None], synthetic: bool) -> str:
    if synthetic:
        return "not meant"
    return ", ".join("both empty" if value is None else f"{value:.3f}" for value in values)


def _truth(document: dict[str, Any], name: str) -> str:
    known = document["dice_with_reference"] or {}
    return _dice(known[name], False) if name in known else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
