"""What the worker does when a GPU's memory runs out: ask for less, step by step, and finish.

Free of torch, so that it can be tested with an injected fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from MedSAM3Core.errors import ResourceError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ONE_SLICE_BYTES = 128 << 20
"""Trunk output and both pyramids of one slice take 90 MB at 1008 px in bfloat16; a smaller store would keep nothing."""


@dataclass(frozen=True)
class Step:
    """One way to run.

    Attributes:
        name: A word for logs and tests.
        sentence: What the user is told when it is taken.
        options: Settings of the session that it changes, by the names of `InferenceSettings`.
        device: The device it moves to, or empty for the one asked for.
        question: What the user is asked before it is taken; empty takes it without asking.
    """

    name: str
    sentence: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    question: str = ""


LADDER: tuple[Step, ...] = (
    Step("as asked"),
    Step(
        "smaller batches",
        "The GPU's memory ran out; going on with smaller batches.",
        {"batch_slices": 2, "batch_pairs": 4},
    ),
    Step(
        "features in host memory",
        "The GPU's memory ran out again; going on slice by slice, with features in the computer's own memory.",
        {"batch_slices": 1, "batch_pairs": 1, "device_bytes": _ONE_SLICE_BYTES},
    ),
    Step(
        "cpu",
        "The GPU's memory is too small; going on with the CPU.",
        {"batch_slices": 2, "batch_pairs": 4},
        device="cpu",
        question="The GPU's memory is too small for this run. Go on with the CPU, which takes many times longer?",
    ),
)


class Steering(Protocol):
    """What stepping down needs from its surroundings."""

    def is_out_of_memory(self, fault: BaseException) -> bool:
        """Whether ``fault`` says that memory ran out, and asking for less may help."""

    def give_back(self) -> None:
        """Give all memory back that the failed attempt still holds."""

    def tell(self, step: Step) -> None:
        """The run goes on with ``step``."""

    def ask(self, question: str) -> bool:
        """The user's answer."""


def run_stepping_down(
    run: Callable[[Step], T],
    steering: Steering,
    start: int = 0,
    on_cpu: bool = False,
    ladder: Sequence[Step] = LADDER,
) -> tuple[T, int]:
    """Run, and run again more modestly each time memory runs out.

    Args:
        run: The work, done the way the given step says.
        steering: Recognises the fault, frees memory, tells and asks.
        start: The step that served last time, so that a session need not fail anew with each run.
        on_cpu: The device asked for is the CPU, so that moving there is no step.
        ladder: The steps, most generous first.

    Returns:
        What ``run`` returned, and the step that served.

    Raises:
        ResourceError: If even the last step ran out of memory, or the user declined it.
    """
    for index in range(start, len(ladder)):
        step = ladder[index]
        if step.device == "cpu" and on_cpu:
            continue
        if index > start and not _taken(step, steering):
            raise ResourceError(
                "The GPU's memory ran out, and going on with the CPU was declined.",
                "Close other programs that use the GPU, choose a smaller model, or choose the device CPU.",
            )
        try:
            return run(step), index
        except Exception as fault:
            if not steering.is_out_of_memory(fault):
                raise
            logger.warning("Memory ran out at the step %r: %s", step.name, fault)
        steering.give_back()  # outside the except, whose traceback holds the tensors of the failed attempt
    raise ResourceError(
        "Memory ran out even in the smallest steps.",
        "Close other programs, choose a smaller model, or give the worker a machine with more memory.",
    )


def _taken(step: Step, steering: Steering) -> bool:
    if step.question and not steering.ask(step.question):
        return False
    steering.tell(step)
    return True
