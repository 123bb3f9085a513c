from __future__ import annotations

from pathlib import Path

import pytest
import slicer

from MedSAM3Core.prompts import TERMINOLOGY_CONTEXT
from MedSAM3Core.resources import resource_path
from MedSAM3SlicerLib import terminology

concepts = pytest.importorskip("MedSAM3Core.concepts")


def test_the_shipped_file_loads_into_slicers_own_reader(application):
    path = resource_path("terminology") / terminology.FILE_NAME
    assert terminology.loadTerminology(application.terminologies, path)
    assert TERMINOLOGY_CONTEXT in terminology.loadedTerminologies(application.terminologies)
    assert terminology.loadTerminology(application.terminologies, Path("nowhere"))


def test_a_missing_file_is_no_fault(application):
    assert not terminology.loadTerminology(application.terminologies, Path("/nowhere/x.term.json"))


@pytest.mark.parametrize("typed", ["Liver", "kidney left", "tumor", "lung nodule", "Spleen"])
def test_what_people_type_gets_a_code_that_slicer_reads(application, typed):
    path = resource_path("terminology") / terminology.FILE_NAME
    terminology.loadTerminology(application.terminologies, path)
    segment = slicer.vtkSegment()
    assert terminology.applyTerminology(segment, concepts.resolve(typed))
    entry = slicer.vtkSlicerTerminologyEntry()
    text = terminology.terminologyOf(segment)
    assert slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(text, entry)
    assert entry.GetTypeObject().GetCodeValue()
    category = slicer.vtkSlicerTerminologyCategory()
    category.Copy(entry.GetCategoryObject())
    found = slicer.vtkSlicerTerminologyType()
    count = application.terminologies.GetNumberOfTypesInTerminologyCategory(TERMINOLOGY_CONTEXT, category)
    codes = set()
    for n in range(count):
        application.terminologies.GetNthTypeInTerminologyCategory(TERMINOLOGY_CONTEXT, category, n, found)
        codes.add(found.GetCodeValue())
    assert entry.GetTypeObject().GetCodeValue() in codes


def test_a_made_up_concept_keeps_slicers_default():
    segment = slicer.vtkSegment()
    default = terminology.terminologyOf(segment)
    assert not terminology.applyTerminology(segment, concepts.resolve("purple flurb"))
    assert terminology.terminologyOf(segment) == default
