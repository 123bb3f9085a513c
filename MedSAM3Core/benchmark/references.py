"""The published ways through the same weights: transformers' video model, and its image model one slice at a time.

Both are called as transformers' documentation calls them, on the pixels and phrases that our own path sees. What the
documentation leaves to the caller (enlarging masks to the slice, which slices show the concept) is done as our policy
reads the model, so that only the way differs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3VideoModel
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

from MedSAM3Core.benchmark.measuring import Answer
from MedSAM3Core.inference.fusion import enlarge
from MedSAM3Core.models.card import Policy

log = logging.getLogger(__name__)


class VideoPath:
    """`Sam3VideoModel` as its documentation uses it: one session, text prompts, propagation from the first slice.

    Args:
        model: Its weights; a copy is cast to ``dtype``, as the documentation does.
        dtype: bfloat16 where the documentation's choice runs, else float32.
        objects: Most objects tracked at once; None leaves the model's own bound. Synthetic weights take everything
            for an object, so a bound is needed to compare equal work.
        threshold: Least score of a new object; None leaves the model's.
    """

    def __init__(
        self,
        model: Sam3VideoModel,
        dtype: torch.dtype,
        objects: int | None = None,
        threshold: float | None = None,
    ) -> None:
        # transformers' wrapper of `to` hides its arguments from the type checker.
        own: Any = model if dtype == torch.float32 else copy.deepcopy(model)
        self.model: Any = own.to(dtype)
        self.dtype = dtype
        if objects is not None:
            self.model.max_num_objects = objects
        if threshold is not None:
            self.model.score_threshold_detection = self.model.new_det_thresh = threshold

    def run(
        self,
        pixels: Tensor,
        phrases: Sequence[str],
        tokens: tuple[Tensor, Tensor],
        shape: tuple[int, int],
    ) -> Answer:
        """Masks of every phrase.

        Args:
            pixels: (slices, 3, size, size), normalised.
            phrases: What is looked for.
            tokens: Token ids and attention mask, both (phrases, tokens).
            shape: Rows and columns of a slice.
        """
        device = pixels.device
        session = Sam3VideoInferenceSession(
            video=pixels,
            video_height=shape[0],
            video_width=shape[1],
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=self.dtype,
        )
        for row, phrase in enumerate(phrases):
            prompt = session.add_prompt(phrase)
            session.prompt_input_ids[prompt] = tokens[0][row : row + 1]
            session.prompt_attention_masks[prompt] = tokens[1][row : row + 1]
        masks = torch.zeros(len(phrases), len(pixels), *shape, dtype=torch.bool)
        tracked: set[int] = set()
        with torch.inference_mode():
            for output in self.model.propagate_in_video_iterator(inference_session=session):
                tracked.update(output.obj_id_to_mask)
                hidden = (output.suppressed_obj_ids or set()) | session.hotstart_removed_obj_ids
                for number, mask in output.obj_id_to_mask.items():
                    if number not in hidden:
                        prompt = session.obj_id_to_prompt_id[number]
                        masks[prompt, output.frame_idx] |= (enlarge(mask.float(), shape)[0] > 0).cpu()
        return Answer(masks.numpy(), counts={"slices": len(pixels), "objects": len(tracked)})


class ImagePath:
    """`Sam3Model` in float32, one slice and one phrase at a time, nothing kept in between.

    Args:
        model: The detector inside is called.
        policy: What decides whether a slice shows the concept, and which head draws.
    """

    def __init__(self, model: Sam3VideoModel, policy: Policy) -> None:
        self.model = model.detector_model
        self.policy = policy

    def run(self, pixels: Tensor, tokens: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Answer:
        """Masks of every phrase; arguments as for `VideoPath.run`."""
        ids, attention = tokens
        masks = torch.zeros(len(ids), len(pixels), *shape, dtype=torch.bool)
        with torch.inference_mode():
            for index in range(len(pixels)):
                for row in range(len(ids)):
                    outputs = self.model(
                        pixel_values=pixels[index : index + 1],
                        input_ids=ids[row : row + 1],
                        attention_mask=attention[row : row + 1],
                    )
                    masks[row, index] = self._mask(outputs, shape).cpu()
        return Answer(masks.numpy(), counts={"slices": len(pixels), "pairs": len(pixels) * len(ids)})

    def _mask(self, outputs: object, shape: tuple[int, int]) -> Tensor:
        """(rows, columns) bool."""
        presence = outputs.presence_logits.sigmoid().flatten()[0]  # type: ignore[attr-defined]
        queries = outputs.pred_logits.sigmoid()[0]  # type: ignore[attr-defined]
        scores = presence * queries
        rule = {"presence": presence, "queries": queries.amax(), "product": scores.amax()}
        least = self.policy.threshold
        if self.policy.mask_source == "semantic":
            logits = outputs.semantic_seg[0]  # type: ignore[attr-defined]
            shown = rule.get(self.policy.score_rule, presence) >= least
        else:
            kept = scores >= least
            logits = outputs.pred_masks[0][kept].amax(0, keepdim=True) if kept.any() else None  # type: ignore[attr-defined]
            shown = kept.any()
        if logits is None or not shown:
            return torch.zeros(shape, dtype=torch.bool)
        return enlarge(logits.float().sigmoid(), shape)[0] >= self.policy.mask_threshold
