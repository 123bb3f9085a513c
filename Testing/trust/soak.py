"""Thousands of cycles in one worker process, and hundreds of scenes under one panel: does anything grow?

``python Testing/trust/soak.py [--cycles 2000] [--scenes 200] [--model double]`` prints two tables and ends with 1 if
memory, descriptors, threads or temporary files grew. With ``--model demo`` the worker computes with the demo model;
without it, with the worker tests' double, which exercises everything but the network: process, pipes, files, sessions.

A tenth of the cycles is warm-up: allocators and caches fill. From then on memory must stay within `MEMORY_SHARE`.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
SLICER_TESTS = ROOT / "Testing" / "slicer"
MEMORY_SHARE = 0.05
MEMORY_SLACK = 20 * 2**20
LOOKS = 20


@dataclass(frozen=True)
class Look:
    """What some processes hold together at one moment.

    Attributes:
        cycle: After how many.
        memory: Resident bytes.
        descriptors: Open.
        threads: Running.
        files: In the temporary folder.
    """

    cycle: int
    memory: int
    descriptors: int
    threads: int
    files: int


def look(cycle: int, processes: list[psutil.Process], folder: Path) -> Look:
    """Look at processes and their temporary folder."""
    gc.collect()
    return Look(
        cycle,
        sum(one.memory_info().rss for one in processes),
        sum(one.num_fds() for one in processes),
        sum(one.num_threads() for one in processes),
        sum(len(files) for _, _, files in os.walk(folder)),
    )


def grown(looks: list[Look]) -> list[str]:
    """What grew after the warm-up, in words: the last quarter against the first quarter behind the warm-up."""
    settled = looks[len(looks) // 10 + 1 :]
    quarter = max(1, len(settled) // 4)
    found = []
    for name in ("memory", "descriptors", "threads", "files"):
        first = max(getattr(one, name) for one in settled[:quarter])
        last = min(getattr(one, name) for one in settled[-quarter:])
        allowed = first * MEMORY_SHARE + MEMORY_SLACK if name == "memory" else 0
        if last > first + allowed:
            found.append(f"{name} grew from {first:,} to {last:,}")
    return found


def table(title: str, looks: list[Look], seconds: float) -> str:
    """Markdown: begin, middle and end."""
    chosen = [looks[0], looks[len(looks) // 10 + 1], looks[len(looks) // 2], looks[-1]]
    lines = [
        f"{title}, {seconds:.0f} s:",
        "",
        "| after | memory, MiB | descriptors | threads | temporary files |",
    ]
    lines.append("|---|---|---|---|---|")
    for one in chosen:
        lines.append(
            f"| {one.cycle:,} | {one.memory / 2**20:.1f} | {one.descriptors} | {one.threads} | {one.files} |"
        )
    return "\n".join(lines)


def repeat(count: int, act: Callable[[int], None], see: Callable[[int], Look]) -> tuple[list[Look], float]:
    """Act ``count`` times and look `LOOKS` times."""
    started, looks = time.monotonic(), []
    for cycle in range(count):
        act(cycle)
        if (cycle + 1) % max(1, count // LOOKS) == 0 or cycle == 0:
            looks.append(see(cycle + 1))
    return looks, time.monotonic() - started


def soak_worker(cycles: int, model: str) -> tuple[list[Look], float]:
    """Segment, refine with a box, and every tenth time open a new volume, in one worker process."""
    from MedSAM3Core import Box
    from MedSAM3Core.volume import Volume
    from MedSAM3Core.worker import WorkerClient, default_command

    double = [sys.executable, str(ROOT / "Testing/worker/double_worker.py")]
    array = np.random.default_rng(0).integers(-50, 50, (12, 64, 64)).astype(np.int16)
    array[4:8, 20:40, 20:40] = 300
    volume = Volume.from_array(array, spacing=(1, 1, 3), modality="CT")
    with (
        tempfile.TemporaryDirectory() as name,
        WorkerClient(double if model == "double" else default_command(), temporary=Path(name)) as client,
    ):
        sessions = [client.open(volume, model=model)]

        def act(cycle: int) -> None:
            if cycle % 10 == 9:
                sessions.pop().close()
                sessions.append(client.open(volume, model=model))
            found = sessions[0].segment("liver")
            sessions[0].refine(found, boxes=[Box.on_slice(k=cycle % 12, i=(10, 50), j=(10, 50))])

        act(0)
        both = [psutil.Process(), psutil.Process(client.pid)]
        return repeat(cycles, act, lambda cycle: look(cycle, both, Path(name)))


def soak_scenes(scenes: int) -> tuple[list[Look], float]:
    """Load an image, segment, undo and redo, close the scene, with the panel open all the time."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT / "Testing"]
    sys.path += [str(ROOT / "MedSAM3Slicer"), str(SLICER_TESTS)]
    from doubles import ThresholdClient
    from mrml_scene import phantom
    from panel_scene import Opened

    from MedSAM3SlicerLib.parameternode import PanelParameters
    from MedSAM3SlicerLib.runs import State

    client = ThresholdClient()
    opened = Opened(client)
    array = phantom((10, 40, 48))

    def act(_: int) -> None:
        node = opened.application.addVolume(array, spacing=(1, 1, 3), name="CT")
        opened.ui.inputSelector.setCurrentNode(node)
        opened.type("liver")
        opened.press(opened.ui.segmentButton)
        assert opened.wait().state is State.FINISHED
        opened.panel.undo()
        opened.panel.redo()
        opened.panel.setParameters(None)
        opened.scene.Clear(0)
        client.sessions.clear()
        client.asked.clear()
        parameterNode = opened.scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "MedSAM3Slicer")
        opened.panel.setParameters(PanelParameters(parameterNode))

    with tempfile.TemporaryDirectory() as name:
        tempfile.tempdir = name
        try:
            return repeat(scenes, act, lambda cycle: look(cycle, [psutil.Process()], Path(name)))
        finally:
            tempfile.tempdir = None
            opened.close()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=2000)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--model", default="double", help="'double', or a model's name.")
    given = parser.parse_args()
    problems = []
    if given.cycles:
        looks, seconds = soak_worker(given.cycles, given.model)
        print(table(f"{given.cycles:,} cycles of segment and refine, model '{given.model}'", looks, seconds))
        problems += grown(looks)
    if given.scenes:
        looks, seconds = soak_scenes(given.scenes)
        print("\n" + table(f"{given.scenes:,} scenes opened, segmented and closed", looks, seconds))
        problems += grown(looks)
    print("\n" + ("; ".join(problems) if problems else "nothing grew"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
