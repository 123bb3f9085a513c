"""What will leave the machine, in sentences for the user who must agree to it first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from MedSAM3Core.agent.endpoint import Endpoint
from MedSAM3Core.agent.facts import MAX_TARGETS
from MedSAM3Core.volume.volume import Volume

PRONE_TO_TEXT = frozenset({"US", "XR", "CR", "DX", "XA", "RF", "MG", "ENDO", "OCT", "SC", "OT", "PX"})
"""Modalities whose pixels often carry names, dates or settings."""


@dataclass(frozen=True)
class Disclosure:
    """What leaves, where to, and what to look out for.

    Attributes:
        where: Endpoint and model.
        leaves: What is sent.
        stays: What is not.
        warnings: What the user should check before agreeing.
    """

    where: str
    leaves: tuple[str, ...]
    stays: str
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """All of it, a sentence a line."""
        return [self.where, *self.leaves, self.stays, *(f"Warning: {text}" for text in self.warnings)]


@dataclass(frozen=True)
class ImageKind:
    """What the warnings depend on.

    Attributes:
        is_2d: Whether there is one slice only.
        is_rgb: Whether it is in colour.
        modality: See `Volume`.
        files: DICOM files of its slices.
    """

    is_2d: bool = False
    is_rgb: bool = False
    modality: str | None = None
    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, volume: Volume) -> ImageKind:
        """Of a volume."""
        return cls(volume.is_2d, volume.is_rgb, volume.modality, volume.files)


def disclose(endpoint: Endpoint, text: str, image: ImageKind, rounds: int, pictures: int) -> Disclosure:
    """What a request would send.

    Args:
        endpoint: Where to.
        text: The request.
        image: What kind of image it is.
        rounds: Most rounds a target.
        pictures: Most pictures a round.
    """
    place = "on this machine" if endpoint.is_local else "on another machine"
    where = f"The language model {endpoint.model!r} at {endpoint.url} ({place}) is asked."
    leaves = [f"Sent: the request {text!r} and figures computed from the masks."]
    if endpoint.pictures:
        shown = 1 if image.is_2d else pictures
        leaves.append(
            f"Sent: rendered PNG pictures, at most {min(2, shown)} to plan, then at most {shown} in each of at most "
            f"{rounds} rounds for each structure (at most {MAX_TARGETS}), with the mask drawn on them."
        )
    else:
        leaves.append("No picture is sent.")
    stays = (
        "Not sent: the file, its name, any value of its header, and the voxels other than on these pictures."
    )
    return Disclosure(where, tuple(leaves), stays, tuple(_warnings(endpoint, image)))


def _warnings(endpoint: Endpoint, image: ImageKind) -> list[str]:
    found = []
    if endpoint.is_readable_on_the_way:
        found.append(
            "the endpoint is reached without encryption (http); others on the network can read what is sent."
        )
    if endpoint.pictures:
        found.append(_about_text(image))
        found.append("a face can be recognised on pictures of a head.")
    return found


def _about_text(image: ImageKind) -> str:
    if any(_says_burned_in(path) for path in image.files[:1]):
        return "the DICOM file says that text is burned into its pixels; it would be sent with the pictures."
    prone = image.is_rgb or image.is_2d or (image.modality or "") in PRONE_TO_TEXT
    if prone:
        return "images of this kind often have names or dates burned into the pixels; look at it before you agree."
    return "text burned into the pixels would be sent with them."


def _says_burned_in(path: Path) -> bool:
    """Whether a DICOM file's Burned In Annotation is YES; only read here, never sent."""
    from MedSAM3Core.volume.dicom.source import read_dataset
    from MedSAM3Core.volume.raw import FOREIGN_ERRORS

    try:
        header = read_dataset(path, stop_before_pixels=True, specific_tags=["BurnedInAnnotation"])
    except FOREIGN_ERRORS:
        return False
    return str(header.get("BurnedInAnnotation", "")).upper() == "YES"
