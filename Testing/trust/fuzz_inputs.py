"""What is fuzzed: for every kind of input the undamaged files, the damage, and who reads them.

Undamaged files are small ones that our own writers made, files that ship with the package, and the real DICOM files
that pydicom carries (CT, MR, ultrasound, colour, every transfer syntax; some of them damaged by their makers already).
"""

from __future__ import annotations

import functools
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mutations
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("nrrd", "nifti", "dicom", "png", "seg.nrrd", "manifest", "config", "checkpoint")
SHARES = (3, 3, 4, 2, 3, 2, 4, 3)
"""How often each of `KINDS` comes: more for the formats with more in them."""


@dataclass(frozen=True)
class Seed:
    """An undamaged file.

    Attributes:
        name: Its name, whose suffix chooses the reader.
        data: Its bytes.
        damage: What is done to it.
        read: What the library does with a path of it; beside it lie `company`.
        company: Other files that the reader wants beside it.
    """

    name: str
    data: bytes
    damage: mutations.Damage
    read: Callable[[Path], object]
    company: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Case:
    """One damaged file, told by its kind and number; the same again for the same seed."""

    kind: str
    number: int
    seed: int

    def source(self) -> random.Random:
        """Where all chance in it comes from."""
        return random.Random(f"{self.seed} {self.kind} {self.number}")


def plan(count: int, seed: int) -> list[Case]:
    """Which ``count`` cases a run has."""
    numbers = {kind: round(count * share / sum(SHARES)) for kind, share in zip(KINDS, SHARES, strict=True)}
    return [Case(kind, number, seed) for kind in KINDS for number in range(numbers[kind])]


def write_case(case: Case, folder: Path, canary: str) -> tuple[Seed, Path]:
    """The case's damaged file, and what belongs beside it, in an empty folder."""
    source = case.source()
    seed = source.choice(seeds(case.kind))
    if seed.damage in (mutations.damage_checkpoint, mutations.damage_yaml):
        data = seed.damage(seed.data, source, canary)  # type: ignore[call-arg]
    else:
        data = seed.damage(seed.data, source)
    path = folder / seed.name
    for name, content in seed.company:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return seed, path


@functools.cache
def seeds(kind: str) -> tuple[Seed, ...]:
    """The undamaged files of a kind."""
    return tuple(_SEEDS[kind]())


def _images() -> tuple:
    from MedSAM3Core.volume import Volume

    rng = np.random.default_rng(12)
    affine = np.array([[-0.8, 0.1, 0, 12.5], [0, -0.7, 0.5, -3], [0, 0.2, 2.5, 40], [0, 0, 0, 1]])
    scan = Volume.from_array(rng.integers(0, 99, (3, 8, 9), dtype=np.int16), ijk_to_ras=affine)
    photo = Volume.from_array(rng.integers(0, 255, (12, 13, 3), dtype=np.uint8))
    return scan, photo


def _written(suffix: str) -> bytes:
    """A segmentation of three segments, two of which overlap, in one of our formats."""
    import tempfile

    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume.writing import write_segmentations

    scan, photo = _images()
    volume = photo if suffix == ".png" else scan
    grey = volume.array if volume.array.ndim == 3 else volume.array[..., 0]
    masks = [grey > 50, grey > 80] if suffix == ".seg.nrrd" else [grey > 50]
    made = [
        Segmentation.from_mask(Concept(f"c{n}", f"c{n}"), volume.geometry, m) for n, m in enumerate(masks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        write_segmentations(path, made, volume)
        return path.read_bytes()


def _itk(suffix: str, array: np.ndarray, colour: bool = False, compress: bool = False) -> bytes:
    import tempfile

    import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

    image = sitk.GetImageFromArray(array, isVector=colour)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        sitk.WriteImage(image, str(path), useCompression=compress)
        return path.read_bytes()


def _nrrd() -> list[Seed]:
    from MedSAM3Core.volume import read_volume

    rng = np.random.default_rng(1)
    scan, colour = (
        rng.integers(-99, 99, (3, 6, 7), dtype=np.int16),
        rng.integers(0, 99, (2, 5, 6, 3), np.uint8),
    )
    data = [
        _written(".nrrd"),
        _itk(".nrrd", scan),
        _itk(".nrrd", scan.astype(np.float32), compress=True),
        _itk(".nrrd", colour, colour=True),
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 3 2 2\nencoding: ascii\n\n"
        + b"1 2 3 4 5 6 7 8 9 10 11 12",
    ]
    return [Seed("a.nrrd", one, mutations.damage_nrrd, read_volume) for one in data]


def _nifti() -> list[Seed]:
    from MedSAM3Core.volume import read_volume

    rng = np.random.default_rng(2)
    plain = [
        _written(".nii"),
        _itk(".nii", rng.normal(size=(3, 6, 7)).astype(np.float32)),
        _itk(".nii", rng.integers(0, 9, (2, 3, 6, 7), dtype=np.int16)),
    ]
    # One has two times, and a reader must say which it wants.
    found = [Seed("a.nii", one, mutations.damage_nifti, lambda p: read_volume(p, time=0)) for one in plain]
    packed = [_written(".nii.gz"), (ROOT / "Resources/SampleData/headneck_ct_labels.nii.gz").read_bytes()]
    for one in packed:
        found.append(Seed("a.nii.gz", one, mutations.damage_bytes, read_volume))
        found.append(Seed("a.nii.gz", one, mutations.damage_gzip, read_volume))
    return found


def _dicom() -> list[Seed]:
    import pydicom.data

    from MedSAM3Core.volume import read_volume
    from MedSAM3Core.volume.reference import read_segmentation

    folder = Path(pydicom.data.__file__).parent / "test_files"
    real = [path for path in sorted(folder.glob("*.dcm")) if path.stat().st_size < 45_000]
    found = [Seed("a.dcm", path.read_bytes(), mutations.damage_dicom, read_volume) for path in real]
    slices = _slices()
    company = tuple((f"series/{n}.dcm", one) for n, one in enumerate(slices[1:], 1))
    found += [
        Seed(
            "series/0.dcm", slices[0], mutations.damage_dicom, lambda path: read_volume(path.parent), company
        )
    ] * 20
    return found + [Seed("seg.dcm", _dicom_seg(slices), mutations.damage_dicom, read_segmentation)] * 10


@functools.cache
def _slices() -> list[bytes]:
    """A CT series of five slices."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    study, series, frame = (generate_uid(entropy_srcs=[word]) for word in ("study", "series", "frame"))
    made = []
    for n in range(5):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid(
            entropy_srcs=[f"slice {n}"]
        )
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.Modality, one.InstanceNumber, one.PatientID = "CT", n + 1, "P"
        one.PatientName, one.StudyDate, one.StudyTime, one.StudyID = "A^B", "20200101", "101010", "1"
        one.PatientBirthDate = one.PatientSex = one.AccessionNumber = one.ReferringPhysicianName = ""
        one.SeriesNumber = 1
        one.Rows, one.Columns, one.SamplesPerPixel = 8, 9, 1
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation, one.PhotometricInterpretation = 15, 1, "MONOCHROME2"
        one.PixelSpacing, one.SliceThickness = [1, 2], 3
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 3 * n], [1, 0, 0, 0, 1, 0]
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = np.random.default_rng(n).integers(0, 2000, (8, 9), dtype=np.int16).tobytes()
        stream = io.BytesIO()
        one.save_as(stream, enforce_file_format=True)
        made.append(stream.getvalue())
    return made


def _dicom_seg(slices: list[bytes]) -> bytes:
    import tempfile

    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume import read_volume
    from MedSAM3Core.volume.writing import write_segmentations

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "series"
        folder.mkdir()
        for n, one in enumerate(slices):
            (folder / f"{n}.dcm").write_bytes(one)
        volume = read_volume(folder)
        made = Segmentation.from_mask(Concept("liver", "liver"), volume.geometry, volume.array > 0)
        path = Path(name) / "seg.dcm"
        write_segmentations(path, [made], volume)
        return path.read_bytes()


def _png() -> list[Seed]:
    from PIL import Image

    from MedSAM3Core.volume import read_volume

    rng = np.random.default_rng(3)
    colour = Image.fromarray(rng.integers(0, 255, (12, 13, 3), dtype=np.uint8))
    pictures = [
        Image.fromarray(rng.integers(0, 255, (12, 13), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 60000, (12, 13), dtype=np.uint16)),
        colour,
        colour.convert("P"),
        colour.convert("RGBA"),
        colour.convert("1"),
    ]
    found = []
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        found.append(Seed("a.png", stream.getvalue(), mutations.damage_png, read_volume))
    for name, form in (("a.jpg", "JPEG"), ("a.tif", "TIFF")):
        stream = io.BytesIO()
        colour.save(stream, form)
        found.append(Seed(name, stream.getvalue(), mutations.damage_bytes, read_volume))
    real = (ROOT / "Resources/SampleData/nuclei_histology.jpg").read_bytes()
    return [*found, Seed("a.jpg", real, mutations.damage_bytes, read_volume)]


def _seg_nrrd() -> list[Seed]:
    def read(path: Path) -> object:
        from MedSAM3Core.volume.reference import read_segmentation
        from MedSAM3Core.volume.tags import provenance_of

        segments = read_segmentation(path)
        return [(one.code, provenance_of(one.tags)) for one in segments]

    return [Seed("a.seg.nrrd", _written(".seg.nrrd"), mutations.damage_nrrd, read)]


def _manifest() -> list[Seed]:
    def read_cases(path: Path) -> object:
        from MedSAM3Core.batch.discover import read_manifest

        return [case.stamp() for case in read_manifest(path, ["liver"]).cases]

    def read_tables(path: Path) -> object:
        from MedSAM3Core.evaluation.datasets import read_dataset

        return read_dataset(path.parent)

    batch = 'path,name,concepts,modality\na.nii.gz,one,"liver, left kidney",CT\nb/c.png,,polyp,\n\n../d.nrrd,d,,mr\n'
    table = "image,mask,concept,patient,split\nimages/a.png,masks/a.png,polyp,p1,test\n"
    beside = (("images/a.png", _written(".png")), ("masks/a.png", _written(".png")))
    labels = json.dumps({"1": "liver", "2": "spleen"}).encode()

    def read_labels(path: Path) -> object:
        from MedSAM3Core.volume.reference import read_segmentation

        return read_segmentation(path.parent / "a.nrrd")

    return [
        Seed("manifest.csv", batch.encode(), mutations.damage_text, read_cases),
        Seed(
            "manifest.csv",
            b"\xef\xbb\xbf" + batch.replace("\n", "\r\n").encode(),
            mutations.damage_bytes,
            read_cases,
        ),
        Seed(
            "set/cases.csv",
            table.encode(),
            mutations.damage_text,
            read_tables,
            tuple((f"set/{n}", d) for n, d in beside),
        ),
        Seed("labels.json", labels, mutations.damage_json, read_labels, (("a.nrrd", _written(".nrrd")),)),
    ]


def _config() -> list[Seed]:
    from MedSAM3Core.evaluation.layouts import read_layout
    from MedSAM3Core.models import registry
    from MedSAM3Core.models.card import ModelCard
    from MedSAM3Core.models.folder import read_config
    from MedSAM3Core.models.tokenizer import PhraseTokenizer
    from MedSAM3Core.training.config import read_config as read_training

    resources = ROOT / "Resources"
    demo = resources / "models/demo"
    vocabulary = (
        (
            "vocab.json",
            json.dumps(
                {
                    token: n
                    for n, token in enumerate(("a", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"))
                }
            ).encode(),
        ),
    )
    found = [
        Seed("a.yaml", (ROOT / "configs/demo.yaml").read_bytes(), mutations.damage_yaml, read_training),
        Seed("registry.yaml", (resources / "models/registry.yaml").read_bytes(), mutations.damage_yaml,
             registry._parse),
        Seed("a.yaml", (resources / "datasets/msd.yaml").read_bytes(), mutations.damage_yaml, read_layout),
        Seed("card.json", (demo / "card.json").read_bytes(), mutations.damage_json, lambda p: ModelCard.read(p.parent)),
        Seed("config.json", (demo / "config.json").read_bytes(), mutations.damage_json,
             lambda p: read_config(p.parent)),
        Seed("merges.txt", b"#version: 0.2\na b</w>\n", mutations.damage_text,
             lambda p: PhraseTokenizer.from_folder(p.parent), vocabulary),
        Seed("vocab.json", vocabulary[0][1], mutations.damage_json,
             lambda p: PhraseTokenizer.from_folder(p.parent), (("merges.txt", b"#version: 0.2\n"),)),
    ]  # fmt: skip
    recipe = ROOT / "configs/lora.yaml"
    if recipe.is_file():
        from MedSAM3Core.training.recipe import read_recipe

        found.append(Seed("a.yaml", recipe.read_bytes(), mutations.damage_yaml, read_recipe))
    return found


def _checkpoint() -> list[Seed]:
    import torch

    from MedSAM3Core.models.checkpoint import read_checkpoint
    from MedSAM3Core.models.lora import read_adapter

    def read_lora(path: Path) -> object:
        return read_adapter(path, alpha=4.0)

    tensors = {f"detector.backbone.{n}": torch.arange(6.0).view(2, 3) for n in "abc"}
    stream = io.BytesIO()
    torch.save({"model": tensors, "optimizer": {"step": 5}, "epoch": 3}, stream)
    lora = io.BytesIO()
    name = "transformer.encoder.layers.0.linear1.lora.lora_"
    torch.save({f"{name}A": torch.ones(4, 2), f"{name}B": torch.ones(2, 4)}, lora)
    old = io.BytesIO()
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    return [
        Seed("a.pt", stream.getvalue(), mutations.damage_checkpoint, read_checkpoint),
        Seed("lora.pt", lora.getvalue(), mutations.damage_checkpoint, read_lora),
        Seed("old.pt", old.getvalue(), mutations.damage_checkpoint, read_checkpoint),
        Seed("a.safetensors", _safetensors(tensors), mutations.damage_checkpoint, read_checkpoint),
        *_model_folders(),
    ]


def _safetensors(tensors: dict) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _model_folders() -> list[Seed]:
    """The shipped model's folder with one of its files damaged, loaded as `Segmenter.from_pretrained` would."""
    from MedSAM3Core.models.folder import read_config
    from MedSAM3Core.models.weights import build_empty, read_shapes

    demo = ROOT / "Resources/models/demo"
    config = (demo / "config.json").read_bytes()
    header_size = int.from_bytes((demo / "model.safetensors").open("rb").read(8), "little")
    header = (demo / "model.safetensors").open("rb").read(8 + header_size)

    def build(path: Path) -> object:
        return build_empty(read_config(path.parent))

    return [
        Seed("config.json", config, mutations.damage_json, build),
        Seed("model.safetensors", header + bytes(64), mutations.damage_checkpoint, read_shapes),
    ]


_SEEDS: dict[str, Callable[[], list[Seed]]] = {
    "nrrd": _nrrd,
    "nifti": _nifti,
    "dicom": _dicom,
    "png": _png,
    "seg.nrrd": _seg_nrrd,
    "manifest": _manifest,
    "config": _config,
    "checkpoint": _checkpoint,
}
