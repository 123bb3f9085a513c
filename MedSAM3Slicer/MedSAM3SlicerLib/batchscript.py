"""A batch without the window::

    Slicer --no-main-window --python-script PATH/MedSAM3SlicerLib/batchscript.py INPUT... -c liver -o FOLDER [--resume]

Images are found, read and written by the code of ``medsam3 batch``; the model runs in the module's worker, in Slicer's
own Python or where ``--worker`` says. Ends Slicer with 0 when all is done, 1 when cases failed, 2 for input that cannot
be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import slicer


def parser() -> argparse.ArgumentParser:
    """The options; those of ``medsam3 batch`` as far as they are here."""
    options = argparse.ArgumentParser(
        prog="batchscript.py", description="Segment many images by typed concepts."
    )
    options.add_argument("inputs", nargs="+", metavar="INPUT", help="images, folders, or patterns in quotes")
    options.add_argument(
        "-c", "--concept", action="append", required=True, help="what to look for; repeatable"
    )
    options.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    options.add_argument("--resume", action="store_true", help="go on with the batch in the folder")
    options.add_argument("--retry-failed", action="store_true", help="run failed cases again")
    options.add_argument("--model", default="demo")
    options.add_argument("--device", default="auto")
    options.add_argument(
        "--worker", default="", help="a Python interpreter or a command; empty for Slicer's own"
    )
    return options


def run(arguments: Sequence[str]) -> int:
    """Run a batch; gives the exit code."""
    from MedSAM3Core.batch import BatchSettings, LocalEngine, Tally, find_cases, run_batch
    from MedSAM3Core.errors import MedSAM3Error
    from MedSAM3Core.worker import RemoteSegmenter, WorkerClient
    from MedSAM3SlicerLib.workers import workerSetup

    wanted = parser().parse_args(arguments)
    settings = BatchSettings(wanted.output, model=wanted.model)

    def say(tally: Tally) -> None:
        print(f"{tally.ended} of {tally.total} cases, {tally.failed} failed  {tally.current}", flush=True)

    try:
        found = find_cases(wanted.inputs, wanted.concept, wanted.output)
        setup = workerSetup(wanted.worker, slicer.util.startupEnvironment())
        with WorkerClient(setup.command, setup.env) as client:
            engine = LocalEngine(RemoteSegmenter(client, wanted.model, wanted.device), settings)
            summary = run_batch(
                found.cases,
                settings,
                engine,
                resume=wanted.resume,
                retry_failed=wanted.retry_failed,
                report=say,
            )
    except MedSAM3Error as fault:
        print(f"medsam3: {fault}", file=sys.stderr)
        return fault.exit_code
    for one in summary.failures:
        print(f"failed: {one.key}: {one.problem}", flush=True)
    print(
        f"{summary.done} done, {len(summary.failures)} failed; see {wanted.output / 'results.csv'}",
        flush=True,
    )
    return 1 if summary.failures else 0


def findModule() -> None:
    """Make the module's and the library's packages importable when this file is run from a checkout."""
    module = Path(__file__).resolve().parent.parent
    for folder in (module, module.parent):
        if (folder / "MedSAM3SlicerLib").is_dir() or (folder / "MedSAM3Core").is_dir():
            sys.path.append(str(folder))


if __name__ == "__main__":
    findModule()
    slicer.util.exit(run(sys.argv[1:]))
