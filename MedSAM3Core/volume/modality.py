"""What kind of image this is, when its file does not say."""

from __future__ import annotations

import numpy as np

_AIR_HU = (-1100, -700)
_SOFT_TISSUE_HU = (-200, 300)
_SAMPLES = 1_000_000


def infer_modality(array: np.ndarray) -> str | None:
    """Recognise CT by its Hounsfield units; anything else stays unknown.

    Conservative on purpose: CT taken for something else gets percentiles, which is a usable picture, but
    something else taken for CT gets a window in the wrong unit, which is a black one. CT is assumed only when
    the values are whole numbers, at least 1% of them are air (-1100 to -700 or lower padding) with nothing
    below -3100, at least 5% are soft tissue (-200 to 300), and zero is no more than half of the volume. An
    abdominal crop without air stays unknown.

    Args:
        array: (slices, rows, columns[, channels]).

    Returns:
        "CT" or None.
    """
    if array.ndim != 3 or array.dtype.kind == "u":
        return None
    values = array.reshape(-1)[:: max(1, array.size // _SAMPLES)].astype(np.float32)
    if values.min() < -3100 or values.min() > _AIR_HU[1] or np.percentile(values, 99.5) > 3100:
        return None
    if not np.array_equal(values, np.rint(values)):
        return None
    air = float((values <= _AIR_HU[1]).mean())
    soft = float(((values >= _SOFT_TISSUE_HU[0]) & (values <= _SOFT_TISSUE_HU[1]) & (values != 0)).mean())
    zero = float((values == 0).mean())
    return "CT" if air >= 0.01 and soft >= 0.05 and zero <= 0.5 else None


_DICOM_MODALITIES = {
    "DX": "XR", "CR": "XR", "RF": "XR", "XA": "XR", "MG": "XR", "PX": "XR", "IO": "XR", "RG": "XR",
    "OP": "FUNDUS", "OPT": "OCT", "SM": "HISTO", "GM": "HISTO", "ES": "ENDO", "IVUS": "US", "IVOCT": "OCT",
}  # fmt: skip


def from_dicom(code: str | None) -> str | None:
    """This project's name for a DICOM modality code: X-ray codes become "XR", "OP" becomes "FUNDUS", CT stays
    CT.

    "OT" (other), "XC" (photograph) and "SC" say nothing and become None.
    """
    text = (code or "").strip().upper()
    return None if text in ("", "OT", "XC", "SC", "DOC") else _DICOM_MODALITIES.get(text, text)
