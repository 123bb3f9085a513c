"""The pages about the module: their links lead somewhere, their Python parses, their field names are the panel's."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in
         ("tutorial.md", "segment.md", "refine.md", "batch-console.md", "troubleshoot.md")]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_parses_and_calls_what_exists(page):
    from MedSAM3SlicerLib.logic import SegmentationLogic

    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "logic":
                # `logic.segmentation` is what the console's logic hands everything on to.
                assert hasattr(SegmentationLogic, node.attr) or node.attr == "segmentation", node.attr


def test_every_button_that_a_page_names_is_in_the_panel():
    ui = "\n".join(path.read_text() for path in (ROOT / "MedSAM3Slicer/Resources/UI").glob("*.ui"))
    texts = set(re.findall(r"<string>(.*?)</string>", ui)) | {"Repair"}
    named = {
        *("Segment", "Undo", "Edit by hand...", "Improve with boxes", "Improve segment", "+ Box here"),
        *("- Box not here", "Install", "From a folder...", "Download", "Copy report", "Set up...", "Delete"),
    }
    assert named <= texts
    pages = "\n".join(page.read_text() for page in PAGES)
    assert all(f"**{name}**" in pages for name in named)


def test_every_setting_of_the_console_is_told():
    from MedSAM3SlicerLib.parameter import RunSettings

    page = (ROOT / "docs" / "batch-console.md").read_text()
    assert all(f"`{name}`" in page for name in RunSettings.__dataclass_fields__)
