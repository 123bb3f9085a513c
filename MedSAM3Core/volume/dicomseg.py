"""DICOM Segmentation objects (PS3.3 A.51) through highdicom, with codes and references to the source instances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from pydicom import Dataset
from pydicom.uid import generate_uid

from MedSAM3Core.errors import OutputError
from MedSAM3Core.prompts import Code, Coding
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.version import __version__
from MedSAM3Core.volume.dicom.headers import Frame, scan_file
from MedSAM3Core.volume.dicom.source import read_dataset
from MedSAM3Core.volume.geometry import LPS_FROM_RAS
from MedSAM3Core.volume.labelmap import flat_labels, layered_labels, name_of
from MedSAM3Core.volume.raw import FOREIGN_ERRORS, foreign_warnings_silenced, reason
from MedSAM3Core.volume.volume import Volume

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

_TISSUE = Code("85756007", "Tissue")
UNKNOWN_CODING = Coding(category=_TISSUE, type=_TISSUE)
"""What an unknown concept is called in codes; Slicer does the same. Its own name is the segment's label."""

_MANUFACTURER = "MedSAM3 for 3D Slicer"
_SAME_PLACE_MM = 0.01
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def check_dicom_source(volume: Volume) -> None:
    """Raise `OutputError` unless a DICOM Segmentation can refer to the volume's instances.

    Raises:
        OutputError: If the volume was not read from DICOM, the files are gone, or highdicom is not installed.
    """
    if not volume.files:
        raise OutputError(
            f"A DICOM segmentation refers to a DICOM series, but {volume.name!r} was not read from one; "
            "write .seg.nrrd or .nii.gz."
        )
    gone = [path for path in dict.fromkeys(volume.files) if not path.is_file()]
    if gone:
        raise OutputError(f"The DICOM file {gone[0]} that the volume was read from is gone; put it back.")
    try:
        import highdicom  # noqa: F401 - the extra that writing needs
    except ImportError as error:
        raise OutputError(
            "Writing DICOM needs the package highdicom; install it with: pip install 'MedSAM3Core[dicom]'."
        ) from error


def write_dicom_seg(
    stream: BinaryIO, segmentations: Sequence[Segmentation], volume: Volume
) -> tuple[str, ...]:
    """Write one binary DICOM Segmentation with a segment for each segmentation.

    Frames without anything are left out, except where no segment has anything: then all are written, for DICOM knows no
    image without frames.

    Args:
        stream: Where to.
        segmentations: At least one, all on the grid of ``volume``.
        volume: Read from DICOM; its files are the source instances.

    Returns:
        A sentence about identifiers that the source lacks, as badly de-identified files do.

    Raises:
        OutputError: If the source lacks what the standard demands.
    """
    import highdicom

    check_dicom_source(volume)
    first = segmentations[0].provenance
    try:
        sources, pixels = _sources_and_pixels(segmentations, volume)
        notices = _complete(sources)
        with foreign_warnings_silenced():  # on lengths of descriptions that the source series has itself
            dataset = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=pixels,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_description(n, one) for n, one in enumerate(segmentations, 1)],
                series_instance_uid=highdicom.UID(),
                series_number=int(sources[0].get("SeriesNumber", 0) or 0) + 1000,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=_MANUFACTURER,
                manufacturer_model_name=(first.model or _MANUFACTURER)[:64],
                software_versions=__version__,
                device_serial_number=(first.model_hash or "unknown")[:64],
                content_label="SEGMENTATION",
                content_description="Concept segmentation, not for clinical use",
                series_description=f"Segmentation of {', '.join(name_of(one) for one in segmentations)}"[:64],
            )
            _add_modifiers(dataset, segmentations)
            dataset.save_as(stream, enforce_file_format=True)
    except FOREIGN_ERRORS as error:
        if isinstance(error, OSError):
            raise
        raise OutputError(
            f"The series {volume.name!r} lacks what a DICOM segmentation needs ({reason(error)}); write .seg.nrrd."
        ) from error
    return notices


def _complete(sources: Sequence[Dataset]) -> tuple[str, ...]:
    """Fill in what de-identification and old software blanked or left out.

    The instance's identifiers come from the file's own header, the study's and series' anew, and what the standard
    allows to be empty (type 2) is.
    """
    lacking = [name for name in ("StudyInstanceUID", "SeriesInstanceUID") if not sources[0].get(name)]
    made = {name: generate_uid() for name in lacking}
    for source in sources:
        for name, fallback in (
            ("SOPClassUID", "MediaStorageSOPClassUID"),
            ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
        ):
            if not source.get(name):
                setattr(source, name, source.file_meta[fallback].value)
        for name, uid in made.items():
            setattr(source, name, uid)
        for name in _MAY_BE_EMPTY:
            if name not in source:
                setattr(source, name, "")
        if not source.get("SpecificCharacterSet"):
            source.pop("SpecificCharacterSet", None)
    if not lacking:
        return ()
    return (
        f"The source files have no {' and no '.join(lacking)}, so the segmentation has one of its own; "
        "an archive will not file it with them.",
    )


def _sources_and_pixels(
    segmentations: Sequence[Segmentation], volume: Volume
) -> tuple[list[Dataset], np.ndarray]:
    """Source datasets, and labels (frames, rows, columns), with an axis of segments at the end where they overlap."""
    layers, _ = layered_labels(segmentations)
    if len(layers) == 1:
        pixels = flat_labels(segmentations)[0]
    else:
        pixels = np.stack([one.to_array().astype(np.uint8) for one in segmentations], axis=-1)
    paths = list(dict.fromkeys(volume.files))
    if (
        len(paths) == len(volume.files)
        and len(paths) == volume.geometry.shape[0]
        and not _is_multi_frame(paths[0])
    ):
        return [read_dataset(path, stop_before_pixels=True) for path in paths], pixels
    if len(paths) > 1:
        raise OutputError(
            "The volume was read from several multi-frame files, but a DICOM segmentation refers to one; "
            "write .seg.nrrd."
        )
    source = read_dataset(paths[0], stop_before_pixels=True)
    frames = scan_file(paths[0]).frames
    full = np.zeros((len(frames), *pixels.shape[1:]), pixels.dtype)
    for k, index in enumerate(_frame_of_slices(frames, volume)):
        full[index] = pixels[k]
    return [source], full


def _is_multi_frame(path: Path) -> bool:
    return int(read_dataset(path, specific_tags=["NumberOfFrames"]).get("NumberOfFrames", 1) or 1) > 1


def _frame_of_slices(frames: Sequence[Frame], volume: Volume) -> list[int]:
    """For each slice of the volume the index of its frame in the file."""
    ijk_to_lps = LPS_FROM_RAS @ volume.geometry.ijk_to_ras
    places = np.array([np.full(3, np.nan) if frame.position is None else frame.position for frame in frames])
    if np.isnan(places).any():
        raise OutputError(
            "The frames have no place in the patient, which a DICOM segmentation needs; write .seg.nrrd."
        )
    indices = []
    for k in range(volume.geometry.shape[0]):
        distances = np.linalg.norm(places - (ijk_to_lps @ [0, 0, k, 1])[:3], axis=1)
        if distances.min() > _SAME_PLACE_MM:
            raise OutputError(
                f"Slice {k} of the volume has no frame in {volume.name!r}; read the file again."
            )
        indices.append(int(distances.argmin()))
    return indices


def _description(number: int, segmentation: Segmentation) -> SegmentDescription:
    import highdicom
    from pydicom.sr.codedict import codes

    coding = segmentation.concept.coding or UNKNOWN_CODING
    made = segmentation.provenance
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=(made.model or "unknown")[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=(made.model_hash[:16] or made.version or __version__),
        source=_MANUFACTURER,
        parameters={
            "concept": made.concept[:64] or name_of(segmentation),
            "window": made.window[:64] or "unknown",
        },
    )
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name_of(segmentation)[:64],
        segmented_property_category=_coded(coding.category),
        segmented_property_type=_coded(coding.type),
        algorithm_type="SEMIAUTOMATIC" if segmentation.boxes or made.boxes else "AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=highdicom.UID(),
        tracking_id=segmentation.concept.phrase[:64],
        anatomic_regions=[_coded(coding.region)] if coding.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*segmentation.concept.colour),
    )


def _coded(code: Code) -> CodedConcept:
    import highdicom

    return highdicom.sr.CodedConcept(
        value=code.value, scheme_designator=code.scheme, meaning=code.meaning[:64]
    )


def _add_modifiers(dataset: Dataset, segmentations: Sequence[Segmentation]) -> None:
    """Add lateralities, which highdicom's descriptions leave out."""
    for item, one in zip(dataset.SegmentSequence, segmentations, strict=True):
        coding = one.concept.coding
        if coding is None:
            continue
        if coding.modifier:
            kind = item.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(coding.modifier)]
        if coding.region and coding.region_modifier:
            region = item.AnatomicRegionSequence[0]
            region.AnatomicRegionModifierSequence = [_coded(coding.region_modifier)]
