"""Data folder of its own for every test, and small models on disk, made once a run."""

import pytest
import tiny
import torch

from MedSAM3Core.models.card import Licence, ModelCard
from MedSAM3Core.models.folder import save_model_folder
from MedSAM3Core.models.registry import HOME_VARIABLE
from MedSAM3Core.models.tokenizer import PhraseTokenizer


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """MEDSAM3_HOME in a temporary folder; nothing of the user's is read or written."""
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    for name in (
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def small_tokenizer():
    """600 tokens: every byte, a few merges."""
    full = PhraseTokenizer.full()
    letters = list(full.vocabulary)[:512]
    merges = full.merges[:86]
    tokens = [*letters, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    return PhraseTokenizer({token: index for index, token in enumerate(tokens)}, merges)


@pytest.fixture(scope="session")
def model_on_disk(tmp_path_factory, small_tokenizer):
    """A model folder in float32; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("models") / "small"
    card = ModelCard(
        name="small", licence=Licence(name="CC0"), concepts=("liver",), held_out_dice={"liver": 0.5}
    )
    save_model_folder(folder, tiny.model(), small_tokenizer, card, torch.float32)
    return folder
