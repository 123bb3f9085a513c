"""The commands of ``medsam3``, and the way from an error to one line on stderr and an exit code.

Exit codes: 0 done, 1 a fault of the program or the machine, 2 input that cannot be used, 130 cancelled.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from MedSAM3Core.cli import (
    agent,
    agent_ablation,
    batch,
    benchmark,
    demo,
    evaluate,
    finetune,
    models,
    segment,
    terminal,
    track,
    worker,
)
from MedSAM3Core.errors import Cancelled, MedSAM3Error

UsageError = typer.BadParameter.__mro__[1]
"""Typer's base of all errors in options and arguments; it has no public name of its own."""

_HELP = """
Segment medical images by typed concepts:

[bold]medsam3 segment ct.nii.gz -c liver -c "left kidney" -o out.seg.nrrd[/bold]

Reads NRRD, NIfTI, MetaImage, DICOM files and folders, PNG, JPEG, TIFF and BMP. Nothing leaves this machine; only
[bold]medsam3 models download[/bold] uses the network, and [bold]medsam3 agent[/bold] after it has shown what it sends.
For research, not for clinical use.
"""
_EPILOG = (
    "Exit codes: 0 done, 1 a fault, 2 input that cannot be used, 130 cancelled. "
    "--debug, in any place, shows an error's origin."
)

app = typer.Typer(
    name="medsam3",
    help=_HELP,
    epilog=_EPILOG,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("segment")(segment.segment)
app.command("agent")(agent.agent)
app.command("agent-ablation", hidden=True)(agent_ablation.agent_ablation)
app.command("batch")(batch.batch)
app.command("track")(track.track)
app.command("demo")(demo.demo)
app.add_typer(models.app, name="models")
app.command("benchmark")(benchmark.benchmark)
app.command("evaluate")(evaluate.evaluate)
app.command("finetune")(finetune.finetune)
app.command("worker")(worker.worker)


def _show_version(wanted: bool) -> None:
    if wanted:
        from MedSAM3Core.version import __version__

        print(f"medsam3 {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log everything, and show the whole traceback of an error.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # accepted in any place, so that it can be added to a command that just failed
    words = [word for word in words if word != "--debug"]
    _prepare(debug)
    try:
        result = app(words, prog_name="medsam3", standalone_mode=False)
        sys.stdout.flush()
        if result == Cancelled.exit_code:  # typer turns an interrupt into this code without a word
            return _report(Cancelled())
        return result if isinstance(result, int) else 0
    except BaseException as error:  # the process boundary: every error becomes a line and a code
        if debug:
            traceback.print_exc()
        return _report(error)


def _report(error: BaseException) -> int:
    if isinstance(error, MedSAM3Error):
        terminal.complain(str(error))
        return error.exit_code
    if isinstance(error, UsageError):
        hint = getattr(getattr(error, "ctx", None), "command_path", "medsam3")
        terminal.complain(f"{_sentence(error.format_message())} See '{hint} --help'.")  # type: ignore[attr-defined]
        return 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        terminal.complain(str(Cancelled()))
        return Cancelled.exit_code
    if _reader_has_gone(error):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if _memory_ran_out(error):
        terminal.complain("Memory ran out; close other programs, or use a smaller volume.")
        return 1
    detail = f"{type(error).__name__}: {error}".splitlines()[0]
    terminal.complain(
        f"An unexpected error occurred ({detail}); run the command again with --debug and report it."
    )
    return 1


def _reader_has_gone(error: BaseException) -> bool:
    """Whether the reader of our pipe left, as in ``| head``: nothing is wrong. Typer hides that in a SystemExit."""
    return isinstance(error, BrokenPipeError) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )


def _memory_ran_out(error: BaseException) -> bool:
    """Python says so by a class, torch by words in a RuntimeError."""
    if isinstance(error, RuntimeError):
        from MedSAM3Core.worker.backend import looks_out_of_memory

        return looks_out_of_memory(error)
    return isinstance(error, MemoryError)


def _sentence(text: str) -> str:
    """A message of the option parser as one sentence that ends with a full stop."""
    joined = " ".join(text.split())
    return joined if joined.endswith((".", "!", "?")) else f"{joined}."


def _prepare(debug: bool) -> None:
    """Keep the libraries quiet unless asked, and offline: only a download may use the network, and says so."""
    level = logging.DEBUG if debug else logging.ERROR
    logging.basicConfig(
        level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger().handlers[0].setLevel(
        level
    )  # pydicom's logger has a level of its own: a line for every slice
    logging.captureWarnings(True)  # as if they were logged
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if debug else "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
