"""Fine-tuning in miniature: every method trains what it says, resumes exactly, and refuses bad data in one sentence."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
import yaml
from PIL import Image

from MedSAM3Core.cli import main
from MedSAM3Core.errors import Cancelled, CheckpointError, InputError, ResourceError
from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.models.folder import save_model_folder
from MedSAM3Core.models.loading import load_model
from MedSAM3Core.models.lora import Adapter, read_adapter
from MedSAM3Core.models.registry import HOME_VARIABLE
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Concept
from MedSAM3Core.resources import resource_path
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.training.architecture import Architecture, build_model
from MedSAM3Core.training.asking import Asker, box_of
from MedSAM3Core.training.curves import read_curves
from MedSAM3Core.training.examples import build_store, gather_cases, patients_by_split
from MedSAM3Core.training.finetuning import PUBLISHED_LORA_FILE, fine_tune
from MedSAM3Core.training.loop import Loop
from MedSAM3Core.training.recipe import PromptSettings, is_recipe, read_recipe
from MedSAM3Core.training.tasks import make_task
from MedSAM3Core.training.vocabulary import read_clip_merges, trim_vocabulary
from MedSAM3Core.volume import read_volume
from MedSAM3Core.volume.writing import write_segmentations

SIZE = 32
RADII = {"liver": 6, "liver tumor": 3}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A small random model with the real architecture."""
    folder = tmp_path_factory.mktemp("base") / "small"
    merges = read_clip_merges(resource_path("tokenizer/bpe_simple_vocab_16e6.txt.gz"))
    vocabulary, kept = trim_vocabulary(merges, ["liver", "liver tumor", "polyp", "left kidney", "dog"])
    architecture = Architecture(
        image_size=SIZE, patch_size=8, vision_width=64, vision_depth=2, vision_heads=2, window_size=2,
        global_layers=[1], encoder_layers=1, decoder_layers=1, queries=4, vocabulary=len(vocabulary),
    )  # fmt: skip
    policy = Policy(resolution=SIZE, mask_source="semantic", score_rule="presence")
    card = ModelCard(name="small", concepts=("polyp",), recommended=policy, published=policy, tracks=False)
    save_model_folder(
        folder, build_model(architecture, 0), PhraseTokenizer(vocabulary, kept), card, torch.float32
    )
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Six patients as an annotator leaves them: a CT and its .seg.nrrd, a tumour inside a liver."""
    folder = tmp_path_factory.mktemp("cases")
    random = np.random.default_rng(0)
    for patient in range(6):
        place = folder / f"patient{patient}"
        place.mkdir()
        centre = random.uniform(12, 20, 2)
        distance = np.hypot(*np.meshgrid(np.arange(32) - centre[0], np.arange(32) - centre[1]))
        inside = {
            name: np.stack([distance < radius * (0 < k < 4) for k in range(5)])
            for name, radius in RADII.items()
        }
        voxels = 60 * inside["liver"] + 60 * inside["liver tumor"] + random.normal(0, 5, (5, 32, 32))
        image = sitk.GetImageFromArray(voxels.astype(np.int16))
        image.SetSpacing((2, 2, 4))
        sitk.WriteImage(image, str(place / "ct.nrrd"))
        volume = read_volume(place / "ct.nrrd")
        found = [Segmentation.from_mask(Concept(n, n, name=n), volume.geometry, m) for n, m in inside.items()]
        write_segmentations(place / "ct.seg.nrrd", found, volume)
    return folder


@pytest.fixture
def write(base, data, tmp_path):
    """Writes a recipe with changes and reads it."""

    def recipe(output="run", **changes):
        values = {
            "name": "tuned", "base": str(base), "method": "frozen", "data": [{"folder": str(data)}], "output": output,
            "steps": 4, "batch": 2, "learning_rate": 1e-3, "warmup": 1, "save_every": 1, "precision": "fp32",
            "prompts": {"queries": 2}, "validation": {"every": 2, "slices": 2}, "lora": {"rank": 2, "alpha": 4},
            "frames": 3,
        } | changes  # fmt: skip
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(values))
        return read_recipe(path)

    return recipe


def weights(folder):
    return load_model(folder, "cpu").network.model.state_dict()


CHANGED = {
    "frozen": ("detr_decoder", "detr_encoder", "geometry_encoder", "mask_decoder"),
    "lora": ("vision_encoder.backbone", "text_encoder", "detr_decoder", "mask_decoder.prompt_cross_attn"),
    "full": ("vision_encoder", "text_encoder", "detr_decoder", "geometry_encoder"),
    "tracker": ("tracker_model", "tracker_neck"),
}
KEPT = {
    "frozen": ("vision_encoder", "text_encoder", "tracker_model"),
    "lora": ("tracker_model", "layer_norm", "bias"),
    "full": ("tracker_model", "tracker_neck"),
    "tracker": ("detector_model",),
}


@pytest.mark.parametrize("method", list(CHANGED))
def test_every_method_trains_what_it_says_and_nothing_else(method, write, base):
    done = fine_tune(
        write(method=method, validation={"share": 0})
    )  # no looking, so the last weights are kept
    before, after = weights(base), weights(done.model)
    # The result is stored in half precision: what was not trained differs by its rounding only.
    changed = {n for n in before if not torch.allclose(before[n], after[n], rtol=2e-3, atol=1e-4)}
    for part in CHANGED[method]:
        assert any(part in name for name in changed), part
    for part in KEPT[method]:
        assert not any(part in name for name in changed), part
    card = ModelCard.read(done.model)
    assert (card.name, card.base, card.held_out_dice) == ("tuned", "small", {})
    assert card.concepts == ("liver", "liver tumor", "polyp")
    assert card.tracks is (method == "tracker")
    assert done.patients == {"train": 6}
    assert done.state.step == 4


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "accumulate": 2}, {"method": "tracker"}], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(changes, write):
    whole = fine_tune(write("whole", **changes))
    token = CancelToken()

    def stop(progress):
        if (progress.stage, progress.step) == ("fine-tuning", 2):
            token.cancel()

    with pytest.raises(Cancelled):
        fine_tune(write("broken", **changes), stop, token)
    resumed = fine_tune(write("broken", **changes))
    first, second = weights(whole.model), weights(resumed.model)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    curves = [
        [(p.step, p.split, p.name, p.value) for p in read_curves(run.model.parent)]
        for run in (whole, resumed)
    ]
    assert curves[0] == curves[1]


def test_it_learns(write, base):
    often = {"every": 15, "slices": 4, "patience": 0}
    recipe = write(
        steps=30, batch=4, learning_rate=3e-3, warmup=5, augmentation=None, method="full", encoder_rate=1.0,
        validation=often, only=True, concepts={"liver": "liver"},
    )  # fmt: skip
    done = fine_tune(recipe)
    looks = {
        p.step: p.value for p in read_curves(recipe.output) if (p.split, p.name) == ("validation", "dice")
    }
    assert done.concepts == ("liver",)
    assert done.state.best == pytest.approx(max(looks.values()), abs=1e-4)
    assert done.state.best > looks[0] + 0.2


def test_early_stopping_keeps_the_best_weights(write, base):
    done = fine_tune(
        write(steps=40, learning_rate=1e-12, validation={"every": 1, "patience": 3, "slices": 2})
    )
    assert done.state.stopped
    assert done.state.step < 40
    assert done.state.best_step <= done.state.step - 3


def test_a_lora_is_read_by_both_sides(write, base, monkeypatch, tmp_path):
    recipe = write(method="lora", steps=3, validation={"share": 0})
    done = fine_tune(recipe)
    path = recipe.output / PUBLISHED_LORA_FILE
    state = torch.load(path, weights_only=True)
    qkv = "backbone.vision_backbone.trunk.blocks.0.attn.qkv.lora."
    assert state[qkv + "lora_A"].shape == (64, 2)  # [in, rank]
    assert state[qkv + "lora_B"].shape == (2, 3 * 64)  # [rank, out] of the fused layer
    adapter = read_adapter(path, alpha=4, rank=2)
    model = load_model(base, "cpu")
    before = {name: value.clone() for name, value in model.network.model.state_dict().items()}
    tuned = weights(done.model)  # the base is a folder, so the run merged its adapter
    for module in adapter.down:
        change = adapter.up[module] @ adapter.down[module] * 2
        torch.testing.assert_close(
            before[module + ".weight"] + change, tuned[module + ".weight"], atol=2e-3, rtol=2e-3
        )
    assert max(float(up.abs().max()) for up in adapter.up.values()) > 0


def test_a_lora_on_an_installed_model_stays_one(write, base):
    first = fine_tune(write("first", name="mine", register=True, steps=1))
    assert first.installed is not None
    second = fine_tune(write("second", name="mine-lora", base="mine", method="lora", register=True, steps=2))
    adapter = Adapter.load(second.installed)
    assert (adapter.rank, adapter.alpha) == (2, 4)
    assert not (second.model / "model.safetensors").exists()
    assert load_model("mine-lora", "cpu").card.base == "mine"
    with pytest.raises(InputError, match="is a LoRA itself"):
        fine_tune(write("third", base="mine-lora", method="lora"))


def test_no_patient_is_on_both_sides_and_masks_may_overlap(write, base, tmp_path):
    cases = gather_cases(write(validation={"share": 0.4}))
    sides = patients_by_split(cases)
    assert not sides["train"] & sides["validation"]
    assert len(sides["validation"]) == 3
    store = build_store(cases, SIZE, Policy(), tmp_path / "cache")
    example = next(e for e in store.examples if len(e.masks) == 2)
    liver, tumor = (store.mask(example, name) for name in ("liver", "liver tumor"))
    assert tumor.any()
    assert (liver & tumor).sum() == tumor.sum()
    again = build_store(cases, SIZE, Policy(), tmp_path / "cache")
    assert again.examples == store.examples


def test_absent_phrases_are_surely_absent_and_boxes_hold_the_answer(write, tmp_path):
    store = build_store(gather_cases(write()), SIZE, Policy(), tmp_path / "cache")
    asker = Asker(store, "train", PromptSettings(queries=3, negatives=0.5, boxes=1.0), None, 16)
    present = boxes = 0
    for _ in range(40):
        batch = asker.draw(2)
        for phrase, target, box, label in zip(
            batch.phrases, batch.targets, batch.boxes, batch.labels, strict=True
        ):
            hit = bool((target >= 0.5).any())
            assert int(label) == (1 if hit else -10)
            if hit:
                assert phrase in RADII
                exact = box_of(target, np.zeros(4))
                assert float((box[0] - exact).abs().max()) < 0.15
                boxes += 1
            present += hit
    assert 0.2 < present / (40 * 6) < 0.8
    assert boxes == present


def test_a_damaged_checkpoint_is_one_sentence(write):
    recipe = write(steps=1)
    fine_tune(recipe)
    path = recipe.output / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pt cannot be read .*delete it to begin the run again"
    ):
        fine_tune(recipe)
    torch.save({"something": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a fine-tuning run"):
        fine_tune(recipe)


def test_another_configuration_does_not_go_on_with_a_run(write):
    fine_tune(write(steps=1))
    with pytest.raises(InputError, match="begun with another configuration"):
        fine_tune(write(steps=1, learning_rate=5e-4))
    assert fine_tune(write(steps=2)).state.step == 2  # more steps of the same run are


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"concepts": {"liver": "the right lobe of liver"}},
            "has 5 words, but concepts are trained with at most 3",
        ),
        ({"only": True, "concepts": {"spleen": "spleen"}}, "The training data is empty"),
        ({"method": "magic"}, "wrong at method"),
        ({"name": "My Model"}, "wrong at name"),
        ({"data": []}, "wrong at data"),
        ({"base": "nonsense"}, "The model 'nonsense' is unknown"),
        ({"name": "sam3", "register": True}, "is that of a published model"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"lora": {"parts": []}, "method": "lora"}, "No layer was chosen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_trained_is_one_sentence(changes, sentence, write):
    if changes.get("precision") == "fp16" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Exception, match=sentence) as caught:
        fine_tune(write(**changes))
    assert str(caught.value).count("\n") == 0


def test_a_long_name_in_the_data_is_refused_and_can_be_renamed(write, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    rows = [["image", "concept", "mask", "patient"], ["a.png", "lesion of the upper skin", "a.png", "p"]]
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(InputError, match="has 5 words"):
        gather_cases(write(data=[{"folder": str(tmp_path)}], validation={"share": 0}))
    named = write(
        data=[{"folder": str(tmp_path)}], validation={"share": 0}, concepts={rows[1][1]: "Skin Lesion"}
    )
    assert list(gather_cases(named)[0].references) == ["skin lesion"]


def test_one_patient_leaves_a_split_empty(write, data):
    with pytest.raises(InputError, match="The validation split is empty: the data has 1 patient"):
        gather_cases(write(data=[{"folder": str(data / "patient0")}], validation={"share": 1 / 3}))


def test_memory_that_runs_out_is_advice(write, monkeypatch):
    recipe = write(method="full", batch=4)
    model = load_model(recipe.base, "cpu")
    store = build_store(gather_cases(recipe), SIZE, Policy(), recipe.output / "cache")
    task = make_task(model, store, recipe)
    loop = Loop(task, recipe)

    def exhausted():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loop, "_step", exhausted)
    with pytest.raises(ResourceError, match=r"try batch: 2 with accumulate: 2 .*method: lora"):
        loop.run()


def test_the_command_and_its_json(write, base, data, tmp_path, capsys):
    write("cli", steps=1, tensorboard=True)
    assert is_recipe(tmp_path / "cli.yaml")
    code = main(["finetune", str(tmp_path / "cli.yaml"), "--json"])
    done = json.loads(capsys.readouterr().out)
    assert code == 0
    assert done["steps"] == 1
    assert done["trained_parameters"] < done["parameters"]
    assert list((tmp_path / "cli/tensorboard").glob("events*"))
    model = load_model(done["model"], "cpu")
    assert "liver" in model.card.concepts
    assert done["patients"] == {"train": 4, "validation": 2}
    words = [
        "evaluate",
        str(data),
        "--model",
        done["model"],
        "--model",
        "thresholding",
        "--ablate",
        "--limit",
        "1",
    ]
    modes = ["--mode", "text", "--mode", "text+box", "--mode", "boxes:1", "--mode", "agent", "--judge", "1"]
    assert main([*words, *modes, "-c", "liver", "-o", str(tmp_path / "report"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    labels = {f"{one['contestant']['model']}, {one['contestant']['mode']}" for one in found["concepts"]}
    assert {
        "tuned, without synonyms, text",
        "tuned, slices alone, boxes:1",
        "thresholding, text+box",
    } <= labels
    assert (tmp_path / "report/report.html").stat().st_size > 10_000


@pytest.mark.slow  # two processes that import torch
@pytest.mark.skipif(os.name == "nt", reason="torchrun needs a port of its own there")
def test_two_processes_train_one_model(write, tmp_path):
    write("several", steps=3, validation={"every": 2, "slices": 2})
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "MedSAM3Core.cli"]
    done = subprocess.run(
        [sys.executable, *words, "finetune", str(tmp_path / "several.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "medsam3:" in line]
    assert done.returncode == 0, said or done.stderr
    points = read_curves(tmp_path / "several")
    assert [p.step for p in points if (p.split, p.name) == ("validation", "dice")] == [
        0,
        2,
        3,
    ]  # the chief's alone
    assert len(list((tmp_path / "several/cache").iterdir())) == 1
    assert load_model(tmp_path / "several/model", "cpu").card.name == "tuned"


def test_a_base_that_no_folder_can_be_named_is_taken_for_a_model(write):
    assert write(base="b" * 5000).base == "b" * 5000


@pytest.mark.parametrize("name", ["medsam3", "lora", "full", "tracker"])
def test_the_recipes_that_ship_are_valid(name):
    path = resource_path("models").parent.parent / f"configs/{name}.yaml"
    assert is_recipe(path)
    assert read_recipe(path).name.startswith("my-")
