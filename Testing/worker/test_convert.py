import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from MedSAM3Core.errors import PromptError, VolumeError
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker import convert
from MedSAM3Core.worker.protocol import Grid, ProtocolError, to_plain

LOCAL = {"array", "geometry", "source", "files"}


def other_than(value, hint):
    """A value that is not the field's default."""
    text = {True: False, False: True}.get(value) if isinstance(value, bool) else None
    if text is not None:
        return text
    if "float" in hint:
        return 2.5
    return ("one", "two") if "tuple" in hint else "OTHER"


def test_everything_known_of_a_volume_but_its_paths_arrives():
    geometry = Geometry((2, 3, 4), np.diag([0.1, 0.7, 3.0, 1.0]))
    facts = {f.name: other_than(f.default, str(f.type)) for f in fields(Volume) if f.name not in LOCAL}
    volume = Volume(np.zeros((2, 3, 4)), geometry, source=Path("/here"), **facts)
    plain = json.loads(json.dumps(to_plain(convert.facts_of(volume))))
    arrived = convert.volume_of(volume.array, convert.grid_of(geometry), plain)
    for name, value in facts.items():
        assert getattr(arrived, name) == value, name
    assert arrived.source is None
    np.testing.assert_array_equal(arrived.geometry.ijk_to_ras, geometry.ijk_to_ras)


def test_facts_of_another_version_are_ignored_and_wrong_ones_refused():
    grid = convert.grid_of(Geometry.identity((1, 2, 3)))
    assert convert.volume_of(np.zeros((1, 2, 3)), grid, {"of_the_future": 1}).modality is None
    with pytest.raises(ProtocolError, match="expected str"):
        convert.volume_of(np.zeros((1, 2, 3)), grid, {"name": 5})
    with pytest.raises(VolumeError, match="same slices"):
        convert.volume_of(np.zeros((1, 2, 4)), grid, {})
    with pytest.raises(ProtocolError, match="expected 3 and 16"):
        convert.geometry_of(Grid((1, 2), (1.0,) * 16))


def test_what_is_no_concept_is_refused():
    with pytest.raises(PromptError, match="type int"):
        convert.asked(5)
