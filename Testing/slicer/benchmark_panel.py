"""Figures for docs/benchmarks.md: ``python Testing/slicer/benchmark_panel.py [--model NAME|PATH]``.

Each figure is the median of repeated runs with its spread; compared ways are run in turns, since timings of a shared
machine vary.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "MedSAM3Slicer"))

import numpy as np  # noqa: E402
import pythonqt  # noqa: E402
import slicer  # noqa: E402
from mrml_scene import Application, result  # noqa: E402
from panel_scene import Clock, NoCommand, Opened  # noqa: E402
from sample_volume import loadSample  # noqa: E402

from MedSAM3Core.worker import WorkerClient  # noqa: E402
from MedSAM3SlicerLib.adapter.history import LogicHistory  # noqa: E402
from MedSAM3SlicerLib.adapter.segments import SegmentWriter, cropImage, makeReady  # noqa: E402
from MedSAM3SlicerLib.sampledata import samples  # noqa: E402

SHAPE = (300, 512, 512)
DOUBLE = f"{sys.executable} {Path(__file__).with_name('threshold_worker.py')}"


def client(setup, onEvent, onQuestion):
    return WorkerClient(setup.command, setup.env, onEvent, on_question=onQuestion)


def organ(fraction):
    """Mask (300, 512, 512) of an ellipsoid whose box is this share of each axis."""
    half = [int(n * fraction / 2) for n in SHAPE]
    grid = np.ogrid[tuple(slice(-h, h) for h in half)]
    crop = sum((axis / h) ** 2 for axis, h in zip(grid, half, strict=True)) < 1
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(n // 2 - h, n // 2 + h) for n, h in zip(SHAPE, half, strict=True))] = crop
    return mask


def show(name, seconds):
    milliseconds = sorted(1000 * value for value in seconds)
    spread = f"{milliseconds[0]:.1f} to {milliseconds[-1]:.1f}, n={len(seconds)}"
    print(f"{name}: median {statistics.median(milliseconds):.1f} ms, {spread}")


def writeBack(repeats):
    """A segment of a 300x512x512 volume: new, replaced, and by the logic's own way."""
    application = Application()
    volume = application.addVolume(np.zeros(SHAPE, np.int16), (0.7, 0.7, 1.5))
    writer = SegmentWriter(application.scene, application.editorLogic, LogicHistory(application.editorLogic))
    for label, fraction in (("liver-sized, 120x205x205", 0.4), ("body-sized, 270x460x460", 0.9)):
        found = result(volume, organ(fraction), "organ")
        times = {"new segment": [], "replacing its own": [], "ModifySegmentByLabelmap alone": []}
        for _ in range(repeats):
            for name, seconds in writeThreeWays(application, writer, volume, found).items():
                times[name].append(seconds)
        for name, seconds in times.items():
            show(f"write-back, {name}, {label}", seconds)
    application.close()


def writeThreeWays(application, writer, volume, found):
    """Seconds of a new segment, of replacing it, and of the segment editor logic's own way, in turns."""
    node = writer.createNode(volume)
    # The logic does this on another thread, anew for each write.
    first, second = [makeReady(found)], [makeReady(found)]

    def write(ready):
        for _ in writer.writeSteps(node, volume, [found], ready=ready):
            pass

    seconds = {
        "new segment": timed(lambda: write(first)),
        "replacing its own": timed(lambda: write(second)),
    }
    image, editor = cropImage(found, volume), application.editorLogic
    segmentId = node.GetSegmentation().GetNthSegmentID(0)
    seconds["ModifySegmentByLabelmap alone"] = timed(
        lambda: editor.ModifySegmentByLabelmap(
            node, segmentId, image, editor.ModificationModeSet, False, False
        )
    )
    application.scene.RemoveNode(node)
    return seconds


def writeUnderMasks(repeats):
    """A new segment of a 300x512x512 volume beside another one, under what the user can set in the segment editor."""
    application = Application()
    volume = application.addVolume(np.zeros(SHAPE, np.int16), (0.7, 0.7, 1.5))
    writer = SegmentWriter(application.scene, application.editorLogic, LogicHistory(application.editorLogic))
    editor, modes = application.editorNode, slicer.vtkMRMLSegmentationNode
    neighbour, unmasked = result(volume, organ(0.6), "neighbour"), modes.EditAllowedEverywhere
    settings = {
        "inside a segment": (modes.EditAllowedInsideSingleSegment, False, editor.OverwriteNone),
        "outside all segments": (modes.EditAllowedOutsideAllSegments, False, editor.OverwriteNone),
        "in an intensity range": (unmasked, True, editor.OverwriteNone),
        "overwriting": (unmasked, False, editor.OverwriteAllSegments),
    }
    editor.SetSourceVolumeIntensityMaskRange(-100, 100)
    for label, fraction in (("liver-sized", 0.4), ("body-sized", 0.9)):
        found = result(volume, organ(fraction), "organ")
        for name, (mode, byIntensity, overwriting) in settings.items():
            times = {"write-back": [], "ModifySegmentByLabelmap alone": []}
            for _ in range(repeats):
                for way, seconds in times.items():
                    editor.SetMaskMode(unmasked)
                    editor.SetSourceVolumeIntensityMask(False)
                    editor.SetOverwriteMode(editor.OverwriteNone)
                    node = writer.createNode(volume)
                    (beside,) = writer.write(node, volume, [neighbour])
                    editor.SetMaskMode(mode)
                    editor.SetMaskSegmentID(beside.segmentId)
                    editor.SetSourceVolumeIntensityMask(byIntensity)
                    editor.SetOverwriteMode(overwriting)
                    seconds.append(writeOneWay(application, writer, node, volume, found, way))
                    application.scene.RemoveNode(node)
            for way, seconds in times.items():
                show(f"{way}, {name}, {label}", seconds)
    application.close()


def writeOneWay(application, writer, node, volume, found, way):
    """Seconds of a new segment: ours with all that belongs to it, or the change of voxels by the logic only."""
    if way == "write-back":
        ready = [makeReady(found)]
        return timed(lambda: list(writer.writeSteps(node, volume, [found], ready=ready)))
    image, logic = cropImage(found, volume), application.editorLogic
    segmentId = node.GetSegmentation().AddEmptySegment("organ", "organ")
    return timed(
        lambda: logic.ModifySegmentByLabelmap(node, segmentId, image, logic.ModificationModeSet, False, False)
    )


def stalls(repeats):
    """Longest stall of the event loop during a run through a real process, 300x512x512."""
    for kind in (np.int16, np.float32):
        longest, busy, idle = [], [], []
        for _ in range(repeats):
            opened = Opened(client)
            opened.ui.workerLineEdit.text = DOUBLE
            array = np.full(SHAPE, -500, kind)
            array[organ(0.4)] = 60
            opened.ui.inputSelector.setCurrentNode(opened.application.addVolume(array, (0.7, 0.7, 1.5)))
            opened.type("liver")
            pythonqt.process(200)
            clock = Clock()
            started = time.perf_counter()
            opened.press(opened.ui.segmentButton)
            run = opened.wait(300)
            assert run.error is None, run.error
            longest.append(clock.longest)
            busy.append(clock.longestBusy)
            clock.restart()
            pythonqt.process(round(1000 * (time.perf_counter() - started)))
            idle.append(clock.longest)
            clock.stop()
            opened.close()
        show(f"longest stall of the event loop during a run, {kind.__name__}", longest)
        show("the same, what the window's own thread computed", busy)
        show("the same of an idle panel, as long, on the same machine", idle)


def manySegments(count=50):
    """A scene with 50 segments: one more table refresh, one more write, and the stall they make."""
    opened = Opened(client)
    volume = opened.application.addVolume(np.zeros((150, 256, 256), np.int16), (1, 1, 2))
    opened.ui.inputSelector.setCurrentNode(volume)
    rng = np.random.default_rng(1)
    found = []
    for n in range(count):
        mask = np.zeros((150, 256, 256), bool)
        k, j, i = (int(rng.integers(0, size - 40)) for size in mask.shape)
        mask[k : k + 30, j : j + 40, i : i + 40] = True
        found.append(result(volume, mask, f"lesion {n}"))
    node = opened.logic.writer.createNode(volume)
    opened.logic.writer.write(node, volume, found)
    opened.ui.segmentationSelector.setCurrentNode(node)
    pythonqt.process(1500)
    show("table of 50 segments, refresh", [timed(opened.panel.segmentTable.refresh) for _ in range(10)])
    clock = Clock()
    writes = [timed(lambda n=n: opened.logic.writer.write(node, volume, [found[n]])) for n in range(10)]
    clock.restart()
    pythonqt.process(1000)
    show("write-back into a segmentation of 50, 30x40x40", writes)
    saves = []
    for n in range(10):
        opened.logic.writer.write(node, volume, [found[n]])
        saves.append(timed(lambda: opened.logic.writer.history.saveState(node)))
    show("of which Slicer's own saving of an undo state", saves)
    print(f"longest stall afterwards (table, millilitres): {1000 * clock.longest:.1f} ms")
    opened.close()


def firstSegment(model):
    """Panel opened to first segment of the sample CT, the worker's start included."""
    sample = samples()[0]
    application = Application()
    loadSample(application, sample)
    application.close()
    started = time.perf_counter()
    opened = Opened(client, NoCommand)
    volume = loadSample(opened.application, sample)
    opened.ui.inputSelector.setCurrentNode(volume)
    shown = time.perf_counter()
    opened.panel._parameters.model = model
    opened.type(sample.concepts[0])
    clock = Clock()
    opened.press(opened.ui.segmentButton)
    run = opened.wait(600)
    ended = time.perf_counter()
    clock.stop()
    print(f"panel built and sample shown: {shown - started:.2f} s")
    print(f"panel opened to first segment ({sample.concepts[0]}): {ended - started:.1f} s; {run.outcome}")
    print(f"longest stall meanwhile: {1000 * clock.longest:.1f} ms")
    again = time.perf_counter()
    opened.panel.conceptField.setPhrases([sample.concepts[1]])
    opened.press(opened.ui.segmentButton)
    opened.wait(600)
    print(f"second concept ({sample.concepts[1]}) on the same features: {time.perf_counter() - again:.1f} s")
    opened.close()


def timed(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    writeBack(options.repeats)
    writeUnderMasks(options.repeats)
    stalls(options.repeats)
    manySegments()
    if options.model:
        firstSegment(options.model)
