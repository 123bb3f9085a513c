from __future__ import annotations

from pathlib import Path

import pytest

from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import ResourceError
from MedSAM3Core.resources import resource_path
from MedSAM3Core.samples import read_samples


def test_samples_are_whole_and_their_concepts_canonical() -> None:
    samples = read_samples()
    assert [sample.modality for sample in samples] == ["CT", "HISTO"]
    for sample in samples:
        assert sample.licence
        assert sample.source
        assert "test" in sample.split
        volume, references = sample.read(), sample.read_reference()
        assert set(sample.concepts) <= set(references)
        for phrase in sample.concepts:
            assert resolve(phrase).phrase == phrase
            assert references[phrase].shape == volume.geometry.shape
            assert references[phrase].any()


def test_the_ct_shows_at_least_four_concepts() -> None:
    assert len(read_samples()[0].concepts) >= 4


def test_every_sample_file_is_listed_and_every_listed_file_is_there() -> None:
    listed = {path.name for sample in read_samples() for path in (sample.image, sample.reference)}
    assert listed | {"samples.json"} == {path.name for path in resource_path("SampleData").iterdir()}


@pytest.mark.parametrize("text", ["", "null", '[{"name": "x"}]', "[1]"])
def test_a_broken_list_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(ResourceError, match="install MedSAM3Core again"):
        read_samples(tmp_path)
