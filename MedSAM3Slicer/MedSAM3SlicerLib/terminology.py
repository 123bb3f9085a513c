"""SNOMED CT codes for segments.

Slicer's lookup by label is exact and case-sensitive and misses what people type ("Liver", "kidney left", "lung
nodule"). So the core resolves the phrase (`MedSAM3Core.concepts`), and here the resolved code only goes into the
segment's tag and the terminology file that it refers to into Slicer.
"""

from __future__ import annotations

import logging
from pathlib import Path

import slicer
import vtk

from MedSAM3Core.prompts import TERMINOLOGY_CONTEXT, Concept

logger = logging.getLogger(__name__)

FILE_NAME = "SegmentationCategoryTypeModifier-MedSAM3.term.json"


def loadTerminology(terminologiesLogic: slicer.vtkSlicerTerminologiesModuleLogic, path: Path) -> bool:
    """Make the project's terminology known to Slicer, so that its names appear in the terminology selector.

    Returns:
        Whether it is known now; a file that cannot be read is logged and costs nothing but the names in the selector.
    """
    if TERMINOLOGY_CONTEXT in loadedTerminologies(terminologiesLogic):
        return True
    if not path.is_file() or not terminologiesLogic.LoadTerminologyFromFile(str(path)):
        logger.warning(
            "The terminology %s could not be loaded; segments keep their codes all the same.", path
        )
        return False
    return True


def loadedTerminologies(terminologiesLogic: slicer.vtkSlicerTerminologiesModuleLogic) -> set[str]:
    """Names of the terminologies that Slicer knows."""
    names = vtk.vtkStringArray()
    terminologiesLogic.GetLoadedTerminologyNames(names)
    return {names.GetValue(n) for n in range(names.GetNumberOfValues())}


def applyTerminology(segment: slicer.vtkSegment, concept: Concept) -> bool:
    """Give the segment the concept's code; returns whether the concept has one."""
    if concept.coding is None:
        return False
    segment.SetTag(segment.GetTerminologyEntryTagName(), concept.coding.slicer_entry())
    return True


def terminologyOf(segment: slicer.vtkSegment) -> str:
    """The segment's terminology tag as it is written, empty when it has none."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(segment.GetTerminologyEntryTagName(), value) else ""
