"""Intensities to the 8 bits that the models were trained on (decision record 002).

CT is windowed in Hounsfield units by what is looked for, MR and everything else of unknown scale by robust
percentiles of the whole volume, and images that are 8-bit already stay as they are. The choice is a `Window`,
which says itself in words and goes into the report.

The CT presets are those of Radiopaedia, "Windowing (CT)", https://radiopaedia.org/articles/windowing-ct;
where a range is given there, its middle is taken. The margin of percentiles (0.5 and 99.5, without the
background) is that of MedSAM (Ma et al., Nat Commun 2024).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from MedSAM3Core.errors import InputError

if TYPE_CHECKING:
    from MedSAM3Core.volume.volume import Volume

ClipPolicy = Literal["window", "slice"]
"""What happens after the window: nothing ("window"), or each slice is stretched to its own minimum and
maximum ("slice").

"slice" is what the published Medical SAM3 was trained with (its inference code normalises slice by slice
after the CT window)."""

PERCENTILES = (0.5, 99.5)
PERCENTILE_SAMPLES = 4_000_000
"""Voxels looked at for the percentiles: every n-th one, so that a volume of any size takes the same time."""


@dataclass(frozen=True)
class Window:
    """An intensity range and what becomes of it: `low` and below is 0, `high` and above is 255, linear in
    between.

    Attributes:
        name: "liver", "percentiles", "as is", "custom", "constant", ...
        low: Intensity that becomes 0, in the volume's own unit (HU for CT).
        high: Intensity that becomes 255.
        per_slice: Whether each slice is then stretched to its own minimum and maximum.
        reason: Why it was chosen, a few words without a full stop.
    """

    name: str
    low: float
    high: float
    per_slice: bool = False
    reason: str = ""

    @property
    def width(self) -> float:
        """Width of the range, as radiologists give it."""
        return self.high - self.low

    @property
    def level(self) -> float:
        """Middle of the range, as radiologists give it."""
        return (self.low + self.high) / 2

    def describe(self) -> str:
        """The choice in words, for the report and the segment's provenance."""
        text = f"{self.name}: width {self.width:g}, level {self.level:g} ({self.low:g} to {self.high:g})"
        if self.per_slice:
            text += ", then each slice from its minimum to its maximum"
        return f"{text}; {self.reason}" if self.reason else text

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Intensities as 8 bits.

        Works slice by slice, so that the float copy never exceeds one slice.

        Args:
            array: One slice (rows, columns), or slices along the first axis (slices, rows, columns[,
                channels]), any numeric type.

        Returns:
            uint8, the shape of ``array``.
        """
        array = np.asarray(array)
        if array.dtype == np.uint8 and (self.low, self.high) == (0.0, 255.0) and not self.per_slice:
            return array
        if array.ndim == 2:
            return self._apply_slice(array)
        out = np.empty(array.shape, np.uint8)
        for k in range(array.shape[0]):
            out[k] = self._apply_slice(array[k])
        return out

    def _apply_slice(self, slice_: np.ndarray) -> np.ndarray:
        values = np.clip(slice_.astype(np.float32), self.low, self.high)
        low, high = (float(values.min()), float(values.max())) if self.per_slice else (self.low, self.high)
        if high <= low:
            return np.zeros(slice_.shape, np.uint8)
        return np.rint((values - low) * (255.0 / (high - low))).astype(np.uint8)


def _preset(name: str, width: float, level: float) -> Window:
    return Window(name, level - width / 2, level + width / 2)


CT_WINDOWS: dict[str, Window] = {
    window.name: window
    for window in (
        _preset("soft tissue", 400, 50),
        _preset("brain", 80, 40),
        _preset("stroke", 40, 40),
        _preset("subdural", 215, 75),
        _preset("temporal bone", 2800, 600),
        _preset("head and neck", 375, 40),
        _preset("lung", 1500, -600),
        _preset("mediastinum", 350, 50),
        _preset("vascular", 600, 200),
        _preset("liver", 150, 30),
        _preset("spine", 250, 50),
        _preset("bone", 1800, 400),
    )
}
"""CT presets by name, in Hounsfield units."""

_ALIASES = {
    "abdomen": "soft tissue",
    "softtissue": "soft tissue",
    "chest": "mediastinum",
    "neck": "head and neck",
}

_CT_RULES: tuple[tuple[str, str], ...] = (
    # The first rule that matches a word of the phrase decides, so the narrower ones stand first. Whole organs
    # of the abdomen share one window although a liver window exists: a slice is encoded once per window
    # (DESIGN decision 3), and it is lesions and vessels, not the outline, that need the narrow one.
    ("soft tissue", r"renal|kidneys?|psoas|iliopsoas"),
    ("temporal bone", r"temporal bone|cochlea|mastoid|ossicle|semicircular|inner ear"),
    ("subdural", r"subdural|epidural"),
    ("stroke", r"ischa?emi\w*|infarct\w*|stroke"),
    ("mediastinum", r"cardiac|heart|(left|right) ventricle|myocardi\w*|atri\w+|pericardi\w*"),
    ("mediastinum", r"aort\w+|vena cava|coronar\w+"),
    ("liver", r"(liver|hepatic) (tumou?r|lesion|metastas[ei]s|mass|vessel|vein|cyst|cancer)s?"),
    ("head and neck", r"brain ?stem|optic\w*|eye\w*|lens|pituitary|chiasm"),
    ("brain", r"brain\w*|cerebr\w+|cerebell\w+|(white|gr[ae]y) matter|hippocamp\w+|thalam\w+"),
    ("brain", r"intracranial|ventricle"),
    ("lung", r"lungs?|pulmonary (nodule|lobe)s?|airways?|trachea|bronch\w+|wind ?pipe"),
    ("lung", r"emphysema|ground.glass|consolidation|pneumo\w+|lobe"),
    ("spine", r"spinal (cord|canal)|interverte\w+|discs?|disks?|cauda equina"),
    ("bone", r"bones?|vertebra\w*|spine|ribs?|skull|crani\w+|mandible|jaw|maxilla|t[eo]{2}th|fracture\w*"),
    ("bone", r"femur|femoral head|sacrum|hips?|pelvis|patella|tibia|fibula"),
    ("bone", r"sternum|clavicle|collarbone|scapula|humerus|radius|ulna"),
    ("head and neck", r"parotid|submandibular|salivary|thyroid|laryn\w+|pharyn\w+|glottis"),
    ("head and neck", r"oral cavity|tongue|lips?|neck"),
    ("mediastinum", r"mediastin\w+|o?esophagus|thymus|pulmonary (artery|vein|trunk|embol\w+)|breasts?"),
    ("vascular", r"arter\w+|angiogra\w+|aneurysm|stent|calcif\w+"),
)
_COMPILED_RULES = tuple((name, re.compile(rf"\b(?:{pattern})\b")) for name, pattern in _CT_RULES)

_BODY_PARTS = (
    (r"HEAD AND NECK|HEADNECK|NECK", "head and neck"),
    (r"HEAD|BRAIN|SKULL", "brain"),
    (r"CHEST|THORAX|HEART", "mediastinum"),
    (r"SPINE", "spine"),
)


def choose_window(
    volume: Volume,
    concept: str | None = None,
    request: str = "auto",
    clip_policy: ClipPolicy = "window",
) -> Window:
    """Choose the window for a concept in a volume.

    Args:
        volume: What is to be segmented.
        concept: The phrase that is looked for, lower case, or None when it is not known yet.
        request: "auto", a preset's name, "percentiles", "full" (minimum to maximum), "as is", or
            "WIDTH,LEVEL" in the volume's own unit.
        clip_policy: What the model was trained with after the window.

    Raises:
        InputError: If ``request`` is none of these, or a CT preset is asked for another modality.
    """
    window = _automatic(volume, concept) if request.strip().lower() == "auto" else _requested(volume, request)
    if clip_policy == "slice" and window.name != "as is":
        window = replace(window, per_slice=True)
    return window


def _automatic(volume: Volume, concept: str | None) -> Window:
    if volume.array.dtype == np.uint8:
        return Window("as is", 0, 255, reason="the image has 8 bits already")
    if volume.is_rgb:
        return _colour(volume.array)
    if volume.modality == "CT":
        return _ct_window(volume, concept)
    return _percentiles(volume)


def _colour(array: np.ndarray) -> Window:
    """Window of colour that is not 8-bit: the whole range of its type, or 0 to 1 for fractions."""
    if array.dtype.kind in "iu":
        return Window(
            "as is", 0, float(np.iinfo(array.dtype).max), reason="colour, the whole range of its type"
        )
    top = float(array.max())
    return Window("as is", 0, 1 if top <= 1 else max(top, 255), reason="colour, the range of its values")


def _ct_window(volume: Volume, concept: str | None) -> Window:
    for name, pattern in _COMPILED_RULES if concept else ():
        if pattern.search(str(concept).lower()):
            return replace(CT_WINDOWS[name], reason=f"CT preset in HU for {concept!r}")
    body_part = (volume.body_part or "").upper()
    for part, name in _BODY_PARTS:
        if concept is None and re.search(part, body_part):
            return replace(CT_WINDOWS[name], reason=f"CT preset in HU for the body part {body_part}")
    reason = f"CT preset in HU for {concept!r}" if concept else "CT preset in HU"
    return replace(CT_WINDOWS["soft tissue"], reason=reason)


def _percentiles(volume: Volume) -> Window:
    low, high = robust_range(volume.array)
    if high <= low:
        return Window("constant", low, low + 1, reason="all voxels have nearly one value")
    reason = f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of the volume without its background"
    return Window("percentiles", low, high, reason=reason)


def robust_range(array: np.ndarray) -> tuple[float, float]:
    """Percentiles 0.5 and 99.5 of the voxels that are not background.

    Background is the volume's smallest value when it fills at least one voxel in a hundred: the padding and
    the removed air of MR, which would otherwise pull the lower percentile down or, in a small crop, both.

    Args:
        array: (slices, rows, columns[, channels]), any numeric type.

    Returns:
        Low and high, equal when (nearly) all voxels have one value.
    """
    step = max(1, array.size // PERCENTILE_SAMPLES)
    values = array.reshape(-1)[::step]
    lowest = values.min()
    inside = values[values > lowest]
    if inside.size and values.size - inside.size >= 0.01 * values.size:
        values = inside
    low, high = (float(n) for n in np.percentile(values, PERCENTILES))
    if high <= low:
        low, high = float(lowest), float(values.max())
    return low, high


def _requested(volume: Volume, request: str) -> Window:
    name = request.strip().lower().replace("_", " ").replace("-", " ") if "," not in request else ""
    if name == "percentiles":
        return _percentiles(volume)
    if name in ("as is", "none"):
        shown = _colour(volume.array) if volume.is_rgb else Window("as is", 0, 255)
        return replace(shown, reason="as requested")
    if name == "full":
        low, high = float(volume.array.min()), float(volume.array.max())
        return Window("full", low, high if high > low else low + 1, reason="minimum to maximum, as requested")
    preset = CT_WINDOWS.get(_ALIASES.get(name, name))
    if preset is not None:
        if volume.modality not in ("CT", None):
            raise InputError(
                f"The window {preset.name!r} is in Hounsfield units, but the volume is {volume.modality}; "
                "give auto, percentiles or WIDTH,LEVEL."
            )
        return replace(preset, reason="CT preset in HU, as requested")
    return _custom(request)


def _custom(request: str) -> Window:
    try:
        width, level = (float(part) for part in request.split(","))
    except ValueError:
        width = level = float("nan")
    if not (np.isfinite([width, level]).all() and width > 0):
        raise InputError(
            f"The window is {request!r}; expected auto, percentiles, full, as is, WIDTH,LEVEL with a width "
            f"above 0, or one of {', '.join(sorted(CT_WINDOWS))}."
        )
    return Window("custom", level - width / 2, level + width / 2, reason="as requested")
