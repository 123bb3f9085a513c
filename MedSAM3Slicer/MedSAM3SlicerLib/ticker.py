"""Something that calls back every few milliseconds: Slicer's event loop, or nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

INTERVAL_MS = 20


class Ticker(Protocol):
    """Calls a function again and again on the thread of the window."""

    def start(self, function: Callable[[], None]) -> None:
        """Call it every `INTERVAL_MS` from now on."""

    def stop(self) -> None:
        """Call it no more."""


class NoTicker:
    """For scripts without an event loop; they drive a run themselves."""

    def start(self, function: Callable[[], None]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class QtTicker:
    """A ``qt.QTimer``."""

    def __init__(self) -> None:
        import qt

        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._function: Callable[[], None] = lambda: None
        self._timer.connect("timeout()", self._tick)

    def start(self, function: Callable[[], None]) -> None:
        """Call it from the event loop from now on."""
        self._function = function
        self._timer.start()

    def stop(self) -> None:
        """Call it no more."""
        self._timer.stop()

    def _tick(self) -> None:
        self._function()
