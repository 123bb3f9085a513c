"""The options that commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

InputPath = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="The image: a NRRD, NIfTI, MetaImage, DICOM, PNG, JPEG, TIFF or BMP file, or a folder with a DICOM "
        "series.",
    ),
]
Concepts = Annotated[
    list[str],
    typer.Option(
        "--concept",
        "-c",
        metavar="CONCEPT",
        help="What to look for, in at most three words. Repeatable.",
    ),
]
SegmentationPath = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUTPUT",
        help="File for the segmentation: .seg.nrrd (named, coloured, coded segments for Slicer), .nrrd or .nii.gz "
        "(labels 1, 2, ... in the order of the concepts), .dcm (DICOM SEG), .png (labels of a 2D image).",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="[CONCEPT=]K,I0,J0,I1,J1[,+|-]",
        help="Box on slice K, columns I0 to I1, rows J0 to J1, around the concept (+, the default) or around what "
        "is not it (-). Voxel indices from 0, both ends included. For one of several concepts: "
        "'liver=40,10,20,60,80'; without a name it is for each. Repeatable.",
    ),
]
Boxes3D = Annotated[
    list[str] | None,
    typer.Option(
        "--box3d",
        metavar="[CONCEPT=]I0,J0,K0,I1,J1,K1[,+|-]",
        help="The same in 3D: a box over columns I0 to I1, rows J0 to J1, slices K0 to K1. Repeatable.",
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        metavar="[CONCEPT=]K,I,J[,+|-]",
        help="Click on slice K, column I, row J, on the concept (+, the default) or on what is not it (-). Voxel "
        "indices from 0; a name as for a box. Repeatable.",
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME|PATH", help="Name of a model (see 'medsam3 models list'), or a model folder."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where to compute: auto (on a CUDA GPU if there is one), cpu, cuda or cuda:N (GPU number N, from 0).",
    ),
]
WorkerCommand = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="COMMAND",
        help="Compute in a worker that this command starts, for example 'ssh host medsam3 worker' for another "
        "machine's GPU; --model and --device are then that machine's.",
    ),
]
Axis = Annotated[
    str,
    typer.Option(
        "--axis",
        metavar="AXIS",
        help="How to cut the volume into slices: axial, sagittal, coronal, or auto (across its coarsest spacing, "
        "axial when there is none).",
    ),
]
Window = Annotated[
    str,
    typer.Option(
        "--window",
        metavar="WINDOW",
        help="Intensity window: auto (in CT chosen by the concept), a name such as liver, lung or bone (CT), "
        "percentiles, full (minimum to maximum), or WIDTH,LEVEL in the image's own unit (HU in CT).",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="0..1",
        min=0.0,
        max=1.0,
        help="Score, 0 to 1, from which the concept counts as found on a slice; the model's own when not given.",
    ),
]
Mode = Annotated[
    str,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="How closely to look: recommended (key slices first, then around the object); thorough (at every "
        "slice); fast (at fewer slices, shapes interpolated between them); published (as the model's authors run "
        "it).",
    ),
]
Tiles = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(
        "--tiles",
        help="Look at a single 2D image in overlapping tiles: on, off, or auto (where it is large and its objects "
        "small).",
    ),
]
OverlayPath = Annotated[
    Path | None,
    typer.Option("--overlay", metavar="PNG", help="Also write a picture of the masks on the image."),
]
ReportPath = Annotated[
    Path | None,
    typer.Option("--report", metavar="JSON", help="Also write a JSON report of what was found and how."),
]
Series = Annotated[
    str | None,
    typer.Option(
        "--series",
        metavar="SERIES",
        help="Which series of a folder that holds several: its UID, number, or part of its description.",
    ),
]
TimeIndex = Annotated[
    int | None,
    typer.Option(
        "--time", metavar="N", min=0, help="Which time of an image that has several, counted from 0."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
