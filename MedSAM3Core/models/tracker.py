"""The tracker side of a SAM 3 model: a memory of an object on some slices finds it on the next.

The modules are transformers' own (`Sam3VideoModel.tracker_model` and ``tracker_neck``); the way through them is
ours, for three reasons. `Sam3TrackerVideoModel` departs from the published code in four orders of operation (measured
on synthetic weights: 0.007 to 0.08 in mask logits after one slice; with them put right, 1e-4):

1. the pointer of a mask prompt comes from the single-mask token, not from the best of three candidates;
2. a mask prompt reaches the prompt encoder from 16 times the token grid (1152 px at full size) through a stride-4
   convolution, not by way of the image size;
3. the memory of a mask prompt is made from the mask reduced to the low resolution (288 px) and enlarged again;
4. masks are binarised or passed through the sigmoid at the image size and resized afterwards, not the other way
   round.

Its methods run in inference mode, so nothing can be trained through them, and its session keeps every slice for
ever. Here state is explicit: a `MemoryBank` goes in, a `TrackOutput` comes out, nothing is remembered in between.

Every tensor has a leading batch axis of objects. A pyramid of one slice is shared by all objects of the batch.

Source: facebookresearch/sam3 (model/sam3_tracker_base.py, model/sam3_tracking_predictor.py) for what is computed,
transformers 5.23 (models/sam3_tracker_video) for the modules.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import Sam3VideoModel
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import get_1d_sine_pe

from MedSAM3Core.models.memory import Memory, MemoryBank, TrackOutput
from MedSAM3Core.models.memory_attention import MemoryAttention
from MedSAM3Core.models.network import Pyramid, run_neck

__all__ = ["Memory", "MemoryBank", "TrackOutput", "Tracker"]

NO_OBJECT_LOGIT = -1024.0
"""Mask logit where the object is absent; the same magnitude with the other sign marks the inside of a mask prompt."""

BOX_FIRST_CORNER, BOX_LAST_CORNER = 2, 3
"""Point labels of a box's upper left and lower right corner; 1 is a point inside the object, 0 one outside."""


class Tracker(nn.Module):
    """Prompt, track and memorise objects slice by slice; functional, differentiable, batched over objects.

    Args:
        model: A `Sam3VideoModel` of any configuration; its tracker modules are shared, not copied.
        memory_dtype: What memory features are kept in. The published code rounds them to bfloat16; None keeps the
            computing dtype, which training wants.

    Attributes:
        shares: Project every memory once, where that pays and nothing is trained (`MemoryAttention`); False keeps
            transformers' own order of work, to compare.
    """

    def __init__(self, model: Sam3VideoModel, memory_dtype: torch.dtype | None = torch.bfloat16) -> None:
        super().__init__()
        self.model = model.tracker_model
        self.neck = model.tracker_neck
        self.memory_dtype = memory_dtype
        self.shares = True
        self._memory_attention = MemoryAttention(self.model.memory_attention)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.model.config.image_size)

    @property
    def low_resolution(self) -> int:
        """Side of the mask logits: four times the token grid."""
        return int(self.model.prompt_encoder.mask_input_size[0])

    def new_bank(self, slices: int, memories: Iterable[Memory] = ()) -> MemoryBank:
        """Bank for a volume of ``slices`` slices, with the reach that the model was trained with."""
        config = self.model.config
        return MemoryBank(
            slices=slices,
            memories=tuple(memories),
            anchors_attended=config.max_cond_frame_num,
            recent=config.num_maskmem - 1,
            pointers=config.max_object_pointers_in_encoder,
        )

    # -- features ---------------------------------------------------------------------------------------------

    def pyramid(self, trunk: Tensor) -> Pyramid:
        """The tracker's own neck on the trunk's output, `reduce`d, which is how a feature store should keep it."""
        return self.reduce(run_neck(self.neck, trunk))

    def reduce(self, pyramid: Pyramid) -> Pyramid:
        """Apply the mask decoder's 1x1 convolutions to the two fine levels (256 to 32 and 64 channels).

        They do not depend on the object, and shrink the stored pyramid by a factor of five. A pyramid that is
        reduced already comes back as it is.
        """
        decoder = self.model.mask_decoder
        if pyramid.maps[0].shape[1] == decoder.conv_s0.out_channels:
            return pyramid
        fine, middle, coarse = pyramid.maps
        return Pyramid((decoder.conv_s0(fine), decoder.conv_s1(middle), coarse), pyramid.positions)

    # -- prompts ----------------------------------------------------------------------------------------------

    def prompt_mask(self, pyramid: Pyramid, mask: Tensor, gate: bool = True) -> TrackOutput:
        """Take a mask as the object on its slice (an anchor); the mask is not predicted again.

        Args:
            pyramid: The slice's, batch 1, or one entry an object.
            mask: (objects, height, width) bool or 0..1, covering the slice, of any size.
            gate: As in `prompt_points`; an empty mask gives the pointer of absence either way.
        """
        pyramid, mask = self.reduce(pyramid), mask[:, None].float()
        features = self._expand(pyramid.maps[-1], len(mask))
        prompt = _resize(mask, 4 * self.low_resolution, antialias=True).to(features.dtype)
        dense = self.model.mask_downsample(prompt)
        decoded = self._decode(features, pyramid, mask_prompt=dense, several=False, gate=gate)
        present = (prompt > 0).flatten(1).any(1)
        pointer = self._gate_pointer(decoded.pointer, present)
        logits = torch.where(mask > 0.5, -NO_OBJECT_LOGIT, NO_OBJECT_LOGIT)
        logits = _resize(logits, self.low_resolution, antialias=True)
        score = present.to(features.dtype) * 20.0 - 10.0
        return TrackOutput(logits[:, 0], score, pointer, logits, torch.ones_like(score)[:, None])

    def prompt_points(
        self,
        pyramid: Pyramid,
        points: Tensor,
        labels: Tensor,
        gate: bool = True,
        previous: Tensor | None = None,
    ) -> TrackOutput:
        """Predict the object on a slice from points alone, without memory.

        Args:
            pyramid: The slice's, batch 1, or one entry an object.
            points: (objects, points, 2), x then y in model pixels (0..image_size).
            labels: (objects, points): 1 inside, 0 outside, 2 and 3 the corners of a box, -1 no point.
            gate: Remove mask and pointer where the object score says absent. Training leaves it out, because
                nothing can be learnt through a gate that is shut.
            previous: (objects, height, width) logits of the mask that the points correct, covering the slice, of any
                size; None where there is none.
        """
        pyramid = self.reduce(pyramid)
        features = self._expand(pyramid.maps[-1], len(points))
        no_memory = self.model.no_memory_embedding.view(1, -1, 1, 1)
        several = self._several_candidates(points.shape[1])
        dense = None
        if previous is not None:
            dense = _resize(previous[:, None], self.low_resolution, antialias=True).to(features.dtype)
        return self._decode(
            features + no_memory,
            pyramid,
            points=points,
            labels=labels,
            mask_prompt=dense,
            several=several,
            gate=gate,
        )

    def prompt_box(self, pyramid: Pyramid, boxes: Tensor, gate: bool = True) -> TrackOutput:
        """Predict the object on a slice from a box around it, without memory.

        Args:
            pyramid: The slice's, batch 1, or one entry an object.
            boxes: (objects, 4), xyxy in model pixels (0..image_size).
            gate: As in `prompt_points`.
        """
        labels = torch.tensor([[BOX_FIRST_CORNER, BOX_LAST_CORNER]], device=boxes.device)
        return self.prompt_points(pyramid, boxes.view(-1, 2, 2), labels.expand(len(boxes), -1), gate)

    # -- tracking ---------------------------------------------------------------------------------------------

    def track(
        self,
        pyramid: Pyramid,
        bank: MemoryBank,
        slice_index: int,
        reverse: bool = False,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        gate: bool = True,
    ) -> TrackOutput:
        """Find the objects of a bank on another slice.

        Args:
            pyramid: The slice's, batch 1, or one entry an object.
            bank: What is remembered; at least one anchor.
            slice_index: Where the slice is.
            reverse: Travelling towards lower indices: recent memories lie at higher ones.
            points: Corrections on this slice as in `prompt_points`, or None.
            labels: Their labels.
            gate: As in `prompt_points`.

        Raises:
            ValueError: If the bank holds no anchor.
        """
        if not bank.anchors:
            raise ValueError("The memory bank holds no anchor; prompt the object on a slice first.")
        pyramid = self.reduce(pyramid)
        features = self._attend(pyramid, bank, slice_index, reverse)
        several = self._several_candidates(0 if points is None else points.shape[1])
        return self._decode(features, pyramid, points=points, labels=labels, several=several, gate=gate)

    def memorise(
        self,
        pyramid: Pyramid,
        output: TrackOutput,
        slice_index: int,
        conditioning: bool = False,
        binarise: bool | None = None,
        present: Tensor | None = None,
    ) -> Memory:
        """Turn what was found, or prompted, on a slice into a memory for other slices.

        Args:
            pyramid: The slice's, batch 1, or one entry an object.
            output: From `track` or a prompt. A trainer may put other logits in, for example the reference mask's.
            slice_index: Where the slice is.
            conditioning: Whether this is an anchor.
            binarise: Round the mask before it is encoded; None does so for anchors, as the published code does
                outside training. A predicted mask that gradients must reach is not binarised.
            present: (objects,) bool, whether the object is on the slice; None asks the object score.
        """
        model, config = self.model, self.model.config
        features = self._expand(self.reduce(pyramid).maps[-1], len(output.logits))
        logits = _resize(output.logits[:, None], self.image_size)
        rounded = conditioning if binarise is None else binarise
        # At the image size, then resized: the fourth order that transformers has the other way round.
        mask = (logits > 0).to(logits.dtype) if rounded else logits.sigmoid()
        mask = mask * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        mask = _resize(mask, 4 * self.low_resolution, antialias=True)
        memory, positions = model.memory_encoder(features, mask.to(features.dtype))
        absent = ~present if present is not None else output.object_score <= 0
        if model.occlusion_spatial_embedding_parameter is not None:
            occlusion = model.occlusion_spatial_embedding_parameter.view(1, -1, 1, 1)
            memory = memory + absent.view(-1, 1, 1, 1).to(memory.dtype) * occlusion
        dtype = self.memory_dtype or memory.dtype
        return Memory(
            slice_index=slice_index,
            features=memory.to(dtype),
            positions=positions[:1],
            pointer=output.pointer,
            conditioning=conditioning,
            object_score=output.object_score,
        )

    # -- inside -----------------------------------------------------------------------------------------------

    def _expand(self, features: Tensor, objects: int) -> Tensor:
        """One entry an object, without a copy."""
        return features.expand(objects, -1, -1, -1) if len(features) == 1 else features

    def _several_candidates(self, points: int) -> bool:
        """Whether three candidate masks are predicted: the prompt leaves doubt (none or one point)."""
        config = self.model.config
        return (
            config.multimask_output_in_sam
            and config.multimask_min_pt_num <= points <= config.multimask_max_pt_num
        )

    def _decode(
        self,
        features: Tensor,
        pyramid: Pyramid,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask_prompt: Tensor | None = None,
        several: bool = True,
        gate: bool = True,
    ) -> TrackOutput:
        """Prompt encoder, mask decoder, choice of the candidate, pointer."""
        objects = len(features)
        if points is None or labels is None:
            points = features.new_zeros(objects, 1, 2)
            labels = torch.full((objects, 1), -1, dtype=torch.int32, device=features.device)
        sparse, dense = self.model.prompt_encoder(
            input_points=points[:, None].to(features.dtype),
            input_labels=labels[:, None],
            input_boxes=None,
            input_masks=mask_prompt,
        )
        masks, ious, tokens, score = self.model.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=self._grid_positions().expand(objects, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=[self._expand(level, objects) for level in pyramid.maps[:-1]],
        )
        masks, ious, tokens, score = masks[:, 0], ious[:, 0], tokens[:, 0], score.view(objects)
        best = ious.argmax(1) if several else torch.zeros(objects, dtype=torch.long, device=ious.device)
        # Without several candidates there is one mask, and the first token is the single-mask token.
        pointer = self.model.object_pointer_proj(_pick(tokens, best))
        if gate:
            masks = torch.where((score > 0).view(-1, 1, 1, 1), masks, NO_OBJECT_LOGIT)
            pointer = self._gate_pointer(pointer, score > 0)
        masks = masks.float()
        return TrackOutput(_pick(masks, best), score, pointer, masks, ious)

    def _grid_positions(self) -> Tensor:
        """(1, channels, height, width) encoding of the token grid, as the prompt encoder encodes points."""
        return self.model.get_image_wide_positional_embeddings()

    def _gate_pointer(self, pointer: Tensor, present: Tensor) -> Tensor:
        """The pointer where the object is present, the learnt pointer of absence elsewhere."""
        return torch.where(present[:, None], pointer, self.model.no_object_pointer.to(pointer.dtype))

    def _attend(self, pyramid: Pyramid, bank: MemoryBank, slice_index: int, reverse: bool) -> Tensor:
        """Condition the slice's coarsest features on the bank: (objects, channels, height, width)."""
        anchors = bank.select_anchors(slice_index)
        recent = bank.select_recent(slice_index, reverse)
        objects = len(anchors[0].pointer)
        features = self._expand(pyramid.maps[-1], objects)
        spatial = [(0, m) for m in anchors] + [(o, m) for o, m in recent if o <= bank.recent]
        tokens, token_encoding = self._pointer_memory(anchors, recent, bank, slice_index, reverse, features)
        current = _flatten(features), _flatten(self._expand(pyramid.positions[-1], objects))
        height, width = features.shape[-2:]
        if self._shares(features):
            conditioned = self._memory_attention(*current, self._by_distance(spatial), tokens, token_encoding)
            return conditioned.transpose(1, 2).reshape(objects, -1, height, width)
        memory, encoding = self._spatial_memory(spatial, features)
        conditioned = self.model.memory_attention(
            current_vision_features=current[0],
            current_vision_position_embeddings=current[1],
            memory=torch.cat([memory, tokens]),
            memory_posision_embeddings=torch.cat([encoding, token_encoding]),
            num_object_pointer_tokens=len(tokens),
        )
        # (1, objects, height * width, channels): transformers keeps an axis of points
        return conditioned[0].transpose(1, 2).reshape(objects, -1, height, width)

    def _shares(self, features: Tensor) -> bool:
        return (
            self.shares
            and not self.training
            and not torch.is_grad_enabled()
            and features.device.type == "cpu"
        )

    def _by_distance(self, offsets: list[tuple[int, Memory]]) -> list[tuple[Tensor, Memory]]:
        """Memories that have features, each with the encoding of its offset."""
        time = self.model.memory_temporal_positional_encoding
        # Offset 0 wraps round to the last entry, which the published code gives to anchors.
        return [(time[offset - 1].flatten(), m) for offset, m in offsets if m.features is not None]

    def _spatial_memory(self, offsets: list[tuple[int, Memory]], like: Tensor) -> tuple[Tensor, Tensor]:
        """Features and encodings of memories by their offset (0 for an anchor), each (tokens, objects, channels)."""
        time = self.model.memory_temporal_positional_encoding
        features, encodings = [], []
        for offset, memory in offsets:
            if memory.features is None or memory.positions is None:
                continue
            features.append(_flatten(memory.features.to(like)))
            # Offset 0 wraps round to the last entry, which the published code gives to anchors.
            encoding = _flatten(memory.positions.to(like)) + time[offset - 1]
            encodings.append(encoding.expand(-1, features[-1].shape[1], -1))
        return torch.cat(features), torch.cat(encodings)

    def _pointer_memory(
        self,
        anchors: tuple[Memory, ...],
        recent: tuple[tuple[int, Memory], ...],
        bank: MemoryBank,
        slice_index: int,
        reverse: bool,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Pointers split into tokens of the memory's width, and their encodings, each (tokens, objects, channels).

        Anchors ahead in the direction of travel give features but no pointer, as in the published code.
        """
        sign = -1 if reverse else 1
        reach = min(bank.slices, bank.pointers)
        offsets = [((slice_index - m.slice_index) * sign, m) for m in anchors]
        offsets = [(o, m) for o, m in offsets if o >= 0] + [(o, m) for o, m in recent if o < reach]
        width = self.model.mem_dim
        if not offsets:
            objects = len(anchors[0].pointer)
            return like.new_zeros(0, objects, width), like.new_zeros(0, objects, width)
        pointers = torch.stack([m.pointer.to(like) for _, m in offsets])
        count, objects, channels = pointers.shape
        encoding = self._encode_time(
            torch.tensor([o for o, _ in offsets], device=like.device, dtype=torch.float32)
            / max(reach - 1, 1),
            like,
        )
        parts = channels // width
        tokens = pointers.view(count, objects, parts, width).transpose(1, 2).reshape(-1, objects, width)
        encoding = encoding[:, None].expand(-1, objects, -1).repeat_interleave(parts, dim=0)
        return tokens, encoding

    def _encode_time(self, offsets: Tensor, like: Tensor) -> Tensor:
        """(pointers, memory channels) encoding of offsets as shares of the reach."""
        if not self.model.config.enable_temporal_pos_encoding_for_object_pointers:
            return like.new_zeros(len(offsets), self.model.mem_dim)
        sine = get_1d_sine_pe(offsets, dim=self.model.hidden_dim).to(like)
        return self.model.temporal_positional_encoding_projection_layer(sine)


def _resize(maps: Tensor, size: int, antialias: bool = False) -> Tensor:
    """(batch, channels, size, size) by bilinear interpolation in float32, as the published code resizes masks."""
    maps = maps.float()
    if maps.shape[-2:] == (size, size):
        return maps
    return interpolate(maps, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)


def _flatten(maps: Tensor) -> Tensor:
    """(batch, channels, height, width) to the (tokens, batch, channels) that memory attention takes."""
    return maps.flatten(2).permute(2, 0, 1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Entry ``index[b]`` along the second axis of every ``values[b]``."""
    return values[torch.arange(len(values), device=values.device), index]
