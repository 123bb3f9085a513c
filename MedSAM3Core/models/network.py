"""The detector side of a SAM 3 model as the published code runs it, with every intermediate training needs.

The modules are transformers' own (`Sam3VideoModel`); only the way through them is ours, because
`Sam3Model.forward` leaves the geometry encoder's class token out of text-only prompts (the published
`_encode_prompt` always appends it; measured: up to 1.0 in logits), returns the last decoder layer only, and
cannot share one image among prompts.

Source: facebookresearch/sam3 (model/sam3_image.py) and transformers 5.23 (models/sam3/modeling_sam3.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam3VideoModel
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy, inverse_sigmoid

from MedSAM3Core.models.roi_align import use_own_box_pooling

PADDED_BOX_LABEL = -10


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of a batch of slices, finest first.

    Attributes:
        maps: Each (batch, channels, height, width); the three levels are 4, 2 and 1 times the token grid.
        positions: Sine position encodings of the same shapes.
    """

    maps: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]

    def take(self, index: Tensor | Sequence[int] | slice) -> Pyramid:
        """Pyramid of some of the slices, in the order of ``index`` (a slice may be repeated)."""
        return Pyramid(tuple(m[index] for m in self.maps), tuple(p[index] for p in self.positions))


@dataclass(frozen=True)
class TextFeatures:
    """Encoded phrases.

    Attributes:
        embeddings: (phrases, tokens, channels) after the projection to the detector's width.
        mask: (phrases, tokens) bool, True where a token is real.
    """

    embeddings: Tensor
    mask: Tensor

    def take(self, index: Tensor | Sequence[int] | slice) -> TextFeatures:
        """Features of some of the phrases, in the order of ``index``."""
        return TextFeatures(self.embeddings[index], self.mask[index])


@dataclass(frozen=True)
class Detections:
    """What the detector says of a batch of (slice, phrase) pairs; logits are before the sigmoid.

    Attributes:
        logits: (layers, batch, queries), **not** multiplied by presence; the last layer is the answer.
        presence: (layers, batch).
        boxes: (layers, batch, queries, 4), xyxy relative to the image, 0..1.
        masks: (batch, queries, height, width) mask logits of the last layer.
        semantic: (batch, height, width) logits of the semantic head.
    """

    logits: Tensor
    presence: Tensor
    boxes: Tensor
    masks: Tensor
    semantic: Tensor


class ConceptNetwork(nn.Module):
    """A SAM 3 model seen as encoder, text encoder and detector.

    Args:
        model: A `Sam3VideoModel` of any configuration.
    """

    def __init__(self, model: Sam3VideoModel) -> None:
        super().__init__()
        self.model: Any = use_own_box_pooling(model)

    @property
    def detector(self) -> Any:
        """The `Sam3Model` inside."""
        return self.model.detector_model

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.model.config.detector_config.vision_config.image_size)

    def trunk(self, pixels: Tensor) -> Tensor:
        """Vision transformer output of normalised images.

        Args:
            pixels: (batch, 3, size, size), mean 0.5 and std 0.5 removed.

        Returns:
            (batch, channels, size / patch, size / patch). Both necks run from it.
        """
        encoder = self.detector.vision_encoder
        patch = encoder.config.backbone_config.patch_size
        tokens = encoder.backbone(pixels).last_hidden_state
        height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return tokens.view(len(tokens), height, width, -1).permute(0, 3, 1, 2)

    def detector_pyramid(self, trunk: Tensor) -> Pyramid:
        """The detector's neck; the coarsest level, which the model never uses, is left out."""
        return run_neck(self.detector.vision_encoder.neck, trunk)

    def tracker_pyramid(self, trunk: Tensor) -> Pyramid:
        """The tracker's own neck, before the mask decoder's 1x1 convolutions."""
        return run_neck(self.model.tracker_neck, trunk)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """Encode tokenised phrases, both (phrases, tokens)."""
        text = self.detector.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        )
        return TextFeatures(self.detector.text_projection(text.last_hidden_state), attention_mask.bool())

    def detect(
        self,
        pyramid: Pyramid,
        text: TextFeatures,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
        with_masks: bool = True,
    ) -> Detections:
        """Find a phrase in each slice of a batch.

        Args:
            pyramid: One entry a pair, as from `Pyramid.take`.
            text: One entry a pair.
            boxes: (batch, boxes, 4), cxcywh relative to the image; None for text only.
            labels: (batch, boxes), 1 inside, 0 outside, -10 padding.
            with_masks: Leave the instance masks out when only the semantic map and scores are wanted.
        """
        prompt, prompt_mask = self._encode_prompt(pyramid, text, boxes, labels)
        encoded = self.detector.detr_encoder(
            vision_features=[pyramid.maps[-1]],
            text_features=prompt,
            vision_pos_embeds=[pyramid.positions[-1]],
            text_mask=prompt_mask,
        )
        decoded = self.detector.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=encoded.text_features,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=prompt_mask,
            spatial_shapes=encoded.spatial_shapes,
        )
        queries = decoded.intermediate_hidden_states
        offsets = self.detector.detr_decoder.box_head(queries)
        boxes_out = box_cxcywh_to_xyxy((inverse_sigmoid(decoded.reference_boxes) + offsets).sigmoid())
        logits = self.detector.dot_product_scoring(
            decoder_hidden_states=queries, text_features=encoded.text_features, text_mask=prompt_mask
        ).squeeze(-1)
        masks = self.detector.mask_decoder(
            decoder_queries=queries[-1] if with_masks else queries[-1][:, :0],
            backbone_features=list(pyramid.maps),
            encoder_hidden_states=encoded.last_hidden_state,
            prompt_features=prompt,
            prompt_mask=prompt_mask,
        )
        return Detections(
            logits,
            decoded.presence_logits.squeeze(-1),
            boxes_out,
            masks.pred_masks,
            masks.semantic_seg.squeeze(1),
        )

    def encode_exemplars(
        self, pyramid: Pyramid, text: TextFeatures, boxes: Tensor | None, labels: Tensor | None
    ) -> TextFeatures:
        """A phrase that also means what boxes hold on a slice, to be said of any other slice.

        The published model looks for exemplars in the image that they were drawn on; their tokens carry what the
        boxes hold, so they can be said of another image in the text's place.

        Args:
            pyramid: Of the slices that the boxes are on, one entry a phrase.
            text: The phrases.
            boxes: As in `detect`.
            labels: As in `detect`.
        """
        return TextFeatures(*self._encode_prompt(pyramid, text, boxes, labels))

    def _encode_prompt(
        self, pyramid: Pyramid, text: TextFeatures, boxes: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Text tokens, then box tokens and the geometry encoder's class token, which is never left out."""
        batch = len(text.embeddings)
        if boxes is None or boxes.shape[1] == 0:
            boxes = text.embeddings.new_full((batch, 1, 4), 0.5)
            labels = torch.full((batch, 1), PADDED_BOX_LABEL, device=boxes.device)
        elif labels is None:
            labels = torch.ones(boxes.shape[:2], dtype=torch.long, device=boxes.device)
        real = labels != PADDED_BOX_LABEL
        geometry = self.detector.geometry_encoder(
            box_embeddings=boxes,
            box_mask=real,
            box_labels=torch.where(real, labels, 0),
            img_feats=pyramid.maps,
            img_pos_embeds=pyramid.positions,
        )
        prompt = torch.cat([text.embeddings, geometry.last_hidden_state], dim=1)
        return prompt, torch.cat([text.mask, geometry.attention_mask], dim=1)


def run_neck(neck: Any, trunk: Tensor) -> Pyramid:
    """Run the levels of a neck that are used (a published model has a fourth, half-size one that is not)."""
    maps, positions = [], []
    for layer in neck.fpn_layers:
        if layer.scale_factor < 1:
            continue
        level = layer(trunk)
        maps.append(level)
        positions.append(neck.position_encoding(level.shape, level.device, level.dtype))
    return Pyramid(tuple(maps), tuple(positions))
