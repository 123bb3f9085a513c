"""A worker whose library is a double: real process, real pipes and files, no model.

It doubles `MedSAM3Core.inference.session` (Segmenter and Session): a voxel belongs to any concept if it is above 0. For
tests of the panel that need a process but no inference. The concept "die" ends the process as a crash would;
"endless" stays at its third slice until it is cancelled.
"""

from __future__ import annotations

import os
import time

import numpy as np

from MedSAM3Core.progress import ProgressMeter
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.worker.backend import MemoryFacts, looks_out_of_memory
from MedSAM3Core.worker.server import serve_stdio


class ThresholdSession:
    """Doubles a `Session`."""

    def __init__(self, volume, options):
        self.volume, self.options = volume, options

    def segment_many(self, concepts, progress=None, cancel=None, threshold=None):
        return [self._segment(concept, (), progress, cancel) for concept in concepts]

    def segment(self, concept, boxes=(), progress=None, cancel=None, threshold=None):
        return self._segment(concept, boxes, progress, cancel)

    def refine(self, segmentation, boxes=(), progress=None, cancel=None):
        return self._segment(segmentation.concept, (*segmentation.boxes, *boxes), progress, cancel)

    def close(self):
        """Nothing is held."""

    def _segment(self, concept, boxes, progress, cancel):
        meter = ProgressMeter(progress, cancel, {"detecting": 1.0})
        total = self.volume.geometry.shape[0]
        for k in range(total):
            meter.step("detecting", k, total)
            for _ in range(
                3000 if concept.phrase == "endless" and k == 2 else 0
            ):  # a minute, unless it is cancelled
                meter.step("detecting", k, total)
                time.sleep(0.02)
            if concept.phrase == "die" and k == 2:
                os._exit(9)
        mask = np.asarray(self.volume.array) > 0
        for box in boxes:
            mask[box.k[0] : box.k[1] + 1, box.j[0] : box.j[1] + 1, box.i[0] : box.i[1] + 1] = box.positive
        made = Provenance(concept.typed, "threshold double", "00" * 32, "0", (concept.phrase,), device="cpu")
        return Segmentation.from_mask(
            concept, self.volume.geometry, mask, score=0.5, provenance=made, boxes=tuple(boxes)
        )


class ThresholdSegmenter:
    """Doubles a `Segmenter`."""

    card = {"name": "threshold double"}  # noqa: RUF012
    device = "cpu"

    def open(self, volume, **options):
        return ThresholdSession(volume, options)


class ThresholdBackend:
    """Doubles the backend that loads models."""

    def describe_device(self):
        return "cpu (a double)"

    def load(self, model, device):
        return ThresholdSegmenter()

    def memory(self):
        return MemoryFacts(None, None, None, None, None, None)

    def memory_needed(self, session, concepts):
        return {}

    def is_out_of_memory(self, fault):
        return looks_out_of_memory(fault)

    def give_back(self):
        """Nothing is held."""


if __name__ == "__main__":
    serve_stdio(ThresholdBackend())
