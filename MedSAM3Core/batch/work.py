"""One case from its files to its results, in three steps that may run in three threads."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from MedSAM3Core.batch.cases import BatchSettings, Case, Outcome
from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import Cancelled, MedSAM3Error, OutputError
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Concept

if TYPE_CHECKING:
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume.volume import Volume

log = logging.getLogger(__name__)

LEAST_FREE_BYTES = 16 << 20
"""With less room than this after a failed write the batch stops, instead of failing every case that follows."""

T = TypeVar("T")


class SessionLike(Protocol):
    """What a batch needs of a session, in process or behind a worker."""

    def segment_many(
        self,
        concepts: Sequence[Concept],
        *,
        cancel: CancelToken | None = None,
        threshold: float | None = None,
    ) -> list[Segmentation]:
        """Segment several concepts on one set of features."""


class SegmenterLike(Protocol):
    """What a batch needs of a model."""

    def open(
        self, volume: Volume, *, axis: str, window: str, mode: str
    ) -> AbstractContextManager[SessionLike]:
        """Open a volume."""


class Failure(Exception):  # noqa: N818 - not an error of the program but the way a case ends
    """A case that cannot go on.

    Args:
        problem: One sentence.
        seconds: Of the step that failed.
    """

    def __init__(self, problem: str, seconds: float) -> None:
        super().__init__(problem)
        self.problem = problem
        self.seconds = seconds


class CaseWorker:
    """The three steps of a case.

    Args:
        segmenter: A model.
        settings: What holds for all cases.
    """

    def __init__(self, segmenter: SegmenterLike, settings: BatchSettings) -> None:
        self.segmenter = segmenter
        self.settings = settings

    def read(self, case: Case) -> tuple[Volume, float]:
        """The case's image and the seconds it took.

        Raises:
            Failure: If it cannot be read, or its results could not be written in the format wanted.
        """
        return _timed(lambda: self._read(case))

    def _read(self, case: Case) -> Volume:
        from MedSAM3Core.volume.reading import read_series, read_volume

        if case.problem:
            raise OutputError(case.problem)
        volume = (
            read_series(case.files, case.path)
            if case.files
            else read_volume(case.path, modality=case.modality)
        )
        _check_format(self.settings.output_of(case), volume)
        return volume

    def infer(
        self, case: Case, volume: Volume, cancel: CancelToken | None = None
    ) -> tuple[list[Segmentation], float]:
        """The case's segmentations and the seconds they took.

        Raises:
            Failure: If the model cannot.
            Cancelled: If the token was cancelled.
        """
        return _timed(lambda: self._infer(case, volume, cancel))

    def _infer(self, case: Case, volume: Volume, cancel: CancelToken | None) -> list[Segmentation]:
        s = self.settings
        concepts = [resolve(phrase) for phrase in case.concepts]
        with self.segmenter.open(volume, axis=s.axis, window=s.window, mode=s.mode) as session:
            return session.segment_many(concepts, cancel=cancel, threshold=s.threshold)

    def write(
        self, case: Case, volume: Volume, found: Sequence[Segmentation], seconds: dict[str, float]
    ) -> Outcome:
        """Write the case's results.

        Args:
            case: The case.
            volume: Its image.
            found: What was found in it.
            seconds: Of the steps before.

        Raises:
            OutputError: If the disk is full: that is the end of the batch, not of the case.
        """
        try:
            said, took = _timed(lambda: self._write(case, volume, found))
        except Failure as failure:
            _check_room(self.settings.output)
            return failed(case, failure.problem, {**seconds, "write": failure.seconds})
        return Outcome(
            key=case.key,
            status="done",
            stamp=case.stamp(),
            path=str(case.path),
            series=case.series,
            output=self.settings.output_of(case).relative_to(self.settings.output).as_posix(),
            rows=tuple(row_of(one) for one in found),
            seconds={**seconds, "write": took},
            notices=tuple(dict.fromkeys((*volume.notices, *said))),
        )

    def _write(self, case: Case, volume: Volume, found: Sequence[Segmentation]) -> tuple[str, ...]:
        from MedSAM3Core.batch.contact import write_tile
        from MedSAM3Core.volume.writing import write_segmentations

        target = self.settings.output_of(case)
        _make_folder(target.parent)
        if self.settings.tiles:
            tile = self.settings.tile_of(case.key)
            _make_folder(tile.parent)
            write_tile(tile, volume, found, self.settings.axis, self.settings.window)
        return tuple(write_segmentations(target, found, volume))


def failed(case: Case, problem: str, seconds: dict[str, float] | None = None) -> Outcome:
    """How a case that failed ended."""
    return Outcome(
        case.key,
        "failed",
        stamp=case.stamp(),
        path=str(case.path),
        series=case.series,
        problem=problem,
        seconds=seconds or {},
    )


def row_of(segmentation: Segmentation) -> dict[str, Any]:
    """What the table says of one concept: plain values."""
    concept, provenance, extent = segmentation.concept, segmentation.provenance, segmentation.extent
    flat = segmentation.geometry.shape[0] == 1
    return {
        "concept": concept.typed,
        "name": concept.name or concept.phrase,
        "code": concept.code or "",
        "found": extent is not None,
        "voxels": segmentation.voxels,
        "ml": None if flat else round(segmentation.volume_ml, 4),
        "score": round(segmentation.score, 4) if math.isfinite(segmentation.score) else None,
        "first_slice": None if extent is None else extent.k[0],
        "last_slice": None if extent is None else extent.k[1],
        "model": provenance.model,
        "model_sha256": provenance.model_hash,
        "window": provenance.window,
        "axis": provenance.axis,
    }


def _timed(step: Callable[[], T]) -> tuple[T, float]:
    """Run a step of a case. Whatever goes wrong in it is the case's end and not the batch's.

    Raises:
        Failure: In place of anything but a cancel.
    """
    started = time.perf_counter()
    try:
        return step(), time.perf_counter() - started
    except Cancelled:
        raise
    except MedSAM3Error as error:
        raise Failure(str(error), time.perf_counter() - started) from error
    except (
        Exception
    ) as error:  # a case is a process boundary of its own: the 99,999 others must not pay for it
        log.warning("a case failed unexpectedly", exc_info=True)
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise Failure(f"An unexpected error occurred ({detail}); please report it.", 0.0) from error


def _check_format(path: Path, volume: Volume) -> None:
    """Raise `OutputError` if the volume does not fit the format, before the inference is paid for."""
    from MedSAM3Core.volume.writing import check_output

    _make_folder(path.parent)
    check_output(path, volume)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"The folder {folder} cannot be made ({reason}); choose another output.") from error


def _check_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        raise OutputError(f"The disk of {folder} is full; make room and run again with --resume.")
