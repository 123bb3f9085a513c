"""The results of a batch as a table: one row for each case and concept, one row for each case that failed."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from MedSAM3Core.batch.cases import Outcome
from MedSAM3Core.volume.atomic import atomic_file

log = logging.getLogger(__name__)

COLUMNS: dict[str, str] = {
    "case": "string",
    "status": "string",
    "concept": "string",
    "name": "string",
    "code": "string",
    "found": "bool",
    "voxels": "int64",
    "ml": "float64",
    "score": "float64",
    "first_slice": "int64",
    "last_slice": "int64",
    "error": "string",
    "notices": "string",
    "read_seconds": "float64",
    "infer_seconds": "float64",
    "write_seconds": "float64",
    "input": "string",
    "series": "string",
    "output": "string",
    "model": "string",
    "model_sha256": "string",
    "window": "string",
    "axis": "string",
}
"""Name to type, in the order of the columns. Seconds are the case's, the same in each of its rows."""

CSV_FILE, PARQUET_FILE = "results.csv", "results.parquet"


def rows_of(outcomes: Iterable[Outcome]) -> Iterator[dict[str, Any]]:
    """Rows of the table."""
    for one in outcomes:
        shared: dict[str, Any] = {
            "case": one.key,
            "status": one.status,
            "error": one.problem,
            "notices": " ".join(one.notices),
            "input": one.path,
            "series": one.series,
            "output": one.output,
        }
        for stage in ("read", "infer", "write"):
            if stage in one.seconds:
                shared[f"{stage}_seconds"] = round(one.seconds[stage], 4)
        for row in one.rows or ({},):
            yield {name: None for name in COLUMNS} | shared | row


def write_tables(folder: Path, outcomes: Iterable[Outcome]) -> list[Path]:
    """Write ``results.csv``, and ``results.parquet`` where pyarrow is installed.

    Returns:
        What was written.

    Raises:
        OutputError: If it cannot be written.
    """
    rows = list(rows_of(outcomes))
    written = [folder / CSV_FILE]
    with atomic_file(written[0]) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        table = csv.DictWriter(text, list(COLUMNS))
        table.writeheader()
        table.writerows(rows)
        text.flush()
        text.detach()
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        log.info("pyarrow is not installed; no Parquet table is written")
        return written
    types = {
        "string": pyarrow.string(),
        "bool": pyarrow.bool_(),
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    clean = [{name: _text(value) for name, value in row.items()} for row in rows]
    written.append(folder / PARQUET_FILE)
    with atomic_file(written[1]) as stream:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(clean, schema=schema), stream)
    return written


def _text(value: Any) -> Any:
    """File names may hold bytes that are no text; Parquet takes text only."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
