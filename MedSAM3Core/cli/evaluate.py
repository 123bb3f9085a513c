"""``medsam3 evaluate``: how good models are on labelled images, side by side, with a report that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.errors import InputError

if TYPE_CHECKING:
    from MedSAM3Core.evaluation.cases import LabelledCase
    from MedSAM3Core.evaluation.contenders import AgentRun, Contender
    from MedSAM3Core.evaluation.datasets import DataSet
    from MedSAM3Core.evaluation.report import Provenance
    from MedSAM3Core.evaluation.summary import Summary

DEFAULT_TOLERANCE = 2.0
LIST = "list"


Dataset = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATASET",
        help="Folder of labelled images: a public data set as it is published, a table cases.csv, images with "
        ".seg.nrrd files beside them, or tables index.csv and volumes.csv.",
    ),
]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="Name of a model (see 'medsam3 models list'), or a model folder; or a peer to compare with: "
        "thresholding, litemedsam[=FOLDER]. Repeatable; demo when not given.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the report; created if absent."),
]
ModeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="How the models are asked: text; text+box (with a box of the reference); boxes:N (text, then N "
        "boxes of a simulated annotator); agent (needs --judge). Repeatable; text when not given.",
    ),
]
Concept = Annotated[
    list[str] | None,
    typer.Option(
        "--concept",
        "-c",
        metavar="CONCEPT",
        help="Measure only this concept. Repeatable; all when not given.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="SPLIT",
        help="Which split: train, validation, test or all; when not given, test where the data has one, else "
        "all.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|YAML",
        help="How the folder is laid out, if that is not recognised: a name, or a YAML file; 'list' shows the "
        "names.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Measure at most N images of each source, spread over it; all when not given.",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="MM",
        help="Tolerance of the surface Dice (NSD) in mm; in pixels for images without a known pixel size.",
    ),
]
Inference = Annotated[
    str,
    typer.Option(
        "--inference",
        metavar="MODE",
        help="How closely to look: recommended, thorough, fast or published, as --mode of 'medsam3 segment'.",
    ),
]
Ablate = Annotated[
    bool,
    typer.Option(
        "--ablate", help="Also measure each model with single steps of the search changed or left out."
    ),
]
Judge = Annotated[
    float | None,
    typer.Option(
        metavar="ACCURACY",
        min=0,
        max=1,
        help="With --mode agent: how often the simulated judge is right, 0 to 1.",
    ),
]


def evaluate(
    dataset: Dataset = None,
    model: Model = None,
    output: Output = None,
    mode: ModeOption = None,
    concept: Concept = None,
    split: Split = None,
    layout: Layout = None,
    limit: Limit = None,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    inference: Inference = "recommended",
    ablate: Ablate = False,
    judge: Judge = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Measure models on labelled images and write a report.

    [bold]medsam3 evaluate Kvasir-SEG --model demo --model thresholding --mode text --mode text+box -o report[/bold]

    Dice, IoU, HD95 and NSD per concept with confidence intervals over patients, paired tests between models, the
    papers' figures beside them, the worst cases as pictures. The folder gets report.html, summary.json and cases.csv.
    """
    if layout == LIST:
        _list_layouts(as_json)
        return
    if dataset is None or output is None:
        raise InputError("A data set and an output folder are needed: medsam3 evaluate DATASET -o FOLDER.")
    from MedSAM3Core.evaluation.contenders import Mode
    from MedSAM3Core.evaluation.report.files import check_folder

    check_folder(output)
    modes = [Mode.parse(text) for text in mode or ["text"]]
    if any(one.kind == "agent" for one in modes) and judge is None:
        raise InputError("The mode agent needs a judge; add --judge 1 for one that knows the reference.")
    terminal_models = model or ["demo"]
    found, cases, concepts = _read(dataset, layout, concept, split, limit)
    contenders, words = _contenders(terminal_models, device, inference, ablate, judge)
    settings = {
        "modes": ", ".join(one.name for one in modes),
        "inference": inference,
        "tolerance": f"{tolerance:g} mm, or {tolerance:g} px for images without a known pixel size",
        "concepts": ", ".join(concepts) or "all",
        "device": device,
    } | ({"judge": f"simulated, right with probability {judge:g}"} if judge is not None else {})
    provenance = _provenance(found, cases, split, words, settings)
    _run(output, cases, contenders, modes, concepts, tolerance, provenance, as_json)


def _read(
    folder: Path, layout: str | None, concept: list[str] | None, split: str | None, limit: int | None
) -> tuple[DataSet, Sequence[LabelledCase], tuple[str, ...]]:
    from MedSAM3Core.concepts import resolve, split_concepts
    from MedSAM3Core.evaluation.datasets import choose_some, read_dataset

    phrases = tuple(resolve(part).phrase for text in concept or () for part in split_concepts(text))
    found = read_dataset(folder, layout, phrases[0] if len(phrases) == 1 else None)
    if split is None:
        split = "test" if any(case.split == "test" for case in found.cases) else "all"
    cases = [c for c in found.of_split(split) if not phrases or set(phrases) & set(c.references)]
    return found, choose_some(cases, limit) if limit else cases, phrases


def _contenders(
    names: Sequence[str], device: str, inference: str, ablate: bool, judge: float | None
) -> tuple[list[Contender], dict[str, str]]:
    """Contenders, and what is known of each in words."""
    from MedSAM3Core.evaluation import peers
    from MedSAM3Core.evaluation.contenders import ModelContender, SessionPool
    from MedSAM3Core.evaluation.steps import ablation_contenders

    contenders: list[Contender] = []
    words: dict[str, str] = {}
    for name in names:
        peer = peers.peer_of(name)
        if peer is not None:
            contenders.append(peer)
            words[peer.name] = peers.DESCRIPTIONS[peer.name]
            continue
        from MedSAM3Core.inference.session import Segmenter

        segmenter = Segmenter.from_pretrained(name, device)
        card = segmenter.model.card
        pool = SessionPool(segmenter, inference)
        label = card.name if Path(name).is_dir() else name
        if label in words:
            label = f"{label} ({Path(name).name})"
        if ablate:
            contenders += ablation_contenders(label, pool)
        else:
            contenders.append(ModelContender(label, pool, agent=_agent(judge)))
        facts = (
            card.title or card.name,
            f"weights {card.sha256[:16]}",
            f"{card.resolution} px",
            card.licence.name,
        )
        words[label] = ", ".join(facts)
    return contenders, words


def _agent(judge: float | None) -> AgentRun | None:
    if judge is None:
        return None
    from MedSAM3Core.evaluation.peers import simulated_agent

    return simulated_agent(judge)


def _provenance(
    found: DataSet,
    cases: Sequence[LabelledCase],
    split: str | None,
    models: dict[str, str],
    settings: dict[str, str],
) -> Provenance:
    from MedSAM3Core.evaluation.report import Provenance
    from MedSAM3Core.version import __version__

    splits = sorted({case.split or "no split" for case in cases})
    return Provenance(
        found.title,
        found.homepage,
        found.citation,
        ", ".join(splits),
        found.patient_note,
        len(cases),
        len({case.patient for case in cases}),
        models,
        settings,
        found.notices,
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        __version__,
    )


def _run(
    output: Path,
    cases: Sequence[LabelledCase],
    contenders: Sequence[Contender],
    modes: Sequence[Any],
    concepts: tuple[str, ...],
    tolerance: float,
    provenance: Provenance,
    as_json: bool,
) -> None:
    from MedSAM3Core.evaluation.report import Gallery, write_report
    from MedSAM3Core.evaluation.report.files import as_json as plain
    from MedSAM3Core.evaluation.run import Plan, evaluate
    from MedSAM3Core.evaluation.summary import summarise

    plan = Plan(contenders, modes, concepts, tolerance)
    gallery = Gallery()
    with terminal.cancel_on_interrupt() as cancel, terminal.progress_bar() as progress:
        scores = evaluate(cases, plan, progress, cancel, gallery.see)
    if not any(score.present for score in scores):
        raise InputError(
            f"No model could be asked: {', '.join(c.name for c in contenders)} in {', '.join(m.name for m in modes)}; "
            "thresholding and litemedsam need --mode text+box."
        )
    summary = summarise(scores)
    files = write_report(output, scores, summary, gallery, provenance)
    terminal.notify(provenance.notices)
    if as_json:
        terminal.print_json(plain(summary, provenance) | {"files": {n: str(p) for n, p in files.items()}})
        return
    terminal.print_table(provenance.dataset, _COLUMNS, _rows(summary))
    terminal.print_facts([("report", str(files["report.html"]))])


_COLUMNS = [
    ("concept", "left"),
    ("contender", "left"),
    ("images", "right"),
    ("patients", "right"),
    ("Dice [95%]", "right"),
    ("IoU", "right"),
    ("HD95", "right"),
    ("NSD", "right"),
    ("missed", "right"),
]


def _rows(summary: Summary) -> list[list[str]]:
    from MedSAM3Core.evaluation.report.files import figure, interval

    rows = []
    for one in summary.concepts:
        get = one.metrics.get
        hd95, nsd = get("hd95"), get("nsd")
        rows.append(
            [
                one.concept,
                one.contestant.label,
                str(one.cases),
                str(one.metrics["dice"].patients),
                interval(get("dice"), 2),
                figure(one.metrics["iou"].mean, 2),
                f"{hd95.mean:.1f} {one.unit}" if hd95 else "–",
                figure(nsd.mean if nsd else None, 2),
                str(one.missed),
            ]
        )
    return rows


def _list_layouts(as_json: bool) -> None:
    from MedSAM3Core.evaluation.layouts import known_layouts

    known = known_layouts()
    if as_json:
        terminal.print_json([layout.model_dump() for layout in known.values()])
        return
    rows = [[one.name, one.title, one.obtain, one.homepage] for one in known.values()]
    columns = [("layout", "left"), ("title", "left"), ("to get it", "left"), ("where", "left")]
    terminal.print_table("Data sets that are read as they are published", columns, rows)
