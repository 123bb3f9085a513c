"""What the user chose for a run, as one value that says itself what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from MedSAM3Core.errors import InputError
from MedSAM3Core.windowing import CT_WINDOWS


class Axis(Enum):
    """Direction along which slices are cut."""

    AUTO = "auto"
    AXIAL = "axial"
    SAGITTAL = "sagittal"
    CORONAL = "coronal"

    def label(self) -> str:
        """Name in the panel."""
        return {"auto": "automatic (finest slices)"}.get(self.value, self.value)


class Device(Enum):
    """Where the model computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"

    def label(self) -> str:
        """Name in the panel."""
        return {"auto": "automatic", "cpu": "processor (CPU)", "cuda": "graphics card (CUDA)"}[self.value]


class Overlap(Enum):
    """What a new segment does to voxels that other segments have."""

    ALLOW = "allow"
    REPLACE = "replace"
    EDITOR = "editor"

    def label(self) -> str:
        """Name in the panel."""
        return {
            "allow": "keep the other segments whole",
            "replace": "cut the new segment out of the others",
            "editor": "as set in Segment Editor (masks too)",
        }[self.value]


_WINDOW_WORDS = ("auto", "percentiles", "full", "as is")
_WIDTH_LEVEL = re.compile(r"\s*\d+(\.\d+)?\s*,\s*-?\d+(\.\d+)?\s*")


@dataclass(frozen=True)
class RunSettings:
    """Everything beside volume and concepts that shapes a run; the values are those of the command line.

    Attributes:
        model: Registry name or folder.
        axis: Slicing axis.
        window: "auto", a preset's name, "percentiles", "full", "as is", or "WIDTH,LEVEL" in the volume's unit.
        threshold: Score from which a concept counts as found, 0..1; None is the model's own.
        thorough: Look at every slice instead of key slices first.
        device: Of the worker's machine.
        memoryGb: Most host memory for features in GB; 0 is the worker's own choice.
        overlap: What happens to other segments.
        workerCommand: "" for Slicer's own Python, a Python interpreter's path, or a whole command such as
            ``ssh host medsam3 worker``.
        show3D: Show the result in the 3D view as well.
        allFrames: Segment every frame of a sequence instead of the one that is shown.
        numberObjects: With all frames: a segment for each object, numbered, the same number on all its frames.
    """

    model: str = "demo"
    axis: Axis = Axis.AUTO
    window: str = "auto"
    threshold: float | None = None
    thorough: bool = False
    device: Device = Device.AUTO
    memoryGb: float = 0.0
    overlap: Overlap = Overlap.ALLOW
    workerCommand: str = ""
    show3D: bool = False
    allFrames: bool = False
    numberObjects: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("axis", Axis), ("device", Device), ("overlap", Overlap)):
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, kind(given))
            except ValueError:
                choices = ", ".join(member.value for member in kind)
                raise InputError(f"The {name} is {given!r}; expected one of {choices}.") from None

    def validate(self) -> dict[str, str]:
        """Field name to one sentence on what is wrong with it; empty when a run can start."""
        problems = {}
        if not self.model.strip():
            problems["model"] = "Choose a model."
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            problems["threshold"] = f"The threshold is {self.threshold:g}; enter a number between 0 and 1."
        if self.memoryGb < 0:
            problems["memoryGb"] = f"The memory is {self.memoryGb:g} GB; enter 0 for automatic, or more."
        if not isKnownWindow(self.window):
            problems["window"] = (
                f"The window {self.window!r} is unknown; "
                "enter auto, a name such as lung, or WIDTH,LEVEL such as 400,50."
            )
        return problems

    def openOptions(self) -> dict[str, Any]:
        """Keyword arguments of `Segmenter.open`."""
        options: dict[str, Any] = {
            "axis": self.axis.value,
            "window": self.window.strip() or "auto",
            "mode": "thorough" if self.thorough else "recommended",
        }
        if self.memoryGb > 0:
            options["host_bytes"] = int(self.memoryGb * 1e9)
        return options

    def runOptions(self) -> dict[str, Any]:
        """Keyword arguments of `Session.segment` beside concept, boxes and progress."""
        return {} if self.threshold is None else {"threshold": self.threshold}


def isKnownWindow(text: str) -> bool:
    """Whether the core would take the text for a window (a preset may still not fit the modality)."""
    word = text.strip().lower()
    return not word or word in _WINDOW_WORDS or word in CT_WINDOWS or bool(_WIDTH_LEVEL.fullmatch(word))


def windowChoices() -> list[str]:
    """Windows to offer."""
    return ["auto", *CT_WINDOWS, *_WINDOW_WORDS[1:]]
