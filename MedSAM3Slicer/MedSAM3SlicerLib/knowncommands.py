"""Worker commands that the user of this account has agreed to.

The Worker field is saved with the scene, and what stands in it is started as a program. A scene that somebody else
made must not start a program by being opened and worked on, so a command counts only after this user has said yes to
it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

SETTING = "MedSAM3/knownWorkerCommands"


class KnownCommands:
    """Remembers commands in the application's settings.

    Args:
        settings: A ``QSettings``.
        ask: Asks the user yes or no.
    """

    def __init__(self, settings: Any, ask: Callable[[str], bool]) -> None:
        self._settings = settings
        self._ask = ask

    def knows(self, command: str) -> bool:
        """Whether it is Slicer's own Python, or was agreed to before."""
        return not command.strip() or command in self._all()

    def allows(self, command: str) -> bool:
        """Whether it may be started; asks about one that is not known."""
        if self.knows(command):
            return True
        question = _(
            "Start this as MedSAM3's worker?\n\n{command}\n\nSay yes only if you chose it yourself: it is saved with "
            "the scene, and a scene from elsewhere could start any program this way."
        ).format(command=command)
        if not self._ask(question):
            return False
        self._settings.setValue(SETTING, "\n".join([*self._all(), command]))
        return True

    def _all(self) -> list[str]:
        return [line for line in str(self._settings.value(SETTING, "") or "").split("\n") if line]
