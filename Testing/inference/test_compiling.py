import logging

import pytest
import torch
from test_real_network import PHRASES, TINY, TinyModel, concept, tiny, volume  # noqa: F401 - fixtures
from torch._dynamo.exc import TorchDynamoException

from MedSAM3Core import Segmenter
from MedSAM3Core.inference.compiling import CompiledTrunk, without_hooks
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.training.architecture import build_model


@pytest.fixture(scope="module")
def network() -> ConceptNetwork:
    torch.manual_seed(0)
    return ConceptNetwork(build_model(TINY)).eval()


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, TINY.image_size, TINY.image_size, generator=torch.Generator().manual_seed(1))


def test_it_answers_as_the_plain_trunk_for_any_number_of_images(network: ConceptNetwork, caplog) -> None:
    compiled = CompiledTrunk(network, 3, backend="eager")
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for count in (3, 2, 1, 5):
            torch.testing.assert_close(compiled(pixels(count)), network.trunk(pixels(count)))
    assert not compiled.failed
    assert len([r for r in caplog.records if "compiling the vision encoder" in r.message]) == 1


def test_a_branch_beside_the_weights_is_not_left_out(network: ConceptNetwork) -> None:
    compiled = CompiledTrunk(network, 2, backend="eager")
    layer = network.detector.vision_encoder.backbone.layers[0].attention.q_proj
    with torch.inference_mode():
        plain = compiled(pixels(2))
        handle = layer.register_forward_hook(lambda _, inputs, output: output + inputs[0])
        branched = compiled(pixels(2))
        assert torch.equal(branched, network.trunk(pixels(2)))
        handle.remove()
        assert not torch.allclose(branched, plain, atol=1e-3)
        torch.testing.assert_close(compiled(pixels(2)), plain)


def test_what_cannot_be_compiled_runs_as_it_is(network: ConceptNetwork, monkeypatch, caplog) -> None:
    compiled = CompiledTrunk(network, 2, backend="eager")

    def fails(_: torch.Tensor) -> torch.Tensor:
        raise TorchDynamoException("Cannot find a working triton installation.")

    monkeypatch.setattr(compiled, "_compiled", fails)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        answer = compiled(pixels(2))
        assert torch.equal(answer, network.trunk(pixels(2)))
        compiled(pixels(2))
    assert compiled.failed
    assert len([r for r in caplog.records if "triton" in r.message]) == 1, "it is tried and told once"


def test_an_error_of_the_network_is_not_hidden(network: ConceptNetwork) -> None:
    with torch.inference_mode(), pytest.raises((RuntimeError, TypeError, ValueError)):
        CompiledTrunk(network, 1, backend="eager")(torch.zeros(1, 2, 64, 64))


def test_hooks_come_back(network: ConceptNetwork) -> None:
    called = []
    handle = network.register_forward_pre_hook(lambda *_: called.append(1))
    with without_hooks(network):
        assert not network._forward_pre_hooks
    assert len(network._forward_pre_hooks) == 1
    handle.remove()
    assert not called


@pytest.mark.slow
def test_compiled_and_plain_masks_agree(tiny: TinyModel, volume) -> None:  # noqa: F811
    masks = []
    for compile_it in (False, True):
        with Segmenter(tiny).open(volume, precision="float32", compile=compile_it) as session:
            masks.append([session.segment(concept(phrase)).to_array() for phrase in PHRASES])
    for a, b in zip(*masks, strict=True):
        assert (a != b).mean() < 1e-3
