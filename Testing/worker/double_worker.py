"""A double of the library behind the worker, and the entry point that serves it.

It doubles `MedSAM3Core.inference.session` (Segmenter and Session) without torch: a voxel belongs to a concept if it is
brighter than the volume's mean plus one standard deviation, is inside a positive box if there is one, and outside all
negative ones. Everything around it, the process, the pipes and the files, is the real thing. Some concepts, models
and options misbehave on purpose; they are listed in `_linger`, `_misbehave`, `DoubleBackend` and `DoubleSegmenter`.
"""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

from MedSAM3Core.errors import InputError, ModelError, PromptError
from MedSAM3Core.progress import ProgressMeter
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.worker.backend import MemoryFacts, looks_out_of_memory


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class DoubleSession:
    def __init__(self, volume, device, axis, batch_slices, device_bytes, hungry):
        self.volume, self.device, self.axis = volume, device, axis
        self.batch_slices, self.device_bytes, self.hungry = batch_slices, device_bytes, hungry
        self.closed = False
        self.plan = SimpleNamespace(description=axis)

    def segment(self, concept, boxes=(), progress=None, cancel=None, threshold=None):
        if self.closed:
            raise PromptError("The session is closed; open the volume again.")
        asked = (
            concept if isinstance(concept, Concept) else Concept(concept, concept.strip().lower(), (concept,))
        )
        if not asked.phrase:
            raise PromptError("The concept is empty; expected a phrase such as 'liver'.")
        for box in boxes:
            box.check_inside(self.volume.geometry.shape)
        meter = ProgressMeter(progress, cancel, {"looking": 1.0})
        total = self.volume.geometry.shape[0]
        self._linger(asked.phrase, meter)
        for k in range(total):
            meter.step("looking", k, total)
            self._misbehave(asked.phrase)
        meter.step("looking", total, total)
        return self._result(asked, tuple(boxes), threshold)

    def segment_many(self, concepts, progress=None, cancel=None, threshold=None):
        return [self.segment(c, (), progress, cancel, threshold) for c in concepts]

    def refine(self, segmentation, boxes=(), progress=None, cancel=None):
        if segmentation.concept.phrase == "die on refine":
            die()
        return self.segment(segmentation.concept, (*segmentation.boxes, *boxes), progress, cancel)

    def close(self):
        if self.axis == "die on close":
            die()
        self.closed = True

    def _linger(self, phrase, meter):
        """Run for as long as a test wants: until it cancels, or until it makes a file."""
        deadline = time.monotonic() + 60  # a test that has gone wrong must not last for ever
        while time.monotonic() < deadline and (
            phrase == "endless"
            or (phrase.startswith("until ") and not os.path.exists(phrase.removeprefix("until ")))
        ):
            meter.step("looking", 0, self.volume.geometry.shape[0])
            time.sleep(0.02)

    def _misbehave(self, phrase):
        if phrase == "slow":
            time.sleep(0.02)
        elif phrase == "deaf":  # ignores its cancel, as a long native call does
            time.sleep(1000)
        elif phrase == "deaf with a child":
            subprocess.Popen(["sleep", "1000"])
            time.sleep(1000)
        elif phrase == "die":
            die()
        elif phrase == "fault":
            raise KeyError("no such thing")
        elif phrase == "memory error":
            raise MemoryError
        elif phrase == "noise":
            print("printed by a library", flush=True)
            os.write(1, b"\xff{\n\n[written to descriptor 1]")
            subprocess.run(["echo", "echoed by a child"], check=False)
            if sys.stdin.read():
                raise AssertionError("a library read from the protocol")
        elif phrase == "hungry":
            self._eat()

    def _eat(self):
        enough = {
            "large batches": self.batch_slices <= 2,
            "features": self.device_bytes is not None,
            "gpu": self.device == "cpu",
            "everything": False,
        }
        if not enough[self.hungry]:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def _result(self, concept, boxes, threshold):
        array = np.asarray(self.volume.array, np.float64)
        if array.ndim == 4:
            array = array.mean(-1)
        limit = array.mean() + array.std() if threshold is None else threshold
        mask = array > limit if concept.phrase != "nothing" else np.zeros(array.shape, bool)
        inside = np.zeros_like(mask)
        for box in boxes:
            part = np.s_[box.k[0] : box.k[1] + 1, box.j[0] : box.j[1] + 1, box.i[0] : box.i[1] + 1]
            inside[part] |= box.positive
            mask[part] &= box.positive
        if any(box.positive for box in boxes):
            mask &= inside
        return Segmentation.from_mask(
            concept,
            self.volume.geometry,
            mask,
            probability=mask * 0.75,
            score=0.5,
            slice_scores={k: float(mask[k].mean()) for k in range(len(mask))},
            provenance=Provenance(
                concept.typed, "double", device=self.device, thresholds={"mask": float(limit)}
            ),
            boxes=boxes,
            timings={"looking": 0.01},
        )


class DoubleSegmenter:
    def __init__(self, model, device):
        self.card = {"name": model}
        self.device = "cpu" if device in ("auto", "cpu") else device

    def open(
        self,
        volume,
        axis="auto",
        window="auto",
        mode="recommended",
        batch_slices=8,
        batch_pairs=16,
        device_bytes=None,
        hungry="large batches",
    ):
        if axis == "die on open":
            die()
        if axis == "sideways":
            raise InputError("The axis is 'sideways'; expected auto, axial, sagittal or coronal.")
        return DoubleSession(volume, self.device, axis, batch_slices, device_bytes, hungry)


class DoubleBackend:
    """Loads only doubles. ``gpu`` says that there is one, so that running out of its memory has a CPU to go to."""

    def __init__(self, die_on_hello=False, hang_on_hello=False):
        self.die_on_hello, self.hang_on_hello = die_on_hello, hang_on_hello
        self.loaded = 0

    def describe_device(self):
        if self.hang_on_hello:
            time.sleep(1000)
        if self.die_on_hello:
            print("last words of the double", file=sys.stderr, flush=True)
            die()
        return "cpu (a double)"

    def load(self, model, device):
        if model == "die":
            die()
        if model == "absent":
            raise ModelError("The model 'absent' is unknown; expected 'double'.", "Choose another.")
        self.loaded += 1
        return DoubleSegmenter(model, device)

    def memory(self):
        return MemoryFacts("cuda:0", 1, 2, 3, 4, 5)

    def memory_needed(self, session, concepts):
        return {"cuda:0": 1000 * concepts, "cpu": 7}

    def is_out_of_memory(self, fault):
        return looks_out_of_memory(fault)

    def give_back(self):
        pass


if __name__ == "__main__":
    from MedSAM3Core.worker.server import serve_stdio

    idle = next((float(a.split("=")[1]) for a in sys.argv if a.startswith("--idle=")), None)
    serve_stdio(
        DoubleBackend(die_on_hello="--die" in sys.argv, hang_on_hello="--hang" in sys.argv),
        idle_release_s=idle,
    )
