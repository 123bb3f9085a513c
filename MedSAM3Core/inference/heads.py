"""The detector, with what does not depend on the concept computed once a slice.

Of the work that `ConceptNetwork.detect` does for each pair of slice and concept, several are the same for every
concept on a slice: the geometry encoder's answer to a prompt without boxes, the first encoder layer's self-attention,
and the pixel decoder's convolutions of the two fine levels. A convolution is linear, so that of a sum is the sum of
two: ``conv(upsample(x) + skip) = conv(upsample(x)) + conv(skip)``. The second term is computed when features are made
and kept in the skip's place; the first is a convolution of the coarser map by the folded kernel of each of the four
positions in an enlarged pixel, four ninths of the work. See ``docs/decisions/015-speed.md`` for what each of it gives.

Source: the modules are transformers' own (models/sam3/modeling_sam3.py, 5.23); only the order of work is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy, inverse_sigmoid

from MedSAM3Core.models.network import PADDED_BOX_LABEL, ConceptNetwork, Detections, Pyramid, TextFeatures


class Heads(Protocol):
    """What answers a batch of pairs of slice and phrase."""

    def prepare(self, pyramid: Pyramid) -> Pyramid:
        """The pyramid as it is to be kept."""

    def detect(
        self,
        pyramid: Pyramid,
        rows: Sequence[int],
        text: TextFeatures,
        boxes: Tensor | None,
        labels: Tensor | None,
        with_masks: bool,
    ) -> Detections:
        """Find a phrase in each of a batch of pairs.

        Args:
            pyramid: Prepared, one entry a slice.
            rows: Entry of the pyramid of each pair.
            text: One entry a pair.
            boxes: As for `ConceptNetwork.detect`.
            labels: As for `ConceptNetwork.detect`.
            with_masks: Whether instance masks are wanted.
        """


class PlainHeads:
    """The network's own way, pair by pair; nothing is shared.

    Args:
        network: A `ConceptNetwork`, or what doubles one.
    """

    def __init__(self, network: ConceptNetwork) -> None:
        self.network = network

    def prepare(self, pyramid: Pyramid) -> Pyramid:
        """The pyramid as it is."""
        return pyramid

    def detect(
        self,
        pyramid: Pyramid,
        rows: Sequence[int],
        text: TextFeatures,
        boxes: Tensor | None,
        labels: Tensor | None,
        with_masks: bool,
    ) -> Detections:
        """As `Heads.detect`."""
        return self.network.detect(pyramid.take(list(rows)), text, boxes, labels, with_masks=with_masks)


class SharedHeads:
    """The same answers as `PlainHeads`, to rounding, with the slices' share of the work done once.

    Args:
        network: The network.
    """

    def __init__(self, network: ConceptNetwork) -> None:
        self.network = network

    def prepare(self, pyramid: Pyramid) -> Pyramid:
        """Fine levels convolved as the pixel decoder will want them, channels last; the coarsest as it is."""
        convolutions = self._pixel_decoder.conv_layers
        skips = [
            convolutions[stage](level.contiguous(memory_format=torch.channels_last))
            for stage, level in enumerate(reversed(pyramid.maps[:-1]))
        ]
        return Pyramid((*reversed(skips), pyramid.maps[-1]), pyramid.positions)

    def detect(
        self,
        pyramid: Pyramid,
        rows: Sequence[int],
        text: TextFeatures,
        boxes: Tensor | None,
        labels: Tensor | None,
        with_masks: bool,
    ) -> Detections:
        """As `Heads.detect`."""
        detector = self.network.detector
        spread = _Spread(rows, len(pyramid.maps[-1]), pyramid.maps[-1].device)
        prompt, prompt_mask = self._prompt(pyramid, spread, text, boxes, labels)
        positions = _flatten(pyramid.positions[-1])
        encoded = self._encode(pyramid, positions, spread, prompt, prompt_mask)
        decoded = detector.detr_decoder(
            vision_features=encoded,
            text_features=prompt,
            vision_pos_encoding=spread(positions),
            text_mask=prompt_mask,
            # On the host: the decoder counts to it, and a GPU would be waited for at every layer.
            spatial_shapes=torch.tensor([pyramid.maps[-1].shape[-2:]]),
        )
        queries = decoded.intermediate_hidden_states
        offsets = detector.detr_decoder.box_head(queries)
        corners = box_cxcywh_to_xyxy((inverse_sigmoid(decoded.reference_boxes) + offsets).sigmoid())
        logits = detector.dot_product_scoring(
            decoder_hidden_states=queries, text_features=prompt, text_mask=prompt_mask
        ).squeeze(-1)
        pixels = self._embed_pixels(pyramid, spread, encoded, prompt, prompt_mask)
        masks, semantic = self._draw(pixels, queries[-1] if with_masks else queries[-1][:, :0])
        return Detections(logits, decoded.presence_logits.squeeze(-1), corners, masks, semantic)

    @property
    def _pixel_decoder(self) -> Any:
        return self.network.detector.mask_decoder.pixel_decoder

    def _prompt(
        self,
        pyramid: Pyramid,
        spread: _Spread,
        text: TextFeatures,
        boxes: Tensor | None,
        labels: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As the network's own; without boxes, the geometry encoder is asked once a slice."""
        coarse, positions = pyramid.maps[-1], pyramid.positions[-1]
        alone = boxes is None or boxes.shape[1] == 0
        if boxes is None or alone:
            boxes = text.embeddings.new_full((len(coarse), 1, 4), 0.5)
            labels = torch.full((len(coarse), 1), PADDED_BOX_LABEL, device=boxes.device)
        else:
            coarse, positions = spread(coarse), spread(positions)
        if labels is None:
            labels = torch.ones(boxes.shape[:2], dtype=torch.long, device=boxes.device)
        real = labels != PADDED_BOX_LABEL
        geometry = self.network.detector.geometry_encoder(
            box_embeddings=boxes,
            box_mask=real,
            box_labels=torch.where(real, labels, 0),
            img_feats=(coarse,),
            img_pos_embeds=(positions,),
        )
        tokens, mask = geometry.last_hidden_state, geometry.attention_mask
        if alone:
            tokens, mask = spread(tokens), spread(mask)
        return torch.cat([text.embeddings, tokens], dim=1), torch.cat([text.mask, mask], dim=1)

    def _encode(
        self, pyramid: Pyramid, positions: Tensor, spread: _Spread, prompt: Tensor, prompt_mask: Tensor
    ) -> Tensor:
        """The encoder's answer, (pairs, tokens, channels)."""
        encoder = self.network.detector.detr_encoder
        first = encoder.layers[0]
        features = _flatten(pyramid.maps[-1])
        normed = first.layer_norm1(features)
        placed = normed + positions
        attended = spread(features + first.self_attn(query=placed, key=placed, value=normed)[0])
        mask = create_bidirectional_mask(
            config=encoder.config,
            inputs_embeds=attended,
            attention_mask=prompt_mask,
            encoder_hidden_states=prompt,
        )
        said = first.cross_attn(
            query=first.layer_norm2(attended), key=prompt, value=prompt, attention_mask=mask
        )[0]
        hidden = said + attended
        hidden = first.mlp(first.layer_norm3(hidden)) + hidden
        placed_at = spread(positions)
        for layer in encoder.layers[1:]:
            hidden = layer(
                hidden, prompt_feats=prompt, vision_pos_encoding=placed_at, prompt_cross_attn_mask=mask
            )
        return hidden

    def _embed_pixels(
        self, pyramid: Pyramid, spread: _Spread, encoded: Tensor, prompt: Tensor, prompt_mask: Tensor
    ) -> Tensor:
        """The pixel decoder's answer, (pairs, channels, height, width) channels last."""
        decoder = self.network.detector.mask_decoder
        normed = decoder.prompt_cross_attn_norm(encoded)
        mask = create_bidirectional_mask(
            config=decoder.config,
            inputs_embeds=normed,
            attention_mask=prompt_mask,
            encoder_hidden_states=prompt,
        )
        said = decoder.prompt_cross_attn(query=normed, key=prompt, value=prompt, attention_mask=mask)[0]
        height, width = pyramid.maps[-1].shape[-2:]
        # Tokens in rows are a map with the channels last already: nothing is copied.
        pixels = (encoded + said).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        for stage, skip in enumerate(reversed(pyramid.maps[:-1])):
            pixels = _enlarge_and_add(pixels, self._pixel_decoder.conv_layers[stage].weight, skip, spread)
            pixels = self._pixel_decoder.norms[stage](pixels).relu_()
        return pixels

    def _draw(self, pixels: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Instance masks (pairs, queries, height, width) and the semantic map (pairs, height, width)."""
        decoder = self.network.detector.mask_decoder
        semantic = decoder.semantic_projection(pixels).squeeze(1)
        if queries.shape[1] == 0:
            return semantic.new_empty(len(semantic), 0, *semantic.shape[1:]), semantic
        # The projection is taken to the few queries instead of to every pixel.
        embedded = decoder.mask_embedder(queries)
        projection = decoder.instance_projection
        turned = embedded @ projection.weight[:, :, 0, 0].to(embedded.dtype)
        offset = embedded @ projection.bias.to(embedded.dtype)
        masks = torch.einsum("bqc,bchw->bqhw", turned, pixels) + offset[..., None, None]
        return masks, semantic


class _Spread:
    """Entries of slices to entries of pairs.

    Args:
        rows: Slice of each pair.
        slices: How many slices there are.
        device: Where the entries are.
    """

    def __init__(self, rows: Sequence[int], slices: int, device: torch.device) -> None:
        self.slices = slices
        self.each = len(rows) // slices
        self.regular = list(rows) == [n // self.each for n in range(len(rows))] if self.each else False
        self.index = torch.tensor(list(rows), device=device)

    def __call__(self, entries: Tensor) -> Tensor:
        """(slices, ...) to (pairs, ...)."""
        if self.regular and self.each == 1:
            return entries
        return entries[self.index]

    def add(self, pairs: Tensor, entries: Tensor, out: Tensor) -> None:
        """``out = pairs + entries``, without a copy of the entries where every slice has as many pairs, in order."""
        if not self.regular:
            torch.add(pairs, entries[self.index], out=out)
            return
        split = (self.slices, self.each)
        torch.add(pairs.unflatten(0, split), entries[:, None], out=out.unflatten(0, split))


def _enlarge_and_add(maps: Tensor, weight: Tensor, skip: Tensor, spread: _Spread) -> Tensor:
    """Convolve what is enlarged twofold (each pixel repeated), and add the slice's own part.

    Args:
        maps: (pairs, channels, height, width), before it is enlarged.
        weight: (channels out, channels in, 3, 3) of the convolution at the enlarged size.
        skip: (slices, channels out, 2 * height, 2 * width), convolved already, bias included.
        spread: Slices to pairs.
    """
    height, width = maps.shape[-2:]
    channels = len(weight)
    folded = conv2d(maps, _fold(weight), padding=1)
    shape = (len(maps), 2 * height, 2 * width, channels)
    answer = torch.empty(shape, dtype=folded.dtype, device=folded.device).permute(0, 3, 1, 2)
    for row in (0, 1):
        for column in (0, 1):
            part = (2 * row + column) * channels
            phase = folded[:, part : part + channels, row : row + height, column : column + width]
            spread.add(phase, skip[..., row::2, column::2], answer[..., row::2, column::2])
    return answer


def _fold(weight: Tensor) -> Tensor:
    """The 3x3 kernel at an enlarged map as 2x2 kernels at the map itself, one for each place in an enlarged pixel.

    Returns:
        (4 * channels out, channels in, 2, 2): upper left, upper right, lower left, lower right.
    """
    upper, middle, lower = weight.unbind(2)
    tall = (torch.stack([upper, middle + lower], 2), torch.stack([upper + middle, lower], 2))
    kernels = []
    for half in tall:
        left, centre, right = half.unbind(3)
        kernels += [torch.stack([left, centre + right], 3), torch.stack([left + centre, right], 3)]
    return torch.cat(kernels).contiguous(memory_format=torch.channels_last)


def _flatten(maps: Tensor) -> Tensor:
    """(batch, channels, height, width) to (batch, height * width, channels)."""
    return maps.flatten(2).transpose(1, 2)
