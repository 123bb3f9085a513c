"""``medsam3 models``: which models there are, what is known of them, and how they come and go."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.errors import InputError, ModelError

if TYPE_CHECKING:
    from MedSAM3Core.models.card import ModelCard
    from MedSAM3Core.models.consent import LicenceRequest
    from MedSAM3Core.models.registry import RegistryEntry

app = typer.Typer(help="List, describe, download, import and remove models.", invoke_without_command=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model; see 'medsam3 models list'.")]


@app.callback()
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_models(as_json: options.AsJson = False) -> None:
    """Show the models that are known by name, and which are installed."""
    from MedSAM3Core.models.registry import data_home, known_names

    known = [describe(name) for name in known_names()]
    if as_json:
        terminal.print_json({"home": str(data_home()), "models": known})
        return
    columns = [
        ("name", "left"),
        ("installed", "left"),
        ("size", "right"),
        ("licence", "left"),
        ("what", "left"),
    ]
    rows = [
        [m["name"], "yes" if m["installed"] else "no", _megabytes(m["bytes"]), m["licence"], m["title"]]
        for m in known
    ]
    terminal.print_table("", columns, rows)


@app.command("info")
def info(name: Name, as_json: options.AsJson = False) -> None:
    """Show what is known of a model: licence, training data, held-out Dice, limits, and how to cite it."""
    from MedSAM3Core.models.card import CLINICAL_WARNING

    document = describe(name, whole=True)
    if as_json:
        terminal.print_json(document | {"warning": CLINICAL_WARNING})
        return
    card = card_of(name)
    terminal.print_facts(_facts(card, document))
    if card.held_out_dice:
        rows = [[concept, f"{value:.2f}"] for concept, value in card.held_out_dice.items()]
        title = "Dice on patients that training never saw, text prompts only"
        terminal.print_table(title, terminal.FIGURES, rows)
    if card.held_out_absent is not None:
        share = f"{100 * card.held_out_absent:.0f}% of the slices stay empty"
        terminal.print_facts([("a concept that is not in the picture", share)])
    terminal.print_facts([("note", CLINICAL_WARNING)])


Accept = Annotated[
    bool,
    typer.Option(
        "--accept-licence",
        help="Accept the model's licence without being asked; read it with 'medsam3 models info' first.",
    ),
]


@app.command("download")
def download(name: Name, accept: Accept = False, as_json: options.AsJson = False) -> None:
    """Download a model, with the base it needs, after showing its licence.

    An interrupted download goes on where it stopped. A gated model needs access granted by its owners first, and a
    token: in HF_TOKEN, or from 'hf auth login'.
    """
    card_of(name)  # an unknown name is told before torch is loaded
    from MedSAM3Core.models.installing import download_model

    with terminal.cancel_on_interrupt() as cancel, terminal.progress_bar() as progress:
        download_model(name, asker(accept), progress, cancel)
    _show_installed(name, as_json)


@app.command("import")
def import_(
    name: Name,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="The model: a published checkpoint, a LoRA file, or a model folder."
        ),
    ],
    base: Annotated[
        str,
        typer.Option(
            "--base",
            metavar="NAME",
            help="For a model of your own: the installed model that its LoRA was made for, or that has what its "
            "checkpoint lacks.",
        ),
    ] = "sam3",
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="A",
            min=1e-6,
            help="For a LoRA of your own whose file does not store it: the alpha that it was trained with.",
        ),
    ] = None,
    accept: Accept = False,
    as_json: options.AsJson = False,
) -> None:
    """Install a model from a file or folder on this machine; nothing is downloaded.

    NAME is a model of the list, whose published file PATH then must be, or a new name for a model of your own.
    """
    if not path.expanduser().exists():
        raise InputError(f"{path} does not exist; give the checkpoint, LoRA file or model folder to import.")
    from MedSAM3Core.models.installing import import_model

    with terminal.cancel_on_interrupt() as cancel, terminal.progress_bar() as progress:
        import_model(name, path, asker(accept), base, alpha, progress, cancel)
    _show_installed(name, as_json)


@app.command("remove")
def remove(name: Name, as_json: options.AsJson = False) -> None:
    """Delete an installed model from this machine."""
    card = card_of(name)
    from MedSAM3Core.models.installing import remove_model

    remove_model(name)
    if as_json:
        terminal.print_json({"removed": card.name})
    else:
        terminal.print_facts([("removed", card.name)])


def asker(accept: bool) -> Callable[[LicenceRequest], bool]:
    """Who answers whether a licence is accepted: the option, or the user at the terminal.

    Args:
        accept: The user has accepted by option.
    """

    def ask(request: LicenceRequest) -> bool:
        if accept:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ModelError(
                f"The model {request.model!r} is under the {request.licence.name} ({request.licence.url}), which must "
                "be accepted first; read it, then add --accept-licence."
            )
        print(request.text, file=sys.stderr)
        with terminal.interrupted_at_once():
            return typer.confirm(f"Do you accept the {request.licence.name} for {request.model}?", err=True)

    return ask


def _show_installed(name: str, as_json: bool) -> None:
    document = describe(name)
    terminal.notify(document["notices"])
    if as_json:
        terminal.print_json(document)
    else:
        terminal.print_facts([("installed", document["name"]), ("folder", str(document["folder"]))])


def describe(name: str, whole: bool = False) -> dict[str, Any]:
    """A model as plain values.

    Args:
        name: Registry name, alias or name of an installed model.
        whole: With everything on its card, instead of the few things a list needs.

    Raises:
        ModelError: If it is unknown.
    """
    from MedSAM3Core.models.listing import read_notices
    from MedSAM3Core.models.registry import find_entry, installed_folder

    card, entry, folder = card_of(name), find_entry(name), installed_folder(name)
    few = {
        "name": card.name,
        "title": card.title or card.summary,
        "installed": folder is not None,
        "folder": str(folder) if folder else None,
        "bytes": _size(folder) if folder else (entry.approximate_bytes if entry else 0),
        "licence": card.licence.name,
        "kind": entry.kind if entry else "own",
        "notices": list(read_notices(folder)) if folder else [],
    }
    return few | {"source": _source(entry), "card": card.model_dump(mode="json")} if whole else few


def card_of(name: str) -> ModelCard:
    """The card of an installed model, or else the registry's.

    Raises:
        ModelError: If the model is unknown.
    """
    from MedSAM3Core.models.card import ModelCard
    from MedSAM3Core.models.registry import find_entry, find_folder, installed_folder

    folder = installed_folder(name)
    if folder is None and (entry := find_entry(name)):
        return entry.card
    return ModelCard.read(folder or find_folder(name))


def _facts(card: ModelCard, document: dict[str, Any]) -> list[tuple[str, str]]:
    licence = ", ".join(part for part in (card.licence.name, card.licence.url, card.licence.note) if part)
    style = card.prompt_style
    facts = [
        ("name", f"{card.name}: {card.title}" if card.title else card.name),
        ("summary", card.summary),
        (
            "installed",
            f"{document['folder']} ({_megabytes(document['bytes'])})" if document["installed"] else "no",
        ),
        *(("note", notice) for notice in document["notices"]),
        ("download", _source_line(document["source"])),
        ("base", card.base),
        ("licence", licence),
        ("input", f"{card.resolution} x {card.resolution} pixels"),
        ("prompts", style.advice),
        ("in training", ", ".join(style.examples)),
        ("concepts", ", ".join(card.concepts)),
        ("read here", card.recommended.in_words),
        ("as published", card.published.in_words if card.published != card.recommended else ""),
        *(("trained on", _data_line(source)) for source in card.training_data),
        *(("limit", limit) for limit in card.limits),
        ("cite", card.citation),
        ("home", card.homepage),
        ("SHA-256", card.sha256),
    ]
    return [(name, value) for name, value in facts if value]


def _data_line(source: Any) -> str:
    cases = f"{source.cases} cases" if source.cases is not None else ""
    return ", ".join(part for part in (source.name, cases, source.licence, source.url) if part)


def _source_line(source: dict[str, Any] | None) -> str:
    if source is None:
        return ""
    access = ", access to be granted by its owners" if source["gated"] else ""
    return f"{source['repository']}, {source['file']} ({_megabytes(source['bytes'])}{access})"


def _source(entry: RegistryEntry | None) -> dict[str, Any] | None:
    if entry is None or not entry.repository:
        return None
    return {
        "repository": entry.repository,
        "file": entry.file,
        "revision": entry.revision,
        "gated": entry.gated,
        "bytes": entry.approximate_bytes,
        "base": entry.base,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _megabytes(count: int) -> str:
    return f"{count / terminal.MEGABYTE:,.0f} MB" if count else ""
