"""``medsam3 agent``: a request in plain words, with a language model that plans and looks at the result."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.cli import report as reports
from MedSAM3Core.cli.files import check_segmentation_path, write_overlay, write_segmentation
from MedSAM3Core.cli.outputs import OutputSet, check_destination, check_folder
from MedSAM3Core.cli.segment import Stopwatch, loaded
from MedSAM3Core.errors import Cancelled, InputError, OutputError
from MedSAM3Core.plurals import counted
from MedSAM3Core.progress import CancelToken, ProgressCallback

if TYPE_CHECKING:
    from MedSAM3Core.agent import Judge, Outcome
    from MedSAM3Core.agent.chat import OpenAIChat
    from MedSAM3Core.agent.endpoint import Endpoint
    from MedSAM3Core.volume import Volume

Text = Annotated[str, typer.Argument(metavar="REQUEST", help="What is wanted, in plain words, in quotes.")]
Url = Annotated[
    str,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Address of a server with the OpenAI chat API, such as http://localhost:11434/v1 (Ollama), "
        "http://localhost:8080/v1 (llama.cpp) or https://api.openai.com/v1.",
    ),
]
LanguageModel = Annotated[
    str,
    typer.Option(
        "--mllm",
        metavar="NAME",
        help="Name of the language model at the endpoint; one that sees pictures, unless --text-only.",
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        "--rounds", metavar="N", help="Most rounds of segmenting and checking for each structure, 1 to 10."
    ),
]
Pictures = Annotated[
    int,
    typer.Option("--pictures", metavar="N", min=1, max=12, help="Most pictures sent in a round, 1 to 12."),
]
TextOnly = Annotated[
    bool,
    typer.Option(
        "--text-only", help="Send no pictures: the language model plans, and judges by figures alone."
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Agree to what leaves this machine without being asked.")
]
DryRunFolder = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Send nothing; write what would be sent for the first round into the folder OUTPUT.dry-run.",
    ),
]
TranscriptPath = Annotated[
    Path | None,
    typer.Option(
        "--transcript",
        metavar="JSON",
        help="File for the record of the conversation; OUTPUT.agent.json when not given.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for an answer, 1 to 3600 seconds.")
]
Retries = Annotated[
    int, typer.Option("--retries", metavar="N", help="How often a failed request is repeated, 0 to 10.")
]
PerMinute = Annotated[
    float,
    typer.Option("--per-minute", metavar="N", help="Most requests a minute, up to 6000; 0 is no limit."),
]
Price = Annotated[
    str | None,
    typer.Option(
        "--price",
        metavar="IN,OUT",
        help="Prices of a million tokens sent and of a million received, in any currency, to add up the cost.",
    ),
]


@dataclass(frozen=True)
class Paths:
    """Where things go.

    Attributes:
        output: The segmentation.
        transcript: The conversation.
        overlay: The picture, or None.
        report: The report, or None.
    """

    output: Path
    transcript: Path
    overlay: Path | None
    report: Path | None


def agent(
    input_path: options.InputPath,
    request: Text,
    output: options.SegmentationPath,
    endpoint: Url,
    mllm: LanguageModel,
    rounds: Rounds = 3,
    pictures: Pictures = 4,
    text_only: TextOnly = False,
    yes: Yes = False,
    dry_run: DryRunFolder = False,
    transcript: TranscriptPath = None,
    timeout: Timeout = 60.0,
    retries: Retries = 2,
    per_minute: PerMinute = 0.0,
    price: Price = None,
    model: options.ModelName = "demo",
    device: options.Device = "auto",
    axis: options.Axis = "auto",
    window: options.Window = "auto",
    threshold: options.Threshold = None,
    mode: options.Mode = "recommended",
    overlay: options.OverlayPath = None,
    report: options.ReportPath = None,
    series: options.Series = None,
    time_index: options.TimeIndex = None,
    worker: options.WorkerCommand = None,
    as_json: options.AsJson = False,
) -> None:
    """Do what a request in plain words asks for; a language model plans, looks at the result, and corrects it.

    [bold]medsam3 agent ct.nii.gz "the liver, and its volume" -o out.seg.nrrd --endpoint URL --mllm NAME[/bold]

    Rendered pictures of some slices, the request and figures go to the endpoint, after you have agreed; the file and
    its header do not. A key is read from MEDSAM3_AGENT_KEY, the provider's usual variable, or the system's keyring.
    Volumes and other numbers are computed from the masks, never by the language model.
    """
    watch = Stopwatch()
    paths = check_paths(output, transcript, overlay, report)
    place = parse_endpoint(endpoint, mllm, timeout, retries, per_minute, price, text_only)
    how = {"axis": axis, "window": window, "mode": mode}
    with watch.measure("read"):
        from MedSAM3Core.volume.reading import read_volume

        volume = read_volume(input_path, time=time_index, series=series)
        check_segmentation_path(output, volume)
    check_request(volume, request, rounds, how)
    if not dry_run:
        agree(place, request, volume, rounds, pictures, yes)
    with ExitStack() as stack:
        with watch.measure("load"):
            segmenter = stack.enter_context(loaded(model, device, worker))
        cancel = stack.enter_context(terminal.cancel_on_interrupt())
        session = stack.enter_context(segmenter.open(volume, **how))
        run = Conversation(session, request, rounds, pictures, window, threshold)
        if dry_run:
            write_dry_run(run, place, output, cancel, as_json)
            return
        chat = connect(place)
        stack.callback(chat.close)
        with watch.measure("agent"), terminal.progress_bar() as progress:
            outcome = run.hold(judge_of(chat), progress, cancel)
        document = write(paths, volume, outcome, chat, how, watch, cancel)
    show(outcome, document, as_json)


@dataclass(frozen=True)
class Conversation:
    """All of a run but the judge.

    Attributes:
        session: The open volume.
        request: In plain words.
        rounds: Most rounds a target.
        pictures: Most pictures a round.
        window: For the pictures.
        threshold: First threshold, or None.
    """

    session: Any
    request: str
    rounds: int
    pictures: int
    window: str
    threshold: float | None

    def hold(self, judge: Judge, progress: ProgressCallback | None, cancel: CancelToken) -> Outcome:
        """Run it to its end."""
        from MedSAM3Core.agent import run_agent

        return run_agent(
            self.session,
            self.request,
            judge,
            self.rounds,
            pictures=self.pictures,
            window=self.window,
            threshold=self.threshold,
            progress=progress,
            cancel=cancel,
        )


def check_paths(output: Path, transcript: Path | None, overlay: Path | None, report: Path | None) -> Paths:
    """Raise `OutputError` unless everything could be written."""
    check_segmentation_path(output)
    record = transcript or output.with_name(f"{output.name}.agent.json")
    for path, suffix in ((record, ".json"), (overlay, ".png"), (report, ".json")):
        if path is not None:
            check_destination(path, (suffix,))
    named = [path.absolute() for path in (output, record, overlay, report) if path is not None]
    if len(set(named)) != len(named):
        raise OutputError("Two of the outputs have the same name; give each its own.")
    return Paths(output, record, overlay, report)


def parse_endpoint(
    url: str, model: str, timeout: float, retries: int, per_minute: float, price: str | None, text_only: bool
) -> Endpoint:
    """The endpoint from the options.

    Raises:
        InputError: If one of them cannot be used.
    """
    from MedSAM3Core.agent.endpoint import Endpoint

    prices: list[float | None] = [None, None]
    if price is not None:
        try:
            prices = [float(part) for part in price.split(",")]
        except ValueError:
            prices = []
        if len(prices) != 2 or any(p is None or not 0 <= p < 1e6 for p in prices):
            raise InputError(
                f"The price is {price!r}; expected two numbers, IN,OUT, for a million tokens each."
            )
    return Endpoint.parse(
        url,
        model,
        timeout_s=timeout,
        retries=retries,
        per_minute=per_minute,
        pictures=not text_only,
        price_in=prices[0],
        price_out=prices[1],
    )


def check_request(volume: Volume, request: str, rounds: int, how: dict[str, str]) -> None:
    """Everything that can be wrong with the request itself, before a model is loaded or anybody is asked."""
    from MedSAM3Core.agent import Machine
    from MedSAM3Core.agent.pictures import PictureMaker
    from MedSAM3Core.inference.plan import SlicePlan

    maker = PictureMaker(volume, SlicePlan.for_volume(volume, how["axis"]))
    Machine(request, maker, rounds, how["window"])


def agree(place: Endpoint, request: str, volume: Volume, rounds: int, pictures: int, yes: bool) -> None:
    """Show what leaves, and ask.

    Raises:
        InputError: If nobody can be asked and ``--yes`` was not given.
        Cancelled: If the answer is no.
    """
    from MedSAM3Core.agent.disclosure import ImageKind, disclose

    for line in disclose(place, request, ImageKind.of(volume), rounds, pictures).lines():
        print(line, file=sys.stderr, flush=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(
            "Nothing was sent, because this is not a terminal, so nobody can be asked to agree.",
            "Add --yes to agree, or --dry-run to see what would be sent.",
        )
    if not typer.confirm("Send this?", err=True):
        raise Cancelled("Nothing was sent.")


def connect(place: Endpoint) -> OpenAIChat:
    """The language model behind an endpoint, with its key."""
    from MedSAM3Core.agent.chat import OpenAIChat
    from MedSAM3Core.agent.endpoint import find_key

    return OpenAIChat(place, find_key(place))


def judge_of(chat: Any) -> Judge:
    """A judge that asks a chat model."""
    from MedSAM3Core.agent.advisor import LanguageModelJudge

    return LanguageModelJudge(chat)


def write_dry_run(
    run: Conversation, place: Endpoint, output: Path, cancel: CancelToken, as_json: bool
) -> None:
    """Write what would be sent beside the output, and say where."""
    from MedSAM3Core.agent.disclosure import ImageKind, disclose
    from MedSAM3Core.agent.dryrun import DryRun

    folder = output.with_name(f"{output.name}.dry-run")
    check_folder(folder)
    temporary = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        chat = DryRun(place, temporary)
        run.hold(judge_of(chat), None, cancel)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    lines = disclose(place, run.request, ImageKind.of(run.session.volume), run.rounds, run.pictures).lines()
    files = [str((folder / path.name).absolute()) for path in chat.files]
    if as_json:
        terminal.print_json(
            {"sent": False, "folder": str(folder.absolute()), "files": files, "disclosure": lines}
        )
        return
    terminal.notify(lines)
    terminal.print_facts([("nothing was sent", f"{len(files)} files are in {folder}")])


def write(
    paths: Paths,
    volume: Volume,
    outcome: Outcome,
    chat: OpenAIChat,
    how: dict[str, str],
    watch: Stopwatch,
    cancel: CancelToken,
) -> dict[str, Any]:
    """Write segmentation, transcript and what else was asked for, together; gives the report.

    Raises:
        OutputError: If a file cannot be written; then none is.
    """
    from MedSAM3Core.agent.transcript import signed

    found = [signed(one, chat.endpoint.model) for one in outcome.chosen if one is not None]
    if not found:
        raise InputError("Nothing was found in any round, so nothing was written; name another structure.")
    named = {kind: str(path.absolute()) for kind, path in vars(paths).items() if path is not None}
    with OutputSet() as outputs:
        with watch.measure("write"):
            said = outputs.write(paths.output, lambda path: write_segmentation(path, volume, found))
            if paths.overlay is not None:
                outputs.write(
                    paths.overlay, lambda path: write_overlay(path, volume, found, how["axis"], how["window"])
                )
        document = reports.report(
            volume, found, named, watch.seconds, [*volume.notices, *said, *outcome.notices]
        )
        document["agent"] = agent_document(outcome, chat)
        record = {**document["agent"], "requests": chat.transcript.document()}
        outputs.write(paths.transcript, lambda path: _write_json(path, record))
        if paths.report is not None:
            outputs.write(paths.report, lambda path: _write_json(path, document))
        cancel.check()
    return document


def agent_document(outcome: Outcome, chat: OpenAIChat) -> dict[str, Any]:
    """What the agent did, for report and transcript."""
    from MedSAM3Core.agent.transcript import outcome_document
    from MedSAM3Core.version import __version__

    usage = chat.usage
    return {
        "medsam3": __version__,
        "endpoint": chat.endpoint.url,
        "language_model": chat.endpoint.model,
        "pictures_sent": chat.dialect.pictures,
        "usage": {
            "requests": usage.requests,
            "tokens_sent": usage.sent,
            "tokens_received": usage.received,
            "all_counted": usage.counted,
            "cost": None if usage.cost is None else round(usage.cost, 6),
        },
        **outcome_document(outcome),
    }


def show(outcome: Outcome, document: dict[str, Any], as_json: bool) -> None:
    """The rounds, what was found, and the answers."""
    terminal.notify(
        [*document["notices"], *(n for r in outcome.rounds for n in r.judgement.notices)]
        + [n for entry in document["concepts"] for n in entry["notices"]]
    )
    if as_json:
        terminal.print_json(document)
        return
    columns = [
        ("round", "right"),
        ("for", "left"),
        ("tried", "left"),
        ("score", "right"),
        ("verdict", "left"),
    ]
    taken = {one.number for one in outcome.chosen if one is not None}
    rows = [
        [
            f"{one.number}{'*' if one.number in taken else ''}",
            outcome.plan.targets[one.target].concept.phrase,
            one.attempt.describe(),
            f"{one.score:.2f}",
            one.judgement.verdict.words,
            one.judgement.reason,
        ]
        for one in outcome.rounds
    ]
    terminal.print_table("Rounds (* was taken)", [*columns, ("reason", "left")], rows)
    terminal.print_table("", reports.TABLE_COLUMNS, [reports.table_row(s) for s in outcome.segmentations])
    for answer in outcome.answers:
        terminal.print_facts([("answer", answer.sentence)])
    usage = document["agent"]["usage"]
    cost = "" if usage["cost"] is None else f", cost {usage['cost']:.4f}"
    tokens = f"{usage['tokens_sent']:,} tokens sent, {usage['tokens_received']:,} received"
    terminal.print_facts([("language model", f"{counted(usage['requests'], 'request')}, {tokens}{cost}")])


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
