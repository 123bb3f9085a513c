"""What is measured: a model, a stack of slices and what is looked for on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Sam3VideoConfig, Sam3VideoModel

from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import InputError
from MedSAM3Core.inference.session import Segmenter
from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.models.loading import LoadedModel, choose_device, load_model
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.models.registry import installed_folder
from MedSAM3Core.models.roi_align import use_own_box_pooling
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.models.tracker import Tracker
from MedSAM3Core.prompts import Concept
from MedSAM3Core.samples import read_samples
from MedSAM3Core.volume.volume import Volume

PHRASES = ("liver", "spleen", "left kidney", "right kidney", "pancreas", "aorta", "stomach", "gallbladder")
"""What a synthetic model is asked for; it knows none of them."""

EVERYTHING = {"end_score": 0.0, "end_area_share": -1.0, "thorough": True}
"""Settings under which a model of random weights does the work of one that finds its object on every slice."""

FULL_SIDE, FULL_PATCH, FULL_WINDOW, FULL_HEAD = 1008, 14, 24, 64
"""Of the published architecture: input side, patch and window in pixels and tokens, channels of an attention head."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        title: One line.
        segmenter: Holds the model.
        volume: Slices.
        concepts: What is looked for.
        settings: Of the session, beside its preset.
        synthetic: Whether the weights are random, so that masks mean nothing.
        truth: Reference masks, bool (slices, rows, columns) a concept; None where there are none.
    """

    title: str
    segmenter: Segmenter
    volume: Volume
    concepts: tuple[Concept, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    synthetic: bool = False
    truth: tuple[np.ndarray, ...] | None = None

    @property
    def model(self) -> LoadedModel:
        """The model."""
        return self.segmenter.model


def demo_subject(
    name: str, device: str, slices: int, concepts: int, tracker: bool | None = None, mode: str = "recommended"
) -> Subject:
    """An installed model on the sample CT, brought to a number of slices.

    Args:
        name: Of the model, or its folder.
        device: As for `load_model`.
        slices: How many.
        concepts: How many of the sample's concepts.
        tracker: Whether it propagates; None as its card says.
        mode: Preset of the session.

    Raises:
        InputError: If the sample has fewer concepts, or is missing.
    """
    model = load_model(name, device)
    if tracker is not None:
        model = replace(model, card=model.card.model_copy(update={"tracks": tracker}))
    sample = _sample()
    if concepts > len(sample.concepts):
        raise InputError(
            f"{concepts} concepts were asked for; the sample has {len(sample.concepts)}, so ask for fewer."
        )
    wanted = tuple(resolve(phrase) for phrase in sample.concepts[:concepts])
    volume = stack(sample.read(), slices)
    reference = sample.read_reference()
    truth = tuple(
        reference[phrase][picked(len(reference[phrase]), slices)] for phrase in sample.concepts[:concepts]
    )
    title = f"{name}, {slices} slices of {volume.array.shape[1]} x {volume.array.shape[2]}"
    return Subject(title, Segmenter(model), volume, wanted, {"mode": mode}, truth=truth)


def full_subject(device: str, slices: int, concepts: int, reduce: int = 1, side: int = FULL_SIDE) -> Subject:
    """The full architecture, with the real weights where they are installed and random ones elsewhere.

    Args:
        device: As for `load_model`.
        slices: How many.
        concepts: How many, at most 8.
        reduce: Divides the widths; 1 is the published architecture.
        side: Input side in pixels.

    Raises:
        InputError: If there are no such sizes.
    """
    if concepts > len(PHRASES):
        raise InputError(
            f"{concepts} concepts were asked for; the full size has {len(PHRASES)}, so ask for fewer."
        )
    real = installed_folder("sam3")
    volume = stack(_sample().read(), slices)
    wanted = tuple(resolve(phrase) for phrase in PHRASES[:concepts])
    if real is not None and reduce == 1 and side == FULL_SIDE:
        return Subject(f"sam3, {slices} slices", Segmenter(load_model("sam3", device)), volume, wanted)
    config = reduced_config(reduce, side)
    model = synthetic_model(config, choose_device(device))
    widths = "" if reduce == 1 else f", widths divided by {reduce}"
    title = f"full architecture with random weights{widths}, {side} px, {slices} slices"
    return Subject(title, Segmenter(model), volume, wanted, EVERYTHING, synthetic=True)


def reduced_config(reduce: int, side: int) -> Sam3VideoConfig:
    """The published architecture with its depth and its token grid's proportions, and narrower layers.

    Raises:
        InputError: If the side does not divide into windows, or a width into heads.
    """
    if side % (FULL_PATCH * FULL_WINDOW):
        raise InputError(
            f"The input side (--side) is {side}; expected a multiple of {FULL_PATCH * FULL_WINDOW} such as 336, 672 "
            "or 1008."
        )
    if reduce not in (1, 2, 4, 8):
        raise InputError(f"The divisor of the widths (--reduce) is {reduce}; expected 1, 2, 4 or 8.")
    config: Any = Sam3VideoConfig()  # its parts are annotated as perhaps absent
    tokens, width = side // FULL_PATCH, max(128, 256 // reduce)
    for vision in (config.detector_config.vision_config, config.tracker_config.vision_config):
        vision.fpn_hidden_size = width
        vision.backbone_feature_sizes = [[n * tokens] * 2 for n in (4, 2, 1)]
        backbone = vision.backbone_config
        backbone.image_size = side
        backbone.hidden_size //= reduce
        backbone.intermediate_size //= reduce
        backbone.num_attention_heads = backbone.hidden_size // FULL_HEAD
    _narrow(config, reduce, width)
    # A tracker's configuration sets the sizes of its parts from this one, so it is told last.
    config.tracker_config.image_size = side
    config.image_size = side
    config.low_res_mask_size = 4 * tokens
    return config


def _narrow(config: Any, reduce: int, width: int) -> None:
    """Every part behind the vision encoder at ``width`` channels."""
    detector, tracker = config.detector_config, config.tracker_config
    for part in (
        detector.geometry_encoder_config,
        detector.detr_encoder_config,
        detector.detr_decoder_config,
    ):
        part.hidden_size = width
        part.intermediate_size = 2048 // reduce
    detector.mask_decoder_config.hidden_size = width
    text = detector.text_config
    text.hidden_size, text.intermediate_size = 1024 // reduce, 4096 // reduce
    text.num_attention_heads = text.hidden_size // FULL_HEAD
    tracker.prompt_encoder_config.hidden_size = tracker.mask_decoder_config.hidden_size = width
    tracker.mask_decoder_config.iou_head_hidden_dim = width
    tracker.mask_decoder_config.mlp_dim = 2048 // reduce
    for name in (
        "memory_attention_hidden_size",
        "memory_encoder_hidden_size",
        "mask_downsampler_embed_dim",
        "memory_fuser_embed_dim",
    ):
        setattr(tracker, name, width)
    tracker.memory_attention_feed_forward_hidden_size = 2048 // reduce
    tracker.memory_fuser_intermediate_dim = 4 * width


def synthetic_model(config: Any, device: torch.device) -> LoadedModel:
    """A model of random weights that answers to every phrase on every slice."""
    torch.manual_seed(0)
    network: Any = use_own_box_pooling(Sam3VideoModel(config)).eval().to(device)
    card = ModelCard(
        name="synthetic",
        resolution=config.detector_config.vision_config.image_size,
        recommended=Policy(score_rule="presence", threshold=0.0, mask_threshold=0.05, mask_source="semantic"),
    )
    tokenizer = PhraseTokenizer.full()
    return LoadedModel(
        "synthetic",
        ConceptNetwork(network).eval(),
        Tracker(network).eval(),
        tokenizer,
        card,
        device,
        Path("."),
    )


def stack(volume: Volume, slices: int) -> Volume:
    """A volume of ``slices`` slices: cut in the middle, or continued by its own mirror image.

    Args:
        volume: Cut along its first array axis.
        slices: How many.
    """
    return Volume.from_array(
        np.ascontiguousarray(volume.array[picked(len(volume.array), slices)]),
        ijk_to_ras=volume.geometry.ijk_to_ras,
        modality=volume.modality,
    )


def picked(count: int, slices: int) -> list[int]:
    """Which of ``count`` slices `stack` takes."""
    there = list(range(count))
    order = there if count == 1 else there + there[-2:0:-1]
    first = max(0, (count - slices) // 2)
    return [order[(first + n) % len(order)] for n in range(slices)]


def _sample() -> Any:
    sample = next((one for one in read_samples() if one.modality == "CT"), None)
    if sample is None:
        raise InputError("The sample data holds no CT volume; install MedSAM3Core again.")
    return sample


def phrases_of(concepts: Sequence[Concept]) -> list[str]:
    """What the reference paths are asked, the same first phrase that ours is."""
    return [(concept.prompts or (concept.phrase,))[0] for concept in concepts]
