"""A base and a LoRA on it in one worker: whatever is open beside it, each answers with its own weights.

Panels switch from one to the other and back while volumes stay open on both. Whoever lets the two share the base's
weights has to pass here: in the modes that run another network of the same weights too, and to the last bit.
"""

import numpy as np
import pytest
import torch
from test_contract_real import LIVER, TINY, VOCABULARY, assert_same
from transformers import Sam3VideoModel

from MedSAM3Core import Segmenter
from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.models.folder import save_model_folder
from MedSAM3Core.models.lora import Adapter
from MedSAM3Core.models.registry import HOME_VARIABLE, model_folder
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.training.architecture import build_model
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker.backend import TorchBackend

BASE, LORA, OTHER = "tiny-base", "tiny-lora", "other-lora"
MODES = {"plain": {}, "lower side": {"resolution_share": 0.5}}
POLICY = Policy(score_rule="semantic", threshold=0.02, mask_threshold=0.02)


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """A base that can run at half its side, and two LoRAs that change its vision encoder and its detector."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    torch.manual_seed(0)
    config = build_model(TINY).config
    for vision in (config.detector_config.vision_config, config.tracker_config.vision_config):
        vision.backbone_config.pretrain_image_size = TINY.image_size // 2
    network = Sam3VideoModel(config).eval()
    tokenizer = PhraseTokenizer({token: number for number, token in enumerate(VOCABULARY)}, [])
    model_folder(BASE).parent.mkdir(parents=True, exist_ok=True)
    card = ModelCard(name=BASE, recommended=POLICY)
    save_model_folder(model_folder(BASE), network, tokenizer, card, torch.float32)
    for seed, name in enumerate((LORA, OTHER), 1):
        folder = model_folder(name)
        folder.mkdir()
        _adapter(network, seed).save(folder, BASE)
        ModelCard(name=name, base=BASE, recommended=POLICY).write(folder)


def _adapter(network: torch.nn.Module, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.startswith("detector_model.") and "mlp" in name
    }
    assert any("vision_encoder" in name for name in layers)
    assert any("detr" in name for name in layers)
    down = {n: torch.randn(2, one.in_features, generator=generator) * 0.3 for n, one in layers.items()}
    up = {n: torch.randn(one.out_features, 2, generator=generator) * 0.3 for n, one in layers.items()}
    return Adapter(down, up, 2, 4.0)


@pytest.fixture
def scan():
    array = np.random.default_rng(5).integers(-200, 200, (3, 40, 44)).astype(np.int16)
    array[:, 10:30, 12:32] += 150
    return Volume.from_array(array, spacing=(1, 1, 3), modality="CT")


@pytest.mark.parametrize("mode", MODES)
def test_sessions_on_a_base_and_on_its_loras_keep_their_weights(scan, mode):
    settings = {"precision": "float32", **MODES[mode]}
    names = (BASE, LORA, OTHER)
    fresh = {}
    for name in names:
        with Segmenter.from_pretrained(name, device="cpu").open(scan, **settings) as session:
            fresh[name] = session.segment(LIVER)
    masks = [fresh[name].probability_map() for name in names]
    assert all((a != b).any() for a, b in ((masks[0], masks[1]), (masks[0], masks[2]), (masks[1], masks[2])))

    backend = TorchBackend()
    sessions = {name: backend.load(name, "cpu").open(scan, **settings) for name in names}
    # There and back, on features made before the switch and on those made after it.
    for name in (BASE, LORA, BASE, OTHER, LORA, BASE):
        assert_same(fresh[name], sessions[name].segment(LIVER))
    again = backend.load(LORA, "cpu").open(scan, **settings)
    assert_same(fresh[BASE], sessions[BASE].segment(LIVER))
    assert_same(fresh[LORA], again.segment(LIVER))
