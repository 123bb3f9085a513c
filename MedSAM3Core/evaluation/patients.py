"""Whose image it is: no patient may be on both sides of a split, and no two patients may be taken for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.cases import LabelledCase


def check_patients(cases: Sequence[LabelledCase]) -> None:
    """Refuse cases from which no honest split can be made.

    Raises:
        InputError: If a patient is in several splits, or one name stands for images in different folders and nothing
            says whether that is one patient or two.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.split:
            splits[case.patient].add(case.split)
    for patient, found in splits.items():
        if len(found) > 1:
            raise InputError(
                f"The patient {patient!r} is in the splits {' and '.join(sorted(found))}; a patient belongs to "
                "one split: "
                "correct the split column, or give two patients two names."
            )


def check_names(paths_by_patient: dict[str, set[str]]) -> None:
    """Refuse a patient name, taken from file names, that stands for files in several folders.

    Args:
        paths_by_patient: Patient name to the folders in which images of that name lie.

    Raises:
        InputError: Naming the patient and two of the folders.
    """
    for patient, folders in paths_by_patient.items():
        if len(folders) > 1:
            first, second = sorted(folders)[:2]
            raise InputError(
                f"Two images are named {patient!r}, in {first or '.'} and in {second or '.'}; one patient or "
                "two? Say it in a "
                "column 'patient'."
            )
