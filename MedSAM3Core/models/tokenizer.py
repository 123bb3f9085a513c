"""Phrases to token ids: CLIP's byte-pair encoding, whole as it ships with the package or trimmed in a model folder.

SAM 3's text encoder takes 32 tokens. A phrase is cut to that length (transformers would raise an error) and padded
to it with the end token, which the attention mask hides. Measured against the published tokeniser, which pads with
zeros: the same features on every real token.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from MedSAM3Core.errors import CheckpointError, PromptError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.resources import resource_path

log = logging.getLogger(__name__)

CONTEXT = 32
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
_CLIP_MERGES = 49152 - 256 - 2
"""Merges of the shipped table that CLIP uses; the rest of the file is left over."""


_MOST_TOKENS = 2**31
"""Numbers of tokens are 32 bits wide in the tokeniser underneath."""


class PhraseTokenizer:
    """CLIP's tokeniser at the length that SAM 3's text encoder takes.

    Args:
        vocabulary: Token to id.
        merges: Pairs in order of precedence.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self.vocabulary = vocabulary
        self.merges = list(merges)
        self._clip = CLIPTokenizer(
            vocab=vocabulary,
            merges=self.merges,  # type: ignore[arg-type]  # pairs are taken, though the annotation says text
            model_max_length=CONTEXT,
        )

    @classmethod
    @lru_cache(maxsize=1)
    def full(cls) -> PhraseTokenizer:
        """CLIP's whole vocabulary of 49,408 tokens, from the table that ships with the package."""
        table = gzip.decompress(resource_path("tokenizer/bpe_simple_vocab_16e6.txt.gz").read_bytes())
        lines = table.decode("utf-8").split("\n")[1 : _CLIP_MERGES + 1]
        merges = [(first, second) for first, second in (line.split() for line in lines)]
        letters = list(bytes_to_unicode().values())
        tokens = [
            *letters,
            *(letter + "</w>" for letter in letters),
            *("".join(m) for m in merges),
            START,
            END,
        ]
        return cls({token: index for index, token in enumerate(tokens)}, merges)

    @classmethod
    def from_folder(cls, folder: Path) -> PhraseTokenizer:
        """Tokeniser of a model folder (``vocab.json`` and ``merges.txt``).

        Raises:
            CheckpointError: If a file is missing or not what it should be.
        """
        try:
            vocabulary = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
            lines = (folder / MERGES_FILE).read_text(encoding="utf-8").splitlines()
            pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
            if START not in vocabulary or END not in vocabulary or any(len(pair) != 2 for pair in pairs):
                raise ValueError("not a CLIP vocabulary")
            if not all(type(index) is int and 0 <= index < _MOST_TOKENS for index in vocabulary.values()):
                raise ValueError("a token has no number")
            for first, second in pairs:
                # Not as a difference of sets: that would walk through the whole vocabulary for each merge.
                if missing := [token for token in (first, second, first + second) if token not in vocabulary]:
                    raise ValueError(f"a merge names {min(missing)!r}, which is no token")
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"The model folder {folder} has no usable {VOCABULARY_FILE} and {MERGES_FILE} ({excerpt(error)}); "
                "convert or export the model again."
            ) from error
        return cls(vocabulary, [(pair[0], pair[1]) for pair in pairs])

    def save(self, folder: Path) -> None:
        """Write ``vocab.json`` and ``merges.txt``."""
        (folder / VOCABULARY_FILE).write_text(
            json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8"
        )
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / MERGES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __call__(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode phrases.

        Args:
            phrases: Any case; blanks are folded.

        Returns:
            Token ids and attention mask (1 for a real token), both (phrases, 32) int64 on the CPU.

        Raises:
            PromptError: If a phrase is empty.
        """
        for phrase in phrases:
            if not phrase.strip():
                raise PromptError("The concept is empty; type what is to be segmented, for example liver.")
            if notice := self.notice(phrase):
                log.warning(notice)
        if not phrases:
            return torch.zeros(0, CONTEXT, dtype=torch.long), torch.zeros(0, CONTEXT, dtype=torch.long)
        encoded = self._clip(
            list(phrases), padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def notice(self, phrase: str) -> str | None:
        """A sentence for the user when the phrase is cut, else None."""
        count = len(self._clip.tokenize(phrase))
        if count <= CONTEXT - 2:
            return None
        return f"The phrase {phrase!r} has {count} tokens; the model reads the first {CONTEXT - 2}, so shorten it."
