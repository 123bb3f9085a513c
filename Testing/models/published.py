"""A small checkpoint in the published layout, for tests: the same names, splits and shapes as ``sam3.pt``.

The inverse of what `MedSAM3Core.models.naming` does, written from the published code's modules and not from that table:
fused projections are concatenated, sequences numbered, the text projection transposed, a class token's position put
first. ``Testing/models/test_published_code.py`` compares results of the published code itself.
"""

import torch
from torch import Tensor

DETECTOR = "detector."


def linear(out: dict, name: str, state: dict, module: str) -> None:
    for kind in ("weight", "bias"):
        if f"{module}.{kind}" in state:
            out[f"{name}.{kind}"] = state[f"{module}.{kind}"]


def fused(
    out: dict, name: str, state: dict, module: str, joint: str, parts=("q_proj", "k_proj", "v_proj")
) -> None:
    for kind, joined in (("weight", f"{joint}weight"), ("bias", f"{joint}bias")):
        out[f"{name}.{joined}"] = torch.cat([state[f"{module}.{part}.{kind}"] for part in parts])


def attention(out: dict, name: str, state: dict, module: str) -> None:
    fused(out, name, state, module, "in_proj_")
    linear(out, f"{name}.out_proj", state, f"{module}.o_proj")


def count(state: dict, stem: str) -> int:
    return len({key[len(stem) :].split(".")[0] for key in state if key.startswith(stem)})


def vision(out: dict, s: dict) -> None:
    trunk, vit = DETECTOR + "backbone.vision_backbone.trunk", "detector_model.vision_encoder.backbone"
    positions = s[f"{vit}.embeddings.position_embeddings"]
    out[f"{trunk}.pos_embed"] = torch.cat([torch.full_like(positions[:, :1], 9.0), positions], dim=1)
    linear(out, f"{trunk}.patch_embed.proj", s, f"{vit}.embeddings.patch_embeddings.projection")
    linear(out, f"{trunk}.ln_pre", s, f"{vit}.layer_norm")
    for i in range(count(s, f"{vit}.layers.")):
        block, layer = f"{trunk}.blocks.{i}", f"{vit}.layers.{i}"
        linear(out, f"{block}.norm1", s, f"{layer}.layer_norm1")
        linear(out, f"{block}.norm2", s, f"{layer}.layer_norm2")
        fused(out, f"{block}.attn", s, f"{layer}.attention", "qkv.")
        out[f"{block}.attn.freqs_cis"] = torch.zeros(4, 2, dtype=torch.complex64)
        linear(out, f"{block}.attn.proj", s, f"{layer}.attention.o_proj")
        linear(out, f"{block}.mlp.fc1", s, f"{layer}.mlp.fc1")
        linear(out, f"{block}.mlp.fc2", s, f"{layer}.mlp.fc2")
    for published, neck in (("convs", "detector_model.vision_encoder.neck"), ("sam2_convs", "tracker_neck")):
        for i in range(4):
            name, layer = f"{DETECTOR}backbone.vision_backbone.{published}.{i}", f"{neck}.fpn_layers.{i}"
            first = "dconv_2x2_0" if i == 0 else "dconv_2x2"
            linear(out, f"{name}.{first}", s, f"{layer}.scale_layers.0")
            linear(out, f"{name}.dconv_2x2_1", s, f"{layer}.scale_layers.2")
            linear(out, f"{name}.conv_1x1", s, f"{layer}.proj1")
            linear(out, f"{name}.conv_3x3", s, f"{layer}.proj2")


def text(out: dict, s: dict) -> None:
    clip, encoder = "detector_model.text_encoder.text_model", DETECTOR + "backbone.language_backbone.encoder"
    out[f"{encoder}.positional_embedding"] = s[f"{clip}.embeddings.position_embedding.weight"]
    out[f"{encoder}.token_embedding.weight"] = s[f"{clip}.embeddings.token_embedding.weight"]
    out[f"{encoder}.text_projection"] = s["detector_model.text_encoder.text_projection.weight"].T.contiguous()
    linear(out, f"{encoder}.ln_final", s, f"{clip}.final_layer_norm")
    linear(out, DETECTOR + "backbone.language_backbone.resizer", s, "detector_model.text_projection")
    for i in range(count(s, f"{clip}.encoder.layers.")):
        block, layer = f"{encoder}.transformer.resblocks.{i}", f"{clip}.encoder.layers.{i}"
        fused(out, f"{block}.attn", s, f"{layer}.self_attn", "in_proj_")
        linear(out, f"{block}.attn.out_proj", s, f"{layer}.self_attn.out_proj")
        linear(out, f"{block}.ln_1", s, f"{layer}.layer_norm1")
        linear(out, f"{block}.ln_2", s, f"{layer}.layer_norm2")
        linear(out, f"{block}.mlp.c_fc", s, f"{layer}.mlp.fc1")
        linear(out, f"{block}.mlp.c_proj", s, f"{layer}.mlp.fc2")


def plain_layers(out: dict, s: dict, name: str, stack: str) -> None:
    for i in range(count(s, f"{stack}.")):
        attention(out, f"{name}.{i}.self_attn", s, f"{stack}.{i}.self_attn")
        attention(out, f"{name}.{i}.cross_attn_image", s, f"{stack}.{i}.cross_attn")
        for number in (1, 2, 3):
            linear(out, f"{name}.{i}.norm{number}", s, f"{stack}.{i}.layer_norm{number}")
        for number in (1, 2):
            linear(out, f"{name}.{i}.linear{number}", s, f"{stack}.{i}.mlp.fc{number}")


def detector(out: dict, s: dict) -> None:
    geometry, ours = DETECTOR + "geometry_encoder", "detector_model.geometry_encoder"
    for same in ("label_embed", "cls_embed", "final_proj", "boxes_direct_project", "boxes_pool_project"):
        linear(out, f"{geometry}.{same}", s, f"{ours}.{same}")
    linear(out, f"{geometry}.boxes_pos_enc_project", s, f"{ours}.boxes_pos_enc_project")
    linear(out, f"{geometry}.norm", s, f"{ours}.prompt_layer_norm")
    linear(out, f"{geometry}.img_pre_norm", s, f"{ours}.vision_layer_norm")
    linear(out, f"{geometry}.encode_norm", s, f"{ours}.output_layer_norm")
    out[f"{geometry}.points_direct_project.weight"] = torch.ones(3, 2)
    out[f"{geometry}.points_direct_project.bias"] = torch.ones(3)
    plain_layers(out, s, f"{geometry}.encode", f"{ours}.layers")
    plain_layers(out, s, DETECTOR + "transformer.encoder.layers", "detector_model.detr_encoder.layers")
    decoder, ours = DETECTOR + "transformer.decoder", "detector_model.detr_decoder"
    for i in range(count(s, f"{ours}.layers.")):
        layer, theirs = f"{decoder}.layers.{i}", f"{ours}.layers.{i}"
        for name, module in (
            ("cross_attn", "vision_cross_attn"),
            ("ca_text", "text_cross_attn"),
            ("self_attn",) * 2,
        ):
            attention(out, f"{layer}.{name}", s, f"{theirs}.{module}")
        linear(out, f"{layer}.norm1", s, f"{theirs}.vision_cross_attn_layer_norm")
        linear(out, f"{layer}.catext_norm", s, f"{theirs}.text_cross_attn_layer_norm")
        linear(out, f"{layer}.norm2", s, f"{theirs}.self_attn_layer_norm")
        linear(out, f"{layer}.norm3", s, f"{theirs}.mlp_layer_norm")
        for number in (1, 2):
            linear(out, f"{layer}.linear{number}", s, f"{theirs}.mlp.fc{number}")
    linear(out, f"{decoder}.norm", s, f"{ours}.output_layer_norm")
    linear(out, f"{decoder}.presence_token_out_norm", s, f"{ours}.presence_layer_norm")
    for same in ("query_embed", "reference_points", "presence_token"):
        linear(out, f"{decoder}.{same}", s, f"{ours}.{same}")
    heads = {
        "bbox_embed": "box_head",
        "presence_token_head": "presence_head",
        "ref_point_head": "ref_point_head",
    }
    heads |= {"boxRPB_embed_x": "box_rpb_embed_x", "boxRPB_embed_y": "box_rpb_embed_y"}
    for published, head in heads.items():
        for number in range(3):
            linear(out, f"{decoder}.{published}.layers.{number}", s, f"{ours}.{head}.layer{number + 1}")


def heads(out: dict, s: dict) -> None:
    head, ours = DETECTOR + "segmentation_head", "detector_model.mask_decoder"
    for i in range(3):
        linear(out, f"{head}.pixel_decoder.conv_layers.{i}", s, f"{ours}.pixel_decoder.conv_layers.{i}")
        linear(out, f"{head}.pixel_decoder.norms.{i}", s, f"{ours}.pixel_decoder.norms.{i}")
        linear(out, f"{head}.mask_predictor.mask_embed.layers.{i}", s, f"{ours}.mask_embedder.layers.{i}")
    attention(out, f"{head}.cross_attend_prompt", s, f"{ours}.prompt_cross_attn")
    linear(out, f"{head}.cross_attn_norm", s, f"{ours}.prompt_cross_attn_norm")
    linear(out, f"{head}.semantic_seg_head", s, f"{ours}.semantic_projection")
    linear(out, f"{head}.instance_seg_head", s, f"{ours}.instance_projection")
    scoring, ours = DETECTOR + "dot_prod_scoring", "detector_model.dot_product_scoring"
    for number in (0, 1):
        linear(out, f"{scoring}.prompt_mlp.layers.{number}", s, f"{ours}.text_mlp.layer{number + 1}")
    linear(out, f"{scoring}.prompt_mlp.out_norm", s, f"{ours}.text_mlp_out_norm")
    linear(out, f"{scoring}.prompt_proj", s, f"{ours}.text_proj")
    linear(out, f"{scoring}.hs_proj", s, f"{ours}.query_proj")


def split_attention(out: dict, s: dict, name: str, module: str) -> None:
    for part in "qkv":
        linear(out, f"{name}.{part}_proj", s, f"{module}.{part}_proj")
    linear(out, f"{name}.out_proj", s, f"{module}.o_proj")


def feed_forward(out: dict, s: dict, name: str, module: str) -> None:
    for number, layer in enumerate(("proj_in", "layers.0", "proj_out")):
        linear(out, f"{name}.layers.{number}", s, f"{module}.{layer}")


def tracker(out: dict, s: dict) -> None:
    m = "tracker_model"
    for published, ours in (
        ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
        ("no_mem_embed", "no_memory_embedding"),
        ("no_mem_pos_enc", "no_memory_positional_encoding"),
        ("no_obj_ptr", "no_object_pointer"),
        ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    ):
        out[f"tracker.{published}"] = s[f"{m}.{ours}"]
    linear(out, "tracker.mask_downsample", s, f"{m}.mask_downsample")
    linear(out, "tracker.obj_ptr_tpos_proj", s, f"{m}.temporal_positional_encoding_projection_layer")
    feed_forward(out, s, "tracker.obj_ptr_proj", f"{m}.object_pointer_proj")
    for i in range(count(s, f"{m}.memory_attention.layers.")):
        name, layer = f"tracker.transformer.encoder.layers.{i}", f"{m}.memory_attention.layers.{i}"
        split_attention(out, s, f"{name}.self_attn", f"{layer}.self_attn")
        split_attention(out, s, f"{name}.cross_attn_image", f"{layer}.cross_attn_image")
        for number in (1, 2, 3):
            linear(out, f"{name}.norm{number}", s, f"{layer}.layer_norm{number}")
        for number in (1, 2):
            linear(out, f"{name}.linear{number}", s, f"{layer}.linear{number}")
    linear(out, "tracker.transformer.encoder.norm", s, f"{m}.memory_attention.layer_norm")
    memory, ours = "tracker.maskmem_backbone", f"{m}.memory_encoder"
    for i in range(4):
        linear(
            out, f"{memory}.mask_downsampler.encoder.{3 * i}", s, f"{ours}.mask_downsampler.layers.{i}.conv"
        )
        linear(
            out,
            f"{memory}.mask_downsampler.encoder.{3 * i + 1}",
            s,
            f"{ours}.mask_downsampler.layers.{i}.layer_norm",
        )
    linear(out, f"{memory}.mask_downsampler.encoder.12", s, f"{ours}.mask_downsampler.final_conv")
    linear(out, f"{memory}.pix_feat_proj", s, f"{ours}.feature_projection")
    linear(out, f"{memory}.out_proj", s, f"{ours}.projection")
    for i in range(2):
        name, layer = f"{memory}.fuser.layers.{i}", f"{ours}.memory_fuser.layers.{i}"
        out[f"{name}.gamma"] = s[f"{layer}.scale"]
        linear(out, f"{name}.dwconv", s, f"{layer}.depthwise_conv")
        linear(out, f"{name}.norm", s, f"{layer}.layer_norm")
        linear(out, f"{name}.pwconv1", s, f"{layer}.pointwise_conv1")
        linear(out, f"{name}.pwconv2", s, f"{layer}.pointwise_conv2")


def sam_heads(out: dict, s: dict) -> None:
    prompt, ours = "tracker.sam_prompt_encoder", "tracker_model.prompt_encoder"
    out[f"{prompt}.pe_layer.positional_encoding_gaussian_matrix"] = s[
        f"{ours}.shared_embedding.positional_embedding"
    ]
    for i in range(4):
        out[f"{prompt}.point_embeddings.{i}.weight"] = s[f"{ours}.point_embed.weight"][i : i + 1]
    linear(out, f"{prompt}.not_a_point_embed", s, f"{ours}.not_a_point_embed")
    linear(out, f"{prompt}.no_mask_embed", s, f"{ours}.no_mask_embed")
    for number, layer in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3")):
        linear(out, f"{prompt}.mask_downscaling.{number}", s, f"{ours}.mask_embed.{layer}")
    mask, ours = "tracker.sam_mask_decoder", "tracker_model.mask_decoder"
    for i in range(2):
        name, layer = f"{mask}.transformer.layers.{i}", f"{ours}.transformer.layers.{i}"
        for module in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            split_attention(out, s, f"{name}.{module}", f"{layer}.{module}")
        for number in (1, 2, 3, 4):
            linear(out, f"{name}.norm{number}", s, f"{layer}.layer_norm{number}")
        linear(out, f"{name}.mlp.lin1", s, f"{layer}.mlp.proj_in")
        linear(out, f"{name}.mlp.lin2", s, f"{layer}.mlp.proj_out")
    split_attention(
        out,
        s,
        f"{mask}.transformer.final_attn_token_to_image",
        f"{ours}.transformer.final_attn_token_to_image",
    )
    linear(out, f"{mask}.transformer.norm_final_attn", s, f"{ours}.transformer.layer_norm_final_attn")
    for same in ("iou_token", "mask_tokens", "obj_score_token", "conv_s0", "conv_s1"):
        linear(out, f"{mask}.{same}", s, f"{ours}.{same}")
    for number, layer in ((0, "upscale_conv1"), (1, "upscale_layer_norm"), (3, "upscale_conv2")):
        linear(out, f"{mask}.output_upscaling.{number}", s, f"{ours}.{layer}")
    for i in range(4):
        feed_forward(out, s, f"{mask}.output_hypernetworks_mlps.{i}", f"{ours}.output_hypernetworks_mlps.{i}")
    feed_forward(out, s, f"{mask}.iou_prediction_head", f"{ours}.iou_prediction_head")
    feed_forward(out, s, f"{mask}.pred_obj_score_head", f"{ours}.pred_obj_score_head")


def published_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to published ones, ``freqs_cis`` and point projections included."""
    out: dict[str, Tensor] = {}
    for part in (vision, text, detector, heads, tracker, sam_heads):
        part(out, state)
    return out


def image_model(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published image model alone, without its prefix, as 2D training saves it: no tracker and no tracker neck."""
    return {
        name.removeprefix(DETECTOR): tensor
        for name, tensor in checkpoint.items()
        if name.startswith(DETECTOR) and ".sam2_convs." not in name
    }
