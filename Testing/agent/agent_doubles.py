"""Doubles for the agent's tests: a session that finds what a volume's voxels spell, and judges that follow a script."""

from __future__ import annotations

import dataclasses

import numpy as np

from MedSAM3Core.agent.facts import Plan, Target
from MedSAM3Core.concepts import resolve
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.volume import Volume

VALUES = {"liver": 100, "spleen": 200, "left kidney": 300}
"""What the double finds: the voxels of this value."""


def ct(**facts) -> Volume:
    """12 slices of 40 rows and 50 columns, 1 x 1 x 2 mm, with a liver, a spleen and a left kidney."""
    array = np.zeros((12, 40, 50), np.int16)
    array[2:8, 5:20, 5:25] = VALUES["liver"]
    array[4:10, 22:32, 30:45] = VALUES["spleen"]
    array[3:9, 22:30, 8:16] = VALUES["left kidney"]
    volume = Volume.from_array(array, spacing=(1.0, 1.0, 2.0), modality="CT", name="Doe^Jane 1970")
    return dataclasses.replace(volume, **facts)


class ValueSession:
    """Doubles a session: a phrase finds the voxels of its value; a box on a slice makes that slice's mask the box."""

    def __init__(self, volume: Volume | None = None) -> None:
        self.volume = volume or ct()
        self.calls: list[tuple] = []

    def segment(self, concept, boxes=(), progress=None, cancel=None, threshold=None):
        if cancel is not None:
            cancel.check()
        concept = concept if isinstance(concept, Concept) else resolve(concept)
        phrase = (concept.prompts or (concept.phrase,))[0]
        self.calls.append(("segment", phrase, tuple(boxes), threshold))
        mask = self.volume.array == VALUES.get(phrase, -1)
        return self._result(concept, mask, phrase, threshold, boxes)

    def refine(self, segmentation, boxes=(), progress=None, cancel=None):
        if cancel is not None:
            cancel.check()
        self.calls.append(("refine", segmentation.voxels, tuple(boxes)))
        mask = segmentation.to_array()
        phrase = segmentation.provenance.prompts[0]
        return self._result(segmentation.concept, mask, phrase, None, (*segmentation.boxes, *boxes), boxes)

    def _result(self, concept, mask, phrase, threshold, boxes, new=None):
        for box in boxes if new is None else new:
            box.check_inside(self.volume.geometry.shape)
            place = tuple(slice(a, b + 1) for a, b in (box.k, box.j, box.i))
            mask[box.k[0]] = mask[box.k[0]] & (not box.positive)
            mask[place] = box.positive
        scores = {k: 0.9 if mask[k].any() else 0.1 for k in range(mask.shape[0])}
        made = Provenance(concept.typed, "double", prompts=(phrase,), thresholds={"score": threshold or 0.5})
        return Segmentation.from_mask(
            concept,
            self.volume.geometry,
            mask,
            score=0.9 if mask.any() else 0.0,
            slice_scores=scores,
            provenance=made,
            boxes=tuple(boxes),
        )


class ScriptedJudge:
    """Plans the given phrases and answers with the given judgements, one after the other."""

    def __init__(self, phrases, judgements, questions=()) -> None:
        self.phrases, self.judgements, self.questions = phrases, list(judgements), tuple(questions)
        self.looks = []
        self.request = None

    def plan(self, request, cancel=None):
        self.request = request
        return Plan(tuple(Target(resolve(phrase)) for phrase in self.phrases), questions=self.questions)

    def judge(self, look, cancel=None):
        self.looks.append(look)
        return self.judgements.pop(0)
