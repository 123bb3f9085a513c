"""Compare this package, at full size, with outputs of the published code: ``make parity FIXTURES=FOLDER``.

The folder holds a ``settings.json`` (seeds, texts, boxes, disc) and reference outputs; its FIXTURES.md defines how
weights, LoRA and images are drawn. The way through is a user's: a checkpoint in the published layout is written,
converted into a model folder and loaded; a LoRA file is written, read and merged. Needs 8 GB of disk in a temporary
folder, 8 GB of memory and some minutes. Prints every output's largest difference beside its tolerance; exits 1 if one
is exceeded or a reference was not compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from MedSAM3Core.inference.preprocess import to_pixels
from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.conversion import convert_checkpoint
from MedSAM3Core.models.loading import LoadedModel, load_model
from MedSAM3Core.models.lora import merge, read_adapter
from MedSAM3Core.models.network import Detections, Pyramid, TextFeatures
from MedSAM3Core.models.tracker import MemoryBank, TrackOutput

SIZE = 1008
SAMPLES = 64

TOLERANCES = {
    "logits": 5e-4,
    "presence": 5e-4,
    "boxes": 5e-4,
    "semantic": 5e-4,
    "masks": 2e-3,
    "features": 2e-3,
    "language": 1e-4,
    "low-res logits": 2e-3,
    "object score": 1e-4,
    "pointer": 1e-4,
    "memory": 0.25,
    "probe": 1e-6,
}
"""Absolute tolerances for float32 on a CPU, as FIXTURES.md suggests them."""

FRACTION_TOLERANCE = 1e-3
"""For shares of positive pixels: a logit near zero may change sign (1 pixel of 288 x 288 is 1.2e-5)."""

PROVENANCE = {"seed", "image_seed", "image_crc32", "text", "disc"}
"""Arrays that say what the references were made from; the settings say it again."""

NOT_OFFERED = "mask_memsel"
"""Memory frame selection, which transformers and this package do not have; given for reference only."""


# -- the rules of FIXTURES.md ------------------------------------------------------------------------------------


def draw(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The normal numbers of a key: one generator a key, so that the order of keys does not matter."""
    generator = torch.Generator().manual_seed((zlib.crc32(key.encode("utf-8")) + seed) & 0xFFFFFFFF)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


_HALVES = (
    *(
        "pos_embed",
        "positional_embedding",
        "token_embedding.weight",
        "label_embed.weight",
        "cls_embed.weight",
    ),
    *("presence_token.weight", *(f"point_embeddings.{digit}.weight" for digit in range(10))),
    *("not_a_point_embed.weight", "no_mask_embed.weight", "iou_token.weight", "mask_tokens.weight"),
    *("obj_score_token.weight", "maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr"),
    "no_obj_embed_spatial",
)
_WHOLES = ("query_embed.weight", "reference_points.weight", "positional_encoding_gaussian_matrix")


def weight(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The value of a published key."""
    noise = draw(key, shape, seed)
    if key.endswith("pred_obj_score_head.layers.2.bias"):
        return 0.02 * noise + 2
    if key.endswith(".gamma"):
        return 0.1 * noise + 0.5
    if key.endswith(_WHOLES):
        return noise
    if key.endswith(_HALVES):
        return 0.5 * noise
    if len(shape) == 1:
        return 0.1 * noise + 1 if key.endswith(".weight") else 0.02 * noise
    return noise * (noise.numel() / shape[0]) ** -0.5


def checkpoint_weights(keys: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A published checkpoint without its rotary tables."""
    return {k: weight(k, shape, seed) for k, shape in keys.items() if not k.endswith("freqs_cis")}


def lora_weights(keys: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A LoRA in MedSAM3's layout."""
    values = {}
    for key, shape in keys.items():
        noise = draw(key, shape, seed)
        values[key] = noise * shape[0] ** -0.5 if key.endswith("lora_A") else 0.02 * noise
    return values


def image(seed: int, size: int = SIZE) -> np.ndarray:
    """uint8, (size, size, 3)."""
    random = np.random.RandomState(seed)
    v, u = np.mgrid[0:size, 0:size] / size
    pixels = np.stack([60 + 80 * u, 60 + 80 * v, 60 + 40 * (u + v)], axis=-1)
    for _ in range(12):
        cx, cy = random.uniform(0.1, 0.9, 2)
        sx, sy = random.uniform(0.03, 0.15, 2)
        amplitude = random.uniform(-90, 90, 3)
        blob = np.exp(-((u - cx) ** 2 / (2 * sx**2) + (v - cy) ** 2 / (2 * sy**2)))
        pixels += amplitude * blob[..., None]
    pixels += 15 * np.sin(2 * np.pi * (7 * u + 3 * v))[..., None]
    pixels += random.randint(-8, 9, (size, size, 3))
    return np.floor(np.clip(pixels, 0, 255) + 0.5).astype(np.uint8)


def disc(centre_x: float, centre_y: float, radius: float) -> Tensor:
    """(1, 1008, 1008) bool."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return ((x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2)[None]


def samples(values: Tensor) -> np.ndarray:
    """64 values spread over the flattened tensor."""
    flat = values.flatten().numpy()
    return flat[(np.arange(SAMPLES, dtype=np.int64) * 2654435761) % len(flat)]


def stats(values: Tensor) -> np.ndarray:
    """Mean, population standard deviation, least and largest."""
    v = values.double()
    return np.array([v.mean().item(), v.std(correction=0).item(), v.min().item(), v.max().item()])


# -- comparing ---------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """Collects differences, and what of the references has been looked at.

    Attributes:
        lines: (file, output, difference, tolerance).
        seen: Names of reference arrays, "file:name".
    """

    folder: Path
    lines: list[tuple[str, str, float, float]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def reference(self, file: str, name: str) -> np.ndarray:
        """A reference array."""
        self.seen.add(f"{file}:{name}")
        with np.load(self.folder / f"{file}.npz", allow_pickle=False) as arrays:
            return arrays[name]

    def check(self, file: str, name: str, value: Tensor | np.ndarray, kind: str | float) -> None:
        """Compare one output with the reference of that name."""
        wanted = self.reference(file, name).astype(np.float64)
        got = np.asarray(value, dtype=np.float64)
        tolerance = TOLERANCES[kind] if isinstance(kind, str) else kind
        difference = float("inf")
        if got.size == wanted.size and np.isfinite(got).all():
            difference = float(np.abs(got.reshape(wanted.shape) - wanted).max()) if wanted.size else 0.0
        self.lines.append((file, name, difference, tolerance))
        mark = "" if difference <= tolerance else "   EXCEEDED"
        sys.stdout.write(f"{file:<11} {name:<34} {difference:10.2e}  {tolerance:8.1e}{mark}\n")
        sys.stdout.flush()

    def unseen(self) -> list[str]:
        """Reference arrays that no check looked at and no reason excuses."""
        left = []
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                names = [f"{path.stem}:{name}" for name in arrays.files]
            left += [n for n in names if n not in self.seen and not self._excused(n)]
        return left

    @staticmethod
    def _excused(name: str) -> bool:
        return NOT_OFFERED in name or name.partition(":")[2] in PROVENANCE

    @property
    def failed(self) -> list[tuple[str, str, float, float]]:
        """The lines beyond their tolerance."""
        return [line for line in self.lines if not line[2] <= line[3]]


# -- the runs ----------------------------------------------------------------------------------------------------


def read_keys(path: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return {k: tuple(v[0]) if v and isinstance(v[0], list) else tuple(v) for k, v in values.items()}


def timed(label: str, started: float) -> None:
    """Say how long a part took and how much memory the process has needed so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(f"# {label}: {time.monotonic() - started:.1f} s, peak memory {peak:.1f} GiB\n")
    sys.stdout.flush()


def prepare_model(folder: Path, settings: dict, work: Path) -> LoadedModel:
    """Write the synthetic checkpoint, convert it, load it: the way of a user's file."""
    started = time.monotonic()
    published = work / "sam3.pt"
    keys = read_keys(folder / "checkpoint_keys.json")
    torch.save({"model": checkpoint_weights(keys, settings["weight_seed"])}, published)
    timed(f"{len(keys)} published tensors written", started)
    started = time.monotonic()
    manifest = convert_checkpoint(published, work / "sam3", ModelCard(name="parity"))
    published.unlink()
    timed(
        f"converted, {manifest.tensors} tensors placed, {len(manifest.dropped)} dropped on purpose", started
    )
    started = time.monotonic()
    model = load_model(work / "sam3", device="cpu")
    timed("loaded", started)
    return model


def prompt_boxes(settings: dict) -> tuple[Tensor, Tensor]:
    """(1, 2, 4) cxcywh and (1, 2) labels."""
    boxes = torch.tensor([[settings["positive_box"], settings["negative_box"]]], dtype=torch.float32)
    return boxes, torch.tensor([[1, 0]])


def check_probe(comparison: Comparison, settings: dict, pixels_u8: np.ndarray, keys: dict) -> None:
    """Weights and image are what the references were made with."""
    with np.load(comparison.folder / "vision.npz", allow_pickle=False) as arrays:
        probes = json.loads(str(arrays["weight_probe_json"]))
        crc = int(arrays["image_crc32"])
    comparison.seen |= {"vision:weight_probe_json", "vision:image_crc32"}
    worst = 0.0
    for key, probe in probes.items():
        value = weight(key, keys[key], settings["weight_seed"]).flatten()
        shape, mean, deviation, first = probe
        assert tuple(shape) == keys[key], key
        got = np.array([value.mean().item(), value.std(correction=0).item(), *value[:8].tolist()])
        worst = max(worst, float(np.abs(got - np.array([mean, deviation, *first])).max()))
    comparison.lines.append(("vision", "weight probes", worst, TOLERANCES["probe"]))
    found = zlib.crc32(pixels_u8.tobytes())
    if found != crc or found != int(settings["image_crc32"], 16):
        raise SystemExit(f"The image has CRC-32 {found:#x}; expected {settings['image_crc32']}.")
    comparison.check("vision", "image_s16", pixels_u8[::16, ::16], 0.0)
    comparison.check("vision", "image_mean", pixels_u8.mean(axis=(0, 1)), 1e-6)


def check_vision(comparison: Comparison, file: str, trunk: Tensor, pyramid: Pyramid) -> None:
    """The encoder's outputs."""
    for name, value in [("trunk", trunk), *((f"fpn{i}", level) for i, level in enumerate(pyramid.maps))]:
        check_map(comparison, file, name, value)


def check_map(comparison: Comparison, file: str, name: str, value: Tensor) -> None:
    """A feature map's shape, samples and statistics."""
    comparison.check(file, f"{name}_shape", np.array(value.shape), 0.0)
    comparison.check(file, f"{name}_samples", samples(value), "features")
    comparison.check(file, f"{name}_stats", stats(value), "features")


def check_detection(
    comparison: Comparison, file: str, found: Detections, text: TextFeatures, hidden: dict[str, Tensor]
) -> None:
    """One prompt's outputs."""
    check = comparison.check
    check(file, "pred_logits", found.logits[-1, 0], "logits")
    check(file, "presence_logit", found.presence[-1], "presence")
    boxes = found.boxes[-1, 0]
    check(file, "pred_boxes_xyxy", boxes, "boxes")
    low, high = boxes[:, :2], boxes[:, 2:]
    check(file, "pred_boxes_cxcywh", torch.cat([(low + high) / 2, high - low], dim=1), "boxes")
    check(file, "semantic_seg_s4", found.semantic[0, ::4, ::4], "semantic")
    check(file, "semantic_seg_stats", stats(found.semantic), "semantic")
    top = torch.from_numpy(comparison.reference(file, "top5").astype(np.int64))
    ours = found.logits[-1, 0].topk(5).indices
    comparison.lines.append((file, "top5 (same queries)", float((ours != top).sum()), 0.0))
    masks = found.masks[0]
    check(file, "top5_masks_s4", masks[top][:, ::4, ::4], "masks")
    check(file, "mask_mean", masks.mean(dim=(1, 2)), "masks")
    check(file, "mask_std", masks.std(dim=(1, 2), correction=0), "masks")
    check(file, "mask_frac_pos", (masks > 0).float().mean(dim=(1, 2)), FRACTION_TOLERANCE)
    padding = torch.from_numpy(comparison.reference(file, "language_mask").astype(bool)).reshape(-1)
    comparison.lines.append((file, "language_mask", float((padding != ~text.mask[0]).sum()), 0.0))
    language = torch.from_numpy(comparison.reference(file, "language_features")).reshape(len(padding), -1)
    difference = (text.embeddings[0] - language)[~padding].abs().max().item()
    comparison.lines.append((file, "language_features (real tokens)", difference, TOLERANCES["language"]))
    # The published encoder has tokens first: (5184, 1, 256).
    check_map(comparison, file, "encoder_out", hidden["encoder"].transpose(0, 1).contiguous())
    check(file, "queries_samples", samples(hidden["queries"][-1, 0]), "features")


def watch(model: LoadedModel) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Keep the fusion encoder's and the decoder's outputs of every call."""
    hidden: dict[str, Tensor] = {}
    detector = model.network.detector
    handles = [
        detector.detr_encoder.register_forward_hook(
            lambda m, a, out: hidden.update(encoder=out.last_hidden_state)
        ),
        detector.detr_decoder.register_forward_hook(
            lambda m, a, out: hidden.update(queries=out.intermediate_hidden_states)
        ),
    ]
    return hidden, lambda: [handle.remove() for handle in handles] and None


def detect(
    comparison: Comparison,
    model: LoadedModel,
    file: str,
    phrase: str,
    pyramid: Pyramid,
    boxes: bool,
    settings: dict,
) -> None:
    """Run one prompt and compare it."""
    started = time.monotonic()
    hidden, stop = watch(model)
    text = model.network.encode_text(*model.tokenize([phrase]))
    cxcywh, labels = prompt_boxes(settings) if boxes else (None, None)
    found = model.network.detect(pyramid, text, cxcywh, labels)
    stop()
    if boxes:
        comparison.check(file, "boxes_cxcywh", cxcywh[0], 1e-7)
        wanted = comparison.reference(file, "box_labels").astype(np.int64).reshape(-1)
        comparison.lines.append((file, "box_labels", float((labels[0].numpy() != wanted).sum()), 0.0))
    check_detection(comparison, file, found, text, hidden)
    timed(f"{file}: text encoder and detector", started)


def check_tracker(
    comparison: Comparison, model: LoadedModel, pyramids: list[Pyramid], settings: dict
) -> None:
    """Prompt frame 0, propagate forward, compare every frame."""
    with np.load(comparison.folder / "tracker.npz", allow_pickle=False) as arrays:
        names = arrays.files
    tracker = model.tracker
    for index, level in enumerate(pyramids[0].maps):
        check_map(comparison, "tracker", f"tracker_fpn{index}", level)
    x, y, radius = settings["tracker_disc"]
    comparison.check("tracker", "click_xy", np.array([x, y]), 0.0)
    for run in ("mask_plain", "point_plain"):
        count = sum(name.startswith(f"{run}_object_score_f") for name in names)
        if run == "mask_plain":
            out = tracker.prompt_mask(pyramids[0], disc(x, y, radius))
        else:
            out = tracker.prompt_points(
                pyramids[0], torch.tensor([[[float(x), float(y)]]]), torch.tensor([[1]])
            )
        bank = tracker.new_bank(len(pyramids))
        for frame in range(count):
            started = time.monotonic()
            if frame:
                out = tracker.track(pyramids[frame], bank, frame)
            bank = bank.add(tracker.memorise(pyramids[frame], out, frame, conditioning=frame == 0))
            check_frame(comparison, run, frame, out, bank, names)
            timed(f"{run} frame {frame}", started)


def check_frame(
    comparison: Comparison, run: str, frame: int, out: TrackOutput, bank: MemoryBank, names: list[str]
) -> None:
    """One frame's outputs."""

    def check(name: str, value: Tensor | np.ndarray, kind: str) -> None:
        if f"{run}_{name}_f{frame}" in names:
            comparison.check("tracker", f"{run}_{name}_f{frame}", value, kind)

    memory = bank.memories[-1].features
    assert memory is not None
    check("low_res_mask_s2", out.logits[0, ::2, ::2], "low-res logits")
    check("low_res_mask_stats", stats(out.logits), "low-res logits")
    check("object_score", out.object_score, "object score")
    check("obj_ptr", out.pointer[0], "pointer")
    check("ious", out.ious[0], "object score")
    check("maskmem_samples", samples(memory.float()), "memory")
    check("maskmem_stats", stats(memory.float()), "memory")


@torch.no_grad()
def run(folder: Path, work: Path) -> Comparison:
    """Everything, in the order of the memory it needs."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    comparison = Comparison(folder)
    keys = read_keys(folder / "checkpoint_keys.json")
    frame = image(settings["image_seed"])
    check_probe(comparison, settings, frame, keys)
    model = prepare_model(folder, settings, work)
    pixels = to_pixels(frame[None], SIZE)
    comparison.check("vision", "pixel_values_samples", samples(pixels), 1e-6)
    trunk = encode(model, pixels)
    pyramid = model.network.detector_pyramid(trunk)
    check_vision(comparison, "vision", trunk, pyramid)
    detect(comparison, model, "text_a", settings["text_a"], pyramid, False, settings)
    detect(comparison, model, "text_b", settings["text_b"], pyramid, False, settings)
    detect(comparison, model, "text_boxes", settings["text_a"], pyramid, True, settings)
    pyramids = [model.tracker.pyramid(trunk)]
    for t in range(1, 4):
        moved = to_pixels(np.roll(frame, (8 * t, 12 * t), axis=(0, 1))[None], SIZE)
        pyramids.append(model.tracker.pyramid(encode(model, moved)))
    check_tracker(comparison, model, pyramids, settings)
    del pyramids
    path = work / "lora.pt"
    torch.save(lora_weights(read_keys(folder / "lora_keys.json"), settings["weight_seed"]), path)
    rank, alpha = (float(comparison.reference("text_lora", name)) for name in ("lora_rank", "lora_alpha"))
    merge(model.network.model, read_adapter(path, alpha=alpha, rank=int(rank)))
    trunk = encode(model, pixels)
    pyramid = model.network.detector_pyramid(trunk)
    check_vision(comparison, "text_lora", trunk, pyramid)
    detect(comparison, model, "text_lora", settings["text_a"], pyramid, False, settings)
    return comparison


def encode(model: LoadedModel, pixels: Tensor) -> Tensor:
    """The trunk, timed."""
    started = time.monotonic()
    trunk = model.network.trunk(pixels)
    timed("vision encoder", started)
    return trunk


def main() -> int:
    """Run and report; 0 when every output is within its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves the default")
    arguments = parser.parse_args()
    if not (arguments.fixtures / "settings.json").is_file():
        sys.stderr.write(f"{arguments.fixtures} has no settings.json; give a folder of parity fixtures.\n")
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        comparison = run(arguments.fixtures, Path(work))
    for file, name, difference, tolerance in comparison.failed:
        sys.stdout.write(f"EXCEEDED {file} {name}: {difference:.2e} > {tolerance:.1e}\n")
    unseen = comparison.unseen()
    for name in unseen:
        sys.stdout.write(f"NOT COMPARED {name}\n")
    timed(f"{len(comparison.lines)} outputs compared, {len(comparison.failed)} beyond tolerance", started)
    return 1 if comparison.failed or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
