"""A small random `Sam3VideoModel` for tests: 96 px, patch 8, every part of the real architecture once or twice."""

import functools

import torch
from transformers import Sam3TrackerVideoConfig, Sam3VideoConfig, Sam3VideoModel

SIZE, PATCH, WIDTH = 96, 8, 128
TOKENS = SIZE // PATCH


def vision_config() -> dict:
    return {
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": [[4 * TOKENS] * 2, [2 * TOKENS] * 2, [TOKENS] * 2],
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": PATCH,
            "window_size": 6,
            "pretrain_image_size": 48,
            "global_attn_indexes": [1],
        },
    }


def detector_config(vocabulary: int = 49408) -> dict:
    layer = {"hidden_size": WIDTH, "intermediate_size": 128, "num_attention_heads": 4, "dropout": 0.0}
    return {
        "vision_config": vision_config(),
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "hidden_size": 64,
            "intermediate_size": 128,
            "projection_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "hidden_act": "gelu",
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        "geometry_encoder_config": {**layer, "num_layers": 2, "roi_size": 7},
        "detr_encoder_config": {**layer, "num_layers": 2},
        "detr_decoder_config": {**layer, "num_layers": 2, "num_queries": 12},
        "mask_decoder_config": {"hidden_size": WIDTH, "num_attention_heads": 4, "num_upsampling_stages": 3},
    }


def tracker_config() -> Sam3TrackerVideoConfig:
    return Sam3TrackerVideoConfig(
        vision_config=vision_config(),
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIZE, "patch_size": PATCH},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 128,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": WIDTH,
        },
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=128,
        memory_encoder_hidden_size=WIDTH,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=256,
        memory_fuser_layer_scale_init_value=0.5,
        image_size=SIZE,
    )


def config(vocabulary: int = 49408) -> Sam3VideoConfig:
    return Sam3VideoConfig(
        detector_config=detector_config(vocabulary),
        tracker_config=tracker_config(),
        low_res_mask_size=4 * TOKENS,
    )


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights with which every part matters: transformers' own initial values leave most of them near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                value.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
            elif "embed" in name or "token" in name or "temporal" in name or "no_" in name:
                # Half as large, attention saturates and a change in the last digit grows a thousandfold.
                value.copy_(0.2 * noise)
            else:
                value.copy_(noise * value[0].numel() ** -0.5)
        bias = "tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias"
        for name, value in model.named_parameters():
            if name == bias:
                value.fill_(2.0)


@functools.cache
def model(seed: int = 0, vocabulary: int = 600) -> Sam3VideoModel:
    """Built once a test run; tests do not change it."""
    torch.manual_seed(seed)
    built = Sam3VideoModel(config(vocabulary)).eval()
    randomise(built, seed)
    # One matrix in the published model, kept in two places by transformers.
    tracker = built.tracker_model
    tracker.shared_image_embedding.positional_embedding.copy_(
        tracker.prompt_encoder.shared_embedding.positional_embedding
    )
    return built
