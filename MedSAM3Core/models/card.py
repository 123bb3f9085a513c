"""What is known of a model: where it comes from, what it may be used for, and how its answers are to be read.

A model's scores mean nothing without the rule they were meant for: MedSAM3 ignores the presence token and thresholds
masks before they are enlarged, the published SAM 3 code multiplies by presence and enlarges first, Medical SAM3 takes
the best single mask at a threshold of 0.1. Each model therefore carries two `Policy` objects: what its authors run
("published") and what we run ("recommended"). Nothing else in the library decides these things.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MedSAM3Core.errors import CheckpointError
from MedSAM3Core.faults import first_fault

ScoreRule = Literal["presence", "queries", "product", "semantic"]
MaskSource = Literal["semantic", "instances", "mean", "max"]
Mode = Literal["published", "recommended"]

_SCORES: dict[ScoreRule, str] = {
    "presence": "of presence",
    "queries": "of the best query, presence ignored,",
    "product": "of the best query times presence",
    "semantic": "as the peak of the semantic map",
}

CARD_FILE = "card.json"

CLINICAL_WARNING = "Not a medical device: for research, not for clinical use."
"""Shown with every model."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Policy(_Frozen):
    """How a detector's outputs become a mask.

    Attributes:
        score_rule: What says that a concept is on a slice: the sigmoid of the presence token, of the best query, their
            product, or the peak of the semantic map.
        threshold: Least score.
        mask_threshold: Least probability of a pixel.
        mask_source: Which of the detector's heads draws the mask: the semantic map, the union of the instances, their
            mean, or the higher of both.
        nms_iou: Overlap above which the weaker of two instances is dropped; None keeps all.
        nms_kind: Whether that overlap is of boxes or of masks.
        best_only: Only the best instance of a slice counts, instead of the union of all above the threshold.
        resize_before_threshold: Mask logits are enlarged to the slice and then compared with the threshold, instead of
            compared at the model's mask size (288 px at full size) and enlarged.
        resolution: Side of the square input in pixels.
        propagation: "memory" runs the tracker from anchors through the volume, "clips" lets it run within short
            independent clips with the text prompt at each clip's start, "none" takes each slice on its own.
        clip_slices: Length of such a clip.
        clip_policy: What happens to intensities after the window: nothing ("window"), or each slice is stretched to its
            own minimum and maximum ("slice").
        tracker_frames: Slices of the clips that the tracker was trained on, for a model that saw short ones only; None
            lets its memory reach as far as its configuration says.
        follow: What carries a slice that a user has settled to its neighbours: the "tracker", or the "detector", asked
            with the box of the slice before, for a model whose tracker is weak.
        smoothing_slices: Standard deviation, in slices, of a Gaussian along the axis over the probabilities of the
            slices that were accepted, for a model whose neighbouring slices disagree; 0 leaves each as it is.
        ct_window: Window that every CT is shown in when the user asks for none, by name or "WIDTH,LEVEL", for a model
            that was trained on one; None chooses by concept.
    """

    score_rule: ScoreRule = "product"
    threshold: float = Field(default=0.5, ge=0, le=1)
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    mask_source: MaskSource = "max"
    nms_iou: float | None = Field(default=0.5, gt=0, le=1)
    nms_kind: Literal["box", "mask"] = "mask"
    best_only: bool = False
    resize_before_threshold: bool = True
    resolution: int = Field(default=1008, gt=0)
    propagation: Literal["memory", "clips", "none"] = "memory"
    clip_slices: int | None = Field(default=None, gt=0)
    clip_policy: Literal["window", "slice"] = "window"
    tracker_frames: int | None = Field(default=None, gt=2)
    follow: Literal["tracker", "detector"] = "tracker"
    smoothing_slices: float = Field(default=0.0, ge=0)
    ct_window: str | None = None

    @property
    def in_words(self) -> str:
        """What a user should know of it, on one line."""
        overlap = (
            f"{self.nms_kind} overlap above {self.nms_iou:g} dropped" if self.nms_iou else "overlaps kept"
        )
        between = {
            "memory": "tracked through the volume",
            "clips": f"tracked in clips of {self.clip_slices} slices",
            "none": "each slice on its own",
        }
        parts = (
            f"score {_SCORES[self.score_rule]} at least {self.threshold:g}",
            f"mask at least {self.mask_threshold:g} {'after' if self.resize_before_threshold else 'before'} enlarging",
            "best instance only" if self.best_only else overlap,
            between[self.propagation],
            "each slice stretched to its own range" if self.clip_policy == "slice" else "",
            f"smoothed over {self.smoothing_slices:g} slices" if self.smoothing_slices else "",
        )
        return "; ".join(part for part in parts if part)


class PromptStyle(_Frozen):
    """How a phrase is said to the model.

    Attributes:
        case: "lower" where training phrases were lower-cased, "typed" where they were not. CLIP's tokeniser lower-cases
            either way; the case is for display and for comparison with `examples`.
        most_words: Words beyond which a phrase is longer than what the model was trained on.
        advice: A sentence for the user.
        examples: Phrases as they were used in training.
    """

    case: Literal["lower", "typed"] = "lower"
    most_words: int = 3
    advice: str = ""
    examples: tuple[str, ...] = ()


class Licence(_Frozen):
    """A licence that a model is used under.

    Attributes:
        name: For example "SAM License".
        url: Where it is published.
        text_file: Its text, below ``Resources/licences``, or an empty string.
        note: What a user must know beyond the name.
    """

    name: str
    url: str = ""
    text_file: str = ""
    note: str = ""


class DataSource(_Frozen):
    """A collection of images that a model was trained on.

    Attributes:
        name: Of the collection.
        licence: That it is published under.
        url: Where it is published.
        cases: Patients or images that training saw; None when unknown.
    """

    name: str
    licence: str = ""
    url: str = ""
    cases: int | None = None


class ModelCard(_Frozen):
    """Everything that is known of a model.

    Attributes:
        name: Name in the registry, or of the fine-tune.
        title: For display.
        summary: A sentence or two.
        licence: Of the weights.
        citation: What to cite.
        homepage: Where it is described.
        resolution: Side of the square input in pixels.
        prompt_style: How phrases are said to it.
        published: How its authors read its outputs.
        recommended: How we do.
        concepts: Phrases it was trained on, as far as they are known.
        training_data: Collections it was trained on.
        held_out_dice: Concept to mean Dice on patients that training never saw, text prompts only.
        held_out_absent: Share of their slices that stay empty when a concept is asked for that cannot be in the
            picture.
        tracks: Whether its tracker was trained; without one every slice is found on its own and nothing is propagated.
        limits: Sentences about what it does badly.
        base: Registry name of the model it was fine-tuned from, or an empty string.
        sha256: Of the weights file, hexadecimal; empty until it is loaded or written.
    """

    name: str
    title: str = ""
    summary: str = ""
    licence: Licence = Licence(name="not stated")
    citation: str = ""
    homepage: str = ""
    resolution: int = Field(default=1008, gt=0)
    prompt_style: PromptStyle = PromptStyle()
    published: Policy = Policy()
    recommended: Policy = Policy()
    concepts: tuple[str, ...] = ()
    training_data: tuple[DataSource, ...] = ()
    held_out_dice: dict[str, float] = Field(default_factory=dict)
    held_out_absent: float | None = None
    tracks: bool = True
    limits: tuple[str, ...] = ()
    base: str = ""
    sha256: str = ""

    def policy(self, mode: Mode = "recommended") -> Policy:
        """How outputs are read: as the model's authors do, or as we do."""
        return self.published if mode == "published" else self.recommended

    def write(self, folder: Path) -> None:
        """Write ``card.json`` into a model folder."""
        (folder / CARD_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """Read ``card.json`` of a model folder.

        Raises:
            CheckpointError: Naming the file and the first field that is wrong.
        """
        path = folder / CARD_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise CheckpointError(
                f"The model folder {folder} has no readable {CARD_FILE}; convert or export the model again."
            ) from error
        except ValidationError as error:
            raise CheckpointError(
                f"The card {path} is wrong at {first_fault(error)}; correct it or export the model again."
            ) from error
