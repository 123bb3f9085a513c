"""The vision encoder through torch.compile, where the settings ask for it; what cannot be compiled runs as before.

On GPUs of the field this gave 1.16 to 2 times; on two CPU cores compiling takes longer than most runs, so it is off by
default. The detector is left alone: it breaks into nine graphs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from MedSAM3Core.inference.rotation import published_rotation
from MedSAM3Core.models.network import ConceptNetwork

log = logging.getLogger(__name__)


class CompiledTrunk:
    """Calls a network's trunk compiled, always with the same number of images, so that it is compiled once.

    Args:
        network: Its trunk is called.
        batch: Images of every call; fewer are filled up with copies of the last one.
        backend: Of torch.compile.

    Attributes:
        failed: Whether compiling failed, so that the plain trunk runs.
    """

    def __init__(self, network: ConceptNetwork, batch: int, backend: str = "inductor") -> None:
        self.network = network
        self.batch = batch
        self.failed = False
        self._warm = False
        self._compiled = torch.compile(network.trunk, dynamic=False, backend=backend)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(images, 3, size, size) to trunk outputs; at most ``batch`` images."""
        if self.failed or len(pixels) > self.batch or _has_branches(self.network):
            return self.network.trunk(pixels)
        missing = self.batch - len(pixels)
        filled = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
        try:
            return (self._compiled(filled) if self._warm else self._warm_up(filled))[: len(pixels)]
        except (TorchDynamoException, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            log.warning("the vision encoder cannot be compiled here and runs as it is: %s", reason)
            self.failed = True
            return self.network.trunk(pixels)

    def _warm_up(self, pixels: Tensor) -> Tensor:
        log.warning(
            "compiling the vision encoder for batches of %d at %d px; this takes a minute or more, once a process",
            self.batch,
            pixels.shape[-1],
        )
        began = time.perf_counter()
        # Compilers take no complex numbers, and a hook that looks for a cancel would cut the graph at every layer.
        with published_rotation(self.network), without_hooks(self.network):
            answer = self._compiled(pixels)
        self._warm = True
        log.info("compiled in %.0f s", time.perf_counter() - began)
        return answer


@contextmanager
def without_hooks(network: nn.Module) -> Iterator[None]:
    """No module of a network calls what was registered to run before it, within the block."""
    held = [(module, dict(module._forward_pre_hooks)) for module in network.modules()]
    for module, _ in held:
        module._forward_pre_hooks.clear()
    try:
        yield
    finally:
        for module, hooks in held:
            module._forward_pre_hooks.update(hooks)


def _has_branches(network: ConceptNetwork) -> bool:
    """Whether something adds to a layer's output, as a LoRA beside the weights: compiled code would leave it out."""
    return any(module._forward_hooks for module in network.detector.vision_encoder.modules())
