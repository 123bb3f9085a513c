"""Cases one after the other on one model, with the next one read and the last one written meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from MedSAM3Core.batch.cases import Case, Outcome
from MedSAM3Core.batch.work import CaseWorker, Failure, failed
from MedSAM3Core.errors import Cancelled
from MedSAM3Core.progress import CancelToken

if TYPE_CHECKING:
    from MedSAM3Core.volume.volume import Volume

AHEAD = 2
"""Images read before they are needed: one keeps an even pace, two ride out a large image among small ones."""
BEHIND = 1
"""Results that wait to be written before inference waits for them."""


def process(
    cases: Iterable[Case],
    worker: CaseWorker,
    cancel: CancelToken | None = None,
) -> Iterator[Case | Outcome]:
    """Run cases; inference happens in the calling thread, reading and writing in one thread each.

    At most `AHEAD` + `BEHIND` + 2 images are in memory.

    Args:
        cases: What to do.
        worker: How.
        cancel: Stops between two slices; what was finished before is still yielded.

    Yields:
        Each case when its inference begins, and one outcome for each case, in the order of the cases.

    Raises:
        Cancelled: After what was finished has been yielded.
        OutputError: If the disk is full.
    """
    line = _Line(cases, worker, cancel)
    stopped: Cancelled | None = None
    with line.reader, line.writer:
        while stopped is None:
            try:
                if (image := line.next_image()) is None:
                    break
                if isinstance(image, _Image):
                    yield image.case
                    line.infer(image)
            except Cancelled as error:
                stopped = error
            while line.behind and (line.behind[0].done() or len(line.behind) > BEHIND):
                yield line.behind.popleft().result()
        line.stop_reading()
        while line.behind:
            yield line.behind.popleft().result()
    if stopped is not None:
        raise stopped


@dataclass(frozen=True, eq=False)
class _Image:
    """A case's image, and the seconds that reading it took."""

    case: Case
    volume: Volume
    seconds: float


class _Line:
    """The cases that are being read, and the results that are being written."""

    def __init__(
        self,
        cases: Iterable[Case],
        worker: CaseWorker,
        cancel: CancelToken | None,
    ) -> None:
        self.reader = ThreadPoolExecutor(1, "batch-read")
        self.writer = ThreadPoolExecutor(1, "batch-write")
        self.ahead: deque[tuple[Case, Future[tuple[Volume, float]]]] = deque()
        self.behind: deque[Future[Outcome]] = deque()
        self._source = iter(cases)
        self._worker, self._cancel = worker, cancel

    def next_image(self) -> _Image | Failure | None:
        """The next case's image, once it is read; a failure that is on its way out already; None at the end."""
        self._fill()
        if not self.ahead:
            return None
        if self._cancel is not None:
            self._cancel.check()
        case, image = self.ahead.popleft()
        try:
            volume, seconds = image.result()
            return _Image(case, volume, seconds)
        except Failure as failure:
            self._end(case, failure, {"read": failure.seconds})
            return failure
        finally:
            self._fill()

    def infer(self, image: _Image) -> None:
        """Infer, and hand the results on to be written."""
        try:
            found, took = self._worker.infer(image.case, image.volume, self._cancel)
            seconds = {"read": image.seconds, "infer": took}
            written = self.writer.submit(self._worker.write, image.case, image.volume, found, seconds)
            self.behind.append(written)
        except Failure as failure:
            self._end(image.case, failure, {"read": image.seconds, "infer": failure.seconds})

    def _end(self, case: Case, failure: Failure, seconds: dict[str, float]) -> None:
        ended: Future[Outcome] = Future()
        ended.set_result(failed(case, failure.problem, seconds))
        self.behind.append(ended)

    def stop_reading(self) -> None:
        """Give up what has not been begun."""
        for _, image in self.ahead:
            image.cancel()
        self.ahead.clear()

    def _fill(self) -> None:
        for case in islice(self._source, AHEAD - len(self.ahead)):
            self.ahead.append((case, self.reader.submit(self._worker.read, case)))
