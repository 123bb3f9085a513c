"""MedSAM3 for 3D Slicer: type what to find, press Segment, get coded, coloured, editable segments.

This file is a shell: what it starts is in ``MedSAM3SlicerLib`` (the module) and ``MedSAM3Core`` (the library).
"""

import importlib.util
import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


def findCore() -> None:
    """Make ``MedSAM3Core`` importable when the module runs from a checkout, where it lies one folder up.

    In the built extension it lies beside this file, where Slicer looks already.
    """
    checkout = Path(__file__).resolve().parent.parent
    if importlib.util.find_spec("MedSAM3Core") is None and (checkout / "MedSAM3Core").is_dir():
        sys.path.append(str(checkout))


class MedSAM3Slicer(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MedSAM3"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = [
            "Segmentations",
            "Terminologies",
            "SubjectHierarchy",
            "Markups",
            "Sequences",
        ]
        self.parent.contributors = ["The MedSAM3 for 3D Slicer contributors"]
        self.parent.helpText = _(
            "Segments what you name in words, in CT, MR, ultrasound and other images. Type a concept such as liver, "
            "press Segment. Not for clinical use. Nothing leaves this computer unless you agree to ask the agent."
        )
        self.parent.acknowledgementText = _("Built on the SAM 3 family of models and on 3D Slicer.")
        slicer.app.connect("startupCompleted()", onStartupCompleted)


def onStartupCompleted() -> None:
    """Make the terminology and the sample data known; reads two small files, downloads nothing."""
    findCore()
    from MedSAM3Core.resources import resource_path
    from MedSAM3SlicerLib import sampledata, terminology

    path = resource_path("terminology") / terminology.FILE_NAME
    terminology.loadTerminology(slicer.modules.terminologies.logic(), path)
    sampledata.registerSampleData(Path(__file__).resolve().parent / "Resources" / "Icons")


class MedSAM3SlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Puts the panel into Slicer's window and tells it of scenes that come and go."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None

    def setup(self):
        """Called when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        findCore()
        from MedSAM3SlicerLib import desktop, panel

        widget = slicer.util.loadUI(self.resourcePath("UI/MedSAM3Slicer.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = MedSAM3SlicerLogic()
        self.panel = panel.Panel(
            widget,
            slicer.util.childWidgetVariables(widget),
            self.logic.segmentation,
            desktop.makeInstaller(Path(self.resourcePath("requirements.txt"))),
            desktop.makeDesktop(),
        )
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        slicer.app.connect("aboutToQuit()", self.cleanup)
        self.initializeParameterNode()
        self.panel.checkSetup()

    def enter(self):
        """Called each time the module is shown."""
        self.initializeParameterNode()

    def exit(self):
        """Called each time another module is shown; a run goes on."""

    def cleanup(self):
        """Called when the module is reloaded and when Slicer quits."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.close()
        self.panel = None

    def onSceneStartClose(self, caller, event):
        """The parameter node is about to go."""
        if self.panel is not None:
            self.panel.setParameters(None)

    def onSceneEndClose(self, caller, event):
        """A new parameter node can be made."""
        self.initializeParameterNode()

    def initializeParameterNode(self):
        """Show the scene's choices; the first volume is chosen if there is no choice yet."""
        if self.panel is None:
            return
        from MedSAM3SlicerLib.adapter.volumes import firstUsableVolume

        parameters = self.logic.getParameterNode()
        if parameters.inputVolume is None:
            parameters.inputVolume = firstUsableVolume(slicer.mrmlScene)
        self.panel.setParameters(parameters)


class MedSAM3SlicerLogic(ScriptedLoadableModuleLogic):
    """The console's way in; see `MedSAM3SlicerLib.logic.SegmentationLogic` for every argument.

    For example::

        logic = slicer.modules.medsam3slicer.widgetRepresentation().self().logic
        segmentationNode = logic.segment(volumeNode, ["liver", "spleen"], model="demo")
        logic.refine(segmentationNode, "liver", roiNodes=[roiNode])
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        findCore()
        from MedSAM3SlicerLib import desktop

        self.segmentation = desktop.makeLogic(slicer.mrmlScene)

    def getParameterNode(self):
        """The panel's choices in the scene."""
        from MedSAM3SlicerLib.parameternode import PanelParameters

        return PanelParameters(super().getParameterNode())

    def segment(self, volumeNode, concepts, segmentationNode=None, **options):
        """Segment concepts in a volume; returns the segmentation node."""
        return self.segmentation.segment(volumeNode, concepts, segmentationNode, **options)

    def segmentAll(self, volumeNodes, concepts, outputFolder, **options):
        """Segment volumes one after the other into a folder of ``.seg.nrrd`` files."""
        return self.segmentation.segmentAll(volumeNodes, concepts, outputFolder, **options)

    def refine(self, segmentationNode, segment, roiNodes=(), volumeNode=None, **options):
        """Rerun one segment with boxes, with points (``pointNodes``), and with what was corrected by hand."""
        return self.segmentation.refine(segmentationNode, segment, roiNodes, volumeNode, **options)


class MedSAM3SlicerTest(ScriptedLoadableModuleTest):
    """Run by Slicer's self-test button and by ctest; needs the packages of the worker for its last part."""

    def setUp(self):
        """An empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """All tests."""
        findCore()
        from MedSAM3SlicerLib import selftest

        for test in (
            selftest.testTerminology,
            selftest.testWriteAndUndo,
            selftest.testPanel,
            selftest.testSegment,
        ):
            self.setUp()
            test(self)
