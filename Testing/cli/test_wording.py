"""How messages say counts and faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.faults import first_fault, why_unreadable
from MedSAM3Core.plurals import counted
from MedSAM3Core.yamlfile import read_yaml


class Settings(BaseModel):
    """As the configurations are."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(gt=0)


@pytest.mark.parametrize(("count", "said"), [(0, "0 slices"), (1, "1 slice"), (3, "3 slices")])
def test_a_count_agrees_with_its_noun(count: int, said: str) -> None:
    assert counted(count, "slice") == said


def test_a_count_agrees_with_its_verb() -> None:
    assert counted(1, "file was", "files were") == "1 file was"
    assert counted(2, "file was", "files were") == "2 files were"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "steps: it must be given"),
        ({"steps": 1, "stepz": 2}, "stepz: there is no such entry"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        (3, "the file: Input should be"),
    ],
)
def test_a_fault_names_its_place(values: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    assert first_fault(caught.value).startswith(said)


def test_what_is_quoted_is_short() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"steps": 1, "a" * 5000: 2})
    said = first_fault(caught.value)
    assert said == "a" * 117 + "...: there is no such entry"
    assert excerpt("one\n  two", 7) == "one two"
    assert excerpt(ValueError("eight let"), 8) == "eight..."


def test_a_fault_in_a_part_names_the_whole_place() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({})
    assert first_fault(caught.value, "mine").startswith("mine.steps: ")


def test_a_file_that_is_not_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 1\nname: [a\nbase: b\n")
    with pytest.raises(yaml.YAMLError) as caught:
        read_yaml(path)
    assert why_unreadable(caught.value).startswith("line 3: ")
    with pytest.raises(OSError) as missing:  # noqa: PT011 - its words are what is tested
        read_yaml(tmp_path / "none.yaml")
    assert why_unreadable(missing.value) == "no such file or directory"
