"""A whole run in miniature: it learns, it resumes exactly, and its configuration is checked."""

import csv

import numpy as np
import pytest
import torch
import yaml

from MedSAM3Core.errors import Cancelled, InputError
from MedSAM3Core.models.loading import load_model
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.resources import resource_path
from MedSAM3Core.training.config import read_config
from MedSAM3Core.training.export import export_run
from MedSAM3Core.training.finetune import Run, known_phrases
from MedSAM3Core.training.optimizers import linear_weights, make_optimizers
from MedSAM3Core.training.pack import split_of
from MedSAM3Core.training.trainer import FINAL_RATE, schedule
from MedSAM3Core.training.validation import choose_probes
from MedSAM3Core.training.vocabulary import read_clip_merges, trim_vocabulary


@pytest.fixture
def write_config(pack, tmp_path):
    def write(output="run", **changes):
        values = {
            "name": "tiny",
            "data": str(pack),
            "output": output,
            "cache_size": 48,
            "architecture": {
                "image_size": 32,
                "patch_size": 8,
                "vision_width": 64,
                "vision_depth": 2,
                "vision_heads": 2,
                "window_size": 2,
                "global_layers": [1],
                "encoder_layers": 1,
                "decoder_layers": 1,
                "queries": 4,
            },
            "stages": [
                {"kind": "dense", "steps": 3, "batch": 2, "warmup": 1},
                {"kind": "detector", "steps": 3, "batch": 2, "queries": 2, "boxes": 1.0, "warmup": 1},
                {"kind": "tracker", "steps": 2, "batch": 2, "frames": 3, "warmup": 1},
            ],
            "bf16": False,
            "save_every": 1,
        } | changes
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_every_stage_trains_what_it_says(write_config):
    run = Run(read_config(write_config()))
    before = {name: value.clone() for name, value in run.module.state_dict().items()}
    run.train()
    after = run.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for part in (
        "vision_encoder",
        "text_encoder",
        "geometry_encoder",
        "detr_decoder",
        "tracker_model",
        "tracker_neck",
    ):
        assert any(part in name for name in changed), part
    assert {path.name for path in run.config.output.glob("log_*.csv")} == set()  # logged every 20 steps only


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(write_config, optimizer):
    whole = Run(read_config(write_config("whole", optimizer=optimizer)))
    whole.train()
    token = CancelToken()
    steps = []

    def stop_in_the_second_stage(progress):
        steps.append(progress.stage)
        if steps.count("detector") == 2:
            token.cancel()

    broken = Run(read_config(write_config("broken", optimizer=optimizer)))
    with pytest.raises(Cancelled):
        broken.train(stop_in_the_second_stage, token)
    resumed = Run(read_config(write_config("broken", optimizer=optimizer)))
    resumed.train()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    for name, value in whole.trainer.average.items():
        assert torch.equal(value, resumed.trainer.average[name]), name


def test_validation_is_written_and_changes_nothing(write_config):
    watched = Run(read_config(write_config("watched", validate_every=1)))
    watched.validator.probes = choose_probes(watched.cache, "train")  # too few cases for a validation split
    watched.train()
    with (watched.config.output / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"dense", "detector"}, "the tracker has no phrases"
    assert {row["concept"] for row in rows} <= {"left parotid gland", "right parotid gland", "polyp"}
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    assert all(0 <= float(row["present"]) <= 1 for row in rows if row["kind"] == "detector")
    blind = Run(read_config(write_config("blind", validate_every=1000)))
    blind.trainer.validate = None
    blind.train()
    for name, value in watched.module.state_dict().items():
        assert torch.equal(value, blind.module.state_dict()[name]), name


def test_probes_are_slices_of_their_split_only(write_config):
    run = Run(read_config(write_config("probes")))
    probes = choose_probes(run.cache, "train")
    assert probes
    assert {split_of(run.cache.cases[probe.record.case].patient) for probe in probes} == {"train"}
    assert all(probe.concept in probe.record.present for probe in probes)


def test_muon_turns_matrices_only(write_config):
    run = Run(read_config(write_config("muon")))
    matrices = linear_weights(run.module)
    embeddings = {m.weight for m in run.module.modules() if isinstance(m, torch.nn.Embedding)}
    assert matrices
    assert not matrices & embeddings
    optimizers = make_optimizers("muon", [(run.module.parameters(), 1.0)], matrices, 1e-3, 0.02)
    adamw, muon = optimizers.members
    assert {p for group in muon.param_groups for p in group["params"]} == matrices
    assert len(optimizers.parameters) == len(list(run.module.parameters()))
    undecayed = [group for group in adamw.param_groups if group["weight_decay"] == 0]
    assert all(parameter.ndim <= 1 for group in undecayed for parameter in group["params"])


def test_factors_bring_maps_to_size_and_vanish_into_the_neck(write_config):
    run = Run(read_config(write_config("scales")))
    neck = run.network.detector.vision_encoder.neck
    with torch.no_grad():
        for layer in neck.fpn_layers:  # as a long training leaves it
            layer.proj2.weight.mul_(300)
        run.make_stage(run.config.stages[1]).prepare()
        run.make_stage(run.config.stages[2]).prepare()
        trunk = run.network.trunk(torch.randn(4, 3, 32, 32))
        before = [run.network.detector_pyramid(trunk), run.network.tracker_pyramid(trunk)]
        for pyramid in before:
            assert all(0.1 < float(level.std()) < 10 for level in pyramid.maps)
        run.network.fold()
        assert run.network.detector_scales.tolist() == [1.0, 1.0, 1.0]
        # What ships is a plain network: the factors must be in its weights.
        plain = ConceptNetwork(run.network.model)
        after = [plain.detector_pyramid(trunk), plain.tracker_pyramid(trunk)]
    for old, new in zip(before, after, strict=True):
        for wanted, level in zip(old.maps, new.maps, strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-4)


def test_a_run_begins_with_a_finished_model_and_its_words(write_config):
    first = Run(read_config(write_config("first")))
    first.train()
    folder = export_run(first)
    then = Run(read_config(write_config("then", start=str(folder))))
    assert then.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    network = load_model(folder, "cpu").network
    pixels, tokens = torch.randn(2, 3, 32, 32), then.tokenize(["polyp", "left parotid gland"])
    with torch.no_grad():
        pyramids = [one.detector_pyramid(one.trunk(pixels)) for one in (network, then.network)]
        for wanted, level in zip(pyramids[0].maps, pyramids[1].maps, strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-4)
        wanted, found = (
            one.detect(pyramid, one.encode_text(*tokens))
            for one, pyramid in zip((network, then.network), pyramids, strict=True)
        )
    torch.testing.assert_close(found.semantic, wanted.semantic, rtol=1e-3, atol=1e-3)
    for layer in then.network.detector.vision_encoder.neck.fpn_layers[:3]:
        size = layer.proj2.weight.std() * layer.proj2.weight[0].numel() ** 0.5
        assert float(size) == pytest.approx(1, abs=1e-3), "an optimiser's steps would be too large for it"
    then.train()


def test_a_run_does_not_begin_with_a_model_of_other_sizes(write_config):
    first = Run(read_config(write_config("first")))
    folder = export_run(first)
    sizes = first.config.architecture.model_dump() | {"queries": 6}
    other = read_config(write_config("other", start=str(folder), architecture=sizes))
    with pytest.raises(InputError, match=r"another architecture: .* is \(4, .* there and \(6, .* here"):
        Run(other)


def test_a_frozen_encoder_stays_as_it_is(write_config):
    stage = {"kind": "detector", "steps": 2, "batch": 2, "queries": 2, "warmup": 1, "encoder_rate": 0}
    run = Run(read_config(write_config("frozen", stages=[stage])))
    backbone = run.network.detector.vision_encoder.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    run.train()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_the_detector_learns_a_bright_disc(write_config):
    stage = {"kind": "detector", "steps": 40, "batch": 4, "queries": 2, "warmup": 5, "learning_rate": 2e-3}
    run = Run(read_config(write_config("learn", stages=[stage])))

    def semantic_loss():
        torch.manual_seed(0)
        run.sampler.random = np.random.default_rng(0)
        run.module.eval()
        with torch.no_grad():
            return float(run.make_stage(run.config.stages[0]).loss()["semantic"])

    untrained = semantic_loss()
    run.train()
    assert semantic_loss() < 0.5 * untrained
    with next(run.config.output.glob("log_*.csv")).open() as file:
        logged = {(row["step"], row["term"]) for row in csv.DictReader(file)}
    assert {("20", "semantic"), ("40", "semantic"), ("40", "total")} <= logged


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"stages": [{"kind": "dance", "steps": 1}]}, "stages.0.kind"),
        ({"stages": [{"kind": "dense", "steps": 0}]}, "stages.0.steps"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_configuration_names_the_field(write_config, change, place):
    with pytest.raises(InputError, match=place):
        read_config(write_config(**change))


def test_an_absent_configuration_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_config(tmp_path / "none.yaml")


def test_the_schedule_warms_up_and_ends_low():
    rates = [schedule(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0, abs=1e-3)
    assert rates[-1] == pytest.approx(FINAL_RATE, abs=2e-3)


def test_a_trimmed_vocabulary_tokenises_its_phrases_as_clip_does():
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = read_clip_merges(resource_path("tokenizer/bpe_simple_vocab_16e6.txt.gz"))
    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    full_vocabulary = {
        token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])
    }
    full = CLIPTokenizer(vocab=full_vocabulary, merges=merges)
    assert full("liver")["input_ids"] == [49406, 12639, 49407]  # as the published tokeniser gives it
    phrases = known_phrases()
    vocabulary, kept = trim_vocabulary(merges, phrases)
    trimmed = CLIPTokenizer(vocab=vocabulary, merges=kept)
    assert len(vocabulary) < 4000
    for phrase in phrases:
        assert trimmed.tokenize(phrase) == full.tokenize(phrase)
    assert trimmed.tokenize("xylophone") != full.tokenize("xylophone")
    assert "".join(trimmed.tokenize("xylophone")) == "xylophone</w>"
