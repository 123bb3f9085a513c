"""PNG, JPEG, TIFF and BMP through Pillow: single images, and TIFF stacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.excerpts import excerpt
from MedSAM3Core.volume.raw import MAX_DEFLATE_RATIO, RawImage, SizedFile
from MedSAM3Core.volume.volume import axial_affine

MAX_PIXELS = 2**30
"""Most pixels read from all pages of a file; one page may have 178,956,970, Pillow's own limit. Whole slides
need a
pyramid reader, and a forged header must not cost memory."""

_GREY_MODES = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_EXIF_ORIENTATION = 0x0112


def read_image(path: Path) -> RawImage:
    """Read one image, or the pages of a TIFF as slices.

    Voxels are 1 mm and the image lies as an axial slice, so that it is shown as it is stored: the resolution
    in such files is that of a printer, not of a scanner. Alpha is dropped, palettes become colours, and the
    pixels stay in the order in which they are stored, so that masks have the file's own pixel grid.

    Colour of 16 bits per channel comes as 8: Pillow keeps the high byte.

    Raises:
        VolumeError: If the image is too large, or its pages differ.
    """
    try:
        with SizedFile(path) as file, Image.open(file) as image:
            pages, notices = _pages(image, path.stat().st_size)
    except Image.DecompressionBombError as error:
        raise VolumeError(f"The image is too large ({excerpt(error)}); crop it or reduce it.") from error
    if len({page.shape for page in pages}) > 1:
        sizes = ", ".join(_size(page) for page in pages[:4]) + (", ..." if len(pages) > 4 else "")
        raise VolumeError(
            f"The {len(pages)} pages differ in size or colour ({sizes}); expected pages of one size."
        )
    return RawImage(np.stack(pages)[np.newaxis], axial_affine((1, 1, 1)), calibrated=False, notices=notices)


def _size(page: np.ndarray) -> str:
    """Width, height and colour in words."""
    return f"{page.shape[1]} x {page.shape[0]}{' in colour' if page.ndim > 2 else ''}"


def _pages(image: Image.Image, file_bytes: int) -> tuple[list[np.ndarray], tuple[str, ...]]:
    pages: list[np.ndarray] = []
    notices: dict[str, None] = {}
    frames = ImageSequence.Iterator(image) if image.format == "TIFF" else [image]
    total = 0
    for frame in frames:
        total += frame.width * frame.height
        if total > file_bytes * MAX_DEFLATE_RATIO * 8:  # a pixel has at least one bit
            raise VolumeError(
                f"The file is cut short: its header promises {frame.width} x {frame.height} pixels, which cannot be in "
                f"a file of {file_bytes} bytes; copy it again."
            )
        if total > MAX_PIXELS:
            raise VolumeError(
                f"The image has more than {MAX_PIXELS:,} pixels"
                f"{f' on its first {len(pages) + 1} pages' if pages else ''}; crop it or reduce it."
            )
        pixels, said = _pixels(frame)
        pages.append(pixels)
        notices.update(dict.fromkeys(said))
    if len(pages) > 1:
        notices[f"The {len(pages)} pages of the TIFF are taken as slices 1 mm apart."] = None
    if image.format in ("JPEG", "TIFF") and image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        notices["The EXIF orientation is ignored: pixels and mask are in the order of the file."] = None
    return pages, tuple(notices)


def _pixels(frame: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Pixels as (rows, columns) or (rows, columns, 3), and what was changed."""
    notices = []
    mode = frame.mode
    if mode == "P":
        frame = frame.convert("RGBA" if "transparency" in frame.info else "RGB")
    elif mode == "1":
        frame = frame.convert("L")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        frame = frame.convert("RGB")
        notices.append(f"The {mode} colours were converted to RGB.")
    elif mode in ("PA", "La", "RGBa", "RGBX"):
        frame = frame.convert("RGBA")
    if frame.mode in ("RGBA", "LA"):
        frame = frame.convert("RGB" if frame.mode == "RGBA" else "L")
        notices.append("The image's transparency (alpha channel) was dropped.")
    pixels = np.asarray(frame)
    if mode in ("P", "1") and pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if frame.mode not in (*_GREY_MODES, "RGB"):
        raise VolumeError(f"The image has the colour mode {mode}; expected grey or RGB.")
    return pixels, notices
