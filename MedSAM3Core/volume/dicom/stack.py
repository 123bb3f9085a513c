"""Frames to a stack: which belong to the scan, in which order, and whether one is missing.

Nothing is resampled and no slice is made up. What is harmless is set aside and said in a notice (localizers,
duplicates, images without a place); what would change the geometry is an error that names the slices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.plurals import counted
from MedSAM3Core.volume.dicom.headers import TIME_KEYS, Frame
from MedSAM3Core.volume.geometry import LPS_FROM_RAS
from MedSAM3Core.volume.volume import axial_affine

SAME_PLACE_MM = 0.005
"""Slices closer than this along the normal are at the same place."""
SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines of parallel slices; scanners round them to six digits."""
EVEN_SHARE = 0.01
"""Deviation from even distances that is rounding, as a share of the distance."""
UNEVEN_SHARE = 0.1
"""Deviation from even distances that is accepted with a notice."""
GAP_SHARE = 1.5
"""Distances of more than this many median distances are gaps."""
TILT_NOTICE_DEGREES = 0.5

_SECONDS = {"TriggerTime": 1e-3, "AcquisitionTime": 0.0, "ContentTime": 0.0}  # 0: clock text, hhmmss.ffffff
_TIME_WORDS = {
    "EchoTime": "echo times",
    "DiffusionBValue": "b-values",
    "AcquisitionNumber": "acquisitions",
    "InstanceNumber": "images at each place",
}
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames in order.

    Attributes:
        frames: For each time the frames of its slices, from the first slice to the last.
        ijk_to_ras: 4x4 affine from voxel indices (i, j, k) to RAS in mm; sheared when the gantry was tilted.
        times_s: Seconds of each time since the first; empty when not known.
        time_name: What the times are.
        notices: Sentences for the user.
    """

    frames: tuple[tuple[Frame, ...], ...]
    ijk_to_ras: np.ndarray
    times_s: tuple[float, ...] = ()
    time_name: str = "times"
    notices: tuple[str, ...] = ()


def build_stack(frames: Iterable[Frame], same_pixels: Callable[[Frame, Frame], bool]) -> Stack:
    """Order the frames of one series.

    Args:
        frames: All of them.
        same_pixels: Says whether two frames hold the same pixels; asked only for frames at the same place and time.

    Raises:
        VolumeError: If they are of several sizes or orientations, or a slice is missing.
    """
    notices: list[str] = []
    kept = _without_copies(list(frames), notices)
    kept = _without_localizers(kept, notices)
    placed = [frame for frame in kept if frame.position is not None and frame.axes is not None]
    if not placed:
        return _unplaced(kept, notices)
    if len(placed) < len(kept):
        unplaced = counted(
            len(kept) - len(placed),
            "image without a place in the patient was",
            "images without a place in the patient were",
        )
        notices.append(f"{unplaced} set aside.")
    _check_alike(placed)
    places = _by_place(placed)
    places = _without_twins(places, same_pixels, notices)
    times, name, seconds = _split_times(places)
    affine = _affine(times[0], notices)
    return Stack(tuple(tuple(time) for time in times), affine, seconds, name, tuple(notices))


def _without_copies(frames: list[Frame], notices: list[str]) -> list[Frame]:
    seen: dict[tuple[str, int | None], Frame] = {}
    for frame in frames:
        seen.setdefault((frame.sop_uid, frame.index), frame)
    if len(seen) < len(frames):
        copies = counted(
            len(frames) - len(seen),
            "file that is a copy of another was",
            "files that are copies of others were",
        )
        notices.append(f"{copies} set aside.")
    return list(seen.values())


def _without_localizers(frames: list[Frame], notices: list[str]) -> list[Frame]:
    kept = [frame for frame in frames if "LOCALIZER" not in frame.image_type]
    if not kept or len(kept) == len(frames):
        return frames
    scouts = counted(len(frames) - len(kept), "localizer image was", "localizer images were")
    notices.append(f"{scouts} set aside.")
    return kept


def _unplaced(frames: list[Frame], notices: list[str]) -> Stack:
    """Images without a place: the frames of one file are times; several files have no known order."""
    files = {frame.path for frame in frames}
    if len(files) > 1:
        names = ", ".join(sorted(path.name for path in files)[:4]) + (", ..." if len(files) > 4 else "")
        raise VolumeError(
            f"The series has {len(files)} images without a place in the patient ({names}); read one of the files."
        )
    spacing = frames[0].spacing
    if spacing is None:
        notices.append("The file gives no pixel size; 1 mm is assumed, so volumes in ml mean nothing.")
    affine = axial_affine((*(spacing or (1.0, 1.0)), frames[0].thickness or 1.0))
    return Stack(tuple((frame,) for frame in frames), affine, time_name="frames", notices=tuple(notices))


def _check_alike(frames: list[Frame]) -> None:
    sizes = _count(frames, lambda frame: f"{frame.columns} x {frame.rows}")
    if len(sizes) > 1:
        raise VolumeError(
            f"The series mixes images of several sizes: {_list_groups(sizes)}; export each size as a series of its own."
        )
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if np.abs(_axes(group[0]) - _axes(frame)).max() <= SAME_DIRECTION:
                group.append(frame)
                break
        else:
            groups.append([frame])
    if len(groups) > 1:
        named = {f"{_plane_name(group[0])} {n + 1}": group for n, group in enumerate(groups)}
        raise VolumeError(
            f"The series mixes {len(groups)} orientations: {_list_groups(named)}; export each as a series of its own."
        )
    spacings = _count(frames, _pixel_size)
    if len(spacings) > 1:
        raise VolumeError(
            f"The series mixes several pixel sizes: {_list_groups(spacings)}; export each as a series of its own."
        )


def _pixel_size(frame: Frame) -> str:
    if frame.spacing is None:
        return "unknown"
    return " x ".join(f"{round(n, 4):g}" for n in frame.spacing) + " mm"


def _count(frames: list[Frame], key: Callable[[Frame], _K]) -> dict[_K, list[Frame]]:
    groups: dict[_K, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(key(frame), []).append(frame)
    return groups


def _list_groups(groups: dict) -> str:
    """Groups in words, the files of small ones by name."""
    parts = []
    for label, group in groups.items():
        files = sorted({frame.path.name for frame in group})
        names = f" ({', '.join(files)})" if len(files) <= 3 else ""
        parts.append(f"{label}: {counted(len(group), 'image')}{names}")
    return "; ".join(parts)


def _axes(frame: Frame) -> np.ndarray:
    assert frame.axes is not None  # callers keep placed frames only
    return frame.axes


def _position(frame: Frame) -> np.ndarray:
    assert frame.position is not None  # callers keep placed frames only
    return frame.position


def _plane_name(frame: Frame) -> str:
    normal = np.abs(np.cross(*_axes(frame)))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _by_place(frames: list[Frame]) -> list[list[Frame]]:
    """Frames grouped by their distance along the normal, in ascending order (right-handed, as ITK sorts them)."""
    normal = np.cross(*_axes(frames[0]))
    ordered = sorted(frames, key=lambda frame: float(_position(frame) @ normal))
    places: list[list[Frame]] = []
    for frame in ordered:
        if places and (_position(frame) - _position(places[-1][0])) @ normal <= SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    return places


def _without_twins(
    places: list[list[Frame]], same_pixels: Callable[[Frame, Frame], bool], notices: list[str]
) -> list[list[Frame]]:
    """Set aside frames that equal another at the same place and time but for their UID."""
    dropped = 0
    result = []
    for place in places:
        kept: list[Frame] = []
        for frame in place:
            if any(_same_time(frame, other) and same_pixels(frame, other) for other in kept):
                dropped += 1
            else:
                kept.append(frame)
        result.append(kept)
    if dropped:
        repeats = counted(
            dropped,
            "image that repeats another pixel by pixel was",
            "images that repeat others pixel by pixel were",
        )
        notices.append(f"{repeats} set aside.")
    return result


def _same_time(a: Frame, b: Frame) -> bool:
    keys = [key for key in TIME_KEYS if key not in ("InstanceNumber", "ContentTime")]
    return all(a.times.get(key) == b.times.get(key) for key in keys)


def _split_times(places: list[list[Frame]]) -> tuple[list[list[Frame]], str, tuple[float, ...]]:
    """Frames by time, what tells the times apart, and their seconds if that is a time."""
    counts = {len(place) for place in places}
    if counts == {1}:
        return [[place[0] for place in places]], "times", ()
    if len(counts) > 1:
        most = max(counts)
        few = [f"{_place(place[0])}: {len(place)}" for place in places if len(place) < most]
        raise VolumeError(
            f"The series has {most} images at most places but fewer at {len(few)} ({'; '.join(few[:3])}); "
            "images are missing or several scans are mixed: export each scan whole, as a series of its own."
        )
    count = counts.pop()
    for key in TIME_KEYS:
        values = [{frame.times.get(key) for frame in place} for place in places]
        shared = key not in ("ContentTime", "InstanceNumber", "AcquisitionTime")
        if all(len(v) == count and None not in v for v in values) and (
            not shared or len(set.union(*values)) == count
        ):
            ordered = [sorted(place, key=lambda frame: frame.times[key]) for place in places]
            times = [[place[t] for place in ordered] for t in range(count)]
            return times, _TIME_WORDS.get(key, "times"), _seconds(key, times)
    raise VolumeError(
        f"The series has {count} different images at each place, and nothing in the files says their order; "
        "export each set as a series of its own."
    )


def _seconds(key: str, times: list[list[Frame]]) -> tuple[float, ...]:
    if key not in _SECONDS:
        return ()
    values = [time[0].times[key] for time in times]
    seconds = [value * _SECONDS[key] or _clock_seconds(value) for value in values]
    return tuple(value - seconds[0] for value in seconds)


def _clock_seconds(value: float) -> float:
    """Seconds since midnight of DICOM's hhmmss.ffffff read as a number."""
    return value // 10000 * 3600 + value // 100 % 100 * 60 + value % 100


def _place(frame: Frame) -> str:
    number = frame.times.get("InstanceNumber")
    label = f"image {number:g}" if number is not None else frame.path.name
    along = float(_position(frame) @ np.cross(*_axes(frame)))
    return f"{label} at {along:.1f} mm"


def _affine(frames: list[Frame], notices: list[str]) -> np.ndarray:
    first, normal = frames[0], np.cross(*_axes(frames[0]))
    spacing = first.spacing
    if spacing is None:
        notices.append("The file gives no pixel size; 1 mm is assumed, so volumes in ml mean nothing.")
        spacing = (1.0, 1.0)
    positions = np.array([_position(frame) for frame in frames])
    if len(frames) == 1:
        step = normal * (first.thickness or 1.0)
    else:
        _check_distances(frames, positions @ normal)
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        _check_straight(frames, positions, step, notices)
        _notice_tilt(step, normal, notices)
    ijk_to_lps = np.eye(4)
    ijk_to_lps[:3, 0] = _axes(first)[0] * spacing[0]
    ijk_to_lps[:3, 1] = _axes(first)[1] * spacing[1]
    ijk_to_lps[:3, 2] = step
    ijk_to_lps[:3, 3] = positions[0]
    return LPS_FROM_RAS @ ijk_to_lps


def _check_distances(frames: list[Frame], along: np.ndarray) -> None:
    distances = np.diff(along)
    median = float(np.median(distances))
    gaps = np.flatnonzero(distances > GAP_SHARE * median)
    if gaps.size == 0:
        return
    missing = sum(max(1, round(distances[n] / median) - 1) for n in gaps)
    named = [f"between {_place(frames[n])} and {_place(frames[n + 1])}" for n in gaps[:3]]
    raise VolumeError(
        f"The series has {len(frames)} slices {median:.3g} mm apart, but {missing} {'is' if missing == 1 else 'are'} "
        f"missing: {', '.join(named)}"
        f"{', ...' if gaps.size > 3 else ''}; export the whole series."
    )


def _check_straight(frames: list[Frame], positions: np.ndarray, step: np.ndarray, notices: list[str]) -> None:
    """Compare the places with even steps on a straight line."""
    distance = float(np.linalg.norm(step))
    expected = positions[0] + np.arange(len(frames))[:, np.newaxis] * step
    deviations = np.linalg.norm(positions - expected, axis=1)
    worst = int(deviations.argmax())
    if deviations[worst] <= EVEN_SHARE * distance + SAME_PLACE_MM:
        return
    text = f"slices are not evenly spaced: {_place(frames[worst])} is {deviations[worst]:.2f} mm from its even place"
    if deviations[worst] > UNEVEN_SHARE * distance:
        raise VolumeError(f"The {text}; export a series with even distances.")
    notices.append(f"The {text}; even distances of {distance:.3f} mm are assumed.")


def _notice_tilt(step: np.ndarray, normal: np.ndarray, notices: list[str]) -> None:
    cosine = float(np.clip(step @ normal / np.linalg.norm(step), -1, 1))
    degrees = float(np.degrees(np.arccos(cosine)))
    if degrees > TILT_NOTICE_DEGREES:
        notices.append(
            f"The gantry was tilted by {degrees:.1f} degrees: the slices are sheared against each other; they are kept "
            "as acquired, and the mask lies on the same sheared grid."
        )
