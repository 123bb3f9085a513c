"""Films (MP4, AVI and what else FFmpeg knows) through PyAV, frame by frame, so that their length costs no memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from MedSAM3Core.errors import InputError, OutputError, VolumeError
from MedSAM3Core.volume.atomic import atomic_file
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.raw import RawImage, reason
from MedSAM3Core.volume.volume import Volume, axial_affine

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg")
WRITTEN = {".mp4": ("mp4", ("libx264", "mpeg4")), ".avi": ("avi", ("mpeg4", "mjpeg"))}
"""Suffix to container and codecs, the first one that FFmpeg has is taken."""
MOST_BYTES = 4 << 30
"""Largest film that is read as a whole; longer ones can only be followed frame by frame."""
USUAL_RATE = 25.0


@dataclass
class Film:
    """A film on disk.

    Attributes:
        path: The file.
        rows: Height in pixels.
        columns: Width in pixels.
        promised: Frames that the file says it has, 0 when it does not say.
        rate: Frames a second.
        notices: Sentences about what was found while reading; filled as the frames come.
    """

    path: Path
    rows: int
    columns: int
    promised: int
    rate: float
    notices: list[str] = field(default_factory=list)

    def frames(self) -> Iterator[Volume]:
        """The frames in order, in colour, as 2D volumes; each is read when it is asked for.

        Raises:
            VolumeError: If the file is damaged, or a frame has another size.
        """
        geometry = Geometry((1, self.rows, self.columns), axial_affine((1, 1, 1)))
        count = 0
        with _opened(self.path) as (container, stream), _damage_said(self.path):
            for picture in container.decode(stream):
                pixels = picture.to_ndarray(format="rgb24")
                if pixels.shape[:2] != (self.rows, self.columns):
                    raise VolumeError(
                        f"Frame {count} of {self.path.name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the "
                        f"film {self.columns} x {self.rows}; expected one size."
                    )
                time = float(picture.time) if picture.time is not None else count / self.rate
                yield Volume(
                    pixels[np.newaxis],
                    geometry,
                    name=f"{self.path.stem}_{count:05d}",
                    source=self.path,
                    time_s=time,
                    calibrated=False,
                )
                count += 1
        if count == 0:
            raise VolumeError(f"{self.path.name} holds no frame that can be decoded; copy it again.")
        if count < self.promised:
            self.notices.append(
                f"{self.path.name} promises {self.promised} frames, but only {count} could be decoded; "
                "it may be cut short."
            )


def open_film(path: Path) -> Film:
    """Look at a film's header.

    Raises:
        VolumeError: If it is missing, damaged, or has no picture.
        InputError: If PyAV is not installed.
    """
    if not path.is_file():
        raise VolumeError(f"{path} does not exist; check the path.")
    with _opened(path) as (_, stream):
        rate = float(stream.average_rate or stream.guessed_rate or USUAL_RATE)
        return Film(path, stream.height, stream.width, stream.frames, rate)


def read_film(path: Path) -> RawImage:
    """Read a whole film, for those who want one of its frames or all of them at once.

    Raises:
        VolumeError: As `Film.frames`, or if it is too long for that.
    """
    film = open_film(path)
    if film.promised * film.rows * film.columns * 3 > MOST_BYTES:
        raise VolumeError(
            f"{path.name} has {film.promised} frames of {film.columns} x {film.rows} pixels, too many to be read at "
            "once; follow it with medsam3 track, or cut it."
        )
    pixels, times = [], []
    for frame in film.frames():
        pixels.append(frame.array)
        times.append(frame.time_s)
        if len(pixels) * frame.array.nbytes > MOST_BYTES:
            raise VolumeError(f"{path.name} is too long to be read at once; follow it with medsam3 track.")
    return RawImage(
        np.stack(pixels),
        axial_affine((1, 1, 1)),
        times_s=tuple(times),
        time_name="frames",
        calibrated=False,
        notices=tuple(film.notices),
    )


def write_film(path: Path, pictures: Iterable[np.ndarray], rate: float) -> None:
    """Write a film, whole or not at all, picture by picture.

    Args:
        path: Ends in .mp4 or .avi.
        pictures: uint8 (rows, columns, 3), all of one size; an odd row or column is doubled, as the codecs want.
        rate: Frames a second.

    Raises:
        OutputError: If it cannot be written.
        InputError: If PyAV is not installed.
    """
    av = _library()
    form, codecs = _container_of(path)
    codec = next(name for name in codecs if name in av.codecs_available)
    with atomic_file(path) as stream, av.open(stream, "w", format=form) as container:
        track = None
        for picture in pictures:
            even = _even(picture)
            if track is None:
                track = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
                track.height, track.width, track.pix_fmt = *even.shape[:2], "yuv420p"
                if codec == "mjpeg":
                    track.pix_fmt = "yuvj420p"
                elif codec == "mpeg4":
                    track.bit_rate = 8_000_000
            container.mux(track.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if track is None:
            raise OutputError(f"There is no picture to write to {path.name}.")
        container.mux(track.encode(None))


def _container_of(path: Path) -> tuple[str, tuple[str, ...]]:
    suffix = path.suffix.lower()
    if suffix not in WRITTEN:
        raise OutputError(f"The film is {path.name!r}; expected a name that ends in {' or '.join(WRITTEN)}.")
    return WRITTEN[suffix]


def _even(picture: np.ndarray) -> np.ndarray:
    rows, columns = picture.shape[:2]
    return np.pad(picture, ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(
            "Films need the package av (PyAV); install it with: pip install 'MedSAM3Core[video]'."
        ) from error
    av.logging.set_level(None)  # FFmpeg's own words go to stderr, which belongs to the user
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The file's container and its first film. FFmpeg may open nothing but this file: playlists name addresses."""
    av = _library()
    with _damage_said(path):
        container = av.open(
            f"file:{path.absolute()}", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    with container:
        if not container.streams.video:
            raise VolumeError(f"{path.name} has no picture; expected a film.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    """FFmpeg's errors as a sentence.

    Raises:
        VolumeError: In their place.
    """
    av = _library()
    try:
        yield
    except av.FFmpegError as error:
        detail = error.strerror or reason(error)
        raise VolumeError(
            f"{path.name} cannot be read as a film ({detail}); the file is damaged or of another kind."
        ) from error
