"""Segmentations, grids and volumes as messages, and back. Used by both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import chain
from typing import Any, get_type_hints

import numpy as np

from MedSAM3Core.errors import PromptError
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker.folder import SharedFolder
from MedSAM3Core.worker.protocol import (
    ArrayRef,
    ConceptAsked,
    Grid,
    ProtocolError,
    SegmentationData,
    from_plain,
)
from MedSAM3Core.worker.transport import ArrayOutlet, Channel, Outgoing, take

_NOT_FACTS = ("array", "geometry", "source", "files")
"""Fields of `Volume` that travel otherwise, or are paths of the client's machine, which mean nothing to the worker."""


_PLAIN_FIELDS = (
    "concept",
    "extent",
    "score",
    "slice_scores",
    "provenance",
    "boxes",
    "timings",
    "points",
    "anchors",
)
"""Fields of `Segmentation` that travel as they are."""


def grid_of(geometry: Geometry) -> Grid:
    """A geometry as plain values."""
    return Grid(geometry.shape, tuple(float(n) for n in geometry.ijk_to_ras.ravel()))


def geometry_of(grid: Grid) -> Geometry:
    """The geometry of plain values.

    Raises:
        VolumeError: If it is none.
        ProtocolError: If it does not hold three and sixteen numbers.
    """
    if len(grid.shape) != 3 or len(grid.ijk_to_ras) != 16:
        raise ProtocolError(
            f"The grid has {len(grid.shape)} and {len(grid.ijk_to_ras)} numbers; expected 3 and 16."
        )
    shape = (grid.shape[0], grid.shape[1], grid.shape[2])
    return Geometry(shape, np.array(grid.ijk_to_ras).reshape(4, 4))


def facts_of(volume: Volume) -> dict[str, Any]:
    """What is known of a volume beside its voxels and its place."""
    return {name: getattr(volume, name) for name in _fact_types()}


def volume_of(array: np.ndarray, grid: Grid, facts: dict[str, Any]) -> Volume:
    """The volume that a client described; facts that this version does not know are ignored.

    Raises:
        VolumeError: If array and grid do not fit.
        ProtocolError: If a fact is of the wrong type.
    """
    types = _fact_types()
    try:
        known = {name: from_plain(types[name], value) for name, value in facts.items() if name in types}
    except TypeError as fault:
        raise ProtocolError(f"What is known of the volume cannot be used: {fault}.") from fault
    return Volume(array, geometry_of(grid), **known)


@cache
def _fact_types() -> dict[str, Any]:
    hints = get_type_hints(Volume)
    return {field.name: hints[field.name] for field in fields(Volume) if field.name not in _NOT_FACTS}


def asked(concept: str | Concept) -> ConceptAsked:
    """A concept as it was given to a session.

    Raises:
        PromptError: If it is neither a phrase nor a concept.
    """
    if isinstance(concept, Concept):
        return ConceptAsked(resolved=concept)
    if isinstance(concept, str):
        return ConceptAsked(typed=concept)
    raise PromptError(f"The concept is of type {type(concept).__name__}; expected a phrase or a Concept.")


def given(concept: ConceptAsked) -> str | Concept:
    """What `asked` was given."""
    return concept.typed if concept.resolved is None else concept.resolved


class SegmentationPorter:
    """Carries segmentations over a channel.

    Args:
        channel: Where arrays arrive.
        outlet: How arrays leave.
        folder: The shared folder, or None.
    """

    def __init__(self, channel: Channel, outlet: ArrayOutlet, folder: SharedFolder | None) -> None:
        self._channel = channel
        self._outlet = outlet
        self._folder = folder

    def pack(
        self, segmentation: Segmentation, token: str = ""
    ) -> tuple[SegmentationData, Iterator[Outgoing]]:
        """The segmentation as data, and the messages that must go before it.

        Raises:
            ProtocolError: If an array cannot be sent.
        """
        references: dict[str, Any] = {"mask": None, "probability": None}
        before: list[Iterator[Outgoing]] = []
        if segmentation.extent is not None:
            for name in references:
                if (array := getattr(segmentation, name)) is not None:
                    references[name], messages = self._outlet.refer(array)
                    before.append(messages)
        fields: dict[str, Any] = {name: getattr(segmentation, name) for name in _PLAIN_FIELDS}
        return SegmentationData(**fields, **references), chain.from_iterable(before)

    def unpack(self, data: SegmentationData, geometry: Geometry) -> Segmentation:
        """The segmentation of ``data`` on the grid ``geometry``.

        Raises:
            ProtocolError: If its arrays are absent or do not fit its extent.
        """
        mask, probability = self._crop(data, data.mask), self._crop(data, data.probability)
        if data.extent is not None and mask is None:
            raise ProtocolError("The segmentation has an extent but no mask; send both.")
        empty = np.zeros((0, 0, 0), bool)
        return Segmentation(
            geometry=geometry,
            mask=empty if mask is None else mask.astype(bool, copy=False),
            probability=probability,
            **{name: getattr(data, name) for name in _PLAIN_FIELDS},
        )

    def _crop(self, data: SegmentationData, reference: ArrayRef | None) -> np.ndarray | None:
        if reference is None:
            return None
        crop = take(reference, self._channel, self._folder)
        if data.extent is None or crop.shape != data.extent.shape:
            expected = None if data.extent is None else data.extent.shape
            raise ProtocolError(f"The crop has shape {crop.shape}; its extent asks for {expected}.")
        return crop
