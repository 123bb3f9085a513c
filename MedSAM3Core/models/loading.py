"""From a name or a folder to a model that is ready to be asked."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from MedSAM3Core.errors import InputError, ModelError
from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.conversion import check_converter
from MedSAM3Core.models.folder import read_config
from MedSAM3Core.models.lora import ADAPTER_FILE, Adapter, AdapterSwitch, merging
from MedSAM3Core.models.network import ConceptNetwork
from MedSAM3Core.models.registry import adapter_base, find_folder, installed_folder
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.models.tracker import Tracker
from MedSAM3Core.models.weights import WEIGHTS_FILE, build_empty, fill, weights_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model on its device.

    Attributes:
        name: As it was asked for: a registry name or a path.
        network: Encoder, text encoder and detector.
        tracker: The same model's tracker.
        tokenizer: Of its vocabulary.
        card: What is known of it, the hash of its weights filled in.
        device: Where it computes.
        folder: Where it was read from.
        switch: Adapters beside the weights; None when one is merged into them.
    """

    name: str
    network: ConceptNetwork
    tracker: Tracker
    tokenizer: PhraseTokenizer
    card: ModelCard
    device: torch.device
    folder: Path
    switch: AdapterSwitch | None = None

    def tokenize(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of phrases, both (phrases, 32), on the model's device.

        Raises:
            PromptError: If a phrase is empty.
        """
        input_ids, attention_mask = self.tokenizer(phrases)
        return input_ids.to(self.device), attention_mask.to(self.device)

    def with_adapter(self, name_or_path: str | Path | None) -> LoadedModel:
        """The same network with another LoRA on it, or with none, without reading the base again.

        The network is shared: from now on every handle on it answers with this adapter.

        Args:
            name_or_path: An installed LoRA on this base, or None for the base itself.

        Raises:
            ModelError: If it is not installed, not a LoRA, or on another base, or if one is merged into the weights.
            CheckpointError: If it does not fit; the one before stays active then.
        """
        if self.switch is None:
            raise ModelError(
                f"A LoRA is merged into {self.name!r}; load its base, or load it with merged=False, to switch."
            )
        base = _base_folder(self.folder)
        folder = base if name_or_path is None else find_folder(name_or_path)
        if folder != base and _base_folder(folder) != base:
            raise ModelError(
                f"The model {str(name_or_path)!r} is not a LoRA on {base.name!r}, which is loaded."
            )
        self.switch.use(None if folder == base else Adapter.load(folder))
        card = ModelCard.read(folder).model_copy(update={"sha256": _sha256(folder)})
        return replace(self, name=str(name_or_path or base.name), card=card, folder=folder)


def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    merged: bool = True,
) -> LoadedModel:
    """Load a model by its registry name or from its folder.

    Args:
        name_or_path: For example "demo", or the folder of a fine-tune.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        dtype: Type of the weights in memory; None is float32, which autocast computes with in bfloat16 where that is
            wanted (casting the weights themselves degrades video masks).
        merged: Add a LoRA to the weights (fastest), instead of beside them, where `LoadedModel.with_adapter` can change
            it.

    Raises:
        ModelError: If the model, or the base of a LoRA, is unknown or not installed.
        CheckpointError: If its files are damaged or do not fit.
        InputError: If the device does not exist.
    """
    place = choose_device(device)
    folder = find_folder(name_or_path)
    base = _base_folder(folder)
    for converted in {folder, base}:
        check_converter(converted)
    model = build_empty(read_config(base))
    card = ModelCard.read(folder)
    tokenizer = PhraseTokenizer.from_folder(base)
    adapter = Adapter.load(folder) if folder != base else None
    change = merging(model, adapter) if adapter and merged else None
    fill(model, base / WEIGHTS_FILE, place, dtype or torch.float32, change)
    card = card.model_copy(update={"sha256": _sha256(folder)})
    switch = None if change else AdapterSwitch(model)
    if adapter and switch:
        switch.use(adapter)
    log.info("loaded %s from %s to %s", card.name, folder, place)
    network, tracker = ConceptNetwork(model).eval(), Tracker(model).eval()
    return LoadedModel(str(name_or_path), network, tracker, tokenizer, card, place, folder, switch)


def _base_folder(folder: Path) -> Path:
    """The folder that holds the whole weights: a LoRA's base, or the folder itself."""
    base = adapter_base(folder)
    if base is None:
        return folder
    found = installed_folder(base)
    if found is None:
        raise ModelError(
            f"{folder.name!r} is a LoRA on {base!r}, which is not installed; install {base} first."
        )
    return found


def _sha256(folder: Path) -> str:
    """Hash of the weights; of a LoRA, the hash of its base's and its own hashes one after the other."""
    base = _base_folder(folder)
    weights = weights_sha256(base / WEIGHTS_FILE)
    if base == folder:
        return weights
    return hashlib.sha256((weights + weights_sha256(folder / ADAPTER_FILE)).encode("ascii")).hexdigest()


def choose_device(request: str | torch.device) -> torch.device:
    """The device that a request names.

    Raises:
        InputError: If it is not "auto" or "cpu", or a CUDA device that this machine has.
    """
    text = str(request)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" and number in ("", "0"):
        return torch.device("cpu")
    if kind == "cuda" and (number == "" or number.isdigit()) and int(number or 0) < count:
        return torch.device(text)
    have = "cpu" if not count else f"cpu and cuda:0 to cuda:{count - 1}" if count > 1 else "cpu and cuda:0"
    raise InputError(
        f"The device {text!r} is not available; this machine has {have}; choose one of these, or auto."
    )
