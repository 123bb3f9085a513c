"""Which arithmetic the network runs in."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

PARITY_TOLERANCE = 0.05
"""Largest relative difference (root mean square) of bfloat16 features at which bfloat16 is used unasked."""


class Precision:
    """Float32, or bfloat16 through autocast; never a cast of the weights, which degrades video masks.

    Args:
        device: Where the network runs.
        request: "float32", "bfloat16" or "auto"; "auto" is settled by `settle`.
    """

    def __init__(self, device: torch.device | str, request: str = "auto") -> None:
        self.device = torch.device(device)
        self.request = request
        self._dtype = torch.bfloat16 if request == "bfloat16" else torch.float32
        self._settled = request != "auto"

    @property
    def dtype(self) -> torch.dtype:
        """Type that features are kept in."""
        return self._dtype

    @property
    def name(self) -> str:
        """ "float32" or "bfloat16"."""
        return str(self._dtype).removeprefix("torch.")

    def context(self) -> AbstractContextManager:
        """Context in which the network is to be called."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def adopt(self, dtype: torch.dtype) -> bool:
        """Take over the type that stored features were computed in, where "auto" is not settled yet.

        Returns:
            Whether features of that type fit.
        """
        if not self._settled and (dtype == torch.float32 or has_bfloat16(self.device)):
            self._settled, self._dtype = True, dtype
        return dtype == self._dtype

    @torch.inference_mode()
    def settle(self, trunk: nn.Module | object, pixels: Tensor) -> None:
        """Decide "auto" once: bfloat16 where the hardware computes in it and the trunk's output agrees.

        The decision looks at hardware and numbers, never at a clock, so that a rerun on the same machine
        decides alike.

        Args:
            trunk: Callable from pixels to features.
            pixels: (1, 3, size, size) of a slice that is not empty.
        """
        if self._settled:
            return
        self._settled = True
        if not has_bfloat16(self.device):
            return
        exact = trunk(pixels).float()  # type: ignore[operator]
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            fast = trunk(pixels).float()  # type: ignore[operator]
        error = float((fast - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp_min(1e-12))
        if error <= PARITY_TOLERANCE:
            self._dtype = torch.bfloat16
        log.info("bfloat16 differs by %.4f of the features' size: using %s", error, self.name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # torch names these without a promise to keep them: absent means no.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = (getattr(torch.cpu, name, None) for name in names)
    return any(check() for check in checks if check is not None)
