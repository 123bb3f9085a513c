"""Inference in a process of its own: protocol, server and client. Importing it imports no torch."""

from MedSAM3Core.worker.client import (
    ClientEvent,
    WorkerClient,
    WorkerEnded,
    WorkerStarted,
    default_command,
    split_command,
)
from MedSAM3Core.worker.pending import PendingResult
from MedSAM3Core.worker.protocol import NeedEvent, ProgressEvent, SteppedDown
from MedSAM3Core.worker.remote import RemoteSegmenter, RemoteSession

__all__ = [
    "ClientEvent",
    "NeedEvent",
    "PendingResult",
    "ProgressEvent",
    "RemoteSegmenter",
    "RemoteSession",
    "SteppedDown",
    "WorkerClient",
    "WorkerEnded",
    "WorkerStarted",
    "default_command",
    "split_command",
]
