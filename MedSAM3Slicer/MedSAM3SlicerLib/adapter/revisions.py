"""Every rerun as a revision that can be had again, kept in the scene itself.

A revision is one hidden text node: what was asked and what came out, the mask as a packed and compressed crop in
base64. It is saved with the scene as any node is, so a scene opens where it was left, and an old state can be brought
back without a model, or a worker, or the image's features.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import slicer

from MedSAM3Core.concepts import resolve
from MedSAM3Core.prompts import Point
from MedSAM3Core.segmentation import Extent, Provenance, Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3SlicerLib.adapter.drawing import Drawing
from MedSAM3SlicerLib.adapter.segments import parsedBox
from MedSAM3SlicerLib.adapter.volumes import ijkToWorld

REVISION_ATTRIBUTE = "MedSAM3.Revision"
SEGMENT_ATTRIBUTE = "MedSAM3.Segment"
OWNER_REFERENCE = "MedSAM3.Segmentation"
MOST_REVISIONS = 50
"""Revisions of a segment; the oldest goes first."""
MOST_BYTES = 24_000_000
"""Text of all revisions of a segmentation; a liver in 300x512x512 takes some 50 kB, so this is rarely met."""


@dataclass(frozen=True)
class Revision:
    """A state of a segment.

    Attributes:
        number: Counted from 1 in the segment.
        what: What made it, for the list.
        created: UTC time, ISO 8601.
        nodeId: Of the text node that holds it.
    """

    number: int
    what: str
    created: str
    nodeId: str


class RevisionBook:
    """The revisions of a scene's segments.

    Args:
        scene: The scene.
    """

    def __init__(self, scene: slicer.vtkMRMLScene) -> None:
        self._scene = scene

    def add(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        result: Segmentation,
        what: str,
        drawing: Drawing | None = None,
    ) -> Revision:
        """Keep a state; the oldest ones go when there are too many."""
        before = self.of(segmentationNode, segmentId)
        number = before[-1].number + 1 if before else 1
        node = slicer.vtkMRMLTextNode()
        node.SetHideFromEditors(True)
        node.SetName(f"{segmentationNode.GetName()} {segmentId} revision {number}")
        node.SetForceCreateStorageNode(node.CreateStorageNodeNever)  # its text stands in the scene's own file
        node = self._scene.AddNode(node)
        node.SetAttribute(REVISION_ATTRIBUTE, str(number))
        node.SetAttribute(SEGMENT_ATTRIBUTE, segmentId)
        node.SetNodeReferenceID(OWNER_REFERENCE, segmentationNode.GetID())
        node.SetText(_encode(result, what, drawing or Drawing()))
        self._trim(segmentationNode, segmentId)
        return Revision(number, what, result.provenance.created, node.GetID())

    def of(self, segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> list[Revision]:
        """A segment's revisions, the oldest first."""
        found = []
        for node in self._nodes(segmentationNode.GetID()):
            if node.GetAttribute(SEGMENT_ATTRIBUTE) == segmentId:
                head = json.loads(node.GetText().split("\n", 1)[0])
                number = int(node.GetAttribute(REVISION_ATTRIBUTE))
                found.append(Revision(number, head["what"], head["created"], node.GetID()))
        return sorted(found, key=lambda revision: revision.number)

    def read(self, revision: Revision, volumeNode: slicer.vtkMRMLVolumeNode) -> tuple[Segmentation, Drawing]:
        """What a revision holds, on the volume's grid."""
        node = self._scene.GetNodeByID(revision.nodeId)
        return _decode(node.GetText(), volumeNode)

    def latest(
        self,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        segmentId: str,
        volumeNode: slicer.vtkMRMLVolumeNode,
    ) -> Segmentation | None:
        """The last revision's result, None where there is none."""
        found = self.of(segmentationNode, segmentId)
        return self.read(found[-1], volumeNode)[0] if found else None

    def removeOf(self, segmentationId: str) -> None:
        """Remove all revisions of a segmentation."""
        for node in self._nodes(segmentationId):
            self._scene.RemoveNode(node)

    def _nodes(self, segmentationId: str) -> list[slicer.vtkMRMLTextNode]:
        nodes = []
        for n in range(self._scene.GetNumberOfNodesByClass("vtkMRMLTextNode")):
            node = self._scene.GetNthNodeByClass(n, "vtkMRMLTextNode")
            owner = node.GetNodeReferenceID(OWNER_REFERENCE)
            if node.GetAttribute(REVISION_ATTRIBUTE) and owner == segmentationId:
                nodes.append(node)
        return nodes

    def _trim(self, segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> None:
        for old in self.of(segmentationNode, segmentId)[:-MOST_REVISIONS]:
            self._scene.RemoveNode(self._scene.GetNodeByID(old.nodeId))
        nodes = self._nodes(segmentationNode.GetID())
        sizes = [len(node.GetText()) for node in nodes]
        while sum(sizes) > MOST_BYTES and len(nodes) > 1:
            self._scene.RemoveNode(nodes.pop(0))
            sizes.pop(0)


def _encode(result: Segmentation, what: str, drawing: Drawing) -> str:
    """Two lines: what the list shows, and the rest."""
    extent = result.extent
    rest: dict[str, Any] = {
        "shape": list(result.geometry.shape),
        "extent": None if extent is None else [extent.i, extent.j, extent.k],
        "mask": _pack(result.mask),
        "score": result.score,
        "slice_scores": {str(n): round(score, 4) for n, score in result.slice_scores.items()},
        "provenance": asdict(result.provenance),
        "phrase": result.concept.typed,
        "drawing": drawing.text(),
    }
    head = {"what": what, "created": result.provenance.created}
    return json.dumps(head) + "\n" + json.dumps(rest, separators=(",", ":"))


def _pack(mask: np.ndarray) -> str:
    packed = np.packbits(np.ascontiguousarray(mask, bool)).tobytes()
    return base64.b64encode(zlib.compress(packed, 1)).decode("ascii")


def _decode(text: str, volumeNode: slicer.vtkMRMLVolumeNode) -> tuple[Segmentation, Drawing]:
    plain = json.loads(text.split("\n", 1)[1])
    made = {name: tuple(v) if isinstance(v, list) else v for name, v in plain["provenance"].items()}
    extent, mask = None, np.zeros((0, 0, 0), bool)
    if plain["extent"] is not None:
        extent = Extent(*(tuple(ends) for ends in plain["extent"]))
        packed = np.frombuffer(zlib.decompress(base64.b64decode(plain["mask"])), np.uint8)
        mask = np.unpackbits(packed, count=int(np.prod(extent.shape))).reshape(extent.shape).astype(bool)
    provenance = Provenance(**made)
    result = Segmentation(
        resolve(plain["phrase"]),
        Geometry(tuple(plain["shape"]), ijkToWorld(volumeNode)),
        extent,
        mask,
        score=plain["score"],
        slice_scores={int(n): score for n, score in plain["slice_scores"].items()},
        provenance=provenance,
        boxes=tuple(parsedBox(text) for text in provenance.boxes),
        points=tuple(Point.parse(text) for text in provenance.points),
        anchors=provenance.anchors,
    )
    return result, Drawing.parse(plain["drawing"])
