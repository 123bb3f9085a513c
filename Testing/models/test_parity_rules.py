"""The rules that `make parity` draws weights and images by, and that it fails when it should."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from published_small import SIZE

from parity import Comparison, draw, image, lora_weights, samples, stats, weight  # isort: skip

FIXTURES = Path(__file__).resolve().parents[3] / "shared/fixtures/sam3_parity"
shared = pytest.mark.skipif(not FIXTURES.is_dir(), reason="../shared is absent")


@pytest.mark.parametrize(
    ("key", "shape", "scale", "shift"),
    [
        ("tracker.sam_mask_decoder.pred_obj_score_head.layers.2.bias", (1,), 0.02, 2),
        ("tracker.maskmem_backbone.fuser.layers.0.gamma", (8,), 0.1, 0.5),
        ("detector.transformer.decoder.query_embed.weight", (4, 8), 1, 0),
        ("tracker.sam_prompt_encoder.point_embeddings.3.weight", (1, 8), 0.5, 0),
        ("tracker.maskmem_tpos_enc", (7, 1, 1, 4), 0.5, 0),
        ("detector.geometry_encoder.norm.weight", (8,), 0.1, 1),
        ("detector.geometry_encoder.encode.0.self_attn.in_proj_bias", (24,), 0.02, 0),
        ("detector.transformer.decoder.bbox_embed.layers.0.weight", (3, 16), 0.25, 0),
        ("detector.backbone.vision_backbone.convs.0.dconv_2x2_0.weight", (6, 4, 2, 2), 0.25, 0),
    ],
)
def test_every_line_of_the_weight_rule(key, shape, scale, shift):
    torch.testing.assert_close(weight(key, shape, 3), draw(key, shape, 3) * scale + shift)


def test_a_generator_a_key():
    assert not torch.equal(draw("a", (4,), 0), draw("b", (4,), 0))
    assert torch.equal(draw("a", (4,), 0), draw("a", (4,), 0))
    lora = lora_weights({"m.lora.lora_A": (16, 2), "m.lora.lora_B": (2, 8)}, 1)
    torch.testing.assert_close(lora["m.lora.lora_A"], draw("m.lora.lora_A", (16, 2), 1) / 4)
    torch.testing.assert_close(lora["m.lora.lora_B"], draw("m.lora.lora_B", (2, 8), 1) * 0.02)


def test_samples_and_statistics():
    values = torch.arange(1000.0)
    assert samples(values)[:3].tolist() == [0.0, 2654435761 % 1000, (2 * 2654435761) % 1000]
    np.testing.assert_allclose(stats(values), [499.5, np.arange(1000).std(), 0, 999])


@pytest.mark.shared
@shared
def test_image_and_weights_are_those_of_the_fixtures():
    settings = json.loads((FIXTURES / "settings.json").read_text())
    with np.load(FIXTURES / "vision.npz", allow_pickle=False) as arrays:
        probes = json.loads(str(arrays["weight_probe_json"]))
        np.testing.assert_array_equal(image(settings["image_seed"])[::16, ::16], arrays["image_s16"])
    key, (shape, _, _, first) = min(probes.items(), key=lambda item: np.prod(item[1][0]))
    torch.testing.assert_close(
        weight(key, tuple(shape), 1).flatten()[:8], torch.tensor(first), atol=1e-6, rtol=0
    )


class TestComparison:
    @pytest.fixture
    def comparison(self, tmp_path):
        np.savez(
            tmp_path / "text_a.npz", pred_logits=np.zeros(3), presence_logit=np.zeros(1), seed=np.array(1)
        )
        np.savez(tmp_path / "tracker.npz", mask_memsel_ious_f1=np.zeros(3))
        return Comparison(tmp_path)

    def test_within(self, comparison):
        comparison.check("text_a", "pred_logits", torch.full((3,), 4e-4), "logits")
        assert comparison.failed == []
        assert comparison.unseen() == ["text_a:presence_logit"]
        comparison.check("text_a", "presence_logit", torch.zeros(1), "presence")
        assert comparison.unseen() == []

    @pytest.mark.parametrize(
        "value", [torch.full((3,), 6e-4), torch.zeros(4), torch.full((3,), float("nan"))]
    )
    def test_beyond(self, comparison, value):
        comparison.check("text_a", "pred_logits", value, "logits")
        assert len(comparison.failed) == 1


def test_the_small_image_is_of_the_same_rule():
    small = image(77, SIZE)
    assert small.shape == (SIZE, SIZE, 3)
    assert small.dtype == np.uint8
    assert small.std() > 20
