"""Published checkpoints of every form into model folders, and what damaged or wrong ones get."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import published
import pytest
import tiny
import torch
from safetensors.torch import save_file

from MedSAM3Core.errors import CheckpointError, OutputError
from MedSAM3Core.models import conversion, load_model
from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.checkpoint import layout_of, read_checkpoint
from MedSAM3Core.models.conversion import convert_checkpoint, full_size_config
from MedSAM3Core.models.naming import is_dropped, rename_all, targets
from MedSAM3Core.models.weights import build_empty, read_shapes

KEYS = Path(__file__).resolve().parents[3] / "shared/fixtures/sam3_parity/checkpoint_keys.json"
NAN_TENSOR = "detector.backbone.language_backbone.encoder.ln_final.weight"


@pytest.fixture(scope="module")
def state():
    return tiny.model().state_dict()


@pytest.fixture
def checkpoint(state):
    return published.published_checkpoint(state)


@pytest.fixture
def convert(tmp_path, small_tokenizer):
    """Save a content, convert it, return (folder, manifest)."""

    def run(content, base=None, name="source.pt"):
        source = tmp_path / name
        torch.save(content, source)
        card = ModelCard(name="converted", resolution=tiny.SIZE)
        target = tmp_path / "out"
        return target, convert_checkpoint(source, target, card, base, tiny.config(600), small_tokenizer)

    return run


def assert_holds(folder, state, but=()):
    """The folder loads and has these tensors, bit for bit."""
    converted = load_model(folder, device="cpu").network.model.state_dict()
    assert converted.keys() == state.keys()
    assert [n for n in state if n not in but and not torch.equal(converted[n], state[n])] == []


class TestForms:
    def test_whole(self, checkpoint, convert, state):
        folder, manifest = convert(checkpoint)
        assert_holds(folder, state)
        assert manifest.layout == "published video"
        assert manifest.tensors == len(state)
        assert len(manifest.dropped) == 4
        assert manifest.notices == ()

    def test_wrapped_with_optimiser_state(self, checkpoint, convert, state):
        content = {
            "model": checkpoint,
            "optimizer": {"state": {0: torch.zeros(9)}},
            "epoch": 8,
            "scaler": None,
        }
        folder, manifest = convert(content)
        assert_holds(folder, state)
        assert manifest.left_out == ("epoch", "optimizer", "scaler")

    def test_of_a_parallel_trainer(self, checkpoint, convert, state):
        folder, _ = convert({"state_dict": {f"module.{n}": t for n, t in checkpoint.items()}})
        assert_holds(folder, state)

    def test_image_model_takes_its_tracker_from_the_base(self, checkpoint, convert, state, model_on_disk):
        changed = dict(checkpoint)
        changed["detector.geometry_encoder.norm.weight"] = torch.full((tiny.WIDTH,), 7.0)
        folder, manifest = convert({"model": published.image_model(changed)}, base=model_on_disk)
        name = "detector_model.geometry_encoder.prompt_layer_norm.weight"
        assert_holds(folder, state, but=[name])
        assert load_model(folder, device="cpu").network.model.state_dict()[name].eq(7).all()
        assert all(n.startswith(("tracker_model.", "tracker_neck.")) for n in manifest.from_base)
        assert "tracker" in manifest.notices[0]
        assert manifest.base_sha256 == ModelCard.read(model_on_disk).sha256

    def test_image_model_without_a_base(self, checkpoint, convert, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"image model without a tracker; .* install it \(sam3\) first"
        ):
            convert(published.image_model(checkpoint))
        assert not (tmp_path / "out").exists()

    def test_transformers_layout(self, convert, state):
        folder, manifest = convert(state)
        assert_holds(folder, state)
        assert manifest.layout == "transformers"

    def test_safetensors(self, checkpoint, tmp_path, small_tokenizer, state):
        source = tmp_path / "source.safetensors"
        real = {n: t.contiguous() for n, t in checkpoint.items() if not t.is_complex()}
        save_file(real, source)
        card = ModelCard(name="x", resolution=tiny.SIZE)
        convert_checkpoint(source, tmp_path / "out", card, None, tiny.config(600), small_tokenizer)
        assert_holds(tmp_path / "out", state)

    def test_the_manifest_says_where_it_came_from(self, checkpoint, convert):
        folder, manifest = convert(checkpoint)
        written = json.loads((folder / "manifest.json").read_text())
        assert written["source"] == "source.pt"
        assert len(written["source_sha256"]) == 64
        assert written["converter"] == conversion.CONVERTER_VERSION
        assert written["tensors"] == manifest.tensors
        assert load_model(folder, device="cpu").card.sha256 == ModelCard.read(folder).sha256 != ""


class TestNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_patched_from_the_base_with_a_notice(self, checkpoint, convert, state, model_on_disk, value):
        checkpoint[NAN_TENSOR] = checkpoint[NAN_TENSOR].clone()
        checkpoint[NAN_TENSOR][3] = value
        folder, manifest = convert(checkpoint, base=model_on_disk)
        assert_holds(folder, state)
        name = "detector_model.text_encoder.text_model.final_layer_norm.weight"
        assert manifest.patched == (name,)
        assert name in manifest.notices[0]

    def test_without_a_base_it_is_an_error_that_names_the_tensor(self, checkpoint, convert, tmp_path):
        checkpoint[NAN_TENSOR] = torch.full_like(checkpoint[NAN_TENSOR], float("nan"))
        with pytest.raises(CheckpointError, match=r"not finite in .*final_layer_norm\.weight"):
            convert(checkpoint)
        assert not (tmp_path / "out").exists()


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("tracker.no_obj_ptr", "lacks 1 of .* (tracker_model.no_object_pointer)"),
            ("detector.transformer.decoder.layers.1.catext_norm.bias", "text_cross_attn_layer_norm.bias"),
            ("detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight", "attention.k_proj.weight"),
            ("tracker.sam_prompt_encoder.point_embeddings.2.weight", "point_embed.weight of shape (3, 128)"),
        ],
    )
    def test_a_tensor_is_missing(self, checkpoint, convert, name, words):
        del checkpoint[name]
        with pytest.raises(CheckpointError) as caught:
            convert(checkpoint)
        for part in words.split(".* "):
            assert part in str(caught.value)

    def test_a_tensor_that_no_model_has(self, checkpoint, convert):
        checkpoint["detector.transformer.decoder.layers.0.norm9.weight"] = torch.zeros(3)
        with pytest.raises(CheckpointError, match=r"1 tensor that no SAM 3 model has .*norm9"):
            convert(checkpoint)

    def test_a_layer_too_many(self, checkpoint, convert):
        for name in [n for n in checkpoint if ".trunk.blocks.1." in n]:
            checkpoint[name.replace("blocks.1.", "blocks.2.")] = checkpoint[name]
        with pytest.raises(CheckpointError, match=r"does not have .*layers\.2"):
            convert(checkpoint)

    def test_another_size(self, checkpoint, convert):
        checkpoint["detector.geometry_encoder.norm.weight"] = torch.zeros(256)
        with pytest.raises(CheckpointError, match=r"shape \(256,\) where the model has \(128,\)"):
            convert(checkpoint)

    def test_another_architecture(self, convert):
        with pytest.raises(CheckpointError, match="not a SAM 3 checkpoint"):
            convert({"image_encoder.patch_embed.proj.weight": torch.zeros(2, 2)})

    def test_a_lora_in_its_place(self, convert):
        with pytest.raises(CheckpointError, match="is a LoRA file"):
            convert({"transformer.encoder.layers.0.linear1.lora.lora_A": torch.zeros(2, 2)})

    def test_no_tensors(self, convert):
        with pytest.raises(CheckpointError, match=r"holds no tensors \(it has epoch\)"):
            convert({"epoch": 3})

    def test_not_a_dictionary(self, convert):
        with pytest.raises(CheckpointError, match="holds a Tensor; expected a dictionary"):
            convert(torch.zeros(3))

    def test_a_full_disk_leaves_nothing(self, checkpoint, convert, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(conversion, "write_tensors", full)
        with pytest.raises(OutputError, match="No space left"):
            convert(checkpoint)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source.pt"]


class Exploit:
    """What a malicious checkpoint would hold."""

    ran = False

    def __reduce__(self):
        return (exec, ("from test_conversion import Exploit; Exploit.ran = True",))


class TestUnreadableFiles:
    def test_code_is_refused_unread(self, tmp_path, checkpoint):
        path = tmp_path / "evil.pt"
        torch.save({"model": checkpoint, "optimizer": Exploit()}, path)
        with pytest.raises(CheckpointError, match=r"contains code \(.*exec\) and was not opened"):
            read_checkpoint(path)
        assert not Exploit.ran

    def test_a_bare_pickle_is_refused_unread(self, tmp_path):
        path = tmp_path / "evil.bin"
        path.write_bytes(pickle.dumps({"model": Exploit()}))
        with pytest.raises(CheckpointError, match=r"not a file that torch\.save"):
            read_checkpoint(path)
        assert not Exploit.ran

    def test_truncated(self, tmp_path, checkpoint):
        path = tmp_path / "half.pt"
        torch.save(checkpoint, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match="is truncated"):
            read_checkpoint(path)

    def test_truncated_safetensors(self, tmp_path, state):
        path = tmp_path / "half.safetensors"
        save_file({n: t.contiguous() for n, t in list(state.items())[:5]}, path)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_checkpoint(path)

    def test_a_safetensors_header_is_not_repeated(self, tmp_path):
        path = tmp_path / "odd.safetensors"
        header = json.dumps({"x": {"dtype": "x" * 5000, "shape": [1], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        for read in (read_checkpoint, read_shapes):
            with pytest.raises(CheckpointError, match="truncated or") as caught:
                read(path)
            assert len(str(caught.value)) < 400 + len(str(path))

    def test_a_zip_of_several_disks(self, tmp_path):
        path = tmp_path / "split.pt"
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 7)
        path.write_bytes(bytes(64) + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))
        with pytest.raises(CheckpointError, match="span multiple disks"):
            read_checkpoint(path)

    def test_a_zip_of_something_else(self, tmp_path):
        path = tmp_path / "photos.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_checkpoint(path)

    @pytest.mark.parametrize("content", [b"", b"<html>rate limited</html>", b"\x00" * 4096])
    def test_no_checkpoint_at_all(self, tmp_path, content):
        path = tmp_path / "x.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated, or not a file"):
            read_checkpoint(path)

    def test_missing(self, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            read_checkpoint(tmp_path / "nothing.pt")


def test_layouts():
    assert layout_of({"detector.x": 0, "tracker.y": 0}) == "published video"
    assert layout_of({"backbone.vision_backbone.trunk.pos_embed": 0}) == "published image"
    assert layout_of({"detector_model.x": 0}) == "transformers"
    assert layout_of({"a.lora_A.weight": 0}) == "lora"
    assert layout_of({"a": 0}) == "other"


def test_full_size_config_at_half_resolution():
    config = full_size_config(504)
    assert config.image_size == config.tracker_config.image_size == 504
    assert config.low_res_mask_size == 144
    assert config.tracker_config.prompt_encoder_config.image_size == 504
    vision = config.detector_config.vision_config
    assert vision.backbone_feature_sizes == [[144, 144], [72, 72], [36, 36]]
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.shared
@pytest.mark.skipif(not KEYS.is_file(), reason="../shared is absent")
def test_all_1797_tensors_of_the_full_model_are_placed():
    keys = {k: torch.empty(v[0], device="meta") for k, v in json.loads(KEYS.read_text()).items()}
    renamed, dropped, unknown = rename_all(keys)
    wanted = {n: t.shape for n, t in build_empty(full_size_config()).state_dict().items()}
    assert {n: t.shape for n, t in renamed.items()} == wanted
    assert len(wanted) == 1797
    assert len(keys) == 1465
    assert unknown == []
    assert sorted(dropped) == sorted(k for k in keys if k.endswith("freqs_cis") or ".points_" in k)


def test_decoder_norms_are_not_in_the_order_of_their_numbers():
    stem = "detector.transformer.decoder.layers.4."
    placed = {
        n: targets(f"{stem}{n}.bias")[0].name.split(".")[-2]
        for n in ("norm1", "norm2", "norm3", "catext_norm")
    }
    assert placed == {
        "norm1": "vision_cross_attn_layer_norm",
        "norm2": "self_attn_layer_norm",
        "norm3": "mlp_layer_norm",
        "catext_norm": "text_cross_attn_layer_norm",
    }


def test_only_what_is_named_is_dropped():
    assert is_dropped("detector.backbone.vision_backbone.trunk.blocks.3.attn.freqs_cis")
    assert is_dropped("detector.geometry_encoder.points_pool_project.weight")
    assert not is_dropped("detector.geometry_encoder.boxes_pool_project.weight")
