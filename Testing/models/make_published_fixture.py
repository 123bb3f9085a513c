"""Make ``data/published_small.npz``: outputs of the published code itself, at a size that tests can afford.

Run by hand, never by the tests: ``python make_published_fixture.py SAM3_SOURCE BPE_FILE OUT.npz`` with the unpacked
wheel of PyPI's sam3 0.1.4 (SAM License) and its dependencies timm, iopath, ftfy and regex on the path. The published
builder hard-codes its sizes; this works on a copy in a temporary folder in which the numbers of `SIZES` are replaced
and "cuda" is "cpu", and stands in for what the package imports but does not need here (triton, decord, torchvision).
Weights and LoRA come from the rule of the parity fixtures (``Testing/models/parity.py``), so no weights are stored; the
numbers have no meaning beyond the comparison. PUBLISHED_SIZE in the environment makes and tests another size: 168 has
12 tokens a side and windows of 8, as Medical SAM3's 504 px have 36 and 24.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import re
import shutil
import sys
import tempfile
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from parity import checkpoint_weights, lora_weights  # noqa: E402
from published_small import (  # noqa: E402
    BOXES,
    CLICK,
    FRAMES,
    LABELS,
    PHRASES,
    SEED,
    SIZE,
    disc,
    pixels,
    thin,
)

SIZES = {
    "model_builder.py": [
        (r"\b1008\b", str(SIZE)),
        (r"pretrain_img_size=336", "pretrain_img_size=112"),
        (r"embed_dim=1024", "embed_dim=64"),
        (r"depth=32", "depth=4"),
        (r"(?<=depth=4,\n        )num_heads=16", "num_heads=2"),
        (r"mlp_ratio=4.625", "mlp_ratio=2.0"),
        (r"global_att_blocks=\(7, 15, 23, 31\)", "global_att_blocks=(1, 3)"),
        (r"window_size=24", "window_size=8"),
        (r"dim_feedforward=2048", "dim_feedforward=96"),
        (r"hidden_dim=2048", "hidden_dim=96"),
        (r"num_layers=[346]\b", "num_layers=2"),
        (r"num_queries=200", "num_queries=12"),
        (r"\[1152, 1152\]", f"[{SIZE // 14 * 16}, {SIZE // 14 * 16}]"),
        (r"\[72, 72\]", f"[{SIZE // 14}, {SIZE // 14}]"),
        (
            r"width=1024,\n        heads=16,\n        layers=24",
            "width=64,\n        heads=2,\n        layers=2",
        ),
    ],
    "sam3_tracker_base.py": [
        (r"mlp_dim=2048", "mlp_dim=96"),
        (r"\.pin_memory\(\)", ""),
        (r"\.cuda\([^)]*\)", ""),
    ],
    "geometry_encoders.py": [(r"\.pin_memory\(\)", "")],
    "decoder.py": [('device="cuda"', 'device="cpu"')],
    "position_encoding.py": [('device="cuda"', 'device="cpu"')],
    "sam3_tracking_predictor.py": [
        (r"\.cuda\([^)]*\)", ""),
        (r'torch\.device\("cuda"\)', 'torch.device("cpu")'),
    ],
}


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that are imported and not used."""

    names = (
        "torchvision",
        "decord",
        "triton",
        "pkg_resources",
        "cv2",
        "skimage",
        "torch_generic_nms",
        "cc_torch",
    )

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda attribute: MagicMock(name=f"{spec.name}.{attribute}")  # type: ignore[method-assign]
        return module

    def exec_module(self, module):
        pass


def literal_roi_align(features, boxes, output_size):
    """The definition, sample by sample, from the test of our own."""
    from test_roi_align import literal_roi_align as pool

    pooled = [
        torch.from_numpy(pool(image.numpy(), box.tolist(), output_size)).float()
        for image, image_boxes in zip(features.detach(), boxes, strict=True)
        for box in image_boxes
    ]
    empty = features.new_zeros(0, features.shape[1], output_size, output_size)
    return torch.stack(pooled) if pooled else empty


def shrink(source: Path, target: Path) -> None:
    """Copy the package with other sizes."""
    shutil.copytree(source / "sam3", target / "sam3")
    for path in (target / "sam3").rglob("*.py"):
        for pattern, replacement in SIZES.get(path.name, []):
            text = path.read_text()
            changed = re.sub(pattern, replacement, text)
            if changed == text and "2048" not in pattern:
                raise SystemExit(f"{path.name}: nothing matches {pattern}")
            path.write_text(changed)


def load(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load what the module has; its rotary tables stay as it computed them."""
    state = module.state_dict()
    module.load_state_dict({n: weights.get(n, state[n]) for n in state})
    missing = [n for n in state if n not in weights and not n.endswith("freqs_cis")]
    if missing:
        raise SystemExit(f"no weight for {missing[:5]}")


def detect(model, phrase: str, boxes: bool) -> dict[str, torch.Tensor]:
    """One prompt through the published image model."""
    from sam3.model.data_misc import FindStage

    zero = torch.tensor([0])
    stage = FindStage(zero, zero, None, None, None, None, None)
    backbone = model.backbone.forward_image(pixels(0))
    trunk = [level.clone() for level in backbone["backbone_fpn"]]
    backbone.update(model.backbone.forward_text([phrase], device="cpu"))
    prompt = model._get_dummy_prompt()
    if boxes:
        for box, label in zip(BOXES, LABELS, strict=True):
            prompt.append_boxes(torch.tensor(box).view(1, 1, 4), torch.tensor([[bool(label)]]))
    out = model.forward_grounding(backbone, stage, None, prompt)
    return {
        **{f"fpn{i}": level[0] for i, level in enumerate(trunk)},
        "logits": out["pred_logits"][0, :, 0],
        "presence": out["presence_logit_dec"].flatten(),
        "boxes": out["pred_boxes_xyxy"][0],
        "masks": out["pred_masks"][0],
        "semantic": out["semantic_seg"][0, 0],
    }


def add_lora(model, lora: dict[str, torch.Tensor], scale: float) -> None:
    """W + (A @ B).T * scale, on the published modules."""
    for name in {key.rpartition(".lora.")[0] for key in lora}:
        change = (lora[f"{name}.lora.lora_A"] @ lora[f"{name}.lora.lora_B"]).T * scale
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            parent, _, part = name.rpartition(".")
            weight = model.get_submodule(parent).in_proj_weight
            third = len(weight) // 3
            start = "qkv".index(part[0]) * third
            weight[start : start + third] += change
        else:
            model.get_submodule(name).weight += change


def track(tracker, mask_prompt: bool) -> dict[str, torch.Tensor]:
    """Prompt frame 0 and propagate forward."""
    state = tracker.init_state(video_height=SIZE, video_width=SIZE, num_frames=FRAMES)
    state["images"] = [pixels(frame)[0] for frame in range(FRAMES)]
    if mask_prompt:
        tracker.add_new_mask(state, 0, 1, disc())
    else:
        x, y = CLICK
        point = torch.tensor([[x / SIZE, y / SIZE]])
        tracker.add_new_points(state, 0, 1, point, torch.tensor([1]), clear_old_points=True)
    for _ in tracker.propagate_in_video(state, 0, FRAMES, False, tqdm_disable=True, propagate_preflight=True):
        pass
    outputs = {**state["output_dict"]["cond_frame_outputs"], **state["output_dict"]["non_cond_frame_outputs"]}
    found = {}
    for frame, out in sorted(outputs.items()):
        found[f"low_res_f{frame}"] = out["pred_masks"][0, 0]
        found[f"score_f{frame}"] = out["object_score_logits"].flatten()
        found[f"pointer_f{frame}"] = out["obj_ptr"][0]
        found[f"memory_f{frame}"] = out["maskmem_features"][0].float()
    return found


@torch.no_grad()
def main(source: Path, bpe: Path, out: Path) -> None:
    """Build, run, write."""
    sys.meta_path.insert(0, StandIns())
    work = Path(tempfile.mkdtemp())
    shrink(source, work)
    sys.path.insert(0, str(work))
    from sam3.model_builder import build_sam3_image_model, build_tracker

    sys.modules["torchvision"].ops = types.SimpleNamespace(roi_align=literal_roi_align)  # type: ignore[attr-defined]
    model = build_sam3_image_model(bpe_path=str(bpe), device="cpu", load_from_HF=False).eval()
    # Its backbone is the detector's with the tracker's neck beside it.
    tracker = build_tracker(apply_temporal_disambiguation=False, with_backbone=True).eval()
    keys = {f"detector.{n}": tuple(t.shape) for n, t in model.state_dict().items()}
    for name, tensor in tracker.state_dict().items():
        keys[f"detector.{name}" if name.startswith("backbone.") else f"tracker.{name}"] = tuple(tensor.shape)
    weights = checkpoint_weights(keys, SEED)
    image = {n.removeprefix("detector."): t for n, t in weights.items() if n.startswith("detector.")}
    inner = {n.removeprefix("tracker."): t for n, t in weights.items() if n.startswith("tracker.")}
    load(model, image)
    load(tracker, inner | {n: t for n, t in image.items() if n.startswith("backbone.")})
    arrays = {}
    for name, (phrase, boxes) in PHRASES.items():
        arrays |= {f"{name}_{key}": value for key, value in detect(model, phrase, boxes).items()}
    for name, mask_prompt in (("mask", True), ("click", False)):
        arrays |= {f"{name}_{key}": value for key, value in track(tracker, mask_prompt).items()}
    lora_keys = lora_shapes(model)
    add_lora(model, lora_weights(lora_keys, SEED), 2.0)
    arrays |= {f"lora_{key}": value for key, value in detect(model, PHRASES["text"][0], False).items()}
    np.savez_compressed(
        out,
        keys=np.array(json.dumps(keys)),
        lora_keys=np.array(json.dumps(lora_keys)),
        **{name: thin(name, value.float()).numpy() for name, value in arrays.items()},
    )
    shutil.rmtree(work)


def lora_shapes(model) -> dict[str, tuple[int, int]]:
    """Rank 2 on one module of every kind."""
    shapes = {}
    for name, rows, columns in (
        ("backbone.vision_backbone.trunk.blocks.2.attn.qkv", 192, 64),
        ("backbone.vision_backbone.trunk.blocks.1.mlp.fc2", 64, 128),
        ("backbone.language_backbone.encoder.transformer.resblocks.1.attn.k_proj", 64, 64),
        ("backbone.language_backbone.encoder.transformer.resblocks.0.mlp.c_fc", 256, 64),
        ("transformer.encoder.layers.1.cross_attn_image.v_proj", 256, 256),
        ("transformer.encoder.layers.0.linear1", 96, 256),
        ("transformer.decoder.layers.0.ca_text.out_proj", 256, 256),
        ("transformer.decoder.layers.1.cross_attn.q_proj", 256, 256),
        ("geometry_encoder.encode.1.cross_attn_image.k_proj", 256, 256),
        ("geometry_encoder.final_proj", 256, 256),
        ("segmentation_head.cross_attend_prompt.v_proj", 256, 256),
        ("dot_prod_scoring.hs_proj", 256, 256),
    ):
        shapes[f"{name}.lora.lora_A"], shapes[f"{name}.lora.lora_B"] = (columns, 2), (2, rows)
    return shapes


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
