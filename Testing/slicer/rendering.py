"""Pictures of slice views by Slicer's own slice logic and displayable managers, without a window (EGL)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy


class SliceView:
    """A slice view of a scene.

    Args:
        application: The scene with its logics.
        volumeNode: The image.
        orientation: "Axial", "Sagittal" or "Coronal".
        size: Width and height in pixels.
    """

    def __init__(self, application, volumeNode, orientation="Axial", size=(480, 480)) -> None:
        scene = application.scene
        self.size = size
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        self.sliceNode = slicer.vtkMRMLSliceNode.SafeDownCast(scene.CreateNodeByClass("vtkMRMLSliceNode"))
        self.sliceNode.UnRegister(None)
        self.sliceNode.SetLayoutName(orientation)
        self.sliceNode.SetName(orientation)
        scene.AddNode(self.sliceNode)
        self.sliceNode.SetDimensions(*size, 1)
        self.sliceNode.SetOrientation(orientation)
        _makeGrey(scene, volumeNode)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application.applicationLogic)
        self.logic.SetMRMLScene(scene)
        self.logic.SetSliceNode(self.sliceNode)
        self.logic.GetSliceCompositeNode().SetBackgroundVolumeID(volumeNode.GetID())
        self.logic.FitSliceToBackground(*size)
        self.logic.SnapSliceOffsetToIJK()
        self._render()

    def _render(self) -> None:
        self.renderer = vtk.vtkRenderer()
        self.renderer.SetBackground(0, 0, 0)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.window = _window()
        self.window.SetOffScreenRendering(1)
        self.window.SetSize(*self.size)
        self.window.AddRenderer(self.renderer)
        mapper = vtk.vtkImageMapper()
        mapper.SetInputConnection(self.logic.GetImageDataConnection())
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddActor2D(actor)
        interactor = vtk.vtkGenericRenderWindowInteractor()
        interactor.SetRenderWindow(self.window)
        self.manager = slicer.vtkMRMLSegmentationsDisplayableManager2D()
        self.manager.SetMRMLApplicationLogic(self.logic.GetMRMLApplicationLogic())
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.SetRenderer(self.renderer)
        self.group.AddDisplayableManager(self.manager)
        self.group.SetMRMLDisplayableNode(self.sliceNode)

    def offset(self, ras) -> None:
        """Scroll to the slice through a point of world RAS in mm."""
        self.sliceNode.JumpSliceByOffsetting(*ras)

    def centre(self, ras) -> None:
        """Scroll and pan to a point of world RAS in mm."""
        self.sliceNode.JumpSliceByCentering(*ras)

    def zoom(self, fieldMm: float) -> None:
        """Show so many mm across."""
        ratio = self.size[1] / self.size[0]
        self.sliceNode.SetFieldOfView(fieldMm, fieldMm * ratio, self.sliceNode.GetFieldOfView()[2])

    def picture(self) -> np.ndarray:
        """What the view shows: uint8 (rows, columns, 3)."""
        self.window.Render()
        self.window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.SetInputBufferTypeToRGB()
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1].copy()


def _makeGrey(scene, volumeNode) -> None:
    """Give the image the grey colours that the application would have given it."""
    display = volumeNode.GetDisplayNode()
    if volumeNode.IsA("vtkMRMLVectorVolumeNode") or display.GetColorNode() is not None:
        return
    grey = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "Grey")
    grey.SetTypeToGrey()
    display.SetAndObserveColorNodeID(grey.GetID())


def _window():
    """An offscreen window: EGL where there is no display."""
    window = vtk.vtkEGLRenderWindow() if hasattr(vtk, "vtkEGLRenderWindow") else vtk.vtkRenderWindow()
    return window


def savePng(picture: np.ndarray, path: Path) -> None:
    """Write uint8 (rows, columns, 3)."""
    from PIL import Image

    Image.fromarray(picture).save(path, optimize=True)
