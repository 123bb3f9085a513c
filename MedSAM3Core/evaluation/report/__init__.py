"""An evaluation as files: a CSV of all rows, a JSON of all figures, and an HTML page that opens offline."""

from __future__ import annotations

from MedSAM3Core.evaluation.report.files import Provenance, write_report
from MedSAM3Core.evaluation.report.gallery import Gallery

__all__ = ["Gallery", "Provenance", "write_report"]
