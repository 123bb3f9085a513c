"""A converted checkpoint against outputs of the published code itself, small enough for every run of the tests.

``data/published_small.npz`` was made by `make_published_fixture` with Meta's code at reduced size: 224 px, 4 vision, 2
text, fusion, decoder and memory layers, 12 queries. Weights come from a rule, so the whole way is tested: published
layout, conversion, loading, text, boxes, LoRA, tracker. The full size is compared by ``make parity``.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from published_small import BOXES, CLICK, FRAMES, LABELS, PHRASES, SEED, SIZE, disc, pixels, thin

from MedSAM3Core.models import load_model
from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.conversion import convert_checkpoint, full_size_config
from MedSAM3Core.models.lora import merge, read_adapter
from MedSAM3Core.models.network import ConceptNetwork

from parity import checkpoint_weights, lora_weights  # isort: skip

DATA = Path(__file__).resolve().parent / "data" / "published_small.npz"
TOLERANCE = {"logits": 1e-4, "presence": 1e-4, "boxes": 1e-4, "semantic": 2e-4, "masks": 1e-3}


def small_config():
    """The published architecture with the sizes of `make_published_fixture.SIZES`."""
    config = full_size_config(SIZE)
    vision = config.detector_config.vision_config.backbone_config
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 64, 128, 4
    vision.num_attention_heads, vision.window_size, vision.pretrain_image_size = 2, 8, 112
    vision.global_attn_indexes = [1, 3]
    text = config.detector_config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads = 64, 256, 2, 2
    for part in ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config"):
        layers = getattr(config.detector_config, part)
        layers.num_layers, layers.intermediate_size = 2, 96
    config.detector_config.detr_decoder_config.num_queries = 12
    tracker = config.tracker_config
    tracker.vision_config.backbone_config = vision
    tracker.memory_attention_num_layers, tracker.memory_attention_feed_forward_hidden_size = 2, 96
    tracker.mask_decoder_config.mlp_dim = 96
    return config


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def model(arrays, tmp_path_factory):
    """The checkpoint of the rule, converted and loaded."""
    work = tmp_path_factory.mktemp("published")
    keys = {name: tuple(shape) for name, shape in json.loads(str(arrays["keys"])).items()}
    torch.save({"model": checkpoint_weights(keys, SEED)}, work / "sam3.pt")
    convert_checkpoint(
        work / "sam3.pt", work / "small", ModelCard(name="s", resolution=SIZE), config=small_config()
    )
    return load_model(work / "small", device="cpu")


@pytest.fixture(scope="module")
def pyramid(model):
    with torch.no_grad():
        return model.network.detector_pyramid(model.network.trunk(pixels(0)))


def difference(ours: torch.Tensor, arrays: dict[str, np.ndarray], name: str) -> float:
    """Largest absolute difference from a stored output."""
    ours, wanted = thin(name, ours), torch.from_numpy(arrays[name])
    assert ours.shape == wanted.shape
    return float((ours - wanted).abs().max())


def detect(network: ConceptNetwork, model, pyramid, name: str):
    phrase, with_boxes = PHRASES[name]
    text = network.encode_text(*model.tokenize([phrase]))
    boxes = torch.tensor([BOXES]) if with_boxes else None
    return network.detect(pyramid, text, boxes, torch.tensor([LABELS]) if with_boxes else None)


def assert_detections(found, arrays, name):
    ours = {
        "logits": found.logits[-1, 0],
        "presence": found.presence[-1],
        "boxes": found.boxes[-1, 0],
        "semantic": found.semantic[0],
        "masks": found.masks[0],
    }
    for key, value in ours.items():
        assert difference(value, arrays, f"{name}_{key}") < TOLERANCE[key], key


def test_encoder(pyramid, arrays):
    for index, level in enumerate(pyramid.maps):
        assert difference(level[0], arrays, f"text_fpn{index}") < 2e-4


@pytest.mark.parametrize("name", PHRASES)
@torch.no_grad()
def test_text_and_boxes(model, pyramid, arrays, name):
    assert_detections(detect(model.network, model, pyramid, name), arrays, name)


@torch.no_grad()
def test_dropping_the_padded_box_is_noticed(model, arrays):
    """What `Sam3Model` computes when it is given no box at all: the class token is missing."""
    ids, mask = model.tokenize([PHRASES["text"][0]])
    wrong = model.network.detector(pixel_values=pixels(0), input_ids=ids, attention_mask=mask)
    assert difference(wrong.pred_logits[0], arrays, "text_logits") > 100 * TOLERANCE["logits"]
    assert difference(wrong.pred_masks[0], arrays, "text_masks") > 100 * TOLERANCE["masks"]


@torch.no_grad()
def test_prompts_differ_by_far_more_than_the_tolerance(arrays):
    for name in ("other", "boxes", "lora"):
        assert np.abs(arrays[f"{name}_logits"] - arrays["text_logits"]).max() > 100 * TOLERANCE["logits"]


@torch.no_grad()
def test_lora(model, arrays, tmp_path):
    keys = {name: tuple(shape) for name, shape in json.loads(str(arrays["lora_keys"])).items()}
    torch.save(lora_weights(keys, SEED), tmp_path / "lora.pt")
    network = model.network
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    merge(network.model, read_adapter(tmp_path / "lora.pt", alpha=4, rank=2))
    try:
        changed = network.detector_pyramid(network.trunk(pixels(0)))
        assert_detections(detect(network, model, changed, "text"), arrays, "lora")
    finally:
        network.model.load_state_dict(before)


@pytest.fixture(scope="module")
def frames(model):
    with torch.no_grad():
        return [model.tracker.pyramid(model.network.trunk(pixels(frame))) for frame in range(FRAMES)]


@pytest.mark.parametrize("prompt", ["mask", "click"])
@torch.no_grad()
def test_tracker(model, frames, arrays, prompt):
    """Eight slices of propagation: every recent memory and pointer is in use, and the oldest has been dropped."""
    tracker = model.tracker
    if prompt == "mask":
        out = tracker.prompt_mask(frames[0], disc()[None])
    else:
        out = tracker.prompt_points(frames[0], torch.tensor([[CLICK]]), torch.tensor([[1]]))
    bank = tracker.new_bank(FRAMES)
    for frame in range(FRAMES):
        if frame:
            out = tracker.track(frames[frame], bank, frame)
        bank = bank.add(tracker.memorise(frames[frame], out, frame, conditioning=frame == 0))
        assert difference(out.object_score, arrays, f"{prompt}_score_f{frame}") < 1e-4
        assert difference(out.pointer[0], arrays, f"{prompt}_pointer_f{frame}") < 1e-4
        memory = bank.memories[-1].features[0].float()
        assert difference(memory, arrays, f"{prompt}_memory_f{frame}") < 0.26
        assert difference(out.logits[0], arrays, f"{prompt}_low_res_f{frame}") < 1e-3
