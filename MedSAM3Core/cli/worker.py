"""``medsam3 worker``: the protocol of docs/protocol.md on standard input and output."""

from __future__ import annotations

from typing import Annotated

import typer


def worker(
    idle_release: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Release models and features after so many seconds without a request; 0 never does.",
        ),
    ] = 900,
) -> None:
    """Compute for another program, by the worker protocol on stdin and stdout, until stdin ends.

    3D Slicer starts this by itself; over SSH it makes a remote GPU usable: [bold]ssh host medsam3 worker[/bold]
    """
    from MedSAM3Core.worker.server import main

    raise typer.Exit(main(["--idle-release", str(idle_release)]))
