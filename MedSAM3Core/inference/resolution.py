"""The same weights at a lower input resolution: a vision encoder's work falls with the square of the side and more."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

from MedSAM3Core.models.loading import LoadedModel
from MedSAM3Core.models.lora import AdapterSwitch
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.models.tracker import Tracker
from MedSAM3Core.models.weights import build_empty


def sides(model: LoadedModel) -> list[int]:
    """Input sides that a model can run at, ascending: its own, and those below it that divide into whole windows.

    None is below the side that the position embedding was pretrained at: there it would be cut, not tiled.
    """
    backbone = model.network.model.config.detector_config.vision_config.backbone_config
    unit = backbone.patch_size * backbone.window_size
    least = -(-backbone.pretrain_image_size // unit) * unit
    own = model.network.image_size
    return sorted({own, *range(least, own, unit)})


def lower_side(model: LoadedModel, share: float) -> int:
    """The smallest side that is at least a ``share`` of the model's own: 672 of 1008 at two thirds."""
    wanted = math.floor(share * model.network.image_size)
    return next(side for side in sides(model) if side >= wanted)


def at_side(model: LoadedModel, side: int) -> LoadedModel:
    """A handle on the same weights (shared, not copied) that takes images of another side.

    What depends on the side is computed, not learnt: rotary angles, position encodings, grid sizes. The position
    embedding is tiled from the size that the encoder was pretrained at. A LoRA that acts now acts there too, and stays
    when the model's own handle is switched to another.

    Args:
        model: A loaded model.
        side: One of `sides`.

    Raises:
        ValueError: If the side is none of them.
    """
    if side == model.network.image_size:
        return model
    if side not in sides(model):
        raise ValueError(f"The side is {side}; expected one of {sides(model)}.")
    network = model.network.model
    smaller: Any = build_empty(_config_at(network.config, side))
    smaller.load_state_dict(network.state_dict(), assign=True)
    smaller.to(model.device)  # the tables; the weights are there
    switch = None
    if model.switch is not None:  # what acts beside the weights is not in them
        switch = AdapterSwitch(smaller)
        switch.use(model.switch.active)
    return replace(
        model,
        network=ConceptNetwork(smaller).eval(),
        tracker=Tracker(smaller, model.tracker.memory_dtype).eval(),
        switch=switch,
    )


def _config_at(config: Any, side: int) -> Any:
    config = copy.deepcopy(config)
    tokens = side // config.detector_config.vision_config.backbone_config.patch_size
    # The tracker's configuration hands its size on to its parts, so it is told first.
    config.tracker_config.image_size = side
    config.tracker_config.prompt_encoder_config.image_size = side
    config.tracker_config.memory_attention_rope_feat_sizes = [tokens, tokens]
    for vision in (config.detector_config.vision_config, config.tracker_config.vision_config):
        vision.backbone_feature_sizes = [[n * tokens] * 2 for n in (4, 2, 1)]
        vision.backbone_config.image_size = side
    config.low_res_mask_size = 4 * tokens
    return config
