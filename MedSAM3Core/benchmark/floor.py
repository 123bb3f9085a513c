"""The arithmetic floor: how long the same multiplications and copies would take at the device's own best rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from MedSAM3Core.inference.precision import Precision
from MedSAM3Core.models.loading import LoadedModel
from MedSAM3Core.models.network import Pyramid

MATRIX_SIZES = {"cpu": (768, 1536, 2560), "cuda": (4096, 8192)}
COPIED_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
TRIES = 5
LONGEST_TRIES = 2.0
"""Seconds after which a size has been tried long enough."""


@dataclass(frozen=True)
class Rates:
    """What the device reaches at its best.

    Attributes:
        flops: Operations a second in matrix products (a multiplication and an addition are two).
        bytes: Bytes a second read and written by a copy.
        dtype: Of the matrices.
    """

    flops: float
    bytes: float
    dtype: str


@dataclass(frozen=True)
class Part:
    """One part of the network.

    Attributes:
        name: For example "vision encoder".
        unit: What it is done for: "slice", "pair" (of slice and concept), "step" (of the tracker, an object).
        flops: For one unit.
        seconds: Of each try, for one unit in a batch as our path runs it.
    """

    name: str
    unit: str
    flops: int
    seconds: tuple[float, ...]


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Best rates of matrix products in ``dtype`` and of copies."""
    flops = 0.0
    for size in MATRIX_SIZES[device.type]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        flops = max(flops, 2 * size**3 / min(times(partial(torch.matmul, left, right), device)))
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / min(times(lambda: target.copy_(source), device))
    return Rates(flops, copied, str(dtype).removeprefix("torch."))


def times(call: Callable[[], object], device: torch.device, tries: int = TRIES) -> list[float]:
    """Seconds of some calls after one that warms up."""
    call()
    taken: list[float] = []
    while len(taken) < tries and sum(taken) < LONGEST_TRIES:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return taken


def count_flops(call: Callable[[], object]) -> int:
    """Operations of a call, attention included.

    The counter does not see fused attention on every device; in its plain form it is two products, which it sees.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def measure_parts(
    model: LoadedModel, precision: Precision, batch: int, pairs: int, memories: int
) -> list[Part]:
    """Every part of the network on its own, alone for its operations and in a batch for its seconds.

    Args:
        model: The model; its plain way is counted, so that what our path leaves out is in the floor too.
        precision: Arithmetic.
        batch: Slices encoded at once.
        pairs: Pairs detected at once.
        memories: Recent slices that a tracker step remembers, beside its anchor.
    """
    network, device = model.network, model.device
    size = network.image_size
    with torch.inference_mode(), precision.context():
        pixels = torch.rand(batch, 3, size, size, device=device) * 2 - 1
        trunk = network.trunk(pixels)
        pyramid = network.detector_pyramid(trunk)
        text = network.encode_text(*model.tokenize(["liver"]))
        many = [n % batch for n in range(pairs)]
        one = pyramid.take([0])
        several, said = pyramid.take(many), text.take([0] * pairs)
        parts = [
            _part("vision encoder", "slice", batch, device, lambda n: network.trunk(pixels[:n])),
            _part("detector's neck", "slice", batch, device, lambda n: network.detector_pyramid(trunk[:n])),
            _part(
                "detector",
                "pair",
                pairs,
                device,
                lambda n: network.detect(several, said) if n > 1 else network.detect(one, said.take([0])),
            ),
        ]
        if model.card.tracks:
            parts.append(
                _part("tracker's neck", "slice", batch, device, lambda n: model.tracker.pyramid(trunk[:n]))
            )
            parts.append(_tracker_step(model, model.tracker.pyramid(trunk[:1]), memories))
    return parts


def _part(name: str, unit: str, batch: int, device: torch.device, call: Callable[[int], object]) -> Part:
    flops = count_flops(lambda: call(1))
    seconds = tuple(taken / batch for taken in times(lambda: call(batch), device))
    return Part(name, unit, flops, seconds)


def _tracker_step(model: LoadedModel, pyramid: Pyramid, memories: int) -> Part:
    """One object on one slice with a bank that is as full as it gets."""
    tracker = model.tracker
    bank = tracker.new_bank(memories + 2)
    mask: Tensor = torch.ones(1, 32, 32, device=model.device)
    prompted = tracker.prompt_mask(pyramid, mask)
    bank = bank.add(tracker.memorise(pyramid, prompted, 0, conditioning=True))
    for index in range(1, memories + 1):
        bank = bank.add(tracker.memorise(pyramid, prompted, index))

    def step(_: int) -> object:
        found = tracker.track(pyramid, bank, memories + 1)
        return tracker.memorise(pyramid, found, memories + 1)

    return _part("tracker, full memory", "step", 1, model.device, step)
