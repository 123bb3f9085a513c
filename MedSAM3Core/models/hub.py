"""Downloading a checkpoint file from the hub, with every failure in one sentence.

huggingface_hub does the transfer and honours HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_TOKEN and the proxy variables.
Ours are the partial file that a later attempt goes on with (its own ``hf_hub_download`` has thrown partial files away
since version 2), the disk check, progress and cancelling, the checksum, and words for what went wrong.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock, Timeout
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm

from MedSAM3Core.errors import CheckpointError, MedSAM3Error, ModelError, OutputError, ResourceError
from MedSAM3Core.models.registry import RegistryEntry
from MedSAM3Core.models.weights import file_sha256
from MedSAM3Core.progress import ProgressMeter

try:
    import httpx2 as http_client  # what huggingface_hub 2 transfers with
except ImportError:
    import httpx as http_client  # type: ignore[no-redef]  # what huggingface_hub 1 does

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPARE_BYTES = 200_000_000
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error of its own


def fetch(
    entry: RegistryEntry,
    folder: Path,
    meter: ProgressMeter,
    converted_bytes: int = 0,
    endpoint: str | None = None,
) -> Path:
    """Download a model's file into a folder, going on where an earlier attempt stopped.

    Args:
        entry: Which file.
        folder: Where it goes.
        meter: Told "downloading" in bytes; lets a cancel through, which keeps what has arrived for the next attempt.
        converted_bytes: What the conversion will need beside it.
        endpoint: Address of another hub; None takes HF_ENDPOINT or the public one.

    Returns:
        Path of the file, its checksum compared with the hub's.

    Raises:
        ModelError: If the hub refuses or cannot be reached.
        CheckpointError: If the file arrived damaged.
        ResourceError: If the disk is too small or full.
        Cancelled: If the meter's token was cancelled.
    """
    try:
        remote = _look_up(entry, endpoint)
        path = folder / entry.file
        part = path.with_name(f"{path.name}.{remote.etag[:16]}.part")
        arrived = part.stat().st_size if part.exists() else 0
        check_disk(folder, entry.name, remote.size + converted_bytes - arrived)
        if not path.is_file():
            _transfer(remote, part, meter)
            part.rename(path)
    except MedSAM3Error:
        raise
    except (HfHubHTTPError, OfflineModeIsEnabled, http_client.HTTPError, OSError) as error:
        raise explain(error, entry) from error
    meter.step("checking", 0, remote.size)
    if remote.sha256 and (found := file_sha256(path)) != remote.sha256:
        path.unlink()
        raise CheckpointError(
            f"The downloaded {entry.file} has SHA-256 {found[:12]}…; expected {remote.sha256[:12]}…, so it was damaged "
            "on its way: download it again."
        )
    meter.step("checking", remote.size, remote.size)
    return path


@contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes from downloading the same model: two would write into one partial file.

    Args:
        folder: Where the file goes; the lock lies beside it.
        name: Of the model.

    Raises:
        ModelError: If another process, a second Slicer perhaps, is at it.
        OutputError: If nothing can be written there.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ModelError(
            f"{name} is being downloaded by another process already; wait for it, or stop it and download again."
        ) from error
    except OSError as error:
        raise OutputError(
            f"The folder {folder.parent} cannot be written ({error.strerror or error}); make it writable or set "
            "MEDSAM3_HOME to another."
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Remote:
    """A file on the hub.

    Attributes:
        url: Where its bytes are.
        headers: To ask for them with.
        etag: Changes with its content.
        sha256: Of its content, empty when unknown.
        size: In bytes.
    """

    url: str
    headers: dict[str, str]
    etag: str
    sha256: str
    size: int


def _look_up(entry: RegistryEntry, endpoint: str | None) -> _Remote:
    """Ask the hub for a file's size and checksum."""
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    url = hf_hub_url(entry.repository, entry.file, revision=entry.revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, endpoint=endpoint)
    headers = build_hf_headers()
    location = metadata.location or url
    if urlparse(location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub, not for where it stores files
    etag = (metadata.etag or "").strip('"')
    sha256 = entry.sha256 or (etag if _SHA256.fullmatch(etag) else "")
    return _Remote(
        location, headers, re.sub(r"\W", "", etag), sha256, metadata.size or entry.approximate_bytes
    )


def _transfer(remote: _Remote, part: Path, meter: ProgressMeter) -> None:
    """Write what is still missing of a file behind what an earlier attempt left."""
    with part.open("r+b" if part.exists() else "w+b") as file:
        begun = file.seek(0, 2)
        meter.step("downloading", begun, remote.size)
        http_get(
            remote.url,
            file,
            resume_size=begun,
            headers=remote.headers,
            expected_size=remote.size,
            tqdm_class=_reporter(meter, remote.size),
        )


def check_disk(folder: Path, name: str, needed: int) -> None:
    """Raise `ResourceError` unless a model's files fit into a folder, which is made.

    Args:
        folder: Where they go.
        name: Of the model.
        needed: Bytes still to be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing, free = needed + _SPARE_BYTES, shutil.disk_usage(folder).free
    if free < missing:
        raise ResourceError(
            f"{name} needs {in_gigabytes(missing)} in {folder}, where {in_gigabytes(free)} are free; free some "
            "space or set MEDSAM3_HOME to another disk."
        )


def in_gigabytes(size: int) -> str:
    """A size for a sentence."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{max(size, 0) / 1e6:.1f} MB"


def _reporter(meter: ProgressMeter, size: int) -> Any:
    """A progress bar class for huggingface_hub that draws nothing and reports to the meter."""

    class Reporter(tqdm):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self._arrived = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._arrived += int(n or 0)
            meter.step("downloading", min(self._arrived, size) if size else self._arrived, size)
            return None

    return Reporter


def explain(error: Exception, entry: RegistryEntry) -> MedSAM3Error:
    """What went wrong, in a sentence that says what to do."""
    where = f"{entry.repository} ({entry.file})"
    by_hand = f"or carry the file over and run 'medsam3 models import {entry.name} PATH'"
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"The hub did not give access to {where}: its owners grant it on request; ask for access on "
            f"https://huggingface.co/{entry.repository}, run 'hf auth login', and download again, {by_hand}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"The hub has no {where} for this account; log in with 'hf auth login' if it is private, {by_hand}."
        )
    if isinstance(error, (RevisionNotFoundError, EntryNotFoundError)) and not isinstance(
        error, LocalEntryNotFoundError
    ):
        return ModelError(
            f"The hub has no {where} any more; look for a newer version of this package, {by_hand}."
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(
            f"Offline mode is on (HF_HUB_OFFLINE), so {where} cannot be fetched; unset it, {by_hand}."
        )
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return ResourceError(
            f"The disk filled up while {where} was downloaded; free some space and download again: it goes on where it "
            "stopped."
        )
    if isinstance(error, http_client.ProxyError):
        return ModelError(
            f"The proxy refused the connection for {where} ({_reason(error)}); check HTTPS_PROXY and NO_PROXY, "
            f"{by_hand}."
        )
    return ModelError(
        f"The hub could not be reached for {where} ({_reason(error)}); check the network and HF_ENDPOINT and download "
        f"again, which goes on where it stopped, {by_hand}."
    )


def _reason(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause) or type(cause).__name__
    return text.splitlines()[0].rstrip(".")
