"""Token ids against the published ones, and what bad input gets."""

import json
import logging

import pytest

from MedSAM3Core.errors import CheckpointError, PromptError
from MedSAM3Core.models.tokenizer import CONTEXT, PhraseTokenizer

START, END = 49406, 49407


@pytest.fixture(scope="module")
def full():
    return PhraseTokenizer.full()


def test_the_published_ids(full):
    ids, mask = full(["liver", "optic disc", "Optic  DISC "])
    assert ids[0].tolist() == [START, 12639] + [END] * 30
    assert ids[1].tolist() == [START, 24755, 10712] + [END] * 29
    assert ids[2].tolist() == ids[1].tolist()
    assert mask[0].tolist() == [1, 1, 1] + [0] * 29
    assert len(full) == 49408


def test_a_long_phrase_is_cut_with_a_notice(full, caplog):
    phrase = "the small one " * 20
    assert "60 tokens" in full.notice(phrase)
    assert full.notice("left kidney") is None
    with caplog.at_level(logging.WARNING):
        ids, mask = full([phrase])
    assert ids.shape == (1, CONTEXT)
    assert ids[0, -1] == END
    assert mask.all()
    assert "shorten it" in caplog.text


@pytest.mark.parametrize("phrase", ["", "   "])
def test_an_empty_phrase(full, phrase):
    with pytest.raises(PromptError, match="concept is empty"):
        full(["liver", phrase])


def test_no_phrases(full):
    ids, mask = full([])
    assert ids.shape == mask.shape == (0, CONTEXT)


def test_saved_and_read_it_gives_the_same_ids(full, small_tokenizer, tmp_path):
    phrases = ["Ventrículo izquierdo", "x-ray 3", "liver's edge"]
    for tokenizer in (full, small_tokenizer):
        tokenizer.save(tmp_path)
        again = PhraseTokenizer.from_folder(tmp_path)
        assert (again(phrases)[0] == tokenizer(phrases)[0]).all()


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [(None, "a b\n"), ("{", "a b\n"), ("[]", "a b\n"), ('{"a": 0}', "a b\n"), (None, None)],
)
def test_damaged_files(tmp_path, vocabulary, merges):
    if vocabulary is not None:
        (tmp_path / "vocab.json").write_text(vocabulary)
    if merges is not None:
        (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(CheckpointError, match=r"no usable vocab\.json and merges\.txt"):
        PhraseTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "words"),
    [
        ({"a": 2**63}, "", "a token has no number"),
        ({"a": -1}, "", "a token has no number"),
        ({"a": 0}, "a " + "b" * 5000, r"a merge names 'ab{90,}\.\.\."),
    ],
)
def test_damage_is_said_in_few_words(tmp_path, vocabulary, merges, words):
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"<|startoftext|>": 1, "<|endoftext|>": 2}))
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(CheckpointError, match=words) as caught:
        PhraseTokenizer.from_folder(tmp_path)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_merge_of_three(tmp_path, small_tokenizer):
    small_tokenizer.save(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(CheckpointError):
        PhraseTokenizer.from_folder(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))["<|endoftext|>"] == 599
