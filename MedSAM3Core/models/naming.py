r"""The published SAM 3 layout in transformers' names: every tensor renamed, split, transposed or left out by one table.

A line of the table renames one tensor, or everything below a module when it ends with a dot; ``(\d+)`` stands for a
number that is kept. The first line that matches decides. Below a renamed module a fused ``in_proj_`` or ``qkv.`` is
split into query, key and value, and ``out_proj`` becomes ``o_proj`` (not in CLIP). What is left out is named too, so
that a tensor without a line is an error and never a silent loss.

Source: names of facebookresearch/sam3 (commit 99d02f2) against transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Line = tuple[str, str]

_LAYERS = r"layers.(\d+)."

_TRUNK = "detector.backbone.vision_backbone.trunk."
_VIT = "detector_model.vision_encoder.backbone."
_VISION: list[Line] = [
    (_TRUNK + "pos_embed", _VIT + "embeddings.position_embeddings"),
    (_TRUNK + "patch_embed.proj.", _VIT + "embeddings.patch_embeddings.projection."),
    (_TRUNK + "ln_pre.", _VIT + "layer_norm."),
    (_TRUNK + r"blocks.(\d+).norm([12]).", _VIT + r"layers.\1.layer_norm\2."),
    (_TRUNK + r"blocks.(\d+).attn.proj.", _VIT + r"layers.\1.attention.o_proj."),
    (_TRUNK + r"blocks.(\d+).attn.", _VIT + r"layers.\1.attention."),
    (_TRUNK + r"blocks.(\d+).mlp.", _VIT + r"layers.\1.mlp."),
]

_NECKS: list[Line] = [
    (rf"detector.backbone.vision_backbone.{published}.(\d).{layer}.", rf"{neck}.fpn_layers.\1.{name}.")
    for published, neck in (("convs", "detector_model.vision_encoder.neck"), ("sam2_convs", "tracker_neck"))
    for layer, name in (
        ("dconv_2x2", "scale_layers.0"),
        ("dconv_2x2_0", "scale_layers.0"),
        ("dconv_2x2_1", "scale_layers.2"),
        ("conv_1x1", "proj1"),
        ("conv_3x3", "proj2"),
    )
]

_ENCODER = "detector.backbone.language_backbone.encoder."
_CLIP = "detector_model.text_encoder.text_model."
_TEXT: list[Line] = [
    (_ENCODER + "positional_embedding", _CLIP + "embeddings.position_embedding.weight"),
    (_ENCODER + "token_embedding.", _CLIP + "embeddings.token_embedding."),
    (_ENCODER + "ln_final.", _CLIP + "final_layer_norm."),
    (_ENCODER + "text_projection", "detector_model.text_encoder.text_projection.weight"),
    (_ENCODER + r"transformer.resblocks.(\d+).attn.", _CLIP + r"encoder.layers.\1.self_attn."),
    (_ENCODER + r"transformer.resblocks.(\d+).ln_([12]).", _CLIP + r"encoder.layers.\1.layer_norm\2."),
    (_ENCODER + r"transformer.resblocks.(\d+).mlp.c_fc.", _CLIP + r"encoder.layers.\1.mlp.fc1."),
    (_ENCODER + r"transformer.resblocks.(\d+).mlp.c_proj.", _CLIP + r"encoder.layers.\1.mlp.fc2."),
    ("detector.backbone.language_backbone.resizer.", "detector_model.text_projection."),
]


def _plain_layers(published: str, ours: str) -> list[Line]:
    """A stack of layers with self-attention, cross-attention to the image, and a feed-forward part."""
    return [
        (published + r"(\d+).self_attn.", ours + r"\1.self_attn."),
        (published + r"(\d+).cross_attn_image.", ours + r"\1.cross_attn."),
        (published + r"(\d+).norm([123]).", ours + r"\1.layer_norm\2."),
        (published + r"(\d+).linear([12]).", ours + r"\1.mlp.fc\2."),
    ]


_GEOMETRY: list[Line] = [
    ("detector.geometry_encoder.norm.", "detector_model.geometry_encoder.prompt_layer_norm."),
    ("detector.geometry_encoder.img_pre_norm.", "detector_model.geometry_encoder.vision_layer_norm."),
    ("detector.geometry_encoder.encode_norm.", "detector_model.geometry_encoder.output_layer_norm."),
    *_plain_layers("detector.geometry_encoder.encode.", "detector_model.geometry_encoder.layers."),
    *(
        (f"detector.geometry_encoder.{same}.", f"detector_model.geometry_encoder.{same}.")
        for same in (
            *("label_embed", "cls_embed", "final_proj"),
            *("boxes_direct_project", "boxes_pool_project", "boxes_pos_enc_project"),
        )
    ),
]

_DECODER, _DETR = "detector.transformer.decoder.", "detector_model.detr_decoder."
_TRANSFORMER: list[Line] = [
    *_plain_layers("detector.transformer.encoder.layers.", "detector_model.detr_encoder.layers."),
    (_DECODER + _LAYERS + "self_attn.", _DETR + r"layers.\1.self_attn."),
    (_DECODER + _LAYERS + "cross_attn.", _DETR + r"layers.\1.vision_cross_attn."),
    (_DECODER + _LAYERS + "ca_text.", _DETR + r"layers.\1.text_cross_attn."),
    # Not in the order of their numbers: norm1 follows the vision cross-attention, norm2 the self-attention.
    (_DECODER + _LAYERS + "norm1.", _DETR + r"layers.\1.vision_cross_attn_layer_norm."),
    (_DECODER + _LAYERS + "catext_norm.", _DETR + r"layers.\1.text_cross_attn_layer_norm."),
    (_DECODER + _LAYERS + "norm2.", _DETR + r"layers.\1.self_attn_layer_norm."),
    (_DECODER + _LAYERS + "norm3.", _DETR + r"layers.\1.mlp_layer_norm."),
    (_DECODER + _LAYERS + "linear([12]).", _DETR + r"layers.\1.mlp.fc\2."),
    (_DECODER + "norm.", _DETR + "output_layer_norm."),
    (_DECODER + "presence_token_out_norm.", _DETR + "presence_layer_norm."),
    *(
        (_DECODER + f"{same}.", _DETR + f"{same}.")
        for same in ("query_embed", "reference_points", "presence_token")
    ),
    *(
        (_DECODER + f"{published}.layers.{index}.", _DETR + f"{head}.layer{index + 1}.")
        for published, head in (
            ("bbox_embed", "box_head"),
            ("boxRPB_embed_x", "box_rpb_embed_x"),
            ("boxRPB_embed_y", "box_rpb_embed_y"),
            ("presence_token_head", "presence_head"),
            ("ref_point_head", "ref_point_head"),
        )
        for index in range(3)
    ),
]

_HEAD, _DRAW = "detector.segmentation_head.", "detector_model.mask_decoder."
_SCORING, _SCORE = "detector.dot_prod_scoring.", "detector_model.dot_product_scoring."
_HEADS: list[Line] = [
    (_HEAD + "pixel_decoder.", _DRAW + "pixel_decoder."),
    (_HEAD + "mask_predictor.mask_embed.", _DRAW + "mask_embedder."),
    (_HEAD + "cross_attend_prompt.", _DRAW + "prompt_cross_attn."),
    (_HEAD + "cross_attn_norm.", _DRAW + "prompt_cross_attn_norm."),
    (_HEAD + "semantic_seg_head.", _DRAW + "semantic_projection."),
    (_HEAD + "instance_seg_head.", _DRAW + "instance_projection."),
    (_SCORING + "prompt_mlp.layers.0.", _SCORE + "text_mlp.layer1."),
    (_SCORING + "prompt_mlp.layers.1.", _SCORE + "text_mlp.layer2."),
    (_SCORING + "prompt_mlp.out_norm.", _SCORE + "text_mlp_out_norm."),
    (_SCORING + "prompt_proj.", _SCORE + "text_proj."),
    (_SCORING + "hs_proj.", _SCORE + "query_proj."),
]


def _feed_forward(published: str, ours: str) -> list[Line]:
    """A three-layer feed-forward network."""
    return [
        (published + ".layers.0.", ours + ".proj_in."),
        (published + ".layers.1.", ours + ".layers.0."),
        (published + ".layers.2.", ours + ".proj_out."),
    ]


_ATTEND = "tracker_model.memory_attention."
_KEEP, _MEMORY = "tracker.maskmem_backbone.", "tracker_model.memory_encoder."
_TRACKER: list[Line] = [
    ("tracker.maskmem_tpos_enc", "tracker_model.memory_temporal_positional_encoding"),
    ("tracker.no_mem_embed", "tracker_model.no_memory_embedding"),
    ("tracker.no_mem_pos_enc", "tracker_model.no_memory_positional_encoding"),
    ("tracker.no_obj_ptr", "tracker_model.no_object_pointer"),
    ("tracker.no_obj_embed_spatial", "tracker_model.occlusion_spatial_embedding_parameter"),
    ("tracker.mask_downsample.", "tracker_model.mask_downsample."),
    ("tracker.obj_ptr_tpos_proj.", "tracker_model.temporal_positional_encoding_projection_layer."),
    *_feed_forward("tracker.obj_ptr_proj", "tracker_model.object_pointer_proj"),
    ("tracker.transformer.encoder.norm.", _ATTEND + "layer_norm."),
    (r"tracker.transformer.encoder.layers.(\d+).norm([123]).", _ATTEND + r"layers.\1.layer_norm\2."),
    (r"tracker.transformer.encoder.layers.(\d+).(\w+).", _ATTEND + r"layers.\1.\2."),
    # Convolution, norm, activation four times over, then the last convolution.
    *(
        (_KEEP + f"mask_downsampler.encoder.{3 * i}.", _MEMORY + f"mask_downsampler.layers.{i}.conv.")
        for i in range(4)
    ),
    *(
        (
            _KEEP + f"mask_downsampler.encoder.{3 * i + 1}.",
            _MEMORY + f"mask_downsampler.layers.{i}.layer_norm.",
        )
        for i in range(4)
    ),
    (_KEEP + "mask_downsampler.encoder.12.", _MEMORY + "mask_downsampler.final_conv."),
    (_KEEP + "pix_feat_proj.", _MEMORY + "feature_projection."),
    (_KEEP + "out_proj.", _MEMORY + "projection."),
    (_KEEP + r"fuser.layers.(\d+).gamma", _MEMORY + r"memory_fuser.layers.\1.scale"),
    (_KEEP + r"fuser.layers.(\d+).dwconv.", _MEMORY + r"memory_fuser.layers.\1.depthwise_conv."),
    (_KEEP + r"fuser.layers.(\d+).norm.", _MEMORY + r"memory_fuser.layers.\1.layer_norm."),
    (_KEEP + r"fuser.layers.(\d+).pwconv([12]).", _MEMORY + r"memory_fuser.layers.\1.pointwise_conv\2."),
]

_ASK, _PROMPT = "tracker.sam_prompt_encoder.", "tracker_model.prompt_encoder."
_ANSWER, _MASK = "tracker.sam_mask_decoder.", "tracker_model.mask_decoder."
_TWO_WAY = _ANSWER + "transformer."
_SAM_HEADS: list[Line] = [
    (
        _ASK + "pe_layer.positional_encoding_gaussian_matrix",
        _PROMPT + "shared_embedding.positional_embedding",
    ),
    (_ASK + r"point_embeddings.(\d).weight", _PROMPT + "point_embed.weight"),
    (_ASK + "not_a_point_embed.", _PROMPT + "not_a_point_embed."),
    (_ASK + "no_mask_embed.", _PROMPT + "no_mask_embed."),
    (_ASK + "mask_downscaling.0.", _PROMPT + "mask_embed.conv1."),
    (_ASK + "mask_downscaling.1.", _PROMPT + "mask_embed.layer_norm1."),
    (_ASK + "mask_downscaling.3.", _PROMPT + "mask_embed.conv2."),
    (_ASK + "mask_downscaling.4.", _PROMPT + "mask_embed.layer_norm2."),
    (_ASK + "mask_downscaling.6.", _PROMPT + "mask_embed.conv3."),
    (_TWO_WAY + "norm_final_attn.", _MASK + "transformer.layer_norm_final_attn."),
    (_TWO_WAY + "final_attn_token_to_image.", _MASK + "transformer.final_attn_token_to_image."),
    (_TWO_WAY + r"layers.(\d+).norm([1234]).", _MASK + r"transformer.layers.\1.layer_norm\2."),
    (_TWO_WAY + r"layers.(\d+).mlp.lin1.", _MASK + r"transformer.layers.\1.mlp.proj_in."),
    (_TWO_WAY + r"layers.(\d+).mlp.lin2.", _MASK + r"transformer.layers.\1.mlp.proj_out."),
    (_TWO_WAY + r"layers.(\d+).(\w+).", _MASK + r"transformer.layers.\1.\2."),
    *(
        (_ANSWER + f"{same}.", _MASK + f"{same}.")
        for same in ("iou_token", "mask_tokens", "obj_score_token", "conv_s0", "conv_s1")
    ),
    (_ANSWER + "output_upscaling.0.", _MASK + "upscale_conv1."),
    (_ANSWER + "output_upscaling.1.", _MASK + "upscale_layer_norm."),
    (_ANSWER + "output_upscaling.3.", _MASK + "upscale_conv2."),
    *_feed_forward(_ANSWER + r"output_hypernetworks_mlps.(\d)", _MASK + r"output_hypernetworks_mlps.\1"),
    *_feed_forward(_ANSWER + "iou_prediction_head", _MASK + "iou_prediction_head"),
    *_feed_forward(_ANSWER + "pred_obj_score_head", _MASK + "pred_obj_score_head"),
]

_TABLE = [*_VISION, *_NECKS, *_TEXT, *_GEOMETRY, *_TRANSFORMER, *_HEADS, *_TRACKER, *_SAM_HEADS]

_SECOND_PLACES = {
    # One matrix encodes clicked points and the image's own grid; transformers keeps it twice.
    _PROMPT
    + "shared_embedding.positional_embedding": "tracker_model.shared_image_embedding.positional_embedding",
}

_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # The published table begins with the position of a class token, which the model does not use.
    _TRUNK + "pos_embed": lambda table: table[:, 1:],
    _ENCODER + "text_projection": lambda matrix: matrix.T,
}

_LEFT_OUT = re.compile(
    r"(.*\.)?freqs_cis"  # complex rotary tables, which transformers computes
    r"|detector\.geometry_encoder\.points_\w+\.(weight|bias)"  # point prompts, which SAM 3's detector never gets
    r"|.*\.attn_mask"  # CLIP's causal mask, which transformers computes
)
_FUSED = re.compile(r"(.*)(?:in_proj_|qkv\.)(weight|bias)")
_GATHERED = re.compile(r".*\.point_embeddings\.(\d)\.weight")


def _compiled(line: Line) -> tuple[re.Pattern[str], str]:
    """A line as a pattern; below a module the rest of the name is the last group."""
    published, ours = line
    below = published.endswith(".")
    pattern = re.sub(r"(?<!\\)\.", r"\\.", published)
    return re.compile(pattern + ("(.+)" if below else "")), ours


_LINES = [_compiled(line) for line in _TABLE]


@dataclass(frozen=True)
class Target:
    """Where a published tensor goes.

    Attributes:
        name: transformers' name.
        part: Third of the rows that is taken (query, key, value), or None for all.
        order: Place among the tensors that are put together under that name, or None.
    """

    name: str
    part: int | None = None
    order: int | None = None


def is_dropped(name: str) -> bool:
    """Whether a published tensor is left out on purpose."""
    return _LEFT_OUT.fullmatch(name) is not None


def targets(name: str) -> tuple[Target, ...]:
    """Where a published tensor goes; empty when no line of the table knows it.

    Args:
        name: Published name with its ``detector.`` or ``tracker.`` prefix.
    """
    renamed = _rename(name)
    if renamed is None:
        return ()
    if match := _FUSED.fullmatch(renamed):
        return tuple(Target(f"{match[1]}{part}_proj.{match[2]}", index) for index, part in enumerate("qkv"))
    if match := _GATHERED.fullmatch(name):
        return (Target(renamed, order=int(match[1])),)
    places = (renamed, _SECOND_PLACES[renamed]) if renamed in _SECOND_PLACES else (renamed,)
    return tuple(Target(place) for place in places)


def _rename(name: str) -> str | None:
    for pattern, ours in _LINES:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        below = match[pattern.groups] if pattern.pattern.endswith("(.+)") else ""
        if below.startswith("out_proj.") and not ours.startswith(_CLIP):
            below = below.replace("out_proj", "o_proj")
        return match.expand(ours) + below
    return None


def rename_all(source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Apply the table to a checkpoint.

    Args:
        source: Published names with their prefixes.

    Returns:
        Tensors under transformers' names (views where possible), the names left out on purpose, and the names that no
        line of the table knows.
    """
    renamed: dict[str, Tensor] = {}
    gathered: dict[str, dict[int, Tensor]] = {}
    dropped, unknown = [], []
    for name, tensor in source.items():
        if is_dropped(name):
            dropped.append(name)
            continue
        places = targets(name)
        if not places:
            unknown.append(name)
        for target in places:
            if target.order is not None:
                gathered.setdefault(target.name, {})[target.order] = tensor
            else:
                part = tensor if target.part is None else tensor.chunk(3)[target.part]
                renamed[target.name] = _OPERATIONS[name](part) if name in _OPERATIONS else part
    for name, parts in gathered.items():
        renamed[name] = torch.cat([parts[order] for order in sorted(parts)])
    return renamed, dropped, unknown


def linear_targets(module: str) -> Iterator[tuple[str, int | None]]:
    """transformers' linear modules behind a published one, as LoRA files name them.

    Args:
        module: Published module with its prefix; ``q_proj``, ``k_proj`` and ``v_proj`` may stand for thirds of an
            ``in_proj_weight``.

    Yields:
        Module name without ``.weight``, and the third of the published rows that it takes (None for all).
    """
    for target in targets(module + ".weight"):
        yield target.name.removesuffix(".weight"), target.part
