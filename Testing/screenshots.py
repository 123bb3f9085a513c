"""Make the pictures of the README and the tutorial: the panel after a run, the result in the slice views, thumbnails.

``make screenshots`` runs the whole path on the bundled samples: the panel on real Qt widgets without a screen (its
Slicer widgets are the stand-ins of ``slicer/pythonqt.py`` and look plainer than Slicer's), a real worker process with
the demo model, and slice views drawn by Slicer's own displayable managers.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QT_SCALE_FACTOR", "1.5")

ROOT = Path(__file__).resolve().parents[1]
# In place of this script's own folder: slicer-core's package would take Testing/slicer for a part of itself.
sys.path[0] = str(ROOT / "Testing" / "slicer")
sys.path.append(str(ROOT / "MedSAM3Slicer"))

import pythonqt  # noqa: E402

pythonqt.install()  # before anything that imports qt

import numpy as np  # noqa: E402
from panel_scene import Opened  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from rendering import SliceView, savePng  # noqa: E402
from sample_volume import loadSample  # noqa: E402

from MedSAM3Core.worker import WorkerClient  # noqa: E402
from MedSAM3SlicerLib.installation import BackgroundCommand  # noqa: E402
from MedSAM3SlicerLib.sampledata import samples  # noqa: E402
from MedSAM3SlicerLib.segmenttable import formatMillilitres  # noqa: E402

VIEW = (420, 420)
FIELD_MM = {"Axial": 220.0, "Coronal": 300.0, "Sagittal": 300.0}


def main() -> int:
    """Make all pictures; returns 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="registry name or folder")
    parser.add_argument("--threshold", type=float, help="instead of the model's own")
    parser.add_argument("--output", type=Path, default=ROOT / "Resources" / "screenshots")
    parser.add_argument("--icons", type=Path, default=ROOT / "MedSAM3Slicer" / "Resources" / "Icons")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    head, histology = samples()[:2]
    good = picturesOf(head, options, ("Axial", "Coronal", "Sagittal"), "Sagittal", panel=True)
    return 0 if picturesOf(histology, options, ("Axial",), "Axial", panel=False) and good else 1


def picturesOf(sample, options, orientations, thumbnail, panel) -> bool:
    """Segment a sample through the panel and photograph it."""
    opened = Opened(
        lambda setup, *tell: WorkerClient(setup.command, setup.env, tell[0], on_question=tell[1]),
        BackgroundCommand,
    )
    volume = loadSample(opened.application, sample)
    opened.ui.inputSelector.setCurrentNode(volume)
    if panel:
        opened.panel.checkSetup()
        while opened.installer.isBusy:
            pythonqt.process(50)
    opened.panel._parameters.model = options.model
    if options.threshold is not None:
        opened.ui.useThresholdCheckBox.checked = True
        opened.ui.thresholdSlider.value = options.threshold
    opened.type(", ".join(sample.concepts))
    opened.press(opened.ui.segmentButton)
    while panel and opened.logic.isBusy and opened.ui.progressBar.value < 300:
        pythonqt.process(10)
    if panel:
        opened.widget.grab().save(str(options.output / "panel-running.png"))
    run = opened.wait(600)
    pythonqt.process(200)
    node = run.segmentationNode
    if panel:
        photographPanel(opened, options.output)
    pictures = {o: SliceView(opened.application, volume, o, VIEW) for o in orientations}
    for orientation, view in pictures.items():
        jump(view, node)
        if panel:
            view.zoom(FIELD_MM[orientation])
    shots = {o: view.picture() for o, view in pictures.items()}
    name = "overlay" if panel else sample.name
    savePng(withLegend(list(shots.values()), node, run, options.model), options.output / f"{name}.png")
    Image.fromarray(shots[thumbnail]).resize((260, 260)).save(
        options.icons / f"{sample.name}.png", optimize=True
    )
    print(f"{sample.title}: {opened.ui.statusLabel.text}")
    opened.close()
    return run.error is None


def photographPanel(opened, folder: Path) -> None:
    """The panel after the run, and with its folded parts open."""
    opened.widget.resize(460, 700)
    pythonqt.process(50)
    opened.widget.grab().save(str(folder / "panel.png"))
    opened.ui.advancedCollapsibleButton.collapsed = False
    opened.ui.refineCollapsibleButton.collapsed = False
    opened.widget.resize(460, 1000)
    pythonqt.process(50)
    opened.widget.grab().save(str(folder / "panel-unfolded.png"))
    opened.ui.advancedCollapsibleButton.collapsed = True
    opened.ui.refineCollapsibleButton.collapsed = True
    opened.ui.setupCollapsibleButton.collapsed = False
    if opened.ui.modelsTable.rowCount > 1:
        opened.ui.modelsTable.setCurrentCell(1, 0)
        while opened.installer.isBusy:
            pythonqt.process(50)
    pythonqt.process(100)
    opened.widget.grab().save(str(folder / "panel-setup.png"))


def jump(view, node) -> None:
    """Scroll a view to the slice that cuts most of the segments."""
    if node is None:
        return
    segmentation = node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    centres = np.array([node.GetSegmentCenterRAS(segmentId) for segmentId in ids])
    view.centre(centres[0] if len(centres) < 3 else np.median(centres, axis=0))


def withLegend(pictures, node, run, model) -> np.ndarray:
    """The pictures side by side with the segments' names, colours and millilitres beneath."""
    row = np.concatenate(pictures, axis=1)
    canvas = Image.new("RGB", (row.shape[1], row.shape[0] + 64), (24, 24, 24))
    canvas.paste(Image.fromarray(row), (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    x, y = 12, row.shape[0] + 8
    for segment in run.outcome.written:
        colour = node.GetSegmentation().GetSegment(segment.segmentId).GetColor()
        text = f"{segment.name} {formatMillilitres(segment.volumeMl)} ml"
        width = 18 + draw.textlength(text, font=font) + 18
        if x + width > canvas.width:
            x, y = 12, y + 22
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=tuple(round(255 * c) for c in colour))
        draw.text((x + 18, y), text, font=font, fill=(235, 235, 235))
        x += width
    note = f"Model {Path(model).name}. Not for clinical use."
    draw.text(
        (canvas.width - 12 - draw.textlength(note, font=font), canvas.height - 20),
        note,
        font=font,
        fill=(150, 150, 150),
    )
    return np.asarray(canvas)


if __name__ == "__main__":
    sys.exit(main())
