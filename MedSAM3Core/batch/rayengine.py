"""A batch on a Ray cluster: a pool of actors, each with a warm model, one GPU each where there are GPUs.

An actor gets a few cases at a time and runs them through the same pipeline as the local engine, on the same number of
threads, so its results are the same bit for bit. Images and masks never enter Ray's object store: an actor reads from
and writes to the file system that all nodes share, and sends back rows of a table. What a lost actor had not sent back
is given to others; a case that was under way in `MOST_LOSSES` lost actors counts as failed.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from MedSAM3Core.batch.cases import BatchSettings, Case, Outcome
from MedSAM3Core.batch.pipeline import process
from MedSAM3Core.batch.work import SegmenterLike, failed
from MedSAM3Core.errors import Cancelled, InputError, MedSAM3Error, WorkerError
from MedSAM3Core.progress import CancelToken

log = logging.getLogger(__name__)

CHUNK = 8
"""Most cases that are handed to an actor at once: enough to read ahead, few enough to share the last ones out."""
MOST_LOSSES = 3
"""Lost actors after which their current case is given up."""
MOST_IDLE_LOSSES = 5
"""Actors lost one after the other in one place, without a word in between, after which the batch stops."""
STORE_BYTES = 200 << 20
"""Object store of a cluster that is started here; rows need kilobytes."""

LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Environment under which a cluster that is started here takes the loopback address, as it does on Windows and macOS by
default; with an address of the network everybody there could run code on it. Ray looks at it when it is imported, and
its ``_node_ip_address`` turns 127.0.0.1 into the network's address."""

SegmenterFactory = Callable[[], SegmenterLike]


def load_segmenter(model: str, device: str) -> SegmenterLike:
    """The model, loaded on the actor's node."""
    from MedSAM3Core import Segmenter

    return Segmenter.from_pretrained(model, device=device)


class BatchActor:
    """What lives in an actor: a model, and the pipeline.

    Args:
        settings: What holds for all cases.
        factory: Makes the segmenter.
        threads: Of the processor, for the network; the local engine's own number, for results depend on it in their
            last bits.
    """

    def __init__(self, settings: BatchSettings, factory: SegmenterFactory, threads: int | None) -> None:
        from MedSAM3Core.batch.run import LocalEngine

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self._engine = LocalEngine(factory(), settings)

    def identity(self) -> dict[str, Any]:
        """As `LocalEngine.identity`; waiting for it waits for the model."""
        return self._engine.identity()

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[str, Any]]:
        """Run cases; yields ("begun", key) and ("ended", outcome) as they happen."""
        for event in process(cases, self._engine.worker):
            yield ("begun", event.key) if isinstance(event, Case) else ("ended", event)


class RayEngine:
    """Runs cases on actors. Made by `ray_engine`.

    Args:
        settings: What holds for all cases.
        make_actor: Starts an actor and gives its handle.
        count: Actors.
    """

    def __init__(self, settings: BatchSettings, make_actor: Callable[[], Any], count: int) -> None:
        self.settings = settings
        self._make_actor = make_actor
        self.actors: list[Any] = [make_actor() for _ in range(count)]
        self._identity: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """The hash of the weights, as the first actor loaded them."""
        return self._identity

    def load(self) -> None:
        """Wait for the first actor's model; an interrupt ends the wait.

        Raises:
            ModelError, InputError: If the actor cannot load the model.
            WorkerError: If the actor died.
        """
        import ray

        try:
            self._identity = ray.get(self.actors[0].identity.remote())
        except ray.exceptions.RayError as error:
            raise _own_error(error) from error

    def run(
        self, cases: Sequence[Case], begin: Callable[[Case], None], cancel: CancelToken | None
    ) -> Iterator[Outcome]:
        """Run cases in any order."""
        pool = _Pool(cases, len(self.actors), cancel)
        threads = [
            threading.Thread(target=self._serve, args=(number, pool), name=f"ray-{number}", daemon=True)
            for number in range(len(self.actors))
        ]
        by_key = {case.key: case for case in cases}
        for thread in threads:
            thread.start()
        try:
            yield from self._listen(pool, by_key, begin, cancel)
        finally:
            pool.close()

    def _listen(
        self,
        pool: _Pool,
        by_key: dict[str, Case],
        begin: Callable[[Case], None],
        cancel: CancelToken | None,
    ) -> Iterator[Outcome]:
        left = len(by_key)
        while left:
            if cancel is not None and cancel.cancelled:
                raise Cancelled()
            try:
                kind, content = pool.said.get(timeout=0.2)
            except queue.Empty:
                continue
            if kind == "begun":
                begin(by_key[content])
            elif kind == "ended":
                left -= 1
                yield content
            else:
                raise content

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def _serve(self, number: int, pool: _Pool) -> None:
        """Feed one actor until nothing is left; replace it when it is lost."""
        import ray

        idle_losses = 0
        try:
            while not pool.is_over:
                chunk: list[Case] = []
                try:
                    if not self._is_ready(number, pool) or not (chunk := pool.take()):
                        return
                    for reference in self.actors[number].run.remote(chunk):
                        pool.hear(ray.get(reference))
                        idle_losses = 0
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError as error:
                    idle_losses += 1
                    if pool.closed:  # it was ended on purpose
                        return
                    if idle_losses > MOST_IDLE_LOSSES:
                        raise
                    log.warning("actor %d was lost: %s", number, error)
                    pool.lose(chunk)
                    self.actors[number] = self._make_actor()
        except Exception as error:  # the thread's boundary: the batch must end with it, not wait for ever
            pool.said.put(("fault", _own_error(error)))

    def _is_ready(self, number: int, pool: _Pool) -> bool:
        """Wait for an actor's model, which takes a while; others can do all cases meanwhile, and then it is False."""
        import ray

        answer = self.actors[number].identity.remote()
        while not pool.is_over:
            if ray.wait([answer], timeout=0.2)[0]:
                ray.get(answer)
                return True
        return False


class _Pool:
    """The cases that wait, shared by the threads that feed the actors."""

    def __init__(self, cases: Sequence[Case], actors: int, cancel: CancelToken | None) -> None:
        self.said: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._waiting = deque(cases)
        self._under_way: set[str] = set()
        self._current: dict[str, None] = {}
        self._losses: Counter[str] = Counter()
        self._actors = actors
        self._cancel = cancel
        self._changed = threading.Condition()
        self.closed = False

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be taken, now or later."""
        with self._changed:
            return self.closed or not (self._waiting or self._under_way)

    def take(self) -> list[Case]:
        """Cases for an actor; waits while others may still be lost, and gives none when all are over."""
        with self._changed:
            while not self._waiting and self._under_way and not self.closed:
                self._changed.wait(0.5)
            if self.closed or (self._cancel is not None and self._cancel.cancelled):
                return []
            share = -(-len(self._waiting) // (2 * self._actors))
            chunk = [self._waiting.popleft() for _ in range(min(CHUNK, share))]
            self._under_way.update(case.key for case in chunk)
            return chunk

    def hear(self, message: tuple[str, Any]) -> None:
        """Pass on what an actor says."""
        kind, content = message
        with self._changed:
            if kind == "begun":
                self._current[content] = None
            elif kind == "ended":
                self._current.pop(content.key, None)
                self._under_way.discard(content.key)
                self._changed.notify_all()
        self.said.put(message)

    def lose(self, chunk: Sequence[Case]) -> None:
        """Give what a lost actor had not finished to others, its current case counted."""
        with self._changed:
            open_ones = [case for case in chunk if case.key in self._under_way]
            self._under_way.difference_update(case.key for case in open_ones)
            begun = [case.key for case in open_ones if case.key in self._current]
            for key in begun:
                del self._current[key]
            # The last one begun was computed; those before it only waited to be written.
            if open_ones:
                self._losses[begun[-1] if begun else open_ones[0].key] += 1
            for case in reversed(open_ones):
                if self._losses[case.key] >= MOST_LOSSES:
                    problem = (
                        f"The node or process was lost {MOST_LOSSES} times at this case, probably for lack of memory; "
                        "run it alone, or again with --retry-failed."
                    )
                    self.said.put(("ended", failed(case, problem)))
                else:
                    self._waiting.appendleft(case)
            self._changed.notify_all()

    def close(self) -> None:
        """Let the threads end."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def _own_error(error: BaseException) -> MedSAM3Error:
    """What an actor raised, as this library's error."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, MedSAM3Error):
        return cause
    detail = str(cause).strip().splitlines()[-1:] or [type(cause).__name__]
    return WorkerError(
        f"The Ray cluster cannot go on ({detail[0][:300]}); see its logs, and run again with --resume."
    )


@contextmanager
def ray_engine(
    settings: BatchSettings,
    *,
    device: str = "auto",
    address: str | None = None,
    actors: int | None = None,
    factory: SegmenterFactory | None = None,
) -> Iterator[RayEngine]:
    """An engine on a Ray cluster; its actors end with the block.

    Args:
        settings: What holds for all cases; its folders must be the same on every node.
        device: "auto" (a GPU for each actor where the cluster has some), "cpu" or "cuda".
        address: "auto" or "HOST:PORT" of a cluster; None starts one on this machine that only this machine reaches.
        actors: Models at work; None takes one for each GPU, or for every second processor core.
        factory: Makes the segmenter in the actor; None loads the settings' model.

    Raises:
        InputError: If Ray is not installed, or the cluster cannot be reached.
    """
    if address is None:
        os.environ.setdefault(*LOOPBACK)
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "The engine ray needs the package ray; install it with: pip install 'MedSAM3Core[ray]'."
        ) from error
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        engine = _engine_on(ray, settings, device, actors, factory)
        try:
            engine.load()
            yield engine
        finally:
            engine.close()
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
        }
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The Ray cluster {address or 'of this machine'} cannot be reached ({reason}); check the address."
        ) from error


def _engine_on(
    ray: Any,
    settings: BatchSettings,
    device: str,
    actors: int | None,
    factory: SegmenterFactory | None,
) -> RayEngine:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if device == "auto" or device.startswith("cuda") else 0
    cores = int(resources.get("CPU", 1))
    if device.startswith("cuda") and gpus == 0:
        raise InputError(
            "The device is cuda, but the Ray cluster has no GPU; choose cpu, or add nodes with GPUs."
        )
    count = actors or gpus or max(1, cores // 2)
    place = "cuda" if gpus else "cpu"
    threads = None if gpus else _own_threads(factory)
    make = factory or _Loader(settings.model, place)
    # Ray would set OMP_NUM_THREADS to the actor's share of cores, and hide what is not its GPU.
    remote = ray.remote(BatchActor).options(
        num_gpus=1 if gpus else 0, num_cpus=min(cores / count, threads or 1), max_restarts=0
    )
    return RayEngine(settings, lambda: remote.remote(settings, make, threads), count)


class _Loader:
    """`load_segmenter` with its arguments, in a form that travels to a node."""

    def __init__(self, model: str, device: str) -> None:
        self.model, self.device = model, device

    def __call__(self) -> SegmenterLike:
        return load_segmenter(self.model, self.device)


def _own_threads(factory: SegmenterFactory | None) -> int | None:
    """Threads of the local engine's network, to compute alike; a double has no network."""
    if factory is not None:
        return None
    import torch

    return torch.get_num_threads()
