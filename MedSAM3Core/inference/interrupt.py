"""Stopping in the middle of a batch: a cancel is looked at before every layer, while batches stay as large as they are.

A batch of eight slices takes eight slices' time; between two of its layers there is a place to stop every few
milliseconds, which costs one function call each and no throughput.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from MedSAM3Core.progress import CancelToken


@contextmanager
def interruptible(network: nn.Module, cancel: CancelToken | None) -> Iterator[None]:
    """Let a cancel stop the network's forward passes within the block, on this thread.

    Args:
        network: Whatever computes in the block. Its layers are the members of its `torch.nn.ModuleList`s.
        cancel: Looked at before every layer; None changes nothing.

    Raises:
        Cancelled: From inside a forward pass, if the token is cancelled.
    """
    handles = [] if cancel is None else [_watch(layer, cancel) for layer in _layers(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(network: nn.Module) -> list[nn.Module]:
    """Each layer once, also when two lists hold it."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return list({id(layer): layer for layers in lists for layer in layers}.values())


def _watch(layer: nn.Module, cancel: CancelToken) -> Any:
    thread = threading.get_ident()

    def look(*_: Any) -> None:
        # Another session may run the same network on another thread; its run is its own.
        if threading.get_ident() == thread:
            cancel.check()

    look_first: Callable[..., None] = look
    return layer.register_forward_pre_hook(look_first)
