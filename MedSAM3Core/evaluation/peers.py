"""What models of this library are compared with, by the name that ``--model`` takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from MedSAM3Core.evaluation.contenders import AgentRun, Contender, Desk, Mode, reference_boxes
from MedSAM3Core.evaluation.scoring import Answer
from MedSAM3Core.evaluation.thresholding import NAME as THRESHOLDING
from MedSAM3Core.evaluation.thresholding import ThresholdContender
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Box
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume import Volume

if TYPE_CHECKING:
    from MedSAM3Core.evaluation.baselines import LiteMedSAM
    from MedSAM3Core.inference.session import Session

LITEMEDSAM = "litemedsam"
DESCRIPTIONS: Mapping[str, str] = {
    THRESHOLDING: "Otsu's threshold within the bounding box of the reference; knows no words",
    LITEMEDSAM: "box-prompted LiteMedSAM, a box of the reference around each object on every slice; knows no words",
}
"""Peer to what it is given, in words."""


def peer_of(name: str) -> Contender | None:
    """The peer that ``--model`` names, None for a model of this library.

    Args:
        name: "thresholding", "litemedsam", or "litemedsam=FOLDER" with the folder that its package was installed in.

    Raises:
        InputError: If its package is not there.
        ModelError: If its weights are not those that were published.
    """
    kind, _, folder = name.partition("=")
    if name == THRESHOLDING:
        return ThresholdContender()
    return LiteMedSAMContender(Path(folder) if folder else None) if kind == LITEMEDSAM else None


class LiteMedSAMContender:
    """LiteMedSAM under boxes of the reference on every slice, as its authors run it in volumes.

    Args:
        folder: Where its package was installed; None looks where Python looks.
    """

    name = LITEMEDSAM

    def __init__(self, folder: Path | None = None) -> None:
        from MedSAM3Core.evaluation.baselines import LiteMedSAM

        self._model = LiteMedSAM(folder)

    @contextmanager
    def open(self, volume: Volume) -> Iterator[Desk]:
        """A desk with the volume and its slices."""
        yield _BoxDesk(self._model, volume, SlicePlan.for_volume(volume))


@dataclass(frozen=True, eq=False)
class _BoxDesk:
    model: LiteMedSAM
    volume: Volume
    plan: SlicePlan

    @property
    def axis(self) -> int:
        return self.plan.axes[0]

    def supports(self, mode: Mode) -> bool:
        return mode.kind == "text+box"

    def answer(
        self, questions: Mapping[str, np.ndarray], mode: Mode, cancel: CancelToken | None
    ) -> Iterator[Answer]:
        for concept, reference in questions.items():
            if cancel is not None:
                cancel.check()
            started = time.monotonic()
            boxes = boxes_on_every_slice(reference, self.plan)
            mask = self.model.segment(self.volume, self.plan, concept, boxes)
            yield Answer(mask, None, f"{len(boxes)} boxes of the reference", time.monotonic() - started)


def boxes_on_every_slice(reference: np.ndarray, plan: SlicePlan) -> list[Box]:
    """Boxes of a reference, bool (slices, rows, columns), on every slice of a plan that it touches."""
    axis = plan.axes[0]
    boxes = []
    for place in np.flatnonzero(reference.any(axis=tuple(a for a in range(3) if a != axis))):
        alone = np.zeros_like(reference)
        index = [slice(None)] * 3
        index[axis] = slice(int(place), int(place) + 1)
        alone[tuple(index)] = reference[tuple(index)]
        boxes += reference_boxes(alone, plan)
    return boxes


def simulated_agent(accuracy: float) -> AgentRun:
    """The agent under a judge that knows the reference and is right with a known probability; no language model."""

    def run(session: Session, phrase: str, reference: np.ndarray, cancel: CancelToken | None) -> Segmentation:
        from MedSAM3Core.evaluation.agent import SimulatedJudge, run_agent_case

        judge = SimulatedJudge(phrase, reference, accuracy)
        return run_agent_case(session, f"segment the {phrase}", judge, cancel=cancel)

    return run
