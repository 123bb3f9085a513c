"""The part of CLIP's vocabulary that a small model needs.

A byte-pair tokeniser stays exact for the kept words when it keeps every merge that they use, in order; any other word
falls back to shorter pieces, down to single bytes. The full table's embeddings would be two thirds of a demo model.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers.convert_slow_tokenizer import bytes_to_unicode

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 49152 - 256 - 2
"""Merges of the published file that CLIP uses; the rest of the file is left over."""


def read_clip_merges(path: Path) -> list[tuple[str, str]]:
    """Merges of ``bpe_simple_vocab_16e6.txt.gz``, most frequent first."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]
    pairs = [tuple(line.split()) for line in lines]
    return [(pair[0], pair[1]) for pair in pairs]


def trim_vocabulary(
    merges: list[tuple[str, str]], phrases: Iterable[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that tokenise the words of some phrases as the full table does.

    Args:
        merges: All merges in order.
        phrases: Whose words are kept whole.

    Returns:
        Token to id (bytes, bytes that end a word, merged pieces, start, end) and the kept merges in order.
    """
    rank = {pair: number for number, pair in enumerate(merges)}
    used: set[tuple[str, str]] = set()
    for word in {
        word for phrase in phrases for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", phrase.lower())
    }:
        used |= _merges_of(word, rank)
    kept = sorted(used, key=rank.__getitem__)
    letters = list(bytes_to_unicode().values())
    tokens = (
        letters
        + [letter + END_OF_WORD for letter in letters]
        + ["".join(pair) for pair in kept]
        + [START, END]
    )
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, kept


def _merges_of(word: str, rank: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Merges that byte-pair encoding applies to a word."""
    letters = bytes_to_unicode()
    pieces = [letters[byte] for byte in word.encode("utf-8")]
    pieces[-1] += END_OF_WORD
    used = set()
    while len(pieces) > 1:
        pair = min(pairwise(pieces), key=lambda p: rank.get(p, len(rank)))
        if pair not in rank:
            break
        used.add(pair)
        merged, index = [], 0
        while index < len(pieces):
            if index + 1 < len(pieces) and (pieces[index], pieces[index + 1]) == pair:
                merged.append("".join(pair))
                index += 2
            else:
                merged.append(pieces[index])
                index += 1
        pieces = merged
    return used
