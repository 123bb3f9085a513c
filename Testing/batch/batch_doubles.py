"""A double of the model, small images with known answers, and a batch of them in a process that can be killed.

``python batch_doubles.py INPUT OUTPUT [--resume] [--seconds S] [--hold N]`` runs a batch on the double and prints its
summary as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from MedSAM3Core.batch import BatchSettings, LocalEngine, find_cases, run_batch
from MedSAM3Core.errors import Cancelled, PromptError
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.volume.volume import Volume

BRIGHT = 100


class ThresholdSegmenter:
    """Doubles a segmenter and its session: every concept but "nothing" is what is brighter than `BRIGHT`.

    Args:
        seconds: How long an inference takes; it sleeps, as one on a GPU would leave the processor free.
        hold: After so many inferences the next one does not end, so that the process can be killed in time.
    """

    def __init__(self, seconds: float = 0.0, hold: int | None = None) -> None:
        self.seconds = seconds
        self.hold = hold
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    @contextmanager
    def open(self, volume: Volume, axis: str, window: str, mode: str):
        yield _Session(self, volume)


class _Session:
    def __init__(self, owner: ThresholdSegmenter, volume: Volume) -> None:
        self.owner, self.volume = owner, volume

    def segment_many(
        self,
        concepts: Sequence[Concept],
        cancel: CancelToken | None = None,
        threshold: float | None = None,
    ) -> list[Segmentation]:
        self.owner.asked.append((self.volume.name, tuple(one.phrase for one in concepts)))
        if any(one.phrase == "trouble" for one in concepts):
            raise PromptError("The model has no answer; ask for something else.")
        if any(one.phrase == "bug" for one in concepts):
            raise ZeroDivisionError("a bug")
        held = self.owner.hold is not None and len(self.owner.asked) > self.owner.hold
        end = time.monotonic() + (3600.0 if held else self.owner.seconds)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))
            if cancel is not None and cancel.cancelled:
                raise Cancelled()
        return [self._found(one) for one in concepts]

    def _found(self, concept: Concept) -> Segmentation:
        array = self.volume.array if self.volume.array.ndim == 3 else self.volume.array.mean(-1)
        mask = array > (1e9 if concept.phrase == "nothing" else BRIGHT)
        return Segmentation.from_mask(
            concept,
            self.volume.geometry,
            mask,
            score=0.9 if mask.any() else 0.0,
            provenance=Provenance(concept.typed, "double", "0" * 64, prompts=(concept.phrase,)),
        )


def write_scan(path: Path, seed: int) -> int:
    """A CT of 6 x 14 x 16 voxels of 1 ml with a bright block whose size depends on the seed; gives its voxels."""
    generator = np.random.default_rng(seed)
    array = generator.integers(-100, 50, (6, 14, 16), dtype=np.int16)
    size = 2 + seed % 7
    array[1:4, 2 : 2 + size, 3:9] = 300
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((10.0, 10.0, 10.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
    return 3 * size * 6


def write_damaged(path: Path, seed: int) -> None:
    """A file that cannot be segmented, of one of five kinds."""
    write_scan(path, seed)
    kind = seed % 5
    if kind == 0:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        path.write_bytes(np.random.default_rng(seed).bytes(400))
    elif kind == 3:
        sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 4, 4), np.nan, np.float32)), str(path))
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((1, 1, 1), np.int16)), str(path))


def write_collection(folder: Path, count: int) -> dict[str, int | None]:
    """``count`` scans in three folders, every tenth damaged; key to the voxels to be found, None where damaged."""
    expected: dict[str, int | None] = {}
    for n in range(count):
        key = f"site{n % 3}/scan{n:03d}"
        path = folder / f"{key}{('.nii.gz', '.nrrd')[n % 2]}"
        if n % 10 == 7:
            write_damaged(path, n // 10)
            expected[key] = None
        else:
            expected[key] = write_scan(path, n)
    return expected


def main(arguments: list[str]) -> None:
    source, output = Path(arguments[0]), Path(arguments[1])
    seconds = float(arguments[arguments.index("--seconds") + 1]) if "--seconds" in arguments else 0.02
    hold = int(arguments[arguments.index("--hold") + 1]) if "--hold" in arguments else None
    settings = BatchSettings(output, model="double")
    found = find_cases([str(source)], ["liver"], output)
    engine = LocalEngine(ThresholdSegmenter(seconds, hold), settings)
    summary = run_batch(found.cases, settings, engine, resume="--resume" in arguments)
    print(json.dumps({"done": summary.done, "failed": len(summary.failures), "resumed": summary.resumed}))


if __name__ == "__main__":
    main(sys.argv[1:])
