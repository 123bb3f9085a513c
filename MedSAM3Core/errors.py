"""Every error this library raises on purpose.

::

    MedSAM3Error
    ├── InputError               what the caller gave cannot be used (command line: exit code 2)
    │   ├── VolumeError          an image file, series or array
    │   ├── PromptError          a concept phrase or a box
    │   └── OutputError          a place to write that cannot be written
    ├── ModelError               a model: its name, its files, its licence, its download (exit code 2)
    │   └── CheckpointError      a checkpoint file that is not what it should be
    ├── ResourceError            memory or disk ran out (exit code 1)
    ├── WorkerError              the worker process died, hung or spoke nonsense (exit code 1)
    ├── EndpointError            a language model's endpoint cannot be reached or refuses (exit code 1)
    └── Cancelled                the user asked to stop (exit code 130)

A message is one sentence that says what was received, what was expected and what to do. ``remedy`` may carry the
last part on its own, for a panel that shows it separately.
"""

from __future__ import annotations


class MedSAM3Error(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: One sentence: what was received and what was expected.
        remedy: What to do next, or an empty string when the message says it already.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(MedSAM3Error):
    """What the caller gave cannot be used."""

    exit_code = 2


class VolumeError(InputError):
    """An image file, series or array that cannot be read or segmented."""


class PromptError(InputError):
    """A concept phrase or box that cannot be used."""


class OutputError(InputError):
    """A place that cannot be written to."""


class ModelError(MedSAM3Error):
    """A model that is unknown, absent, not licensed or not loadable."""

    exit_code = 2


class CheckpointError(ModelError):
    """A checkpoint file that is not what it should be."""


class ResourceError(MedSAM3Error):
    """Memory or disk ran out."""


class WorkerError(MedSAM3Error):
    """The worker process died, hung or did not speak the protocol."""


class EndpointError(MedSAM3Error):
    """The endpoint of a language model that cannot be reached, refuses, or does not speak the chat API."""


class Cancelled(MedSAM3Error):  # noqa: N818 - the public name in DESIGN.md
    """The user asked to stop; whatever was cancelled left no trace."""

    exit_code = 130

    def __init__(self, message: str = "Cancelled.", remedy: str = "") -> None:
        super().__init__(message, remedy)
