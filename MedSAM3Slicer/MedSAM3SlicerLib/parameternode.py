"""The panel's choices as they are kept in the scene and bound to the widgets."""

# No postponed annotations here: Slicer's wrapper reads the classes themselves.

from typing import Annotated

import slicer
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from MedSAM3SlicerLib.parameter import Axis, Device, Overlap, RunSettings


@parameterNodeWrapper
class PanelParameters:
    """What is saved with the scene.

    Attributes:
        inputVolume: The image.
        segmentation: Where the segments go; None is a new one.
        concepts: Phrases, one a line.
        model: Registry name.
        useThreshold: Whether `threshold` counts.

    The others are those of `RunSettings`.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode
    concepts: str = ""
    model: str = "demo"
    axis: Axis = Axis.AUTO
    window: str = "auto"
    useThreshold: bool = False
    threshold: Annotated[float, WithinRange(0.01, 0.99)] = 0.5
    thorough: bool = False
    overlap: Overlap = Overlap.ALLOW
    device: Device = Device.AUTO
    memoryGb: Annotated[float, WithinRange(0.0, 512.0)] = 0.0
    workerCommand: str = ""
    show3D: bool = False
    allFrames: bool = False


def settingsOf(parameters: PanelParameters) -> RunSettings:
    """The run's settings as the panel shows them."""
    return RunSettings(
        model=parameters.model,
        axis=parameters.axis,
        window=parameters.window,
        threshold=parameters.threshold if parameters.useThreshold else None,
        thorough=parameters.thorough,
        device=parameters.device,
        memoryGb=parameters.memoryGb,
        overlap=parameters.overlap,
        workerCommand=parameters.workerCommand,
        show3D=parameters.show3D,
        allFrames=parameters.allFrames,
    )
