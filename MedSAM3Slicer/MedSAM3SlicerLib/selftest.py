"""What the module's self-test runs inside Slicer. Not run in Slicer by this project's CI, which has no Slicer."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util

from MedSAM3Core.concepts import resolve
from MedSAM3Core.prompts import TERMINOLOGY_CONTEXT
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3SlicerLib import desktop, sampledata, terminology
from MedSAM3SlicerLib.adapter.matrices import ijkToNode


def testTerminology(case: Any) -> None:
    """The terminology is loaded at start-up and knows what people type."""
    case.delayDisplay("Terminology")
    names = terminology.loadedTerminologies(slicer.modules.terminologies.logic())
    case.assertIn(TERMINOLOGY_CONTEXT, names)
    case.assertIsNotNone(resolve("Kidney left").coding)


def testWriteAndUndo(case: Any) -> None:
    """A result becomes a segment, and undo takes it away."""
    case.delayDisplay("Writing and undo")
    volume = _phantom()
    logic = desktop.makeLogic(slicer.mrmlScene)
    mask = slicer.util.arrayFromVolume(volume) > 0
    geometry = Geometry(mask.shape, ijkToNode(volume))
    result = Segmentation.from_mask(
        resolve("liver"), geometry, mask, provenance=Provenance("liver", "self-test")
    )
    node = logic.writer.createNode(volume)
    (written,) = logic.writer.write(node, volume, [result])
    shown = slicer.util.arrayFromSegmentBinaryLabelmap(node, written.segmentId, volume)
    case.assertTrue(np.array_equal(shown > 0, mask))
    logic.writer.history.undo()
    case.assertEqual(node.GetSegmentation().GetNumberOfSegments(), 0)
    logic.close()


def testPanel(case: Any) -> None:
    """The panel opens, takes a concept, and says what is missing beside its field."""
    case.delayDisplay("Panel")
    slicer.util.selectModule("MedSAM3Slicer")
    panel = slicer.modules.medsam3slicer.widgetRepresentation().self().panel
    panel.ui.inputSelector.setCurrentNode(None)
    case.assertIsNone(panel.segment())
    case.assertIn("input", panel.problems.sentences())
    panel.ui.conceptLineEdit.text = "liver"
    panel.conceptField.takeLine()
    case.assertEqual([concept.phrase for concept in panel.conceptField.concepts], ["liver"])


def testSegment(case: Any) -> None:
    """The whole path on the bundled image, if the worker's packages are installed."""
    panel = slicer.modules.medsam3slicer.widgetRepresentation().self().panel
    panel.installer.check()
    while panel.installer.isBusy:
        panel.installer.tick()
        slicer.app.processEvents()
    if not panel.installer.findings.ready:
        case.delayDisplay("Left out: " + panel.installer.findings.problems[0])
        return
    case.delayDisplay("Segmenting the sample")
    sample = sampledata.samples()[0]
    volume = sampledata.load(sample)
    logic = desktop.makeLogic(slicer.mrmlScene)
    node = logic.segment(volume, list(sample.concepts[:1]), model="demo")
    case.assertIsNotNone(node)
    case.assertEqual(node.GetSegmentation().GetNumberOfSegments(), 1)
    logic.close()


def _phantom() -> slicer.vtkMRMLScalarVolumeNode:
    """A ball in air."""
    z, y, x = np.ogrid[:20, :32, :32]
    array = np.where((z - 10) ** 2 * 2 + (y - 16) ** 2 + (x - 16) ** 2 < 100, 60, -1000).astype(np.int16)
    return slicer.util.addVolumeFromArray(array, name="phantom")
