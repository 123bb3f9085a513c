import copy

import pytest
import torch
from test_real_network import TINY

from MedSAM3Core.inference.rotation import (
    ComplexRotaryAttention,
    published_rotation,
    rotate,
    use_complex_rotation,
)
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.training.architecture import build_model


def attentions(network: ConceptNetwork) -> list[type]:
    return [type(layer.attention) for layer in network.detector.vision_encoder.backbone.layers]


def test_a_quarter_turn_takes_a_pair_to_its_side() -> None:
    turned = rotate(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), torch.tensor([[1j, 1j]]))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0, -2.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trunk_is_the_published_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = ConceptNetwork(build_model(TINY)).eval()
    pixels = torch.randn(2, 3, TINY.image_size, TINY.image_size)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = network.trunk(pixels)
        use_complex_rotation(network)
        assert set(attentions(network)) == {ComplexRotaryAttention}
        found = network.trunk(pixels)
        with published_rotation(network):
            assert ComplexRotaryAttention not in attentions(network)
            again = network.trunk(pixels)
    assert expected.std() > 0.1
    assert torch.equal(again, expected)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert set(attentions(copy.deepcopy(network))) == {ComplexRotaryAttention}
