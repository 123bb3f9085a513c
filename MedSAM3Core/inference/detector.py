"""Concepts on slices: several of them, with boxes, on one set of features, in batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from MedSAM3Core.inference.encoder import Encoder, StepCallback
from MedSAM3Core.inference.plan import PlaneBox
from MedSAM3Core.inference.postprocess import box_nms, mask_nms
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.models.card import MaskSource, Policy
from MedSAM3Core.models.network import PADDED_BOX_LABEL, Detections, TextFeatures
from MedSAM3Core.windowing import Window

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Phrases to token ids and attention mask, both (phrases, tokens)."""

SEMANTIC_PEAK_SHARE = 0.002
"""Share of a slice's pixels whose mean probability is the peak of the semantic map: 13 of 80 x 80, more
than noise."""


@dataclass(frozen=True)
class Finding:
    """What the detector says of one concept on one slice.

    Attributes:
        probability: (height, width) float16, 0..1, at the mask's resolution, without any gate by the score.
        score: How sure it is that the concept is there at all, 0..1, by the score rule.
        presence: The presence token, 0..1.
        best_query: The best query without presence, 0..1.
    """

    probability: Tensor
    score: float
    presence: float
    best_query: float


@dataclass(frozen=True)
class Request:
    """One pair of slice and phrase, with boxes drawn on that slice.

    Attributes:
        index: Slice in the plane frame.
        phrase: What is said to the model.
        boxes: Exemplars on this slice; their slice range is not looked at.
    """

    index: int
    phrase: str
    boxes: tuple[PlaneBox, ...] = ()


class Detector:
    """Runs the detector on pairs of slice and phrase.

    Args:
        encoder: Gives the features, and the network.
        tokenize: Phrases to (input ids, attention mask), each (phrases, tokens).
        settings: Mask source, batch size.
        policy: How the model's scores and masks are to be read.
    """

    def __init__(
        self, encoder: Encoder, tokenize: Tokenize, settings: InferenceSettings, policy: Policy
    ) -> None:
        self.encoder = encoder
        self.tokenize = tokenize
        self.settings = settings
        self.policy = policy
        self._text: dict[str, TextFeatures] = {}
        self._heard: dict[tuple[Window, str, int], float] = {}

    def with_threshold(self, threshold: float) -> Detector:
        """The same detector, its text features shared, under a policy of another threshold."""
        other = copy.copy(self)
        other.policy = self.policy.model_copy(update={"threshold": threshold})
        return other

    @torch.inference_mode()
    def with_exemplars(self, window: Window, request: Request) -> Detector:
        """The same detector, to which the request's phrase also means what its boxes hold on its slice.

        Args:
            window: Intensity window of the slice.
            request: At least one box.
        """
        boxes, labels = self._boxes([request])
        pyramid = self.encoder.detector_pyramid(window, [request.index])
        text = self._encode_text([request.phrase])
        with self.encoder.precision.context():
            said = self.encoder.network.encode_exemplars(pyramid, text, boxes, labels)
        other = copy.copy(self)
        other._text = {request.phrase: said}
        other._heard = {}
        return other

    def scores(self, window: Window, phrase: str, slices: Sequence[int]) -> list[float]:
        """How sure it is that a phrase is on slices, by the phrase alone; what was asked before costs nothing."""
        unknown = [n for n in dict.fromkeys(slices) if (window, phrase, n) not in self._heard]
        self.detect(window, [Request(n, phrase) for n in unknown])
        return [self._heard[window, phrase, n] for n in slices]

    def detect(
        self, window: Window, requests: Sequence[Request], step: StepCallback | None = None
    ) -> list[Finding]:
        """Findings in the order of ``requests``.

        Args:
            window: Intensity window of all of them.
            requests: Slices and phrases in any order; those of one slice share its features.
            step: Told after every batch.
        """
        findings: list[Finding | None] = [None] * len(requests)
        done = 0
        for batch in batches(requests, self.settings.batch_pairs):
            answers = self._detect_batch(window, [requests[n] for n in batch])
            for n, answer in zip(batch, answers, strict=True):
                findings[n] = answer
                if not requests[n].boxes:
                    self._heard[window, requests[n].phrase, requests[n].index] = answer.score
            done += len(batch)
            if step is not None:
                step(done, len(requests))
        return [finding for finding in findings if finding is not None]

    @torch.inference_mode()
    def _detect_batch(self, window: Window, requests: Sequence[Request]) -> list[Finding]:
        slices = list(dict.fromkeys(request.index for request in requests))
        pyramid = self.encoder.detector_pyramid(window, slices)
        rows = [slices.index(request.index) for request in requests]
        text = self._encode_text([request.phrase for request in requests])
        boxes, labels = self._boxes(requests)
        with self.encoder.precision.context():
            raw = self.encoder.heads.detect(
                pyramid, rows, text, boxes, labels, mask_source(self.settings, self.policy) != "semantic"
            )
        self.encoder.detected += len(requests)
        probability = combine_masks(raw, self.settings, self.policy)
        scores = slice_scores(raw)
        values = torch.stack(
            [scores[self.policy.score_rule], scores["presence"], scores["queries"]], 1
        ).tolist()
        return [
            Finding(mask, *numbers)
            for mask, numbers in zip(probability.to(torch.float16), values, strict=True)
        ]

    def _encode_text(self, phrases: Sequence[str]) -> TextFeatures:
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._text]
        if new:
            device = self.encoder.store.device
            ids, mask = self.tokenize(new)
            with self.encoder.precision.context():
                features = self.encoder.network.encode_text(ids.to(device), mask.to(device))
            for row, phrase in enumerate(new):
                self._text[phrase] = features.take([row])
        parts = [self._text[phrase] for phrase in phrases]
        return TextFeatures(torch.cat([p.embeddings for p in parts]), torch.cat([p.mask for p in parts]))

    def _boxes(self, requests: Sequence[Request]) -> tuple[Tensor | None, Tensor | None]:
        most = max(len(request.boxes) for request in requests)
        if most == 0:
            return None, None
        rows, columns = self.encoder.slices.shape[1:3]
        boxes = torch.full((len(requests), most, 4), 0.5)
        labels = torch.full((len(requests), most), PADDED_BOX_LABEL)
        for n, request in enumerate(requests):
            for m, box in enumerate(request.boxes):
                boxes[n, m] = torch.tensor(box.relative(rows, columns))
                labels[n, m] = int(box.positive)
        device = self.encoder.store.device
        return boxes.to(device), labels.to(device)


def batches(requests: Sequence[Request], size: int) -> list[list[int]]:
    """Positions in ``requests``, in batches of at most ``size``, slice by slice.

    Pairs of one slice stay together where they fit, so that every batch computes a slice's share once.
    """
    by_slice: dict[int, list[int]] = {}
    for n in sorted(range(len(requests)), key=lambda n: requests[n].index):
        by_slice.setdefault(requests[n].index, []).append(n)
    made: list[list[int]] = [[]]
    for group in by_slice.values():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            if len(made[-1]) + len(part) > size:
                made.append([])
            made[-1] += part
    return [batch for batch in made if batch]


def slice_scores(raw: Detections) -> Mapping[str, Tensor]:
    """Every score rule's answer for a batch, each (batch,) float32 in 0..1.

    "presence" and "queries" are the two factors of the published score, "product" is Meta's and
    transformers' rule, "queries" alone that of the published MedSAM3 evaluation, "semantic" the mean of the
    semantic map's highest pixels.
    """
    presence = raw.presence[-1].float().sigmoid()
    queries = raw.logits[-1].float().sigmoid().amax(-1)
    flat = raw.semantic.float().sigmoid().flatten(1)
    peak = flat.topk(max(1, round(SEMANTIC_PEAK_SHARE * flat.shape[1])), dim=1).values.mean(1)
    return {"presence": presence, "queries": queries, "product": presence * queries, "semantic": peak}


def combine_masks(raw: Detections, settings: InferenceSettings, policy: Policy) -> Tensor:
    """One probability map of the concept a pair: (batch, height, width) float32, 0..1."""
    source = mask_source(settings, policy)
    semantic = raw.semantic.float().sigmoid()
    if source == "semantic":
        return semantic
    instances = _union_of_instances(raw, settings, policy)
    if source == "instances":
        return instances
    return torch.maximum(semantic, instances) if source == "max" else (semantic + instances) / 2


def mask_source(settings: InferenceSettings, policy: Policy) -> MaskSource:
    """The head that draws masks: as the settings say, else as the policy does."""
    return settings.mask_source or policy.mask_source


def _union_of_instances(raw: Detections, settings: InferenceSettings, policy: Policy) -> Tensor:
    """Highest mask probability among the queries that pass the threshold and survive suppression."""
    scores = raw.logits[-1].float().sigmoid()
    if policy.score_rule == "product":
        scores = scores * raw.presence[-1].float().sigmoid()[:, None]
    masks = raw.masks.float().sigmoid()
    least = policy.threshold if settings.instance_threshold is None else settings.instance_threshold
    kept = scores >= least
    if policy.best_only:
        kept = kept & (scores == scores.amax(1, keepdim=True))
    elif policy.nms_iou is not None and policy.nms_kind == "box":
        kept = kept & box_nms(raw.boxes[-1].float(), scores, policy.nms_iou)
    elif policy.nms_iou is not None:
        kept = kept & mask_nms(masks > 0.5, scores, policy.nms_iou)
    if not policy.resize_before_threshold:
        masks = (masks >= policy.mask_threshold).float()
    return (masks * kept[..., None, None]).amax(1)
