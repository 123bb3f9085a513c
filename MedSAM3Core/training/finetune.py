"""A whole run: data, network, stages, and the model folder that comes out."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer, Sam3VideoModel

from MedSAM3Core.errors import InputError
from MedSAM3Core.models.loading import load_model
from MedSAM3Core.models.registry import find_folder
from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.resources import resource_path
from MedSAM3Core.training.architecture import build_model
from MedSAM3Core.training.batches import BatchMaker
from MedSAM3Core.training.cache import SliceCache, build_cache
from MedSAM3Core.training.config import StageConfig, TrainingConfig
from MedSAM3Core.training.knowledge import CONCEPT_REGIONS, DISTRACTORS
from MedSAM3Core.training.pack import Case, read_pack, split_of
from MedSAM3Core.training.sampling import ConceptSampler
from MedSAM3Core.training.scaled import ScaledNetwork, ScaledTracker
from MedSAM3Core.training.stages import DenseHead, DenseStage, DetectorStage, Stage
from MedSAM3Core.training.trainer import Trainer
from MedSAM3Core.training.validation import Validator, choose_probes
from MedSAM3Core.training.vocabulary import read_clip_merges, trim_vocabulary

logger = logging.getLogger(__name__)


class TrainingModule(nn.Module):
    """Everything that is trained: the model and the auxiliary head.

    Args:
        model: The model.
        classes: How many the head names.
    """

    def __init__(self, model: Sam3VideoModel, classes: int) -> None:
        super().__init__()
        self.network = ScaledNetwork(model)
        detector: Any = model.config.detector_config
        self.head = DenseHead(detector.vision_config.fpn_hidden_size, classes)


class Run:
    """A configured run, ready to train or to be looked at.

    Args:
        config: The run.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.output / "tokenizer", config)
        architecture = config.architecture.model_copy(update={"vocabulary": len(self.tokenizer)})
        self.cases = read_training_cases(config.data)
        self.groups = read_groups(config.data)
        classes = tuple(sorted({name for case in self.cases for name in case.concepts}))
        self.cache: SliceCache = build_cache(self.cases, classes, config.cache_size, config.output / "cache")
        self.module = TrainingModule(build_model(architecture, config.seed), len(classes))
        if config.start is not None:
            take_weights(self.network, config.start)
        if not torch.cuda.is_available():
            # Measured on a Xeon with AMX, bf16, (24, 4, 400, 32): the fused kernel's backward takes 62 ms, plain
            # products 36 ms; a dense step of 8 images 0.54 s and 0.40 s, a detector step of 24 pairs 1.8 s and 1.3 s.
            for part in (self.network.model.detector_model, self.network.model.tracker_model):
                part.set_attn_implementation("eager")
        self.mask_size = 4 * architecture.tokens
        self.sampler = ConceptSampler(self.cache, self.groups, config.source_weights, "train", config.seed)
        plain = BatchMaker(self.sampler, None, architecture.image_size, self.mask_size)
        self.validator = Validator(
            self.network, self.module.head, plain, self.tokenize, choose_probes(self.cache)
        )
        self.trainer = Trainer(config, self.module, self.make_stage, self.sampler, self.validator.judge)

    @property
    def network(self) -> ScaledNetwork:
        """The network that is trained."""
        return self.module.network

    def make_stage(self, config: StageConfig) -> Stage:
        """The stage of a configuration."""
        batches = BatchMaker(
            self.sampler, self.config.augmentation, self.config.architecture.image_size, self.mask_size
        )
        if config.kind == "dense":
            return DenseStage(self.network, self.module.head, batches, config)
        if config.kind == "detector":
            return DetectorStage(self.network, self.module.head, batches, self.tokenize, config)
        from MedSAM3Core.training.tracker_stage import TrackerStage

        tracker = ScaledTracker(self.network)
        return TrackerStage(self.network, tracker, batches, config, trained=self.config.start is not None)

    def tokenize(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of phrases, padded to the longest of them."""
        tokens = self.tokenizer(phrases, padding=True, truncation=True, max_length=32, return_tensors="pt")
        return tokens["input_ids"], tokens["attention_mask"]

    def train(self, progress: ProgressCallback | None = None, cancel: CancelToken | None = None) -> None:
        """Train what is left of the run."""
        self.trainer.run(progress, cancel)

    def load_average(self) -> None:
        """Put the running average of the weights, which is what is saved and judged, into the network."""
        self.module.load_state_dict(self.trainer.average)
        self.module.eval()


def read_training_cases(data: Path) -> list[Case]:
    """Cases of a pack without its test patients: no run so much as opens their files."""
    return [case for case in read_pack(data) if split_of(case.patient) != "test"]


def read_groups(data: Path) -> dict[str, list[str]]:
    """Broader terms of a pack, without those that are a concept of their own."""
    path = data / "concept_groups.json"
    groups = json.loads(path.read_text()) if path.exists() else {}
    return {term: parts for term, parts in groups.items() if term not in parts}


def take_weights(network: ScaledNetwork, folder: Path) -> None:
    """Put a finished model's weights into a network that is to be trained further.

    Raises:
        InputError: If its sizes are not the network's.
        ModelError: If the folder holds no model.
    """
    weights = load_model(folder, "cpu").network.model.state_dict()
    own = network.model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        shapes = [tuple(one[name].shape) if name in one else None for one in (own, weights)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"The model {folder} is of another architecture: {name} is {shapes[1]} there and {shapes[0]} here; "
                "give 'architecture' its sizes, or begin without 'start'."
            )
    network.model.load_state_dict(weights)
    network.unfold()


def load_tokenizer(folder: Path, config: TrainingConfig) -> CLIPTokenizer:
    """The run's trimmed tokeniser; made at the start of a run and kept, so that a resumed run keeps its ids."""
    if not (folder / "vocab.json").exists() and config.start is not None:  # its weights know no other ids
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("merges.txt", "vocab.json"):
            shutil.copyfile(find_folder(config.start) / name, folder / name)
    if not (folder / "vocab.json").exists():
        merges = read_clip_merges(resource_path("tokenizer/bpe_simple_vocab_16e6.txt.gz"))
        vocabulary, kept = trim_vocabulary(merges, known_phrases())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text(
            "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in kept) + "\n", encoding="utf-8"
        )
        logger.info("vocabulary of %d tokens for %s", len(vocabulary), config.name)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    pairs: Any = [tuple(line.split()) for line in lines if line]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=32)


def known_phrases() -> list[str]:
    """Phrases whose words stay whole in a trimmed vocabulary: training's own and the terminology's."""
    terminology = json.loads(resource_path("terminology/concepts.json").read_text(encoding="utf-8"))
    phrases = [*CONCEPT_REGIONS, *DISTRACTORS]
    for concept in terminology["concepts"]:
        phrases += [concept["phrase"], *concept.get("aliases", ()), *concept.get("synonyms", ())]
    return phrases


def set_threads(count: int | None) -> None:
    """Limit torch to ``count`` threads; None leaves its default."""
    if count:
        torch.set_num_threads(count)
