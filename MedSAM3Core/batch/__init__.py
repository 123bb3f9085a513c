"""Many images, one command: cases found, run on one machine or a cluster, and gone on with after any interruption.

::

    inputs ──(discover)──> Case ──> engine: read | infer | write ──> Outcome ──> Journal ──> table, contact sheet
                                    local: three threads                       append-only
                                    ray:   the same, in actors

A folder belongs to one batch. Every output takes its name whole, then one line goes into the journal; whatever ends the
process between two such moments, the next run with ``resume`` does what has no line, and nothing else.
"""

from __future__ import annotations

from MedSAM3Core.batch.cases import BatchSettings, Case, Outcome
from MedSAM3Core.batch.discover import Found, Wanted, find_cases, read_manifest
from MedSAM3Core.batch.run import Engine, LocalEngine, Summary, Tally, run_batch

__all__ = [
    "BatchSettings",
    "Case",
    "Engine",
    "Found",
    "LocalEngine",
    "Outcome",
    "Summary",
    "Tally",
    "Wanted",
    "find_cases",
    "read_manifest",
    "run_batch",
]
