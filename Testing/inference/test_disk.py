import os
from pathlib import Path

import numpy as np
import pytest
import torch
from inference_doubles import BrightModel, concept, phantom, phantom_array

from MedSAM3Core import Segmenter
from MedSAM3Core.errors import InputError
from MedSAM3Core.inference.disk import SUFFIX, DiskFeatures

IMAGE = np.arange(12, dtype=np.uint8).reshape(3, 4)


def store(folder: Path, most: int = 1_000_000, **changes) -> DiskFeatures:
    return DiskFeatures(folder, most, **{"weights": "ab", "side": 64, "precision": "auto", **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_by_the_next_process(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(1, 4, 3, 3).to(dtype)
    first = store(tmp_path)
    first.write(first.key(IMAGE), tensor)
    second = store(tmp_path)
    assert torch.equal(second.read(second.key(IMAGE)), tensor)
    assert second.read(second.key(IMAGE[::-1])) is None
    assert (second.hits, first.written) == (1, 1)


def test_a_key_names_all_that_the_content_depends_on(tmp_path: Path) -> None:
    keys = {
        store(tmp_path).key(IMAGE),
        store(tmp_path).key(IMAGE.reshape(4, 3)),
        store(tmp_path).key(IMAGE + 1),
    }
    for change in ({"weights": "cd"}, {"side": 32}, {"precision": "float32"}):
        keys.add(store(tmp_path, **change).key(IMAGE))
    assert len(keys) == 6


def test_the_bound_holds_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    disk = store(tmp_path, 5_000)
    keys = [disk.key(IMAGE + n) for n in range(4)]
    for n, key in enumerate(keys):
        disk.write(key, torch.zeros(1, 300))
        os.utime(tmp_path / (key + SUFFIX), (n, n))
        if n == 2:
            disk.read(keys[0])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5_000
    assert disk.read(keys[1]) is None
    assert disk.read(keys[0]) is not None


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    disk = store(tmp_path)
    disk.write(disk.key(IMAGE), torch.zeros(1, 30))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    assert disk.read(disk.key(IMAGE)) is None
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another"):
        store(tmp_path / "file" / "below")


def test_an_image_opened_again_is_not_encoded_again(tmp_path: Path) -> None:
    answers, encoded = [], []
    changed = phantom_array()
    changed[12] = 20
    for voxels in (None, None, changed):
        with Segmenter(BrightModel()).open(
            phantom(voxels), mode="thorough", window="255,127.5", disk_folder=str(tmp_path)
        ) as session:
            answers.append(session.segment(concept("bright thing")).to_array())
            encoded.append(session.work.slices)
    assert encoded[0] > 0
    assert encoded[1] == 0
    assert np.array_equal(answers[0], answers[1])
    assert encoded[2] <= 1, "only the slice that changed, which is all background now"


def test_a_model_without_a_hash_keeps_nothing(tmp_path: Path) -> None:
    model = BrightModel()
    model.card = model.card.model_copy(update={"sha256": ""})
    with Segmenter(model).open(phantom(), disk_folder=str(tmp_path)) as session:
        session.segment(concept("bright thing"))
    assert not list(tmp_path.iterdir())
