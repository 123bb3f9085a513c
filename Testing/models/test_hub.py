"""Downloads from a double of the hub on loopback: consent, resume, checksum, disk, every refusal in one sentence."""

import io
import json
import os
import shutil
from collections import namedtuple

import published
import pytest
import tiny
import torch
from hub_double import HubDouble
from huggingface_hub import constants

from MedSAM3Core.errors import Cancelled, CheckpointError, ModelError, ResourceError
from MedSAM3Core.models import conversion, installing, load_model
from MedSAM3Core.models import hub as hub_module
from MedSAM3Core.models.consent import has_consent, licence_request
from MedSAM3Core.models.installing import download_model, import_model, remove_model
from MedSAM3Core.models.listing import list_models, model_status
from MedSAM3Core.models.registry import find_entry
from MedSAM3Core.progress import CancelToken

REGISTRY = """
small-sam:
  kind: checkpoint
  repository: owner/small-sam
  file: small.pt
  gated: true
  approximate_bytes: 9000000
  aliases: [small]
  card: {name: small-sam, resolution: 96, licence: {name: SAM License, text_file: sam-license.txt}}
small-lora:
  kind: lora
  repository: owner/small-lora
  file: lora.pt
  base: small-sam
  lora: {rank: 2, alpha: 4}
  card: {name: small-lora, resolution: 96, licence: {name: Other licence, note: Be kind.}}
"""


@pytest.fixture(scope="module")
def checkpoint_bytes():
    buffer = io.BytesIO()
    torch.save({"model": published.published_checkpoint(tiny.model().state_dict())}, buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(home, monkeypatch, small_tokenizer, checkpoint_bytes):
    """The double, serving a small checkpoint and a LoRA on it; conversion expects the small architecture."""
    home.mkdir()
    (home / "registry.yaml").write_text(REGISTRY)
    convert = installing.convert_checkpoint
    monkeypatch.setattr(
        installing,
        "convert_checkpoint",
        lambda s, d, c, b, meter=None: convert(s, d, c, b, tiny.config(600), small_tokenizer, meter),
    )
    monkeypatch.setattr(hub_module, "_SPARE_BYTES", 0)
    monkeypatch.setattr(installing, "FULL_MODEL_BYTES", 22_000_000)
    with HubDouble() as double:
        double.files["owner/small-sam/small.pt"] = checkpoint_bytes
        lora = io.BytesIO()
        name = "transformer.encoder.layers.0.linear1.lora.lora_"
        torch.save({f"{name}A": torch.ones(tiny.WIDTH, 2), f"{name}B": torch.ones(2, 128)}, lora)
        double.files["owner/small-lora/lora.pt"] = lora.getvalue()
        yield double


def accept(_):
    return True


def leftovers(home):
    """What an attempt left in the models folder."""
    folder = home / "models"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_download_converts_loads_and_reports(hub, home):
    reports = []
    folder = download_model("small", accept, reports.append, endpoint=hub.endpoint)
    assert folder == home / "models" / "small-sam"
    loaded = load_model("small-sam", device="cpu")
    assert torch.equal(
        loaded.network.model.state_dict()["tracker_model.no_object_pointer"],
        tiny.model().state_dict()["tracker_model.no_object_pointer"],
    )
    downloading = [r for r in reports if r.stage == "downloading"]
    assert downloading[-1].step == downloading[-1].total == len(hub.files["owner/small-sam/small.pt"])
    assert [r.fraction for r in reports] == sorted(r.fraction for r in reports)
    assert reports[-1].fraction == 1
    assert not (home / "downloads" / "small-sam").exists()
    asked = len(hub.requests)
    assert download_model("small-sam", pytest.fail, endpoint=hub.endpoint) == folder
    assert len(hub.requests) == asked


def test_a_lora_brings_its_base(hub, home):
    asked = []
    download_model("small-lora", lambda r: asked.append(r.model) or True, endpoint=hub.endpoint)
    assert asked == ["small-lora", "small-sam"]
    assert leftovers(home) == ["small-lora", "small-sam"]
    change = (
        load_model("small-lora", device="cpu").network.model.state_dict()[
            "detector_model.detr_encoder.layers.0.mlp.fc1.weight"
        ]
        - tiny.model().state_dict()["detector_model.detr_encoder.layers.0.mlp.fc1.weight"]
    )
    torch.testing.assert_close(change, torch.full_like(change, 2 * 4 / 2), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="is the base of small-lora; remove that first"):
        remove_model("small-sam")
    remove_model("small-lora")
    remove_model("small")
    assert leftovers(home) == []


class TestConsent:
    def test_shown_once_for_a_text(self, hub, home):
        shown = []
        download_model("small-sam", lambda r: shown.append(r) or True, endpoint=hub.endpoint)
        assert "SAM License" in shown[0].text
        assert len(shown[0].text) > 5000
        record = json.loads((home / "consents.json").read_text())[shown[0].text_sha256]
        assert record["licence"] == "SAM License"
        assert record["model"] == "small-sam"
        remove_model("small-sam")
        download_model("small-sam", pytest.fail, endpoint=hub.endpoint)

    def test_another_text_is_asked_for_again(self, hub, monkeypatch):
        download_model("small-sam", accept, endpoint=hub.endpoint)
        entry = find_entry("small-sam")
        assert has_consent(licence_request(entry))
        revised = entry.card.licence.model_copy(update={"text_file": "", "note": "Revised."})
        card = entry.card.model_copy(update={"licence": revised})
        assert not has_consent(licence_request(entry.model_copy(update={"card": card})))

    def test_refused_nothing_is_fetched(self, hub, home):
        with pytest.raises(ModelError, match="SAM License was not accepted, so small-sam was not installed"):
            download_model("small-sam", lambda _: False, endpoint=hub.endpoint)
        assert hub.requests == []
        assert leftovers(home) == []
        assert not (home / "consents.json").exists()

    def test_a_damaged_record_counts_as_none(self, hub, home):
        (home / "consents.json").write_text("{")
        assert not has_consent(licence_request(find_entry("small-sam")))


class TestTransfer:
    def test_a_broken_download_goes_on_where_it_stopped(self, hub, home):
        hub.break_after = 12_000_000
        with pytest.raises(ModelError, match=r"could not be reached .* goes on where it stopped"):
            download_model("small-sam", accept, endpoint=hub.endpoint)
        assert leftovers(home) == []
        kept = sum(f.stat().st_size for f in (home / "downloads").rglob("*.part"))
        assert kept == constants.DOWNLOAD_CHUNK_SIZE
        hub.break_after, hub.refusal, hub.requests = None, None, []
        download_model("small-sam", accept, endpoint=hub.endpoint)
        ranges = [r for method, _, r in hub.requests if method == "GET"]
        assert ranges == [f"bytes={kept}-"]

    def test_cancelled_keeps_what_arrived(self, hub, home):
        token = CancelToken()

        def cancel(report):
            if report.step > constants.DOWNLOAD_CHUNK_SIZE / 2:
                token.cancel()

        with pytest.raises(Cancelled):
            download_model("small-sam", accept, cancel, token, endpoint=hub.endpoint)
        assert leftovers(home) == []
        (part,) = (home / "downloads").rglob("*.part")
        assert part.stat().st_size == constants.DOWNLOAD_CHUNK_SIZE
        reports = []
        download_model("small-sam", accept, reports.append, endpoint=hub.endpoint)
        assert reports[0].step == constants.DOWNLOAD_CHUNK_SIZE
        assert leftovers(home) == ["small-sam"]

    def test_a_file_that_changed_on_the_hub_is_begun_anew(self, hub, home):
        hub.break_after = 12_000_000
        with pytest.raises(ModelError):
            download_model("small-sam", accept, endpoint=hub.endpoint)
        content = io.BytesIO()
        torch.save(published.published_checkpoint(tiny.model().state_dict()) | {"epoch": 9}, content)
        hub.files["owner/small-sam/small.pt"] = content.getvalue()
        hub.break_after, hub.refusal, hub.requests = None, None, []
        download_model("small-sam", accept, endpoint=hub.endpoint)
        assert [r for method, _, r in hub.requests if method == "GET"] == [""]

    def test_damaged_on_the_way(self, hub, home):
        content = hub.files["owner/small-sam/small.pt"]
        hub.sent = content[:-1] + bytes([content[-1] ^ 1])
        with pytest.raises(CheckpointError, match=r"has SHA-256 .*; expected .* download it again"):
            download_model("small-sam", accept, endpoint=hub.endpoint)
        assert leftovers(home) == []
        assert not list((home / "downloads").rglob("*.pt"))

    def test_the_disk_is_checked_first(self, hub, home, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**7))
        with pytest.raises(ResourceError, match=r"needs 4\d\.\d MB in .* where 10\.0 MB are free"):
            download_model("small-sam", accept, endpoint=hub.endpoint)
        assert [m for m, *_ in hub.requests] == ["HEAD"]

    def test_the_disk_fills_up(self, hub, home, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(hub_module, "http_get", full)
        with pytest.raises(ResourceError, match="disk filled up"):
            download_model("small-sam", accept, endpoint=hub.endpoint)
        assert leftovers(home) == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("refusal", "words"),
        [
            ((403, "GatedRepo"), "did not give access .* owners grant it on request; .* 'hf auth login'"),
            ((401, "RepoNotFound"), "has no owner/small-sam .* for this account; log in"),
            ((404, "EntryNotFound"), "has no owner/small-sam .* any more"),
            ((404, "RevisionNotFound"), "has no owner/small-sam .* any more"),
            ((500, ""), "could not be reached .* check the network"),
        ],
    )
    def test_by_the_hub(self, hub, home, refusal, words):
        hub.refusal = refusal
        with pytest.raises(ModelError, match=words) as caught:
            download_model("small-sam", accept, endpoint=hub.endpoint)
        assert "medsam3 models import small-sam PATH" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert leftovers(home) == []

    def test_no_network(self, hub, home):
        endpoint = hub.endpoint
        hub._server.server_close()
        with pytest.raises(ModelError, match=r"could not be reached .* check the network and HF_ENDPOINT"):
            download_model("small-sam", accept, endpoint=endpoint)

    def test_a_proxy_error(self, hub, monkeypatch):
        def refuse(*_, **__):
            raise hub_module.http_client.ProxyError("407 Proxy Authentication Required")

        monkeypatch.setattr(hub_module, "get_hf_file_metadata", refuse)
        with pytest.raises(ModelError, match=r"proxy refused .*407 .* check HTTPS_PROXY"):
            download_model("small-sam", accept, endpoint=hub.endpoint)

    def test_offline_mode(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="Offline mode is on"):
            download_model("small-sam", accept, endpoint=hub.endpoint)
        assert hub.requests == []

    def test_unknown_names(self, hub):
        with pytest.raises(ModelError, match="'big-sam' is not in the registry; expected one of demo, sam3"):
            download_model("big-sam", accept, endpoint=hub.endpoint)

    def test_a_wrong_file_installs_nothing(self, hub, home):
        hub.files["owner/small-sam/small.pt"] = b"<html>captive portal</html>"
        with pytest.raises(CheckpointError, match="truncated, or not a file"):
            download_model("small-sam", accept, endpoint=hub.endpoint)
        assert leftovers(home) == []


class TestImport:
    """A file carried by USB."""

    def test_a_registered_model_under_its_licence(self, hub, home, tmp_path, checkpoint_bytes):
        path = tmp_path / "renamed.pt"
        path.write_bytes(checkpoint_bytes)
        with pytest.raises(ModelError, match="was not accepted"):
            import_model("small-sam", path, lambda _: False)
        import_model("small-sam", path, accept)
        assert hub.requests == []
        status = model_status("small")
        assert status.installed
        assert status.card.licence.name == "SAM License"
        assert status.installed_bytes > 20_000_000

    def test_a_model_of_ones_own(self, hub, home, tmp_path, checkpoint_bytes):
        path = tmp_path / "mine.pt"
        path.write_bytes(checkpoint_bytes)
        import_model("mine", path, pytest.fail)
        assert load_model("mine", device="cpu").card.name == "mine"
        assert [s.name for s in list_models() if s.installed and s.name != "demo"] == ["mine"]
        remove_model("mine")
        with pytest.raises(ModelError, match="'mine' is not installed"):
            remove_model("mine")

    def test_a_model_folder(self, home, model_on_disk):
        import_model("fine-tune", model_on_disk, pytest.fail)
        loaded = load_model("fine-tune", device="cpu")
        assert loaded.card.name == "fine-tune"
        assert loaded.card.held_out_dice == {"liver": 0.5}

    def test_a_damaged_model_folder(self, home, model_on_disk, tmp_path):
        copy = shutil.copytree(model_on_disk, tmp_path / "copy")
        os.truncate(copy / "model.safetensors", 1000)
        with pytest.raises(CheckpointError, match="truncated"):
            import_model("fine-tune", copy, pytest.fail)
        assert leftovers(home) == []

    def test_a_folder_in_the_name_of_a_published_model_must_hold_it(self, home, model_on_disk, monkeypatch):
        """The demo model, say, installed as sam3 would answer in its name, under its licence."""
        with pytest.raises(CheckpointError, match="does not hold 'sam3'"):
            import_model("sam3", model_on_disk, accept)
        assert leftovers(home) == []
        monkeypatch.setattr(installing, "full_size_config", lambda _: tiny.config(600))
        import_model("sam3", model_on_disk, accept)
        card = load_model("sam3", device="cpu").card
        assert (card.name, card.licence.name) == ("sam3", "SAM License")
        with pytest.raises(CheckpointError, match="does not hold 'medsam3-v1'"):
            import_model("medsam3-v1", model_on_disk, accept)

    @pytest.mark.parametrize(("name", "image_only"), [("medical-sam3-3d", True), ("medical-sam3-2d", False)])
    def test_one_release_is_not_installed_as_another(self, hub, home, tmp_path, name, image_only):
        """Medical SAM3's 2D file would otherwise answer as its 3D model, with the base's tracker."""
        content = published.published_checkpoint(tiny.model().state_dict())
        torch.save({"model": published.image_model(content) if image_only else content}, tmp_path / "x.pt")
        with pytest.raises(
            CheckpointError, match=rf"holds an? \w+ model with.* but '{name}' is an? \w+ model"
        ):
            import_model(name, tmp_path / "x.pt", accept)
        assert leftovers(home) == []

    def test_a_folder_as_transformers_saves_one(self, hub, home, model_on_disk, tmp_path):
        folder = shutil.copytree(model_on_disk, tmp_path / "theirs")
        (folder / "card.json").unlink()
        import_model("mine", folder, pytest.fail)
        assert load_model("mine", device="cpu").card.name == "mine"

    def test_progress_and_cancel(self, hub, home, tmp_path, checkpoint_bytes):
        path = tmp_path / "mine.pt"
        path.write_bytes(checkpoint_bytes)
        token, reports = CancelToken(), []

        def watch(report):
            reports.append(report)
            if report.fraction > 0.5:
                token.cancel()

        with pytest.raises(Cancelled):
            import_model("mine", path, pytest.fail, progress=watch, cancel=token)
        assert leftovers(home) == []
        assert reports[-1].stage == "converting"
        assert reports[-1].total == 4 * sum(t.numel() for t in tiny.model().state_dict().values())

    def test_a_small_disk_is_told_first(self, hub, home, tmp_path, checkpoint_bytes, monkeypatch):
        path = tmp_path / "mine.pt"
        path.write_bytes(checkpoint_bytes)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: usage(0, 0, 21_000_000))
        with pytest.raises(ResourceError, match=r"mine needs 22.0 MB in .*, where 21.0 MB are free"):
            import_model("mine", path, pytest.fail)
        assert leftovers(home) == []

    def test_what_an_older_converter_made_is_not_loaded(self, hub, home, tmp_path, monkeypatch):
        download_model("small-sam", accept, endpoint=hub.endpoint)
        monkeypatch.setattr(conversion, "CONVERTER_VERSION", 2)
        with pytest.raises(ModelError, match="converted by another version of this package"):
            load_model("small-sam", device="cpu")
        download_model("small-sam", accept, endpoint=hub.endpoint)  # not "installed already"
        monkeypatch.setattr(conversion, "CONVERTER_VERSION", 1)
        assert load_model("small-sam", device="cpu").card.name == "small-sam"

    @pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
    def test_names_that_cannot_be_used(self, name, model_on_disk):
        with pytest.raises(ModelError, match="cannot be used for a model"):
            import_model(name, model_on_disk, pytest.fail)

    def test_the_shipped_model_is_not_replaced(self, model_on_disk):
        with pytest.raises(ModelError, match="ships with the package"):
            import_model("demo", model_on_disk, pytest.fail)
        with pytest.raises(ModelError, match="cannot be removed"):
            remove_model("demo")

    def test_a_missing_file(self, hub, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            import_model("mine", tmp_path / "nothing.pt", accept)
