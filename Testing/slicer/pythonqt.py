"""A thin double of PythonQt's ways over real Qt widgets (PySide6), and stand-ins for Slicer's own widgets.

What is real: Qt, its layouts, events, timers and pictures; the MRML scene; the ``.ui`` file. What is doubled, after
``facts/slicer.md`` and the API list of a running Slicer 5.13 (``test_api.py`` compares):

- Qt properties are attributes (``label.text``, ``label.text = "x"``); methods and slots are called as in C++, so
  ``setVisible`` stays while ``isVisible`` gives way to ``visible`` where Qt has a property of that name.
- ``button.clicked.connect(slot)`` and ``button.connect("clicked(bool)", slot)``. - ``widget.name`` is the object's
name; ``slicer.util.loadUI`` and ``childWidgetVariables``. - ``qMRMLWidget``, ``qMRMLNodeComboBox``,
``ctkCollapsibleButton``, ``ctkSliderWidget``: the properties, signals and slots that
  the module uses, over the real scene. They look plainer than Slicer's.
- ``slicer.parameterNodeWrapper``: typed attributes on a real ``vtkMRMLScriptedModuleNode``, and ``connectGui`` for
the widget
  classes in the ``.ui``.
- ``slicer.i18n.tr``, ``ScriptedLoadableModule`` and its family, ``slicer.app`` as far as the module asks for it.

What it cannot show: Slicer's styles, PythonQt's ownership of objects, and whether our reading of the interface is
right. ``from __feature__ import true_property`` was the alternative; it takes the setters away, which PythonQt does
not.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import functools
import os
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

_VIRTUAL = {
    "sizeHint",
    "minimumSizeHint",
}  # Qt calls these itself, an attribute in their place would break layouts
_classes: dict[type, type] = {}
LENT = 2**40
"""References to each of ``None``, ``True`` and ``False`` that no test can use up."""


def pythonQt(base: type) -> type:
    """The Qt class with PythonQt's ways."""
    if base in _classes:
        return _classes[base]
    members = {"name": property(lambda self: self.objectName())}
    meta = base.staticMetaObject
    for n in range(meta.propertyCount()):
        name = meta.property(n).name()
        if name not in _VIRTUAL and name != "objectName":
            members[name] = _attribute(base, name)
    members["connect"] = _connect
    members["className"] = lambda self: base.__name__
    _classes[base] = type(base.__name__, (base,), members)
    return _classes[base]


def _attribute(base: type, name: str) -> property:
    reader = "is" + name[0].upper() + name[1:]
    getter = getattr(base, name, None) or getattr(base, reader, None)
    setter = getattr(base, "set" + name[0].upper() + name[1:], None)

    def read(self):
        return getter(self) if callable(getter) else QtCore.QObject.property(self, name)

    def write(self, value):
        if setter is not None:
            setter(self, value)
        else:
            QtCore.QObject.setProperty(self, name, value)

    return property(read, write)


def _connect(self, signal: str, slot: Callable) -> None:
    name = signal.split("(")[0]
    types_ = signal[len(name) :]
    bound = getattr(self, name)
    overload = {"(int)": int, "(bool)": bool, "(QString)": str}.get(types_)
    with contextlib.suppress(KeyError, IndexError, TypeError):
        bound = bound[overload] if overload is not None else bound
    bound.connect(slot)


class qMRMLWidget(pythonQt(QtWidgets.QWidget)):  # noqa: N801
    """Stands in for ``qMRMLWidget``: hands the scene on to the children that the ``.ui`` connects."""

    mrmlSceneChanged = QtCore.Signal(object)

    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self):
        return self._scene


class qMRMLNodeComboBox(pythonQt(QtWidgets.QComboBox)):  # noqa: N801
    """Stands in for ``qMRMLNodeComboBox`` over the real scene."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.nodeTypes, self.hideChildNodeTypes = (), ()
        self.noneEnabled = self.addEnabled = self.removeEnabled = self.renameEnabled = False
        self.showChildNodeTypes = True
        self.noneDisplay = "None"
        self._scene, self._ids, self._tags = None, [], []
        self._node = None
        self.activated.connect(self._onActivated)

    def setMRMLScene(self, scene):
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        self._tags = []
        if scene is not None:
            events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent)
            self._tags = [scene.AddObserver(event, lambda *_: self._fill()) for event in events]
            self._fill()

    def mrmlScene(self):
        return self._scene

    def currentNode(self):
        return self._node

    @property
    def currentNodeID(self):
        return self._node.GetID() if self._node else ""

    def setCurrentNode(self, node):
        self._choose(node)

    def _fits(self, node):
        if any(node.IsA(name) for name in self.hideChildNodeTypes) or node.GetHideFromEditors():
            return False
        return any(node.IsA(name) for name in self.nodeTypes)

    def _fill(self):
        nodes = [self._scene.GetNthNode(n) for n in range(self._scene.GetNumberOfNodes())]
        nodes = [node for node in nodes if self._fits(node)]
        self.blockSignals(True)
        self.clear()
        self._ids = [""] + [node.GetID() for node in nodes]
        self.addItem(self.noneDisplay)
        for node in nodes:
            self.addItem(node.GetName())
        self.blockSignals(False)
        keep = self._node if self._node is not None and self._node.GetID() in self._ids else None
        self._choose(keep)

    def _choose(self, node):
        changed = node is not self._node
        self._node = node
        self.blockSignals(True)
        known = node is not None and node.GetID() in self._ids
        QtWidgets.QComboBox.setCurrentIndex(self, self._ids.index(node.GetID()) if known else 0)
        self.blockSignals(False)
        if changed:
            self.currentNodeChanged.emit(node)

    def _onActivated(self, index):
        self._choose(self._scene.GetNodeByID(self._ids[index]) if self._ids[index] else None)


class ctkCollapsibleButton(pythonQt(QtWidgets.QWidget)):  # noqa: N801
    """Stands in for ``ctkCollapsibleButton``: a header that folds its children away."""

    contentsCollapsed = QtCore.Signal(bool)
    _HEADER = 24

    def __init__(self, parent=None):
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, self._HEADER, 0, 0)

    def getText(self):
        return self._text

    def setText(self, text):
        self._text = text
        self.update()

    text = QtCore.Property(str, getText, setText)

    def getCollapsed(self):
        return self._collapsed

    def setCollapsed(self, collapsed):
        changed = collapsed != self._collapsed
        self._collapsed = bool(collapsed)
        self._fold()
        if changed:
            self.contentsCollapsed.emit(self._collapsed)

    collapsed = QtCore.Property(bool, getCollapsed, setCollapsed)

    def _fold(self):
        self.setMaximumHeight(self._HEADER if self._collapsed else 16777215)
        self.setMinimumHeight(self._HEADER if self._collapsed else 0)  # unfolded, the layout's minimum holds
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget) and self._collapsed:
                child.setProperty("foldedAway", not child.isHidden())
                child.setVisible(False)
            elif isinstance(child, QtWidgets.QWidget) and child.property("foldedAway"):
                child.setProperty("foldedAway", False)
                child.setVisible(True)

    def event(self, event):
        if event.type() == QtCore.QEvent.Polish:
            self._fold()
        return super().event(event)

    def mousePressEvent(self, event):
        if event.position().y() < self._HEADER:
            self.setCollapsed(not self._collapsed)

    def paintEvent(self, event):
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, self.rect.width(), self._HEADER)
        painter.fillRect(header, self.palette.color(QtGui.QPalette.Button).darker(106))
        mark = "\u25b8  " if self._collapsed else "\u25be  "
        painter.drawText(header.adjusted(8, 0, 0, 0), QtCore.Qt.AlignVCenter, mark + self._text)
        painter.end()


class ctkSliderWidget(pythonQt(QtWidgets.QWidget)):  # noqa: N801
    """Stands in for ``ctkSliderWidget``: a slider and a spin box with one value."""

    valueChanged = QtCore.Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, self)
        self._slider.setRange(0, 1000)
        self._box = QtWidgets.QDoubleSpinBox(self)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._onBox)
        self._slider.valueChanged.connect(self._onSlider)

    def _onBox(self, value):
        low, high = self._box.minimum(), self._box.maximum()
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (value - low) / (high - low or 1)))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    def _onSlider(self, position):
        low, high = self._box.minimum(), self._box.maximum()
        self._box.setValue(low + position / 1000 * (high - low))

    value = QtCore.Property(float, lambda self: self._box.value(), lambda self, v: self._box.setValue(v))
    minimum = QtCore.Property(
        float, lambda self: self._box.minimum(), lambda self, v: self._box.setMinimum(v)
    )
    maximum = QtCore.Property(
        float, lambda self: self._box.maximum(), lambda self, v: self._box.setMaximum(v)
    )
    singleStep = QtCore.Property(
        float, lambda self: self._box.singleStep(), lambda self, v: self._box.setSingleStep(v)
    )
    decimals = QtCore.Property(
        int, lambda self: self._box.decimals(), lambda self, v: self._box.setDecimals(v)
    )


STAND_INS = {c.__name__: c for c in (qMRMLWidget, qMRMLNodeComboBox, ctkCollapsibleButton, ctkSliderWidget)}

for _made in STAND_INS.values():  # a class with signals of its own gets Qt's static connect back
    _made.connect = _connect


class _Loader(QtUiTools.QUiLoader):
    """Makes every widget of a ``.ui`` with PythonQt's ways."""

    def createWidget(self, className, parent=None, name=""):
        cls = STAND_INS.get(className) or pythonQt(getattr(QtWidgets, className))
        widget = cls(parent)
        widget.setObjectName(name)
        self.made.append(widget)
        return widget


def loadUI(path: str) -> QtWidgets.QWidget:
    """Doubles ``slicer.util.loadUI``, with the connections that Designer wrote for the scene."""
    loader = _Loader()
    loader.made = []
    text = Path(path).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    for connections in root.findall("connections"):
        root.remove(connections)
    buffer = QtCore.QBuffer()
    buffer.setData(ElementTree.tostring(root))
    buffer.open(QtCore.QIODevice.ReadOnly)
    top = loader.load(buffer)
    top._children = loader.made  # Python must hold what Python made
    byName = {widget.objectName(): widget for widget in loader.made}
    for connection in ElementTree.fromstring(text).iter("connection"):
        sender, receiver = (byName[connection.findtext(end)] for end in ("sender", "receiver"))
        signal, slot = (connection.findtext(end).split("(")[0] for end in ("signal", "slot"))
        getattr(sender, signal).connect(getattr(receiver, slot))
    for widget in loader.made:
        if isinstance(widget, qMRMLNodeComboBox | ctkCollapsibleButton):
            _applyDynamic(widget)
    return top


def _applyDynamic(widget):
    """What Designer set on a stand-in as a dynamic property."""
    for raw in widget.dynamicPropertyNames():
        name = bytes(raw).decode()
        if name != "SlicerParameterName" and hasattr(widget, name):
            setattr(widget, name, QtCore.QObject.property(widget, name))


def childWidgetVariables(widget):
    """Doubles ``slicer.util.childWidgetVariables``."""
    ui = types.SimpleNamespace()
    for child in widget._children:
        if child.objectName():
            setattr(ui, child.objectName(), child)
    return ui


# slicer.parameterNodeWrapper ------------------------------------------------------------------------------------------


class WithinRange:
    """Doubles the validator of that name."""

    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum


class _Parameters:
    """What a wrapped class gets: attributes that live in a parameter node."""

    _hints: dict[str, object] = {}  # noqa: RUF012
    _defaults: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, parameterNode):
        object.__setattr__(self, "parameterNode", parameterNode)
        object.__setattr__(self, "_bound", {})
        object.__setattr__(self, "_slots", [])
        object.__setattr__(self, "_tag", None)
        for name, value in self._defaults.items():
            if not parameterNode.GetParameter(name):
                self._store(name, value)

    def __getattribute__(self, name):
        if name in object.__getattribute__(self, "_hints"):
            return self._fetch(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name, value):
        if name not in self._hints:
            raise AttributeError(f"{name} is no parameter")
        self._store(name, value)

    def connectGui(self, ui):
        for widget in vars(ui).values():
            name = QtCore.QObject.property(widget, "SlicerParameterName")
            if name:
                self._bound[name] = _connector(widget, self._hints[name], self._plain(name))
        self._toWidgets()
        for name, (signal, read, _) in self._bound.items():
            slot = functools.partial(self._onWidget, name, read)
            signal.connect(slot)
            self._slots.append((signal, slot))
        tag = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._toWidgets())
        object.__setattr__(self, "_tag", tag)
        return 1

    def disconnectGui(self, tag):
        if self._tag is not None:
            self.parameterNode.RemoveObserver(self._tag)
        object.__setattr__(self, "_tag", None)
        for signal, slot in self._slots:  # else every closed scene's node stays alive behind the widgets
            signal.disconnect(slot)
        self._slots.clear()
        self._bound.clear()

    def _plain(self, name):
        hint = self._hints[name]
        return get_args(hint)[0] if get_origin(hint) is Annotated else hint

    def _fetch(self, name):
        kind = self._plain(name)
        if issubclass(kind, slicer.vtkMRMLNode):
            return self.parameterNode.GetNodeReference(name)
        text = self.parameterNode.GetParameter(name)
        if issubclass(kind, enum.Enum):
            return kind[text]
        return text == "True" if kind is bool else kind(text or (0 if kind is not str else ""))

    def _store(self, name, value):
        if issubclass(self._plain(name), slicer.vtkMRMLNode):
            self.parameterNode.SetNodeReferenceID(name, value.GetID() if value is not None else None)
        else:
            self.parameterNode.SetParameter(name, value.name if isinstance(value, enum.Enum) else str(value))

    def _onWidget(self, name, read, *_):
        if name in self._bound:
            self._store(name, read())

    def _toWidgets(self):
        for name, (_, read, write) in self._bound.items():
            value = self._fetch(name)
            if read() != value:
                write(value)


def parameterNodeWrapper(cls):
    """Doubles the decorator: annotated attributes become parameters of the node that the instance is made for."""
    hints = get_type_hints(cls, include_extras=True)
    defaults = {name: getattr(cls, name) for name in hints if hasattr(cls, name)}
    return type(
        cls.__name__, (_Parameters,), {"_hints": hints, "_defaults": defaults, "__doc__": cls.__doc__}
    )


def _connector(widget, hint, kind):
    """(signal, read, write) for the pairs of widget and type that Slicer's own connectors know."""
    plain = next(c.__name__ for c in type(widget).__mro__ if c.__name__.startswith(("Q", "ctk", "qMRML")))
    if plain == "QCheckBox" and kind is bool:
        return widget.stateChanged, lambda: widget.checked, lambda v: setattr(widget, "checked", v)
    if plain == "QLineEdit" and kind is str:
        return widget.textChanged, lambda: widget.text, lambda v: setattr(widget, "text", v)
    if plain in ("QDoubleSpinBox", "ctkSliderWidget") and kind is float:
        limits = next(extra for extra in get_args(hint)[1:] if isinstance(extra, WithinRange))
        widget.minimum, widget.maximum = limits.minimum, limits.maximum
        return widget.valueChanged, lambda: widget.value, lambda v: setattr(widget, "value", v)
    if plain == "QComboBox" and issubclass(kind, enum.Enum):
        members = list(kind)
        widget.clear()
        for member in members:
            widget.addItem(kind.label(member) if hasattr(kind, "label") else member.name)
        return (
            widget.currentIndexChanged,
            lambda: members[widget.currentIndex],
            lambda v: setattr(widget, "currentIndex", members.index(v)),
        )
    if plain == "qMRMLNodeComboBox":
        widget.nodeTypes = (kind.__name__.split(".")[-1],)
        return widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode
    raise RuntimeError(f"no connector for {plain} and {kind}")


# The modules ----------------------------------------------------------------------------------------------------------


class ScriptedLoadableModule:
    """Doubles the base class: keeps the parent that holds title and categories."""

    def __init__(self, parent):
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """Doubles the base class: a widget with a layout, resources beside the module's file."""

    def __init__(self, parent=None):
        self.parent = parent or pythonQt(QtWidgets.QWidget)()
        self.layout = QtWidgets.QVBoxLayout(self.parent)
        self.parent.isEntered = True

    def setup(self):
        """Nothing: the reload buttons of developer mode."""

    def resourcePath(self, name):
        here = os.path.dirname(sys.modules[type(self).__module__].__file__)
        return os.path.join(here, "Resources", name)


class ScriptedLoadableModuleLogic:
    """Doubles the base class: the module's parameter node in the scene."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self):
        tag = self.moduleName
        node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(tag)
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest:
    """Doubles the base class; the tests in it run in Slicer only."""


class _App:
    """Doubles ``slicer.app`` as far as the module asks for it."""

    def __init__(self):
        self.started = []
        self.quitting = []
        self._settings = QtCore.QSettings(os.devnull, QtCore.QSettings.IniFormat)

    def connect(self, signal, slot):
        {"startupCompleted()": self.started, "aboutToQuit()": self.quitting}[signal].append(slot)

    def processEvents(self):
        QtWidgets.QApplication.processEvents()

    def settings(self):
        return self._settings

    def userSettings(self):
        return self._settings

    def clipboard(self):
        return QtGui.QGuiApplication.clipboard()

    def testingEnabled(self):
        return True


def _module(name: str, **members) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    return module


def _lendConstants() -> None:
    """Give ``None``, ``True`` and ``False`` references that nobody takes away.

    PySide6 6.12.0 hands them out without counting (``Sbk_ReturnFromPython_None`` of 6.11 adds one to the count, that of
    6.12 does not; CPython issue 134989). Under Python 3.11, which counts, every call that returns ``None`` takes one of
    its references: 1.00 a call of ``setEnabled``, ``setText``, ``property``, ``item``, and none in 6.9.0, 6.10.0 and
    6.11.0. Connections and emissions take ``True``'s. A scene under the panel costs 520 of the 40,000 of ``None``, so
    200 scenes ended in "deallocating None". From 3.12 on they are immortal.
    """
    if sys.version_info >= (3, 12):
        return
    beforeItsType = object.__basicsize__ - 2 * ctypes.sizeof(
        ctypes.c_ssize_t
    )  # where an object keeps its count
    for value in (None, True, False):
        ctypes.c_ssize_t.from_address(id(value) + beforeItsType).value += LENT


def install() -> None:
    """Put ``qt``, ``ctk`` and what slicer-core lacks of ``slicer`` in their places; twice is no harm."""
    if QtWidgets.QApplication.instance() is None:
        application = QtWidgets.QApplication(sys.argv[:1])
        application.setStyle("Fusion")
        slicer._application = application
    if "qt" in sys.modules:
        return
    _lendConstants()
    _module("qt", __getattr__=_qtName)
    _module("ctk", ctkCollapsibleButton=ctkCollapsibleButton, ctkSliderWidget=ctkSliderWidget)
    slicer.qMRMLWidget, slicer.qMRMLNodeComboBox = qMRMLWidget, qMRMLNodeComboBox
    slicer.util.loadUI, slicer.util.childWidgetVariables = loadUI, childWidgetVariables
    slicer.app = _App()
    slicer.i18n = _module("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
    slicer.parameterNodeWrapper = _module(
        "slicer.parameterNodeWrapper", parameterNodeWrapper=parameterNodeWrapper, WithinRange=WithinRange
    )
    bases = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    slicer.ScriptedLoadableModule = _module("slicer.ScriptedLoadableModule", **{b.__name__: b for b in bases})


def _qtName(name: str):
    """``qt.NAME``: a Qt class with PythonQt's ways, or a value type as it is."""
    for source in (QtWidgets, QtGui, QtCore):
        value = getattr(source, name, None)
        if value is not None:
            isObject = isinstance(value, type) and issubclass(value, QtCore.QObject)
            return pythonQt(value) if isObject else value
    raise AttributeError(f"module 'qt' has no attribute {name!r}")


class _Pause(QtCore.QEventLoop):
    """Ends with its timer: ``QTimer.singleShot`` of PySide6 6.12 keeps a block of memory each time."""

    def timerEvent(self, event):
        self.quit()


def process(milliseconds: int = 0) -> None:
    """Let Qt's event loop run for a while, in turns of 10 ms.

    On a busy machine one turn may take long and all timers are late at its end; what they start has the others.
    """
    for _ in range(max(1, milliseconds // 10)):
        loop = _Pause()
        loop.startTimer(min(milliseconds, 10), QtCore.Qt.PreciseTimer)
        loop.exec()
