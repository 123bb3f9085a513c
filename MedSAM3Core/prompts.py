"""What a user asks for: a concept, and boxes and points that say more about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from MedSAM3Core.errors import PromptError

TERMINOLOGY_CONTEXT = "Segmentation category and type - MedSAM3 list"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in voxel indices (ijk) of the volume's own grid, both ends inclusive.

    ``i`` is the column, ``j`` the row and ``k`` the slice index, in the order of the volume's array
    ``(slices, rows, columns)`` read backwards. A box on one slice of another axis has that axis' ends equal.

    Attributes:
        i: First and last column.
        j: First and last row.
        k: First and last slice.
        positive: True when the concept is inside the box, False when what is inside is not the concept.
    """

    i: tuple[int, int]
    j: tuple[int, int]
    k: tuple[int, int]
    positive: bool = True

    def __post_init__(self) -> None:
        for name, ends in (("i", self.i), ("j", self.j), ("k", self.k)):
            if len(ends) != 2 or ends[0] > ends[1]:
                raise PromptError(
                    f"The box has {name} = {tuple(ends)}; expected a first and a last index, first <= last."
                )

    @classmethod
    def on_slice(cls, k: int, i: tuple[int, int], j: tuple[int, int], positive: bool = True) -> Box:
        """Box on one slice ``k``, columns ``i`` and rows ``j``, voxel indices, inclusive."""
        return cls(tuple(i), tuple(j), (k, k), positive)  # type: ignore[arg-type]

    @classmethod
    def parse(cls, text: str) -> Box:
        """Box on one slice from ``K,I0,J0,I1,J1[,+|-]`` (the command line's ``--box``)."""
        numbers, positive = _split_numbers(text, 5, "K,I0,J0,I1,J1[,+|-]")
        k, i0, j0, i1, j1 = numbers
        return cls((i0, i1), (j0, j1), (k, k), positive)

    @classmethod
    def parse_3d(cls, text: str) -> Box:
        """Box from ``I0,J0,K0,I1,J1,K1[,+|-]`` (the command line's ``--box3d``)."""
        numbers, positive = _split_numbers(text, 6, "I0,J0,K0,I1,J1,K1[,+|-]")
        i0, j0, k0, i1, j1, k1 = numbers
        return cls((i0, i1), (j0, j1), (k0, k1), positive)

    def check_inside(self, shape: tuple[int, int, int]) -> None:
        """Raise `PromptError` unless the box lies within a volume of ``shape`` (slices, rows, columns)."""
        slices, rows, columns = shape
        for ends, size in ((self.i, columns), (self.j, rows), (self.k, slices)):
            if ends[0] < 0 or ends[1] >= size:
                raise PromptError(
                    f"The box i={self.i}, j={self.j}, k={self.k} is outside the volume, whose extent is "
                    f"i=0..{columns - 1}, j=0..{rows - 1}, k=0..{slices - 1}; draw it inside."
                )

    def written(self) -> str:
        """The box as the command line's ``--box3d`` takes it; `parse_3d` reads it back."""
        numbers = (self.i[0], self.j[0], self.k[0], self.i[1], self.j[1], self.k[1])
        return ",".join(str(n) for n in numbers) + (",+" if self.positive else ",-")


@dataclass(frozen=True)
class Point:
    """A click on one voxel, indices (ijk) of the volume's own grid as for `Box`.

    Attributes:
        i: Column.
        j: Row.
        k: Slice.
        positive: True when the concept is there, False when what is there is not the concept.
    """

    i: int
    j: int
    k: int
    positive: bool = True

    @classmethod
    def parse(cls, text: str) -> Point:
        """Point from ``K,I,J[,+|-]`` (the command line's ``--point``)."""
        (k, i, j), positive = _split_numbers(text, 3, "K,I,J[,+|-]", "point")
        return cls(i, j, k, positive)

    def written(self) -> str:
        """The point as the command line's ``--point`` takes it; `parse` reads it back."""
        return f"{self.k},{self.i},{self.j}{',+' if self.positive else ',-'}"

    def check_inside(self, shape: tuple[int, int, int]) -> None:
        """Raise `PromptError` unless the point lies within a volume of ``shape`` (slices, rows, columns)."""
        slices, rows, columns = shape
        if not (0 <= self.i < columns and 0 <= self.j < rows and 0 <= self.k < slices):
            raise PromptError(
                f"The point i={self.i}, j={self.j}, k={self.k} is outside the volume, whose extent is "
                f"i=0..{columns - 1}, j=0..{rows - 1}, k=0..{slices - 1}; click inside."
            )


def _split_numbers(text: str, count: int, pattern: str, what: str = "box") -> tuple[list[int], bool]:
    parts = [part.strip() for part in text.split(",")]
    positive = True
    if parts and parts[-1] in ("+", "-"):
        positive = parts.pop() == "+"
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        ends = ", both ends inclusive" if what == "box" else ""
        raise PromptError(f"The {what} is {text!r}; expected {pattern}, whole voxel indices{ends}.")
    return numbers, positive


@dataclass(frozen=True)
class Code:
    """One entry of a coding scheme.

    Attributes:
        value: For example "10200004".
        meaning: For example "Liver".
        scheme: Coding scheme designator of DICOM PS3.16; "SCT" is SNOMED CT.
    """

    value: str
    meaning: str
    scheme: str = "SCT"

    def __str__(self) -> str:
        return f"{self.scheme}^{self.value}^{self.meaning}"


@dataclass(frozen=True)
class Coding:
    """What a segment is, as DICOM SEG and Slicer's terminologies say it.

    Attributes:
        category: For example Anatomical Structure or Morphologically Altered Structure.
        type: What it is: Kidney, Neoplasm, ...
        modifier: Laterality of the type, or None.
        region: Where it is, for what is not an anatomical structure itself (a neoplasm in the liver), or None.
        region_modifier: Laterality of the region, or None.
    """

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None

    def slicer_entry(self) -> str:
        """The value of Slicer's ``TerminologyEntry`` segment tag."""
        parts = (self.category, self.type, self.modifier)
        regions = (self.region, self.region_modifier)
        return "~".join(
            (
                TERMINOLOGY_CONTEXT,
                *(str(part) if part else "^^" for part in parts),
                ANATOMIC_CONTEXT,
                *(str(part) if part else "^^" for part in regions),
            )
        )


@dataclass(frozen=True)
class Concept:
    """A medical concept as the user meant it.

    Attributes:
        typed: The phrase as typed.
        phrase: The normalised phrase that is shown and compared: lower case, singular, laterality first.
        prompts: What is said to the model, best first: the phrase and its known synonyms.
        name: Display name of the segment, for example "Liver" or "left kidney" as the terminology writes it.
        code: SNOMED CT code value, or None when the terminology does not know the concept.
        colour: RGB, each 0..255; the terminology's colour, or one derived from the phrase.
        notices: Sentences for the user, for example about a phrase of more than three words.
        coding: The whole code, category, laterality and region included; None when the terminology does not know it.
        shorter: A phrase of at most three words to offer instead of a longer one, or None.
    """

    typed: str
    phrase: str
    prompts: tuple[str, ...] = ()
    name: str = ""
    code: str | None = None
    colour: tuple[int, int, int] = (230, 200, 60)
    notices: tuple[str, ...] = ()
    coding: Coding | None = None
    shorter: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """A concept with the boxes and points drawn for it."""

    concept: Concept
    boxes: Sequence[Box] = field(default_factory=tuple)
    points: Sequence[Point] = field(default_factory=tuple)

    @property
    def marked(self) -> bool:
        """Whether anything was drawn for it."""
        return bool(self.boxes or self.points)
