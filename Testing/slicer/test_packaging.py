from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MedSAM3Slicer"


def listed(variable: str) -> list[str]:
    """Entries of a ``set(VARIABLE ...)`` in the module's CMakeLists.txt."""
    text = (MODULE / "CMakeLists.txt").read_text()
    body = re.search(rf"set\({variable}\n(.*?)\n\s*\)", text, re.DOTALL).group(1)
    return [line.strip() for line in body.splitlines()]


def s4ext() -> dict[str, str]:
    lines = [
        line
        for line in (ROOT / "MedSAM3.s4ext").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return dict(line.split(" ", 1) for line in lines)


def cmake() -> dict[str, str]:
    text = (ROOT / "CMakeLists.txt").read_text()
    return dict(re.findall(r'set\(EXTENSION_(\w+) "(.*?)"\)', text))


def test_every_script_is_listed():
    there = {str(path.relative_to(MODULE)) for path in MODULE.rglob("*.py")}
    assert there == set(listed("MODULE_PYTHON_SCRIPTS"))


def test_every_resource_is_listed():
    there = {str(path.relative_to(MODULE)) for path in (MODULE / "Resources").rglob("*") if path.is_file()}
    assert there == set(listed("MODULE_PYTHON_RESOURCES"))


def test_the_library_and_its_resources_are_installed_with_the_module():
    text = (MODULE / "CMakeLists.txt").read_text()
    for folder in ("MedSAM3Core", "Resources"):
        assert f"install(DIRECTORY ${{MedSAM3_SOURCE_DIR}}/{folder}" in text
    assert "slicer_add_python_unittest(SCRIPT ${MODULE_NAME}.py)" in text


def test_the_two_descriptions_and_cmake_agree():
    entry = json.loads((ROOT / "MedSAM3.json").read_text())
    old, project = s4ext(), cmake()
    assert {"$schema", "category", "scm_url"} <= set(entry)
    assert entry["scm_url"] == old["scmurl"]
    assert entry["scm_revision"] == old["scmrevision"]
    assert entry["category"] == old["category"] == project["CATEGORY"]
    assert entry["build_dependencies"] == old["depends"].split() == project["DEPENDS"].split()
    assert str(entry["tier"]) == old["tier"]
    assert entry["build_subdirectory"] == old["build_subdirectory"]
    for name in ("homepage", "contributors", "description", "iconurl", "screenshoturls"):
        assert old[name] == project[name.upper()], name


def test_pictures_that_the_index_shows_are_in_the_checkout():
    for url in [cmake()["ICONURL"], *cmake()["SCREENSHOTURLS"].split()]:
        assert (ROOT / url.split("/main/")[1]).is_file(), url


def test_the_icon_is_128_pixels():
    png = (MODULE / "Resources/Icons/MedSAM3Slicer.png").read_bytes()
    assert [int.from_bytes(png[n : n + 4], "big") for n in (16, 20)] == [128, 128]


def test_every_sample_has_a_thumbnail():
    from MedSAM3SlicerLib.sampledata import samples

    for sample in samples():
        assert (MODULE / "Resources/Icons" / f"{sample.name}.png").is_file()
        assert sample.image.is_file()
        assert sample.licence


def test_the_module_file_is_a_shell_that_imports_nothing_foreign():
    """Never at file scope: what Slicer does not bundle, a download, work."""
    tree = ast.parse((MODULE / "MedSAM3Slicer.py").read_text())
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
        else:
            assert isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Expr), ast.dump(node)
    assert imported <= {"importlib", "pathlib", "slicer", "sys"}
    assert len((MODULE / "MedSAM3Slicer.py").read_text().splitlines()) < 220


def test_the_panels_process_needs_neither_torch_nor_what_is_not_bundled():
    script = f"""
import sys
sys.path[:0] = [{str(ROOT / "Testing/slicer")!r}]
sys.path.append({str(MODULE)!r})
import pythonqt
pythonqt.install()
import MedSAM3SlicerLib.panel, MedSAM3SlicerLib.desktop, MedSAM3SlicerLib.sampledata, MedSAM3SlicerLib.logic
foreign = {{"torch", "transformers", "pydantic", "yaml", "typer", "rich", "huggingface_hub", "safetensors"}}
print(sorted(foreign & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_ui_file_names_every_widget_once_and_binds_real_parameters():
    pythonqt = pytest.importorskip("pythonqt", reason="PySide6 is not installed")
    pythonqt.install()
    from MedSAM3SlicerLib.parameternode import PanelParameters

    root = ElementTree.parse(MODULE / "Resources/UI/MedSAM3Slicer.ui").getroot()
    names = [widget.get("name") for widget in root.iter("widget")]
    assert len(names) == len(set(names))
    bound = [p.findtext("string") for p in root.iter("property") if p.get("name") == "SlicerParameterName"]
    assert set(bound) <= set(PanelParameters._hints)
    assert len(bound) == len(set(bound)) == 13


@pytest.mark.parametrize("path", sorted(MODULE.rglob("*.py")), ids=lambda p: p.name)
def test_the_module_only_prints_where_a_program_must(path):
    tree = ast.parse(path.read_text())
    printed = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
    assert not printed or path.name in ("modeltool.py", "batchscript.py")
    bare = [n for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]
    assert not bare
