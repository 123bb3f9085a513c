"""What the server needs from the library that computes, and the real one.

The server gets it through its constructor, so that its own tests run on a double without torch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker.estimate import ModelSizes, RunSizes, device_need, host_need

try:
    import psutil
except ImportError:
    psutil = None  # type: ignore[assignment]


class SessionLike(Protocol):
    """The session that the worker serves; `MedSAM3Core.inference.session.Session` is one."""

    def segment(
        self,
        concept: str | Concept,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> Segmentation:
        """Segment one concept."""

    def segment_many(
        self,
        concepts: Sequence[str | Concept],
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> list[Segmentation]:
        """Segment several concepts."""

    def refine(
        self,
        segmentation: Segmentation,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> Segmentation:
        """Rerun with more boxes."""

    def close(self) -> None:
        """Give everything back."""


class SegmenterLike(Protocol):
    """A loaded model; `MedSAM3Core.inference.session.Segmenter` is one."""

    def open(self, volume: Volume) -> SessionLike:
        """Open a volume; further options by name."""


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes; None where they cannot be told."""

    device: str = "cpu"
    host_used: int | None = None
    host_free: int | None = None
    device_used: int | None = None
    device_free: int | None = None
    device_total: int | None = None


class Backend(Protocol):
    """Loads models and knows the machine."""

    def describe_device(self) -> str:
        """The device that "auto" means here, for people."""

    def load(self, model: str, device: str) -> SegmenterLike:
        """Load a model; raises `ModelError` if it cannot be."""

    def memory(self) -> MemoryFacts:
        """What is used and free now."""

    def memory_needed(self, session: Any, concepts: int) -> dict[str, int]:
        """Bytes that a run will need by device, "cpu" for host memory; empty where it cannot be told."""

    def is_out_of_memory(self, fault: BaseException) -> bool:
        """Whether asking for less may help."""

    def give_back(self) -> None:
        """Return cached memory to the system."""


class TorchBackend:
    """The library itself. torch is imported with the first question, after the server has reserved its output."""

    def describe_device(self) -> str:
        """For example "cuda:0 (NVIDIA H200)" or "cpu (8 threads)"."""
        import torch

        if torch.cuda.is_available():
            return f"cuda:0 ({torch.cuda.get_device_name(0)})"
        return f"cpu ({torch.get_num_threads()} threads)"

    def load(self, model: str, device: str) -> SegmenterLike:
        """Load a model by registry name or path; raises `ModelError` if it cannot be."""
        from MedSAM3Core.inference.session import Segmenter

        return Segmenter.from_pretrained(model, device=device)

    def memory(self) -> MemoryFacts:
        """Host memory by psutil, the first GPU's by torch."""
        import torch

        used, free = host_memory()
        if not torch.cuda.is_available():
            return MemoryFacts("cpu", used, free)
        device_free, total = torch.cuda.mem_get_info(0)
        return MemoryFacts("cuda:0", used, free, torch.cuda.memory_reserved(0), device_free, total)

    def memory_needed(self, session: Any, concepts: int) -> dict[str, int]:
        """An estimate from the network's and the volume's sizes, see `MedSAM3Core.worker.estimate`."""
        vision = session.model.network.model.config.detector_config.vision_config
        backbone, settings, shape = vision.backbone_config, session.settings, session.volume.geometry.shape
        device = str(session.model.device)
        compact = device != "cpu" and settings.precision != "float32"
        model = ModelSizes(
            tokens=backbone.image_size // backbone.patch_size,
            trunk=backbone.hidden_size,
            width=vision.fpn_hidden_size,
            bytes_a_number=2 if compact else 4,
        )
        run = RunSizes(
            slices=session.plan.count,
            voxels=prod(shape),
            concepts=concepts,
            batch_slices=settings.batch_slices,
            batch_pairs=settings.batch_pairs,
            device_bytes=settings.device_bytes,
            host_bytes=0 if device == "cpu" else settings.host_bytes,
        )
        on_device, on_host = device_need(model, run), host_need(model, run)
        return {"cpu": on_device + on_host} if device == "cpu" else {device: on_device, "cpu": on_host}

    def is_out_of_memory(self, fault: BaseException) -> bool:
        """torch's own class, and the runtime errors of cuBLAS, cuDNN and the CPU allocator that mean the same."""
        return looks_out_of_memory(fault)

    def give_back(self) -> None:
        """Collect garbage, then empty torch's cache on the GPU."""
        gc.collect()
        torch: Any = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


_OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def looks_out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that memory ran out, by its class's name or its words; needs no torch."""
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(fault).__mro__):
        return True
    text = str(fault).lower()
    return isinstance(fault, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY_WORDS)


def host_memory() -> tuple[int | None, int | None]:
    """Bytes that this process holds, and bytes that are free; None without psutil."""
    if psutil is None:
        return None, None
    return int(psutil.Process().memory_info().rss), int(psutil.virtual_memory().available)
