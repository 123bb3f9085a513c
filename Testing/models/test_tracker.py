"""Our way through the tracker's modules against transformers' session, with its four orders of operation mended."""

import gc

import pytest
import tiny
import torch
from torch.nn.functional import interpolate
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoInferenceSession,
)

from MedSAM3Core.models.network import ConceptNetwork, Pyramid
from MedSAM3Core.models.tracker import Tracker

SLICES = 12


class PublishedOrder(Sam3TrackerVideoModel):
    """transformers' tracker with the published orders, written independently of ours, one switch each."""

    mended = frozenset({1, 2, 3, 4})

    def _use_mask_as_output(self, backbone_features, high_res_features, mask_inputs):
        large = 4 * self.prompt_encoder.mask_input_size[0] if 2 in self.mended else self.image_size
        mask = interpolate(mask_inputs.float(), (large, large), mode="bilinear", antialias=True)
        out = self._single_frame_forward(
            input_masks=self.mask_downsample(mask),
            image_embeddings=[*high_res_features, backbone_features],
            multimask_output=1 not in self.mended,
        )
        score = torch.where(mask_inputs.flatten(1).any(1), 10.0, -10.0)[:, None]
        pointer = torch.where(score > 0, out.object_pointer, self.no_object_pointer)
        logits = torch.where(mask_inputs > 0.5, 1024.0, -1024.0)
        low = interpolate(logits, self.prompt_encoder.mask_input_size, mode="bilinear", antialias=True)
        high = interpolate(
            low if 3 in self.mended else logits, (self.image_size, self.image_size), mode="bilinear"
        )
        out.pred_masks, out.high_res_masks, out.object_pointer = low, high, pointer
        out.object_score_logits = score.unsqueeze(-1)
        return out

    def _encode_new_memory(
        self, current_vision_feats, pred_masks_high_res, object_score_logits, is_mask_from_pts
    ):
        size = [4 * s for s in self.prompt_encoder.mask_input_size]

        def resize(mask):
            return interpolate(mask, size, mode="bilinear", antialias=True)

        mask = pred_masks_high_res if 4 in self.mended else resize(pred_masks_high_res)
        mask = (mask > 0).float() if is_mask_from_pts else mask.sigmoid()
        mask = (resize(mask) if 4 in self.mended else mask) * 20 - 10
        height, width = self.backbone_feature_sizes[-1]
        features = current_vision_feats.permute(1, 2, 0).unflatten(-1, (height, width))
        memory, positions = self.memory_encoder(features, mask)
        absent = (object_score_logits <= 0).float().view(-1, 1, 1, 1)
        memory = memory + absent * self.occlusion_spatial_embedding_parameter[..., None, None]
        # transformers and the published code round to bfloat16 here; the comparison is finer without.
        return memory.flatten(2).permute(2, 0, 1), positions.flatten(2).permute(2, 0, 1)


@pytest.fixture(scope="module")
def clip():
    """Pyramids of `SLICES` random slices that change slowly, and the tracker over them."""
    model = tiny.model()
    network, tracker = ConceptNetwork(model), Tracker(model, memory_dtype=None).eval()
    generator = torch.Generator().manual_seed(4)
    start, end = torch.randn(2, 1, 3, tiny.SIZE, tiny.SIZE, generator=generator)
    pixels = torch.cat([start + (end - start) * k / SLICES for k in range(SLICES)])
    with torch.no_grad():
        pyramid = tracker.pyramid(network.trunk(pixels))
    return tracker, pyramid


def slice_of(pyramid: Pyramid, index: int) -> Pyramid:
    return pyramid.take(slice(index, index + 1))


def masks(count: int = 2) -> torch.Tensor:
    drawn = torch.zeros(count, tiny.SIZE, tiny.SIZE)
    for index in range(count):
        drawn[index, 13 + 20 * index : 42 + 20 * index, 25 : 61 + 7 * index] = 1
    return drawn


class TransformersSession:
    """A session of transformers' class on our pyramids, one object at a time."""

    def __init__(self, tracker, pyramid, mended=frozenset({1, 2, 3, 4})):
        self.model = PublishedOrder(tracker.model.config, remove_vision_encoder=True).eval()
        self.model.load_state_dict(tracker.model.state_dict())
        self.model.mended = mended
        self.session = Sam3TrackerVideoInferenceSession(
            video=torch.zeros(SLICES, 1),
            video_height=tiny.SIZE,
            video_width=tiny.SIZE,
            dtype=torch.float32,
            max_vision_features_cache_size=SLICES,
        )
        for index in range(SLICES):
            one = slice_of(pyramid, index)
            flat = [[m.flatten(2).permute(2, 0, 1) for m in maps] for maps in (one.maps, one.positions)]
            self.session.cache.cache_vision_features(
                index, {"vision_feats": flat[0], "vision_pos_embeds": flat[1]}
            )

    def prompt_mask(self, index, mask):
        self.session.obj_id_to_idx(1)
        self.session.add_mask_inputs(0, index, mask[None, None])
        self.session.obj_with_new_inputs = [1]
        return self.run(index)

    def prompt_points(self, index, points, labels):
        self.session.obj_id_to_idx(1)
        inputs = {"point_coords": points[None, None], "point_labels": labels[None, None]}
        self.session.add_point_inputs(0, index, inputs)
        self.session.obj_with_new_inputs = [1]
        return self.run(index)

    def run(self, index, reverse=False):
        out = self.model(self.session, frame_idx=index, reverse=reverse)
        return out.pred_masks[0, 0]

    def stored(self, index):
        outputs = self.session.output_dict_per_obj[0]
        kind = "cond_frame_outputs" if index in outputs["cond_frame_outputs"] else "non_cond_frame_outputs"
        return outputs[kind][index]


def follow(tracker, pyramid, bank, indices, reverse=False):
    """Track along ``indices``; returns logits by slice and the last bank."""
    found = {}
    for index in indices:
        out = tracker.track(slice_of(pyramid, index), bank, index, reverse)
        bank = bank.add(tracker.memorise(slice_of(pyramid, index), out, index))
        found[index] = out
    return found, bank


def anchor(tracker, pyramid, mask, index, bank=None):
    one = slice_of(pyramid, index)
    memory = tracker.memorise(one, tracker.prompt_mask(one, mask), index, conditioning=True)
    return (bank or tracker.new_bank(SLICES)).add(memory)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 5e-5):
    assert (ours - theirs).abs().max() < tolerance


@torch.no_grad()
def test_mask_prompt_and_forward_tracking(clip):
    tracker, pyramid = clip
    drawn = masks()
    bank = anchor(tracker, pyramid, drawn, 1)
    found, _ = follow(tracker, pyramid, bank, range(2, SLICES))
    for object_index, mask in enumerate(drawn):
        reference = TransformersSession(tracker, pyramid)
        assert_same(interpolated_prompt(tracker, mask), reference.prompt_mask(1, mask))
        assert_same(bank.memories[0].pointer[object_index], reference.stored(1)["object_pointer"][0], 1e-5)
        for index in range(2, SLICES):
            wanted = reference.run(index)
            assert_same(found[index].logits[object_index], wanted)
            assert_same(found[index].pointer[object_index], reference.stored(index)["object_pointer"][0, 0])


def interpolated_prompt(tracker, mask):
    logits = torch.where(mask > 0.5, 1024.0, -1024.0)[None, None]
    size = (tracker.low_resolution, tracker.low_resolution)
    return interpolate(logits, size, mode="bilinear", antialias=True)[0, 0]


@torch.no_grad()
def test_reverse_tracking(clip):
    tracker, pyramid = clip
    mask = masks(1)
    found, _ = follow(
        tracker, pyramid, anchor(tracker, pyramid, mask, SLICES - 2), range(SLICES - 3, -1, -1), reverse=True
    )
    reference = TransformersSession(tracker, pyramid)
    reference.prompt_mask(SLICES - 2, mask[0])
    for index in range(SLICES - 3, -1, -1):
        assert_same(found[index].logits[0], reference.run(index, reverse=True))


@pytest.mark.parametrize("reverse", [False, True])
@torch.no_grad()
def test_between_two_anchors(clip, reverse):
    """The anchor ahead gives its features, not its pointer."""
    tracker, pyramid = clip
    first, last = masks(2)[:1], masks(2)[1:]
    bank = anchor(tracker, pyramid, last, 9, anchor(tracker, pyramid, first, 2))
    order = range(8, 2, -1) if reverse else range(3, 9)
    found, _ = follow(tracker, pyramid, bank, order, reverse)
    reference = TransformersSession(tracker, pyramid)
    reference.prompt_mask(2, first[0])
    reference.prompt_mask(9, last[0])
    for index in order:
        assert_same(found[index].logits[0], reference.run(index, reverse))


@pytest.mark.parametrize(
    ("points", "labels"),
    [([[40.0, 30.0]], [1]), ([[40.0, 30.0], [60.0, 70.0], [10.0, 5.0]], [1, 0, 0])],
)
@torch.no_grad()
def test_points_then_tracking(clip, points, labels):
    tracker, pyramid = clip
    points, labels = torch.tensor([points]), torch.tensor([labels])
    one = slice_of(pyramid, 4)
    out = tracker.prompt_points(one, points, labels)
    reference = TransformersSession(tracker, pyramid)
    assert_same(out.logits[0], reference.prompt_points(4, points[0], labels[0]), 1e-5)
    bank = tracker.new_bank(SLICES).add(tracker.memorise(one, out, 4, conditioning=True))
    found, _ = follow(tracker, pyramid, bank, range(5, 9))
    for index in range(5, 9):
        assert_same(found[index].logits[0], reference.run(index))


@torch.no_grad()
def test_a_box_is_its_two_corners(clip):
    tracker, pyramid = clip
    box = torch.tensor([[13.0, 20.0, 60.0, 71.0], [30.0, 31.0, 50.0, 52.0]])
    out = tracker.prompt_box(slice_of(pyramid, 4), box)
    for index in range(2):
        reference = TransformersSession(tracker, pyramid)
        wanted = reference.prompt_points(4, box[index].view(2, 2), torch.tensor([2, 3]))
        assert_same(out.logits[index], wanted, 1e-5)
    assert out.candidates.shape[1] == 1


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@torch.no_grad()
def test_each_of_the_four_orders_is_noticed(clip, order):
    """With one order left as transformers released it, its results leave ours by far more than the tolerance."""
    tracker, pyramid = clip
    mask = masks(1)
    bank = anchor(tracker, pyramid, mask, 1)
    found, bank = follow(tracker, pyramid, bank, range(2, 5))
    reference = TransformersSession(tracker, pyramid, mended=frozenset({1, 2, 3, 4} - {order}))
    reference.prompt_mask(1, mask[0])
    for index in range(2, 5):
        reference.run(index)
    pointers = (bank.memories[0].pointer[0] - reference.stored(1)["object_pointer"].flatten()).abs().max()
    features = [
        (m.features[0].flatten(1).T - reference.stored(m.slice_index)["maskmem_features"][:, 0]).abs().max()
        for m in bank.memories
    ]
    # Orders 1 and 2 are about the prompt's pointer, 3 and 4 about what the memory is made from.
    if order in (1, 2):
        assert pointers > 1e-3
        assert features[0] < 1e-5
    else:
        assert pointers < 1e-5
        assert features[0] > 0.05
    logits = (found[4].logits[0] - reference.run(4)).abs().max()
    assert logits > 2e-4


@torch.no_grad()
def test_objects_of_a_batch_do_not_see_each_other(clip):
    tracker, pyramid = clip
    drawn = masks(3)
    together, _ = follow(tracker, pyramid, anchor(tracker, pyramid, drawn, 2), range(3, 8))
    for index in range(3):
        alone, _ = follow(
            tracker, pyramid, anchor(tracker, pyramid, drawn[index : index + 1], 2), range(3, 8)
        )
        for at in range(3, 8):
            assert_same(together[at].logits[index], alone[at].logits[0])


@torch.no_grad()
def test_an_empty_mask_is_remembered_as_absent(clip):
    tracker, pyramid = clip
    one = slice_of(pyramid, 0)
    empty = torch.zeros(1, tiny.SIZE, tiny.SIZE)
    out = tracker.prompt_mask(one, empty)
    assert out.object_score.item() == -10
    torch.testing.assert_close(out.pointer, tracker.model.no_object_pointer)
    absent = tracker.memorise(one, out, 0, conditioning=True)
    present = tracker.memorise(one, out, 0, conditioning=True, present=torch.tensor([True]))
    difference = (absent.features - present.features).float()
    occlusion = tracker.model.occlusion_spatial_embedding_parameter.view(1, -1, 1, 1)
    torch.testing.assert_close(difference, occlusion.expand_as(difference), atol=1e-5, rtol=0)


@torch.no_grad()
def test_memories_are_kept_in_bfloat16_unless_told_otherwise(clip):
    tracker, pyramid = clip
    one, mask = slice_of(pyramid, 0), masks(1)
    exact = anchor(tracker, pyramid, mask, 0).memories[0].features
    rounding = Tracker(tiny.model()).eval()
    kept = rounding.memorise(one, rounding.prompt_mask(one, mask), 0, conditioning=True).features
    torch.testing.assert_close(kept, exact.bfloat16())


@torch.no_grad()
def test_the_gate_removes_an_absent_object(clip):
    tracker, pyramid = clip
    score_head = tracker.model.mask_decoder.pred_obj_score_head.proj_out
    point, label = torch.tensor([[[40.0, 40.0]]]), torch.tensor([[1]])
    before = score_head.bias.clone()
    score_head.bias.fill_(-50)
    try:
        shut = tracker.prompt_points(slice_of(pyramid, 0), point, label)
        open_ = tracker.prompt_points(slice_of(pyramid, 0), point, label, gate=False)
    finally:
        score_head.bias.copy_(before)
    assert (shut.logits == -1024).all()
    torch.testing.assert_close(shut.pointer, tracker.model.no_object_pointer)
    assert open_.logits.std() > 0.1
    assert not torch.allclose(open_.pointer, shut.pointer)


def test_gradients_reach_the_first_slice_through_the_memory(clip):
    tracker, pyramid = clip
    first = slice_of(pyramid, 0)
    first = Pyramid(tuple(m.clone().requires_grad_() for m in first.maps), first.positions)
    out = tracker.prompt_points(first, torch.tensor([[[40.0, 40.0]]]), torch.tensor([[1]]), gate=False)
    bank = tracker.new_bank(SLICES).add(
        tracker.memorise(first, out, 0, conditioning=True, binarise=False, present=torch.tensor([True]))
    )
    for index in (1, 2):
        out = tracker.track(slice_of(pyramid, index), bank, index, gate=False)
        bank = bank.add(tracker.memorise(slice_of(pyramid, index), out, index, present=torch.tensor([True])))
    (out.logits.mean() + out.object_score.mean() + out.candidates.std()).backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in first.maps)
    tracker.zero_grad()


def test_tracking_without_an_anchor_says_so(clip):
    tracker, pyramid = clip
    with pytest.raises(ValueError, match="no anchor"):
        tracker.track(slice_of(pyramid, 0), tracker.new_bank(3), 0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.bfloat16, 0.3)])
@torch.no_grad()
def test_memories_that_are_projected_once_give_the_same_masks(clip, reverse, dtype, tolerance, monkeypatch):
    """Against transformers' own order of work, over so many slices that memories age and leave the bank."""
    tracker, pyramid = clip
    order = range(SLICES - 2, -1, -1) if reverse else range(1, SLICES)
    answers = []
    for shares in (True, False):
        monkeypatch.setattr(tracker, "shares", shares)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            bank = anchor(tracker, pyramid, masks(), SLICES - 1 if reverse else 0)
            answers.append(follow(tracker, pyramid, bank, order, reverse)[0])
    for index in order:
        assert_same(answers[0][index].logits.float(), answers[1][index].logits.float(), tolerance)


@torch.no_grad()
def test_projections_live_as_long_as_their_memories(clip):
    tracker, pyramid = clip
    kept = tracker._memory_attention._kept
    bank = anchor(tracker, pyramid, masks(), 0)
    _, bank = follow(tracker, pyramid, bank, range(1, SLICES))
    assert 0 < len(kept) <= bank.recent + 2
    del bank
    gc.collect()
    assert not kept
