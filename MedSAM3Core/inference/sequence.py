"""Objects through time: a phrase is found in a film, and each object keeps its identity from frame to frame.

Every frame is encoded once. The detector looks for the phrases on it, the tracker carries every known object to it by
its memory, and both are compared: a detection that overlaps a carried object is that object, one that overlaps none is
a new one. Objects that are carried but not detected live on while the tracker sees them; those that neither sees wait
for a while, so that what goes behind an instrument comes back under its number. A young object is shown only when it
has been detected more than once.

Frames come one after the other and results leave the same way, so memory does not grow with the length of a film: what
is kept is a few frames of features and, for each living object, the memories that the tracker can still attend to.

Source: the way of association is that of SAM 3's video model (Carion et al. 2025; facebookresearch/sam3,
model/sam3_video_base.py); the assignment, the limits and the code are our own.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.inference.detector import combine_masks, mask_source, slice_scores
from MedSAM3Core.inference.linking import assign, overlaps, split_objects
from MedSAM3Core.inference.postprocess import mask_nms
from MedSAM3Core.inference.precision import Precision
from MedSAM3Core.inference.preprocess import to_pixels
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.models.card import Policy
from MedSAM3Core.models.loading import LoadedModel
from MedSAM3Core.models.network import Detections, Pyramid, TextFeatures
from MedSAM3Core.models.tracker import Memory, MemoryBank, TrackOutput
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Extent
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.windowing import Window, choose_window

ENDLESS = 1_000_000
"""Frames of a film whose length is not known; the time encoding looks at short ones only."""


@dataclass(frozen=True)
class SequenceSettings:
    """How objects are found and kept; see the module.

    Attributes:
        batch_frames: Frames encoded at once.
        match_overlap: Least intersection over union of a detection and the object it is.
        fresh_overlap: A detection that overlaps a shown object by more than this share of itself is no new one.
        detected_weight: Weight of the detected against the carried probability where both see an object.
        anchor_every: Frames after which a detected object's mask becomes an anchor of its memory again.
        most_anchors: Anchors of an object that are kept, the first one always.
        confirm_frames: A new object is shown if it was detected `confirm_hits` times in so many frames.
        confirm_hits: See there.
        patience: Frames that an object may be unseen and still come back under its number.
        end_score: Object score (probability) under which the tracker does not see an object.
        least_share: Smallest object, as a share of the frame.
    """

    batch_frames: int = 8
    match_overlap: float = 0.3
    fresh_overlap: float = 0.5
    detected_weight: float = 0.7
    anchor_every: int = 8
    most_anchors: int = 4
    confirm_frames: int = 4
    confirm_hits: int = 2
    patience: int = 30
    end_score: float = 0.5
    least_share: float = 0.0005


@dataclass(frozen=True, eq=False)
class TrackedObject:
    """One object on one frame.

    Attributes:
        identity: Its number in the film, from 1 on, the same on all its frames.
        concept: What it is.
        extent: Where `mask` lies; its ``k`` is (0, 0).
        mask: Boolean crop (rows, columns).
        score: Of the detection, or of the tracker where there was none, 0..1.
        detected: Whether the detector saw it here, and not the tracker alone.
    """

    identity: int
    concept: Concept
    extent: Extent
    mask: np.ndarray
    score: float
    detected: bool

    @property
    def pixels(self) -> int:
        """Its size."""
        return int(self.mask.sum())

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of gravity, (column, row) in pixels."""
        rows, columns = np.nonzero(self.mask)
        return float(columns.mean()) + self.extent.i[0], float(rows.mean()) + self.extent.j[0]


@dataclass(frozen=True, eq=False)
class FrameObjects:
    """The objects of one frame.

    Attributes:
        index: Frame, from 0 on.
        time_s: Its time.
        shape: (rows, columns) of the frame.
        objects: By their identity.
    """

    index: int
    time_s: float
    shape: tuple[int, int]
    objects: tuple[TrackedObject, ...]

    def labels(self) -> np.ndarray:
        """(rows, columns) uint16 of identities; objects do not overlap."""
        out = np.zeros(self.shape, np.uint16)
        for one in self.objects:
            (i0, i1), (j0, j1) = one.extent.i, one.extent.j
            out[j0 : j1 + 1, i0 : i1 + 1][one.mask] = one.identity
        return out


@dataclass(eq=False)
class _Object:
    """A living object; its bank holds a batch of one, and ``last`` is where it was seen last."""

    concept: int
    bank: MemoryBank
    born: int
    last: Tensor
    hits: int = 1
    seen: int = 0
    anchored: int = 0
    identity: int = 0
    dropped: bool = False
    decided: bool = False


@dataclass(frozen=True, eq=False)
class _Sight:
    """What one frame shows of an object, at the tracker's resolution, (height, width)."""

    owner: _Object
    probability: Tensor
    score: float
    detected: bool


@dataclass(frozen=True, eq=False)
class _Instance:
    """A detection: (height, width) probability at the tracker's resolution, and its score."""

    probability: Tensor
    score: float


@dataclass(eq=False)
class _Pending:
    """A frame that waits for its young objects to be confirmed."""

    index: int
    time_s: float
    shape: tuple[int, int]
    sights: list[_Sight] = field(default_factory=list)


class ObjectTracker:
    """Follows the objects of some concepts through a film.

    Args:
        model: A model with a trained tracker; without one, objects are linked by their overlap alone.
        concepts: What to look for.
        settings: How.
        inference: Which head draws, and the arithmetic.
        window: As `Segmenter.open` takes it; chosen on the first frame.
        threshold: Score from which a detection counts; None takes the model's.
    """

    def __init__(
        self,
        model: LoadedModel,
        concepts: Sequence[Concept],
        settings: SequenceSettings | None = None,
        inference: InferenceSettings | None = None,
        window: str = "auto",
        threshold: float | None = None,
    ) -> None:
        self.model = model
        self.concepts = tuple(concepts)
        self.settings = settings or SequenceSettings()
        self.inference = inference or InferenceSettings()
        policy = model.card.policy("recommended")
        self.policy: Policy = (
            policy if threshold is None else policy.model_copy(update={"threshold": threshold})
        )
        self.window_request = window
        self.living: list[_Object] = []
        self._precision = Precision(model.device, self.inference.precision)
        self._text: list[TextFeatures] = []
        self._window: Window | None = None
        self._next_identity = 1

    @torch.inference_mode()
    def run(self, frames: Iterable[Volume], cancel: CancelToken | None = None) -> Iterator[FrameObjects]:
        """Follow objects.

        Args:
            frames: 2D images of one size, in their order; read as they are needed.
            cancel: Looked at before every frame.

        Yields:
            One result a frame, in order, `SequenceSettings.confirm_frames` late at most.

        Raises:
            VolumeError: If a frame is no 2D image, or of another size than the first.
            Cancelled: If the token was cancelled.
        """
        waiting: deque[_Pending] = deque()
        index = 0
        for batch in _batches(frames, self.settings.batch_frames):
            detector, tracker = self._encode(batch)
            found = self._detect(detector, len(batch))
            for row, frame in enumerate(batch):
                if cancel is not None:
                    cancel.check()
                pyramid = tracker.take([row]) if tracker is not None else None
                shape = (frame.array.shape[1], frame.array.shape[2])
                sights = self._advance(index, pyramid, found[row])
                waiting.append(_Pending(index, frame.time_s, shape, sights))
                index += 1
                self._confirm(index)
                while len(waiting) > self.settings.confirm_frames:
                    yield self._show(waiting.popleft())
        self._confirm(ENDLESS)
        while waiting:
            yield self._show(waiting.popleft())

    # -- features and detections ------------------------------------------------------------------------------

    def _encode(self, batch: Sequence[Volume]) -> tuple[Pyramid, Pyramid | None]:
        if self._window is None:
            self._window = self._choose_window(batch[0])
        pictures = np.stack([self._window.apply(frame.array[0]) for frame in batch])
        network = self.model.network
        pixels = to_pixels(pictures, network.image_size, self.model.device)
        self._precision.settle(network.trunk, pixels[:1])
        with self._precision.context():
            trunk = network.trunk(pixels)
            detector = network.detector_pyramid(trunk)
            tracker = self.model.tracker.pyramid(trunk) if self.model.card.tracks else None
        return detector, tracker

    def _choose_window(self, frame: Volume) -> Window:
        return choose_window(frame, self.concepts[0].phrase, self.window_request, self.policy.clip_policy)

    def _detect(self, pyramid: Pyramid, count: int) -> list[list[list[_Instance]]]:
        """Instances by frame and concept."""
        if not self._text:
            self._text = [self._encode_text(self._phrase(concept)) for concept in self.concepts]
        with_masks = mask_source(self.inference, self.policy) != "semantic"
        answers: list[list[list[_Instance]]] = [[] for _ in range(count)]
        for text in self._text:
            with self._precision.context():
                raw = self.model.network.detect(
                    pyramid, text.take([0] * count), None, None, with_masks=with_masks
                )
            for row, instances in enumerate(self._instances(raw)):
                answers[row].append(instances)
        return answers

    def _phrase(self, concept: Concept) -> str:
        candidates = concept.prompts or (concept.phrase,)
        return next((one for one in candidates if one in self.model.card.concepts), candidates[0])

    def _encode_text(self, phrase: str) -> TextFeatures:
        ids, mask = self.model.tokenize([phrase])
        with self._precision.context():
            return self.model.network.encode_text(ids, mask)

    def _instances(self, raw: Detections) -> list[list[_Instance]]:
        """Separate objects of each row of a batch: the detector's instances, or the parts of its semantic map."""
        scores = slice_scores(raw)[self.policy.score_rule].tolist()
        if mask_source(self.inference, self.policy) == "semantic":
            maps = combine_masks(raw, self.inference, self.policy)
            return [
                self._parts(one, score) if score >= self.policy.threshold else []
                for one, score in zip(maps, scores, strict=True)
            ]
        single = raw.logits[-1].float().sigmoid()
        if self.policy.score_rule == "product":
            single = single * raw.presence[-1].float().sigmoid()[:, None]
        masks = raw.masks.float().sigmoid()
        kept = (single >= self.policy.threshold) & mask_nms(masks > 0.5, single, self.policy.nms_iou or 0.5)
        return [
            [self._instance(masks[row, query], float(single[row, query])) for query in _indices(kept[row])]
            for row in range(len(masks))
        ]

    def _parts(self, probability: Tensor, score: float) -> list[_Instance]:
        inside = (probability >= self.policy.mask_threshold).cpu().numpy()
        least = self.settings.least_share * inside.size
        return [
            self._instance(probability * torch.from_numpy(part).to(probability.device), score)
            for part in (split_objects(inside) if inside.any() else [])
            if part.sum() >= least
        ]

    def _instance(self, probability: Tensor, score: float) -> _Instance:
        return _Instance(_fit(probability, self._side), score)

    @property
    def _side(self) -> int:
        return self.model.tracker.low_resolution

    # -- one frame --------------------------------------------------------------------------------------------

    def _advance(
        self, index: int, pyramid: Pyramid | None, found: Sequence[Sequence[_Instance]]
    ) -> list[_Sight]:
        """Carry the living objects to a frame, compare them with what was detected, and remember."""
        carried = self._carry(index, pyramid)
        sights: list[_Sight] = []
        for number, instances in enumerate(found):
            mine = [(one, output) for one, output in carried if one.concept == number]
            sights += self._match(index, pyramid, number, mine, instances)
        self._drop_twins(sights)
        self.living = [
            one for one in self.living if not one.dropped and index - one.seen <= self.settings.patience
        ]
        return [sight for sight in sights if not sight.owner.dropped]

    def _carry(self, index: int, pyramid: Pyramid | None) -> list[tuple[_Object, TrackOutput | None]]:
        """Where the tracker sees the living objects; objects with alike memories go through it together."""
        if pyramid is None:
            return [(one, None) for one in self.living]
        groups: dict[tuple, list[_Object]] = defaultdict(list)
        for one in self.living:
            groups[_kind(one.bank)].append(one)
        result: list[tuple[_Object, TrackOutput | None]] = []
        for members in groups.values():
            bank = _join([one.bank for one in members])
            with self._precision.context():
                output = self.model.tracker.track(pyramid, bank, index)
                memory = self.model.tracker.memorise(pyramid, output, index)
            for row, one in enumerate(members):
                one.bank = one.bank.add(_row(memory, row))
                result.append((one, _output_row(output, row)))
        return result

    def _match(
        self,
        index: int,
        pyramid: Pyramid | None,
        number: int,
        carried: Sequence[tuple[_Object, TrackOutput | None]],
        instances: Sequence[_Instance],
    ) -> list[_Sight]:
        s = self.settings
        sights = [(one, self._carried_sight(one, output)) for one, output in carried]
        ours = [_inside(sight.probability if sight else one.last) for one, sight in sights]
        theirs = [_inside(instance.probability) for instance in instances]
        pairs = dict(assign(overlaps(ours, theirs), s.match_overlap))
        result = []
        for row, (one, sight) in enumerate(sights):
            if row in pairs:
                result.append(self._seen(index, pyramid, one, sight, instances[pairs[row]]))
            elif sight is not None:
                one.seen, one.last = index, sight.probability
                result.append(sight)
        shown = [_inside(sight.probability) for sight in result]
        for column in set(range(len(instances))) - set(pairs.values()):
            if _is_fresh(theirs[column], shown, s.fresh_overlap):
                result.append(self._begin(index, pyramid, number, instances[column]))
        return result

    def _carried_sight(self, one: _Object, output: TrackOutput | None) -> _Sight | None:
        if output is None:
            return None
        score = float(output.object_score.float().sigmoid())
        probability = output.logits[0].float().sigmoid()
        if score < self.settings.end_score or not bool((probability > 0.5).any()):
            return None
        return _Sight(one, probability, score, detected=False)

    def _seen(
        self, index: int, pyramid: Pyramid | None, one: _Object, sight: _Sight | None, instance: _Instance
    ) -> _Sight:
        """An object where it was detected."""
        weight = self.settings.detected_weight if sight is not None else 1.0
        probability = instance.probability
        if sight is not None:
            probability = weight * probability + (1 - weight) * sight.probability
        one.hits, one.seen, one.last = one.hits + 1, index, probability
        if pyramid is not None and index - one.anchored >= self.settings.anchor_every:
            one.bank, one.anchored = self._anchor(one.bank, index, pyramid, probability), index
        return _Sight(one, probability, instance.score, detected=True)

    def _begin(self, index: int, pyramid: Pyramid | None, number: int, instance: _Instance) -> _Sight:
        """A new object."""
        bank = self._new_bank()
        if pyramid is not None:
            bank = self._anchor(bank, index, pyramid, instance.probability)
        one = _Object(number, bank, index, instance.probability, seen=index, anchored=index)
        self.living.append(one)
        return _Sight(one, instance.probability, instance.score, detected=True)

    def _anchor(self, bank: MemoryBank, index: int, pyramid: Pyramid, probability: Tensor) -> MemoryBank:
        """Bank with a mask as an anchor, without the anchors that are too many."""
        tracker = self.model.tracker
        with self._precision.context():
            output = tracker.prompt_mask(pyramid, (probability > 0.5)[None])
            memory = tracker.memorise(pyramid, output, index, conditioning=True)
        bank = bank.add(memory)
        anchors = sorted(bank.anchors, key=lambda m: m.slice_index)
        extra = anchors[1 : len(anchors) - self.settings.most_anchors + 1]
        return replace(bank, memories=tuple(m for m in bank.memories if m not in extra))

    def _new_bank(self) -> MemoryBank:
        bank, frames = self.model.tracker.new_bank(ENDLESS), self.policy.tracker_frames
        if frames is None:
            return bank
        # No memory but an anchor's is older than the clips that the tracker was trained on, as in the propagator.
        return replace(bank, recent=min(bank.recent, frames - 2), pointers=min(bank.pointers, frames))

    def _drop_twins(self, sights: Sequence[_Sight]) -> None:
        """Of two objects of a concept that have become one, the younger goes."""
        ordered = sorted(sights, key=lambda sight: sight.owner.born)
        masks = [_inside(sight.probability) for sight in ordered]
        table = overlaps(masks, masks)
        for young in range(len(ordered)):
            for old in range(young):
                pair = ordered[young].owner, ordered[old].owner
                alike = pair[0].concept == pair[1].concept and not pair[1].dropped
                if alike and table[young, old] > TWINS:
                    pair[0].dropped = True

    # -- results ----------------------------------------------------------------------------------------------

    def _confirm(self, frames: int) -> None:
        """Decide on the objects whose first frames are over, and number those that stay."""
        s = self.settings
        for one in self.living:
            if one.decided or (frames - one.born < s.confirm_frames and frames != ENDLESS):
                continue
            one.decided = True
            if one.hits < s.confirm_hits and not (frames == ENDLESS and one.born == one.seen):
                one.dropped = True
                continue
            one.identity, self._next_identity = self._next_identity, self._next_identity + 1
        self.living = [one for one in self.living if not one.dropped]

    def _show(self, frame: _Pending) -> FrameObjects:
        """A frame's confirmed objects at its own size; a pixel belongs to the object that is surest of it."""
        sights = [sight for sight in frame.sights if sight.owner.identity]
        objects = []
        if sights:
            maps = torch.stack([sight.probability for sight in sights])
            large = interpolate(maps[:, None], size=frame.shape, mode="bilinear", align_corners=False)[:, 0]
            best, owner = large.max(0)
            inside = best >= self.policy.mask_threshold
            for row, sight in enumerate(sights):
                mask = (inside & (owner == row)).cpu().numpy()
                if (extent := Extent.of_mask(mask[np.newaxis])) is not None:
                    crop = mask[extent.slices[1:]]
                    concept = self.concepts[sight.owner.concept]
                    objects.append(
                        TrackedObject(
                            sight.owner.identity, concept, extent, crop, sight.score, sight.detected
                        )
                    )
        objects.sort(key=lambda one: one.identity)
        return FrameObjects(frame.index, frame.time_s, frame.shape, tuple(objects))


TWINS = 0.8
"""Intersection over union from which two carried objects are one."""


def _batches(frames: Iterable[Volume], size: int) -> Iterator[list[Volume]]:
    """Frames in batches, checked."""
    batch: list[Volume] = []
    first: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        if not frame.is_2d:
            raise VolumeError(
                f"Frame {number} has {frame.geometry.shape[0]} slices; expected 2D images, follow volumes one by one."
            )
        first = first or frame.array.shape
        if frame.array.shape != first:
            raise VolumeError(
                f"Frame {number} has the shape {frame.array.shape[1:]}, the first {first[1:]}; expected one size."
            )
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fit(probability: Tensor, side: int) -> Tensor:
    """(height, width) at the tracker's resolution."""
    maps = probability.float()[None, None]
    return interpolate(maps, size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0, 0]


def _inside(probability: Tensor) -> np.ndarray:
    return (probability > 0.5).cpu().numpy()


def _indices(kept: Tensor) -> list[int]:
    return kept.nonzero().flatten().tolist()


def _is_fresh(mask: np.ndarray, shown: Sequence[np.ndarray], most: float) -> bool:
    """Whether a detection is not, for the most part, an object that is shown already."""
    size = mask.sum()
    return bool(size) and all(np.logical_and(mask, other).sum() <= most * size for other in shown)


def _kind(bank: MemoryBank) -> tuple:
    """What banks must have in common to go through the network as one batch."""
    return tuple((m.slice_index, m.conditioning, m.features is None) for m in bank.memories)


def _join(banks: Sequence[MemoryBank]) -> MemoryBank:
    """Banks of one kind as one bank of all their objects."""
    if len(banks) == 1:
        return banks[0]
    memories = []
    for together in zip(*(bank.memories for bank in banks), strict=True):
        features = [m.features for m in together if m.features is not None]
        memories.append(
            replace(
                together[0],
                features=torch.cat(features) if features else None,
                pointer=torch.cat([m.pointer for m in together]),
                object_score=torch.cat([m.object_score for m in together]),
            )
        )
    return replace(banks[0], memories=tuple(memories))


def _row(memory: Memory, row: int) -> Memory:
    """One object's memory; cloned, for a view would keep the whole batch alive."""
    return replace(
        memory,
        features=None if memory.features is None else memory.features[row : row + 1].clone(),
        pointer=memory.pointer[row : row + 1].clone(),
        object_score=memory.object_score[row : row + 1].clone(),
    )


def _output_row(output: TrackOutput, row: int) -> TrackOutput:
    one = slice(row, row + 1)
    return TrackOutput(
        output.logits[one],
        output.object_score[one],
        output.pointer[one],
        output.candidates[one],
        output.ious[one],
    )
