"""A signal in plain Python; PythonQt's own do not work reliably for signals that Python defines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """Calls every connected function, in the order of connecting, on the caller's thread."""

    def __init__(self) -> None:
        self._slots: list[Callable[..., Any]] = []

    def connect(self, slot: Callable[..., Any]) -> None:
        """Call ``slot`` with each emission's arguments; connecting twice calls it once."""
        if slot not in self._slots:
            self._slots.append(slot)

    def disconnect(self, slot: Callable[..., Any]) -> None:
        """Call ``slot`` no more; no error if it was not connected."""
        if slot in self._slots:
            self._slots.remove(slot)

    def emit(self, *arguments: Any) -> None:
        """Call the slots. A slot that disconnects another keeps that one from being called."""
        for slot in list(self._slots):
            if slot in self._slots:
                slot(*arguments)
