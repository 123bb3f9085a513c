"""Every name of Qt, CTK and Slicer that the module uses exists in a running Slicer 5.13, after its API list.

The list holds classes with their members; what a name means it cannot say. The same list judges our double.
"""

from __future__ import annotations

import ast
import gzip
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MedSAM3Slicer"
LIST = ROOT.parent / "shared" / "facts" / "slicer_api.json.gz"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not LIST.exists(), reason="the API list of a running Slicer is not in ../shared"),
]

# Not in the list because they come with a module or a later version; each is asked for only if it is there.
OPTIONAL_MODULES = {"segmenteditor", "sequences", "terminologies", "medsam3slicer"}


@pytest.fixture(scope="module")
def api():
    return json.loads(gzip.open(LIST).read())


@pytest.fixture(scope="module")
def widgets():
    """Name of a widget in the ``.ui`` files to its class."""
    return {widget.get("name"): widget.get("class") for root in _roots() for widget in root.iter("widget")}


def _roots():
    return [ElementTree.parse(path).getroot() for path in sorted((MODULE / "Resources/UI").glob("*.ui"))]


def chains():
    """Every dotted name in the module, with where it is: ("panel.py:12", ["ui", "segmentButton", "enabled"])."""
    for path in sorted(MODULE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names, inner = [node.attr], node.value
                while isinstance(inner, ast.Attribute):
                    names.insert(0, inner.attr)
                    inner = inner.value
                if isinstance(inner, ast.Name):
                    yield f"{path.name}:{node.lineno}", [inner.id, *names]


def members(api, name):
    return next((set(api[room][name]) for room in ("qt", "ctk", "slicer") if name in api[room]), None)


def test_every_widget_class_exists(api, widgets):
    unknown = {cls for cls in widgets.values() if members(api, cls) is None}
    assert unknown == set()


def test_every_property_in_the_ui_exists(api, widgets):
    wrong = []
    for widget in (widget for root in _roots() for widget in root.iter("widget")):
        known = members(api, widget.get("class"))
        for entry in widget.findall("property"):
            if entry.get("stdset") != "0" and entry.get("name") not in known:
                wrong.append((widget.get("name"), entry.get("name")))
    assert wrong == []


def test_every_member_of_a_widget_that_the_module_uses_exists(api, widgets):
    wrong, used = [], 0
    for where, names in chains():
        if "ui" in names:
            rest = names[names.index("ui") + 1 :]
            if rest and rest[0] not in widgets:
                wrong.append((where, rest[0]))
            elif len(rest) > 1:
                used += 1
                if rest[1] not in members(api, widgets[rest[0]]):
                    wrong.append((where, rest[:2]))
    assert wrong == []
    assert used > 80


def test_every_qt_name_exists(api):
    wrong, used = [], 0
    for where, names in chains():
        if names[0] == "qt":
            used += 1
            if names[1] not in api["qt"] or (len(names) > 2 and names[2] not in api["qt"][names[1]]):
                wrong.append((where, names))
    assert wrong == []
    assert used > 20


def test_every_slicer_name_exists(api):
    wrong, used = [], 0
    for where, names in chains():
        if names[0] != "slicer" or len(names) < 2:
            continue
        used += 1
        room = names[1]
        if room in ("app", "util"):
            good = len(names) == 2 or names[2] in api[room]
        elif room == "modules":
            good = len(names) == 2 or names[2] in OPTIONAL_MODULES
        elif room in ("mrmlScene",):
            good = True
        else:
            good = room in api["slicer"] and (len(names) == 2 or names[2] in api["slicer"][room])
        if not good:
            wrong.append((where, names))
    assert wrong == []
    assert used > 80


def test_every_signal_that_is_connected_exists(api, widgets):
    """``ui.button.connect("clicked(bool)", ...)``: the part before the bracket is a member of the widget's class."""
    wrong, used = [], 0
    for path in sorted(MODULE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            isConnect = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if not (
                isConnect
                and node.func.attr == "connect"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                continue
            owner = node.func.value
            cls = widgets.get(owner.attr) if isinstance(owner, ast.Attribute) else None
            if cls is not None:
                used += 1
                if node.args[0].value.split("(")[0] not in members(api, cls):
                    wrong.append((path.name, node.args[0].value))
    assert wrong == []
    assert used > 15


def test_the_double_has_nothing_that_slicer_has_not(api):
    """Public members of the stand-ins that Slicer's classes lack would let a test pass that Slicer would fail."""
    pythonqt = pytest.importorskip("pythonqt")
    for name, cls in pythonqt.STAND_INS.items():
        own = {member for member in vars(cls) if not member.startswith("_")}
        invented = own - members(api, name) - {"staticMetaObject"}
        assert invented <= {"setText", "getText", "getCollapsed", "setCollapsed", "event"}, name


def test_attributes_of_the_double_are_properties_in_slicer(api, widgets):
    """A property of our Qt 6 that Slicer's Qt 5 lists too; one it lacks must not be used."""
    pythonqt = pytest.importorskip("pythonqt")
    pythonqt.install()
    import qt

    for name in sorted(set(widgets.values())):
        if name in pythonqt.STAND_INS:
            continue
        ours = {key for key, value in vars(getattr(qt, name)).items() if isinstance(value, property)} - {
            "name"
        }
        used = {
            names[names.index("ui") + 2]
            for _, names in chains()
            if "ui" in names
            and len(names) > names.index("ui") + 2
            and widgets.get(names[names.index("ui") + 1]) == name
        }
        assert (used & ours) <= members(api, name), name
