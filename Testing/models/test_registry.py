"""What the package's registry says of each model, and a user's own beside it."""

import sys
from pathlib import Path

import pytest

from MedSAM3Core.errors import ModelError
from MedSAM3Core.models.consent import licence_request
from MedSAM3Core.models.listing import list_models, model_status
from MedSAM3Core.models.registry import data_home, find_entry, find_folder, known_names, read_registry

NAMES = ["demo", "sam3", "medsam3-v1", "medical-sam3-2d", "medical-sam3-3d"]


def test_names_in_order():
    assert list(read_registry()) == NAMES
    assert find_entry("medical-sam3").name == "medical-sam3-3d"


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_published_model_is_described(name):
    entry = read_registry()[name]
    card = entry.card
    assert entry.repository.count("/") == 1
    assert entry.file.endswith(".pt")
    assert entry.approximate_bytes > 10**7
    assert card.title
    assert card.citation
    assert card.homepage.startswith("https://")
    assert card.limits
    assert card.prompt_style.examples
    assert "SAM" in card.licence.name
    assert "military" in card.licence.note
    assert len(licence_request(entry).text) > 5000
    assert card.policy("published").resolution == card.policy("recommended").resolution == card.resolution


def test_each_model_as_its_authors_run_it():
    published = {name: entry.card.published for name, entry in read_registry().items() if name != "demo"}
    assert {policy.mask_source for policy in published.values()} == {
        "instances"
    }  # none draws the semantic map
    medsam3 = published["medsam3-v1"]
    assert medsam3.score_rule == "queries"  # sigmoid(pred_logits), no presence
    assert (medsam3.threshold, medsam3.nms_iou, medsam3.nms_kind) == (0.5, 0.5, "box")
    assert not medsam3.resize_before_threshold
    assert published["sam3"].score_rule == "product"
    assert published["sam3"].nms_iou is None
    assert published["sam3"].resize_before_threshold
    flat, volume = published["medical-sam3-2d"], published["medical-sam3-3d"]
    assert (flat.best_only, flat.threshold, flat.clip_policy) == (True, 0.1, "slice")
    assert (volume.resolution, volume.propagation, volume.clip_slices) == (504, "clips", 4)


def test_lora_settings():
    entry = read_registry()["medsam3-v1"]
    assert (entry.kind, entry.base, entry.lora.rank, entry.lora.alpha) == ("lora", "sam3", 16, 32)


def test_a_users_registry_adds_and_replaces(home):
    home.mkdir()
    (home / "registry.yaml").write_text(
        "sam3:\n  kind: checkpoint\n  repository: mirror/sam3\n  card: {name: sam3, title: Ours}\n"
        "mine:\n  kind: checkpoint\n  card: {name: mine}\n"
    )
    assert read_registry()["sam3"].card.title == "Ours"
    assert known_names() == [*NAMES, "mine"]
    assert data_home() == home


def test_the_example_of_the_guide_is_a_registry(home):
    guide = Path(__file__).resolve().parents[2] / "docs" / "models.md"
    home.mkdir()
    (home / "registry.yaml").write_text(guide.read_text().split("```yaml\n")[1].split("```")[0])
    entry = read_registry()["our-lora"]
    assert (entry.kind, entry.base, entry.lora.alpha) == ("lora", "sam3", 16)
    assert entry.card.published.propagation == "none"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine:\n  kind: magic\n  card: {name: mine}\n", r"wrong at mine\.kind"),
        ("mine:\n  kind: lora\n  card: {name: other}\n", "card is named other"),
        (f"mine:\n  kind: lora\n  card: {{name: {'o' * 5000}}}\n", r"card is named o{117}\.\.\.; give"),
        ("mine:\n  kind: lora\n  lora: {rank: 0, alpha: 2}\n  card: {name: mine}\n", r"mine\.lora\.rank"),
        ("- a\n", "does not list models by name"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_wrong_registry_says_where(home, text, words):
    home.mkdir()
    (home / "registry.yaml").write_text(text)
    with pytest.raises(ModelError, match=words):
        read_registry()


@pytest.mark.parametrize("name", ["", "../models/x", "a/../b"])
def test_names_cannot_leave_the_models_folder(name, home):
    (home / "models").mkdir(parents=True)
    with pytest.raises(ModelError, match="is unknown"):
        find_folder(name)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_names_that_no_file_system_takes_are_unknown(name, home):
    with pytest.raises(ModelError, match=r"The model 'x.*\.\.\. is unknown"):
        find_folder(name)


def test_status_of_what_is_not_installed():
    status = model_status("medsam3-v1")
    assert not status.installed
    assert status.download_bytes == 74_000_000
    with pytest.raises(ModelError, match="'nothing' is unknown"):
        model_status("nothing")


def test_status_of_a_path(model_on_disk):
    status = model_status(str(model_on_disk))
    assert status.card.held_out_dice == {"liver": 0.5}
    assert status.installed_bytes > 10**6


def test_listing_needs_no_torch():
    """`medsam3 models list` answers at once; importing torch takes seconds."""
    import subprocess

    code = (
        "import sys; from MedSAM3Core.models.listing import list_models; list_models(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert [s.name for s in list_models()] == NAMES


@pytest.mark.parametrize("name", ["sam3", "medsam3-v1", "medical-sam3-2d", "medical-sam3-3d"])
def test_a_policy_in_words_says_what_differs(name):
    card = find_entry(name).card
    assert card.published.in_words != card.recommended.in_words
    for policy in (card.published, card.recommended):
        assert f"at least {policy.threshold:g}" in policy.in_words
        assert ("presence ignored" in policy.in_words) == (policy.score_rule == "queries")
        assert ("clips of 4 slices" in policy.in_words) == (policy.propagation == "clips")
