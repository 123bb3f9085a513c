"""Doubles for what a test of the panel must not wait for.

`ThresholdClient` doubles `MedSAM3Core.worker.WorkerClient`: the same methods as far as the module uses them, the same
rule that nothing is delivered but on the thread that polls, and a "model" that calls every voxel above 0 the concept.
It loads no model and starts no process; what it cannot show (starting, dying, real inference) is tested with real
workers in ``test_end_to_end.py`` and in ``Testing/worker``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from MedSAM3Core.errors import Cancelled, PromptError, WorkerError
from MedSAM3Core.progress import Progress
from MedSAM3Core.segmentation import Provenance, Segmentation


class ThresholdClient:
    """Doubles a `WorkerClient`.

    Attributes:
        polls: How many polls an answer takes.
        fault: Raised instead of an answer.
        asked: What was asked, in order.
    """

    def __init__(self, polls: int = 3) -> None:
        self.polls = polls
        self.fault = None
        self.asked = []
        self.sessions = []
        self.closed = False
        self.released = []
        self.running = False
        self.log = "a line of the worker's log"
        self._pending = []
        self.tell = lambda event: None
        self.ask = lambda question: False

    def __call__(self, setup, on_event, on_question):
        """The factory that the logic is given."""
        self.setup, self.tell, self.ask = setup, on_event, on_question
        return self

    def session(self, volume, *, model, device, revision, **options):
        self.running = True
        self.sessions.append(ThresholdSession(self, volume, model, device, revision, options))
        return self.sessions[-1]

    def submit_release(self, what="model", **_):
        self.released.append(what)

    def submit(self, pending):
        self._pending.append(pending)
        return pending

    def poll(self):
        for pending in list(self._pending):
            if pending.advance():
                self._pending.remove(pending)
        return len(self._pending)

    def close(self):
        self.closed = True
        self.running = False


class ThresholdPending:
    """Doubles a `PendingResult`."""

    def __init__(self, client, make, progress, check):
        self._client, self._make, self._progress, self._check = client, make, progress, check
        self._polls = 0
        self._cancelled = False
        self.done = False

    def advance(self):
        self._polls += 1
        total = self._client.polls
        if self._cancelled or self._polls >= total:
            self.done = True
        elif self._progress is not None:
            self._progress(
                Progress("propagating", self._polls, total, self._polls / total, (total - self._polls) * 0.1)
            )
        return self.done

    def result(self, timeout=None):
        if self._cancelled:
            raise Cancelled()
        if self._client.fault is not None:
            raise self._client.fault
        self._check()
        return self._make()

    def cancel(self):
        self._cancelled = True


class ThresholdSession:
    """Doubles a `RemoteSession`."""

    def __init__(self, client, volume, model, device, revision, options):
        self.client, self.volume, self.model, self.device, self.options = (
            client,
            volume,
            model,
            device,
            options,
        )
        self._revision, self._opened = revision, revision()
        self.closed = False

    def submit_segment_many(self, concepts, progress=None, **options):
        self.client.asked.append(("segment_many", [c.phrase for c in concepts], options))
        return self._submit(lambda: [self._segmentation(c, ()) for c in concepts], progress)

    def submit_segment(self, concept, boxes=(), progress=None, **options):
        self.client.asked.append(("segment", concept.phrase, tuple(boxes), options))
        return self._submit(lambda: self._segmentation(concept, tuple(boxes)), progress)

    def submit_refine(self, segmentation, boxes=(), progress=None, **options):
        if not segmentation.geometry.same_grid(self.volume.geometry):
            raise PromptError("The segmentation has another grid than the open volume.")
        self.client.asked.append(("refine", segmentation, tuple(boxes), options))

        def make():
            mask = segmentation.to_array()
            for box in boxes:
                k, j, i = (slice(a, b + 1) for a, b in (box.k, box.j, box.i))
                mask[k, j, i] = box.positive
            refined = Segmentation.from_mask(segmentation.concept, self.volume.geometry, mask, score=0.95)
            made = replace(
                segmentation.provenance, boxes=tuple(str(box.k[0]) + ",1,1,2,2,+" for box in boxes)
            )
            return replace(refined, provenance=made, boxes=(*segmentation.boxes, *boxes))

        return self._submit(make, progress)

    def close(self):
        self.closed = True

    def _submit(self, make, progress):
        def check():
            if self.closed:
                raise Cancelled("The volume was closed while the run was going; its result was dropped.")
            if self._revision() != self._opened:
                raise Cancelled("The volume changed while the run was going; its result was dropped.")

        return self.client.submit(ThresholdPending(self.client, make, progress, check))

    def _segmentation(self, concept, boxes):
        if concept.phrase == "nowhere":
            mask = np.zeros(self.volume.geometry.shape, bool)
        else:
            grey = self.volume.array if self.volume.array.ndim == 3 else self.volume.array.max(axis=3)
            mask = grey > 0
        made = Provenance(concept.typed, self.model, "cd" * 32, "0.1.0", (concept.phrase,), device="cpu")
        fields = {"score": 0.87, "provenance": made, "boxes": boxes}
        return Segmentation.from_mask(concept, self.volume.geometry, mask, **fields)


class DyingClient(ThresholdClient):
    """Doubles a client whose worker dies with every run."""

    def __init__(self):
        super().__init__()
        self.fault = WorkerError(
            "The worker died (exit code 137).", "Try again: it starts anew with the next request."
        )
