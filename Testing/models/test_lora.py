"""LoRA files of both formats: read, merged, beside the weights, switched, and refused."""

import json
import shutil

import pytest
import tiny
import torch

from MedSAM3Core.errors import CheckpointError, ModelError
from MedSAM3Core.models import load_model
from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.installing import check_adapter, import_model
from MedSAM3Core.models.lora import Adapter, AdapterSwitch, merge, read_adapter
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.models.registry import find_entry

RANK, ALPHA = 4, 8
PLAIN = {
    "backbone.vision_backbone.trunk.blocks.1.mlp.fc1": "detector_model.vision_encoder.backbone.layers.1.mlp.fc1",
    "transformer.decoder.layers.0.ca_text.out_proj": "detector_model.detr_decoder.layers.0.text_cross_attn.o_proj",
    "dot_prod_scoring.hs_proj": "detector_model.dot_product_scoring.query_proj",
    "backbone.language_backbone.encoder.transformer.resblocks.0.mlp.c_proj": (
        "detector_model.text_encoder.text_model.encoder.layers.0.mlp.fc2"
    ),
    "geometry_encoder.final_proj": "detector_model.geometry_encoder.final_proj",
}
FUSED = "backbone.vision_backbone.trunk.blocks.0.attn.qkv"
THIRD = "transformer.encoder.layers.1.cross_attn_image.v_proj"
THIRD_TARGET = "detector_model.detr_encoder.layers.1.cross_attn.v_proj"
TEXT_THIRD = "backbone.language_backbone.encoder.transformer.resblocks.1.attn.q_proj"
TEXT_TARGET = "detector_model.text_encoder.text_model.encoder.layers.1.self_attn.q_proj"


def pair(rows: int, columns: int, seed: int, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    """[in, rank] and [rank, out], as MedSAM3 stores them."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(columns, rank, generator=generator) * columns**-0.5,
        torch.randn(rank, rows, generator=generator) * 0.3,
    )


def medsam3_lora(rank: int = RANK) -> dict[str, torch.Tensor]:
    """A LoRA file of the small model; ``points_*`` is among its modules as in the published one."""
    weights = tiny.model().state_dict()
    shapes = {module: tuple(weights[f"{target}.weight"].shape) for module, target in PLAIN.items()}
    shapes |= {THIRD: (tiny.WIDTH, tiny.WIDTH), TEXT_THIRD: (64, 64), FUSED: (3 * 64, 64)}
    shapes["geometry_encoder.points_direct_project"] = (tiny.WIDTH, 2)
    content = {}
    for seed, (module, (rows, columns)) in enumerate(shapes.items()):
        content[f"{module}.lora.lora_A"], content[f"{module}.lora.lora_B"] = pair(rows, columns, seed, rank)
    return content


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "best_lora_weights.pt"
    torch.save(medsam3_lora(), path)
    return path


@pytest.fixture
def installed_base(home, model_on_disk):
    """The small model under the name sam3."""
    return shutil.copytree(model_on_disk, home / "models" / "sam3")


def expected_weights() -> dict[str, torch.Tensor]:
    """The changed weights, by the formula of the published code: W + (A @ B).T * alpha / r."""
    content, weights = medsam3_lora(), tiny.model().state_dict()

    def change(module):
        a, b = content[f"{module}.lora.lora_A"], content[f"{module}.lora.lora_B"]
        return (a @ b).T * ALPHA / RANK

    expected = {f"{t}.weight": weights[f"{t}.weight"] + change(m) for m, t in PLAIN.items()}
    expected[f"{THIRD_TARGET}.weight"] = weights[f"{THIRD_TARGET}.weight"] + change(THIRD)
    expected[f"{TEXT_TARGET}.weight"] = weights[f"{TEXT_TARGET}.weight"] + change(TEXT_THIRD)
    for index, part in enumerate("qkv"):
        name = f"detector_model.vision_encoder.backbone.layers.0.attention.{part}_proj.weight"
        expected[name] = weights[name] + change(FUSED)[64 * index : 64 * (index + 1)]
    return expected


def test_merged_by_the_published_formula(file):
    model = tiny.model.__wrapped__()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    adapter = read_adapter(file, alpha=ALPHA, rank=RANK)
    assert adapter.scale == 2.0
    assert adapter.dropped == ("geometry_encoder.points_direct_project",)
    merge(model, adapter)
    expected = expected_weights()
    after = model.state_dict()
    for name, value in after.items():
        torch.testing.assert_close(value, expected.get(name, before[name]), atol=1e-6, rtol=1e-5)
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert changed == set(expected)


def answer(network: ConceptNetwork) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(1, 3, tiny.SIZE, tiny.SIZE, generator=generator)
    ids = torch.tensor([[598, 5, 9, 599]])
    with torch.no_grad():
        text = network.encode_text(ids, torch.ones_like(ids))
        return network.detect(network.detector_pyramid(network.trunk(pixels)), text).masks


def test_beside_the_weights_equals_merged_and_switches_back(file):
    adapter = read_adapter(file, alpha=ALPHA)
    merged = tiny.model.__wrapped__()
    merge(merged, adapter)
    wanted = answer(ConceptNetwork(merged))
    model = tiny.model.__wrapped__()
    network, switch = ConceptNetwork(model), AdapterSwitch(model)
    plain = answer(network)
    assert (plain - wanted).abs().max() > 0.01
    for _ in range(2):
        switch.use(adapter)
        torch.testing.assert_close(answer(network), wanted, atol=2e-4, rtol=1e-4)
        switch.use(None)
        assert torch.equal(answer(network), plain)


def peft_file(folder, module_names="published"):
    """The same changes as peft writes them, with its adapter_config.json."""
    content = {}
    for module, target in PLAIN.items():
        name = module if module_names == "published" else target.removeprefix("detector_model.")
        a, b = medsam3_lora()[f"{module}.lora.lora_A"], medsam3_lora()[f"{module}.lora.lora_B"]
        content[f"base_model.model.{name}.lora_A.weight"] = a.T.contiguous()
        content[f"base_model.model.{name}.lora_B.weight"] = b.T.contiguous()
    path = folder / "adapter_model.bin"
    torch.save(content, path)
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    return path


@pytest.mark.parametrize("module_names", ["published", "transformers"])
def test_peft_format_on_either_layout(tmp_path, module_names):
    adapter = read_adapter(peft_file(tmp_path, module_names))
    assert (adapter.rank, adapter.alpha) == (RANK, ALPHA)
    model = tiny.model.__wrapped__()
    merge(model, adapter)
    expected = expected_weights()
    for target in PLAIN.values():
        torch.testing.assert_close(model.state_dict()[f"{target}.weight"], expected[f"{target}.weight"])


def test_rank_stabilised_lora_is_scaled_by_the_root_of_its_rank(tmp_path):
    path = peft_file(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA, "use_rslora": True}))
    assert read_adapter(path).scale == pytest.approx(ALPHA / RANK**0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_alpha": ALPHA, "alpha_pattern": {"fc1": 4}}, "sets alpha_pattern, which is not supported"),
        ({"lora_alpha": ALPHA, "use_dora": True}, "sets use_dora"),
        ({"lora_alpha": "much"}, "is not what peft writes"),
        ([], "is not what peft writes"),
        ({}, "does not store its alpha"),
    ],
)
def test_what_peft_says_of_the_scale_is_never_ignored(tmp_path, settings, words):
    path = peft_file(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=words):
        read_adapter(path)


class TestInstalled:
    """The registry's medsam3-v1 with the rank and alpha of these tests, on the small model."""

    @pytest.fixture(autouse=True)
    def registry(self, home, installed_base):
        text = "name: {0}\n    base: sam3\n    licence: {{name: test}}"
        entries = [
            f"{name}:\n  kind: lora\n  base: sam3\n  lora: {{rank: {RANK}, alpha: {ALPHA}}}\n  card:\n    "
            + text.format(name)
            for name in ("first", "second")
        ]
        (home / "registry.yaml").write_text("\n".join(entries))

    def test_import_load_and_switch(self, file, tmp_path):
        second = tmp_path / "second.pt"
        torch.save({n: -t if n.endswith("B") else t for n, t in medsam3_lora().items()}, second)
        folder = import_model("first", file, lambda _: True)
        import_model("second", second, lambda _: True)
        assert (folder / "adapter.safetensors").stat().st_size < 200_000
        merged = load_model("first", device="cpu")
        base = load_model("sam3", device="cpu")
        plain, wanted = answer(base.network), answer(merged.network)
        first = base.with_adapter("first")
        torch.testing.assert_close(answer(first.network), wanted, atol=2e-4, rtol=1e-4)
        assert first.card.name == "first"
        assert first.card.sha256 == merged.card.sha256 != base.card.sha256
        assert first.network is base.network
        other = first.with_adapter("second")
        assert (answer(other.network) - wanted).abs().max() > 0.01
        assert torch.equal(answer(other.with_adapter(None).network), plain)
        with pytest.raises(ModelError, match="merged into 'first'"):
            merged.with_adapter("second")
        with pytest.raises(ModelError, match="is not a LoRA on 'sam3'"):
            other.with_adapter(tmp_path)

    def test_beside_the_weights_from_the_start(self, file):
        import_model("first", file, lambda _: True)
        beside, merged = load_model("first", device="cpu", merged=False), load_model("first", device="cpu")
        torch.testing.assert_close(answer(beside.network), answer(merged.network), atol=2e-4, rtol=1e-4)

    def test_without_its_base(self, file, installed_base):
        import_model("first", file, lambda _: True)
        shutil.rmtree(installed_base)
        with pytest.raises(ModelError, match=r"LoRA on 'sam3', which is not installed; install sam3 first"):
            load_model("first", device="cpu")
        with pytest.raises(ModelError, match="install sam3 first"):
            import_model("second", file, lambda _: True)

    def test_of_another_rank(self, tmp_path, home):
        path = tmp_path / "r8.pt"
        torch.save(medsam3_lora(rank=8), path)
        with pytest.raises(CheckpointError, match="is a LoRA of rank 8; expected rank 4"):
            import_model("first", path, lambda _: True)
        assert not (home / "models" / "first").exists()

    def test_ones_own_from_peft(self, tmp_path):
        """A name that no registry knows: alpha comes from peft's file, the licence is the base's."""
        peft_file(tmp_path)
        import_model("own", tmp_path, pytest.fail)
        own = load_model("own", device="cpu")
        assert own.card.base == "sam3"
        assert own.card.licence.name == "SAM License"
        expected = expected_weights()
        for target in PLAIN.values():
            weight = own.network.model.state_dict()[f"{target}.weight"]
            torch.testing.assert_close(weight, expected[f"{target}.weight"])

    def test_ones_own_without_alpha(self, file):
        with pytest.raises(CheckpointError, match="does not store its alpha"):
            import_model("own", file, pytest.fail)

    def test_ones_own_with_its_alpha(self, file):
        """The same changes as the registered model's, since rank and alpha are the same."""
        import_model("own", file, pytest.fail, alpha=ALPHA)
        import_model("first", file, lambda _: True)
        own, first = load_model("own", device="cpu"), load_model("first", device="cpu")
        assert own.card.sha256 == first.card.sha256
        assert torch.equal(answer(own.network), answer(first.network))
        with pytest.raises(ModelError, match="alpha of 'first' is fixed by the registry"):
            import_model("first", file, lambda _: True, alpha=ALPHA)

    def test_ones_own_on_another_base_is_read_as_that_base(self, home, file, installed_base):
        shutil.copytree(installed_base, home / "models" / "medical-sam3-3d")
        import_model("own", file, pytest.fail, base="medical-sam3", alpha=ALPHA)
        card, base = ModelCard.read(home / "models" / "own"), find_entry("medical-sam3-3d").card
        assert (card.published, card.recommended) == (base.published, base.recommended)
        assert card.prompt_style == base.prompt_style
        assert load_model("own", device="cpu").card.base == "medical-sam3-3d"

    def test_bases_that_are_none(self, file):
        import_model("first", file, lambda _: True)
        with pytest.raises(ModelError, match=r"base 'nothing' is unknown; expected one of demo, sam3"):
            import_model("own", file, pytest.fail, base="nothing", alpha=ALPHA)
        with pytest.raises(
            ModelError, match="'first' is a LoRA itself; give the whole model below it, 'sam3'"
        ):
            import_model("own", file, pytest.fail, base="first", alpha=ALPHA)

    def test_a_folder_carried_over(self, file, tmp_path, home, installed_base):
        """A LoRA's model folder from another machine: checked against its base and its name."""
        source = shutil.copytree(import_model("first", file, lambda _: True), tmp_path / "carried")
        import_model("second", source, lambda _: True)
        assert ModelCard.read(home / "models" / "second").name == "second"
        values = json.loads((source / "adapter.json").read_text())
        (source / "adapter.json").write_text(json.dumps(values | {"alpha": 2 * ALPHA}))
        with pytest.raises(CheckpointError, match="does not hold 'second'"):
            import_model("second", source, lambda _: True)
        import_model("stronger", source, pytest.fail)
        for installed in ("first", "second", "stronger"):
            shutil.rmtree(home / "models" / installed)
        shutil.rmtree(installed_base)
        with pytest.raises(ModelError, match="'again' is a LoRA on 'sam3', which is not installed"):
            import_model("again", source, pytest.fail)

    def test_a_checkpoint_in_its_place(self, tmp_path):
        path = tmp_path / "x.pt"
        torch.save({"detector.a": torch.zeros(2)}, path)
        with pytest.raises(CheckpointError, match="is not a LoRA file"):
            import_model("first", path, lambda _: True)


class TestRefused:
    def read(self, tmp_path, edit, **settings):
        content = medsam3_lora()
        edit(content)
        path = tmp_path / "bad.pt"
        torch.save(content, path)
        return read_adapter(path, **({"alpha": ALPHA} | settings))

    def test_alpha_is_never_guessed(self, tmp_path):
        with pytest.raises(CheckpointError, match="does not store its alpha"):
            self.read(tmp_path, lambda c: None, alpha=None)

    def test_half_a_pair(self, tmp_path):
        with pytest.raises(CheckpointError, match=f"only one of lora_A and lora_B for {THIRD}"):
            self.read(tmp_path, lambda c: c.pop(f"{THIRD}.lora.lora_B"))

    def test_swapped_sides(self, tmp_path):
        def swap(content):
            a, b = f"{THIRD}.lora.lora_A", f"{THIRD}.lora.lora_B"
            content[a], content[b] = content[b], content[a]

        with pytest.raises(CheckpointError, match=r"mixes the ranks|ranks differ"):
            self.read(tmp_path, swap)

    def test_mixed_ranks(self, tmp_path):
        def mix(content):
            content[f"{THIRD}.lora.lora_A"], content[f"{THIRD}.lora.lora_B"] = pair(128, 128, 0, rank=2)

        with pytest.raises(CheckpointError, match=r"mixes the ranks \[2, 4\]"):
            self.read(tmp_path, mix)

    def test_an_unknown_module(self, tmp_path):
        def add(content):
            content["transformer.nothing.lora.lora_A"], content["transformer.nothing.lora.lora_B"] = pair(
                4, 4, 0
            )

        with pytest.raises(
            CheckpointError, match=r"1 module that a SAM 3 model does not have \(transformer.nothing\)"
        ):
            self.read(tmp_path, add)

    def test_something_beside_the_pairs(self, tmp_path):
        with pytest.raises(CheckpointError, match="holds bias, which is not part of a LoRA"):
            self.read(tmp_path, lambda c: c.update(bias=torch.zeros(2)))

    def test_for_another_base(self, tmp_path, model_on_disk):
        def widen(content):
            content[f"{THIRD}.lora.lora_A"], content[f"{THIRD}.lora.lora_B"] = pair(256, 256, 0)

        adapter = self.read(tmp_path, widen)
        before = {n: t.clone() for n, t in tiny.model().state_dict().items()}
        for refuse in (
            lambda: merge(tiny.model(), adapter),
            lambda: AdapterSwitch(tiny.model()).use(adapter),
            lambda: check_adapter(adapter, model_on_disk),
        ):
            with pytest.raises(CheckpointError, match="made for another base"):
                refuse()
        assert all(torch.equal(before[n], t) for n, t in tiny.model().state_dict().items())

    def test_damaged_adapter_folder(self, tmp_path, file):
        read_adapter(file, alpha=ALPHA).save(tmp_path, "sam3")
        again = Adapter.load(tmp_path)
        assert (again.rank, again.alpha) == (RANK, ALPHA)
        (tmp_path / "adapter.safetensors").write_bytes(b"\x00" * 20)
        with pytest.raises(CheckpointError, match="truncated or not a safetensors"):
            Adapter.load(tmp_path)
