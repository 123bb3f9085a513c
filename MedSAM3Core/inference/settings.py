"""Every choice of the inference, by name, with the two presets a user can ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from MedSAM3Core.errors import InputError
from MedSAM3Core.models.card import MaskSource


@dataclass(frozen=True)
class InferenceSettings:
    """How a volume is searched, detected, propagated and fused; see `docs/decisions` for the measured choices.

    How a model's scores and masks are to be read is not here but in the `Policy` of its card.

    Attributes:
        thorough: Encode and detect every slice, instead of key slices and what they show to be occupied.
        key_stride_mm: Distance of the key slices of the first search, in mm.
        use_extents: Search long scans for organs of known length in steps of a third of it first.
        margin_mm: How far beyond its first and last slice an object is looked for, in mm.
        fine_mm: Most mm from one slice of an object that is looked at to the next; masks in between are interpolated.
            0 looks at all.
        resolution_share: Least share of the model's input side to run at, 0..1; the model's windows decide which
            sides there are.
        mask_source: Which of the detector's two heads draws the mask; None takes the policy's.
        instance_threshold: Least score of a query that takes part; None takes the policy's threshold.
        synonyms: Try the concept's synonyms on the key slices and keep the phrase that the model knows best.
        agreement_mm: Half width of the window along the axis in which slice scores must agree, in mm; 0 takes
            each slice alone.
        sure_share: A slice whose score is this far from the threshold to 1 needs no neighbours that agree, since an
            object may be thinner than that window; 1 asks for agreement always.
        low_share: A slice next to accepted ones is accepted at this share of the score threshold.
        exemplars: Detect once more on accepted slices with the surest neighbours' box as exemplar.
        propagate: Run the tracker between and beyond the confident slices, unless the policy takes each slice on
            its own.
        anchor_share: A slice whose score is at least this share of the best slice's is an anchor.
        anchor_spacing_mm: Least distance of two automatic anchors, in mm.
        propagation_weight: Weight of the propagated against the detected probability, 0..1.
        refine_weight: Weight of what is propagated from a user's anchor, on the slice next to it, against what
            was there before; it falls to ``propagation_weight`` at the next anchor.
        follow_share: Share of the score threshold from which the detector, where the policy lets it follow a user's
            slice, goes on to the next.
        reach_mm: How far a user's anchor may reach where no other anchor follows, in mm.
        rebase: Let propagation start anew from its own answer where the tracker's training clips would have ended.
        end_score: Object score (probability) under which the tracker's object has ended.
        end_area_share: Share of the anchor's area under which the object has ended.
        smoothing_mm: Most mm that the standard deviation of the policy's smoothing along the axis may span; 0 smooths
            nothing.
        island_share: Islands smaller than this share of the largest are dropped.
        hole_share: Holes in a slice smaller than this share of the slice's mask are filled.
        tiles: Whether a single large image is cut into tiles: "auto" where it has many tiles' size and what is looked
            for is small in it, "on", or "off".
        tile_pixels: Side of a tile in the image's pixels; 0 takes the model's own.
        tile_overlap: Least share of a tile that its neighbour sees too.
        batch_slices: Slices encoded at once.
        batch_pairs: Pairs of slice and concept detected at once.
        share: Compute once a slice what its concepts have in common in the detector, and rotate positions in one pass;
            False runs transformers' own order of work, to compare.
        compile: Run the vision encoder through torch.compile; pays on large GPUs, where many slices follow.
        keep: What the feature store keeps of a slice: the trunk's output, or also the pyramids made from it,
            as far as the bounds allow.
        device_bytes: Most bytes of features on the device.
        host_bytes: Most bytes of features in host memory beside it.
        disk_folder: Folder in which trunk outputs are kept for the next time the same image is opened; empty keeps
            none. The features of a patient's image are as confidential as the image.
        disk_bytes: Most bytes in that folder.
        precision: "float32", "bfloat16" (autocast), or "auto": bfloat16 where the hardware has it and it
            agrees.
    """

    thorough: bool = False
    key_stride_mm: float = 8.0
    use_extents: bool = True
    margin_mm: float = 4.0
    fine_mm: float = 0.0
    resolution_share: float = 1.0
    mask_source: MaskSource | None = None
    instance_threshold: float | None = 0.3
    synonyms: bool = True
    agreement_mm: float = 4.0
    sure_share: float = 0.8
    low_share: float = 0.9
    exemplars: bool = False
    propagate: bool = True
    anchor_share: float = 0.8
    anchor_spacing_mm: float = 12.0
    propagation_weight: float = 0.3
    refine_weight: float = 0.9
    follow_share: float = 0.5
    reach_mm: float = 60.0
    rebase: bool = False
    end_score: float = 0.5
    end_area_share: float = 0.08
    smoothing_mm: float = 4.0
    island_share: float = 0.02
    hole_share: float = 0.02
    tiles: Literal["auto", "on", "off"] = "auto"
    tile_pixels: int = 0
    tile_overlap: float = 0.25
    batch_slices: int = 8
    batch_pairs: int = 16
    share: bool = True
    compile: bool = False
    keep: Literal["trunk", "pyramid"] = "pyramid"
    device_bytes: int = 400_000_000
    host_bytes: int = 2_000_000_000
    disk_folder: str = ""
    disk_bytes: int = 20_000_000_000
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @classmethod
    def preset(cls, mode: str, **changes: object) -> InferenceSettings:
        """Settings of a mode, with some changed by name.

        Args:
            mode: "recommended"; "thorough", which also encodes every slice; "fast", which looks at slices a few mm
                apart, at a lower resolution where the model has one, and interpolates; or "published", which runs
                the detector on each slice on its own as the published evaluations do.
            changes: Attributes of this class.

        Raises:
            InputError: If the mode or an attribute is unknown.
        """
        if mode not in _PRESETS:
            raise InputError(f"The mode is {mode!r}; expected one of {', '.join(sorted(_PRESETS))}.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(changes) - known):
            raise InputError(
                f"The setting {unknown[0]!r} is unknown; expected one of {', '.join(sorted(known))}."
            )
        return replace(_PRESETS[mode], **changes)  # type: ignore[arg-type]


_PRESETS = {
    "recommended": InferenceSettings(),
    "thorough": InferenceSettings(thorough=True),
    "fast": InferenceSettings(fine_mm=6.0, margin_mm=0.0, resolution_share=2 / 3, propagate=False),
    "published": InferenceSettings(
        thorough=True,
        mask_source="instances",
        instance_threshold=None,
        synonyms=False,
        agreement_mm=0.0,
        low_share=1.0,
        smoothing_mm=0.0,
        island_share=0.0,
        hole_share=0.0,
    ),
}
