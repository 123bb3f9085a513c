"""Models coming and going: download, import, remove; the command line and the panel call these."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from MedSAM3Core.errors import CheckpointError, ModelError, OutputError
from MedSAM3Core.models.card import CARD_FILE, ModelCard
from MedSAM3Core.models.checkpoint import read_checkpoint
from MedSAM3Core.models.consent import LicenceRequest, has_consent, licence_request, record_consent
from MedSAM3Core.models.conversion import Manifest, convert_checkpoint, full_size_config, is_outdated
from MedSAM3Core.models.folder import new_folder, read_config
from MedSAM3Core.models.hub import check_disk, fetch, only_one
from MedSAM3Core.models.listing import list_models
from MedSAM3Core.models.lora import ADAPTER_FILE, PEFT_CONFIG, Adapter, read_adapter
from MedSAM3Core.models.registry import (
    LoraSettings,
    RegistryEntry,
    adapter_base,
    data_home,
    find_entry,
    installed_folder,
    known_names,
    model_folder,
    read_registry,
)
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.models.weights import WEIGHTS_FILE, build_empty, check_tensors, file_sha256, read_shapes
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter

log = logging.getLogger(__name__)

FULL_MODEL_BYTES = 3_450_000_000
"""Of a converted full-size model in float32."""

AskConsent = Callable[[LicenceRequest], bool]


def download_model(
    name: str,
    ask: AskConsent,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download a model of the registry, with the base it needs, and convert it.

    Args:
        name: Registry name or alias.
        ask: Shows a licence and answers whether it is accepted; not called for a text that was accepted before.
        progress: Told bytes.
        cancel: Stops the download, which a later call goes on with.
        endpoint: Address of another hub; None takes HF_ENDPOINT or the public one.

    Returns:
        The model folder; at once when it is installed already.

    Raises:
        ModelError: If it is unknown or cannot be downloaded, its licence is not accepted, or the hub refuses.
        CheckpointError: If the file is damaged or not what it should be.
        ResourceError: If the disk is too small.
    """
    entry = _registered(name)
    folder = installed_folder(entry.name)
    if folder and not is_outdated(folder):
        return folder
    if not entry.repository:
        raise ModelError(
            f"The model {entry.name!r} has no repository on a hub; run "
            f"'medsam3 models import {entry.name} PATH' with its file instead."
        )
    _obtain_consent(entry, ask)
    if entry.base:
        download_model(entry.base, ask, progress, cancel, endpoint)
    meter = ProgressMeter(progress, cancel, {"downloading": 0.9, "checking": 0.03, "converting": 0.07})
    store = data_home() / "downloads" / entry.name
    with only_one(store, entry.name):
        source = fetch(entry, store, meter, 0 if entry.kind == "lora" else FULL_MODEL_BYTES, endpoint)
        folder = _install(entry, source, meter)
        shutil.rmtree(store, ignore_errors=True)
    meter.step("converting", 1, 1)
    return folder


def import_model(
    name: str,
    path: Path,
    ask: AskConsent,
    base: str = "sam3",
    alpha: float | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """Install a model from a file or folder that the user has.

    Args:
        name: Registry name or alias, whose file it then must be; or a new name for a model of the user's own.
        path: A published checkpoint, a LoRA file, peft's folder of a LoRA, or a model folder.
        ask: As in `download_model`; a model of the user's own has no licence to show.
        base: Of a model of the user's own: what its LoRA changes, or what its checkpoint lacks is taken from.
        alpha: Of a LoRA of the user's own, whose file does not say it.
        progress: Told bytes.
        cancel: Stops the import, which leaves nothing.

    Returns:
        The model folder.

    Raises:
        ModelError: If the name cannot be used or the licence is not accepted.
        CheckpointError: If the file is not what it should be; nothing is installed then.
        OutputError: If the data folder cannot be written.
        ResourceError: If the disk is too small.
        Cancelled: If the token was cancelled.
    """
    path = _weights_in(path.expanduser())
    entry = find_entry(name)
    if entry is None:
        _check_name(name)
    elif entry.kind == "shipped":
        raise ModelError(f"The model {entry.name!r} ships with the package; import under another name.")
    else:
        if alpha is not None:
            raise ModelError(
                f"The alpha of {entry.name!r} is fixed by the registry; leave the alpha out, or import under a name of "
                "your own."
            )
        _obtain_consent(entry, ask)
    if path.is_dir():
        return _import_folder(entry.name if entry else name, path, entry)
    meter = ProgressMeter(progress, cancel, {"converting": 1.0})
    return _install(entry or _own_entry(name, path, base, alpha), path, meter)


def remove_model(name: str) -> None:
    """Delete an installed model.

    Raises:
        ModelError: If it is not installed, ships with the package, or another installed model needs it.
    """
    entry = find_entry(name)
    if entry and entry.kind == "shipped":
        raise ModelError(f"The model {entry.name!r} ships with the package and cannot be removed.")
    folder = installed_folder(name)
    if folder is None:
        raise ModelError(f"The model {name!r} is not installed; there is nothing to remove.")
    needed_by = [
        status.name
        for status in list_models()
        if status.folder and adapter_base(status.folder) == folder.name
    ]
    if needed_by:
        raise ModelError(
            f"The model {folder.name!r} is the base of {', '.join(needed_by)}; remove that first."
        )
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(
            f"The model folder {folder} cannot be removed ({error.strerror}); "
            "close what uses it, or make it writable, and try again."
        ) from error


def _registered(name: str) -> RegistryEntry:
    entry = find_entry(name)
    if entry is None:
        names = ", ".join(read_registry())
        raise ModelError(f"The model {name!r} is not in the registry; expected one of {names}.")
    return entry


def _weights_in(path: Path) -> Path:
    """The weights in a folder as peft or transformers saves one; any other path, our own folders too, as it is."""
    names: tuple[str, ...] = ()
    if (path / PEFT_CONFIG).is_file():
        names = ("adapter_model.safetensors", "adapter_model.bin")
    elif not (path / CARD_FILE).is_file():
        names = (WEIGHTS_FILE,)
    return next((path / name for name in names if (path / name).is_file()), path)


def _check_name(name: str) -> None:
    if not name.strip() or Path(name).name != name or name.startswith("."):
        raise ModelError(
            f"The name {name!r} cannot be used for a model; expected letters, digits, dots and dashes."
        )


def _own_entry(name: str, path: Path, base: str, alpha: float | None) -> RegistryEntry:
    """Entry of a user's own checkpoint or LoRA on a base model, whose outputs are read as the base's are."""
    lora = path.is_file() and read_checkpoint(path).layout == "lora"
    if alpha is not None and not lora:
        raise ModelError(f"{path} is not a LoRA file, which alone has an alpha; leave the alpha out.")
    parent = _card_of_base(base)
    card = ModelCard(
        name=name,
        title=name,
        summary=f"A model of your own on {parent.title or parent.name}.",
        base=parent.name,
        licence=parent.licence,
        resolution=parent.resolution,
        prompt_style=parent.prompt_style,
        published=parent.published,
        recommended=parent.recommended,
        tracks=parent.tracks,
    )
    settings = LoraSettings(alpha=alpha) if alpha is not None else None
    return RegistryEntry(kind="lora" if lora else "checkpoint", card=card, base=parent.name, lora=settings)


def _card_of_base(base: str) -> ModelCard:
    """Card of a model by registry name, alias or the name that it was imported under."""
    if entry := find_entry(base):
        return entry.card
    folder = installed_folder(base)
    if folder is None:
        raise ModelError(f"The base {base!r} is unknown; expected one of {', '.join(known_names())}.")
    return ModelCard.read(folder)


def _obtain_consent(entry: RegistryEntry, ask: AskConsent) -> None:
    request = licence_request(entry)
    if has_consent(request):
        return
    if not ask(request):
        raise ModelError(
            f"The {request.licence.name} was not accepted, so {entry.name} was not installed; accept it to use the "
            "model."
        )
    record_consent(request)


def _install(entry: RegistryEntry, source: Path, meter: ProgressMeter) -> Path:
    destination = model_folder(entry.name)
    if entry.kind == "lora":
        return _install_lora(entry, source, destination)
    _check_layout(entry, source)
    check_disk(destination.parent, entry.name, FULL_MODEL_BYTES)
    base = installed_folder(entry.base) if entry.base else None
    convert_checkpoint(source, destination, entry.card, base, meter=meter)
    return destination


def _check_layout(entry: RegistryEntry, source: Path) -> None:
    """Raise `CheckpointError` if a file in the published layout is another release's than its name says."""
    found = {"published image": "image", "published video": "video"}.get(read_checkpoint(source).layout)
    if entry.holds and found and found != entry.holds:
        raise CheckpointError(
            f"{source} holds {_A_MODEL[found]}, but {entry.name!r} is {_A_MODEL[entry.holds]}; expected its file "
            f"{entry.file}."
        )


_A_MODEL = {"image": "an image model without a tracker", "video": "a video model with its tracker"}


def _install_lora(entry: RegistryEntry, source: Path, destination: Path) -> Path:
    """Check a LoRA against its installed base and keep it beside, not merged: 70 MB instead of 3.4 GB."""
    lora = entry.lora
    adapter = read_adapter(source, lora.alpha if lora else None, lora.rank if lora else None)
    base = _whole_base(entry.name, entry.base)
    check_adapter(adapter, base)
    with new_folder(destination) as folder:
        adapter.save(folder, entry.base)
        card = entry.card.model_copy(update={"sha256": file_sha256(folder / ADAPTER_FILE)})
        card.write(folder)
        Manifest(
            source=source.name,
            source_sha256=file_sha256(source),
            source_bytes=source.stat().st_size,
            layout="lora",
            tensors=len(adapter.down) + len(adapter.up),
            dropped=adapter.dropped,
            base_sha256=ModelCard.read(base).sha256,
        ).write(folder)
    return destination


def _whole_base(name: str, base: str) -> Path:
    """Folder of the installed whole model that a LoRA changes."""
    folder = installed_folder(base)
    if folder is None:
        raise ModelError(
            f"The model {name!r} is a LoRA on {base!r}, which is not installed; install {base} first."
        )
    if below := adapter_base(folder):
        raise ModelError(f"The base {base!r} is a LoRA itself; give the whole model below it, {below!r}.")
    return folder


def check_adapter(adapter: Adapter, base: Path) -> None:
    """Compare an adapter with the shapes of its base.

    Raises:
        CheckpointError: Naming a module that the base does not have or has in another size.
    """
    shapes = read_shapes(base / WEIGHTS_FILE)
    for module, down in adapter.down.items():
        wanted = (adapter.up[module].shape[0], down.shape[1])
        if shapes.get(f"{module}.weight") != wanted:
            raise CheckpointError(
                f"The LoRA changes {module} as a layer of shape {wanted}, but the base in {base} has "
                f"{shapes.get(f'{module}.weight')}; it was made for another base."
            )


def _import_folder(name: str, source: Path, entry: RegistryEntry | None) -> Path:
    """Copy a model folder after checking that it would load, and that it is what its name says."""
    card = _check_lora_folder(name, source, entry) or _check_whole_folder(source, entry)
    with new_folder(model_folder(name)) as folder:
        for file in source.iterdir():
            if file.is_file() and file.name != CARD_FILE:
                shutil.copy2(file, folder / file.name)
        card.model_copy(update={"name": name}).write(folder)
    return model_folder(name)


def _check_lora_folder(name: str, source: Path, entry: RegistryEntry | None) -> ModelCard | None:
    """Card of a folder that holds a LoRA which fits its base; None for a folder of another kind."""
    base = adapter_base(source)
    if base is None:
        return None
    adapter, card = Adapter.load(source), ModelCard.read(source)
    check_adapter(adapter, _whole_base(name, base))
    if entry is None:
        return card
    lora = entry.lora
    if (
        base != entry.base
        or lora is None
        or (lora.rank or adapter.rank, lora.alpha) != (adapter.rank, adapter.alpha)
    ):
        raise _not_what_it_says(source, entry)
    return entry.card.model_copy(update={"sha256": card.sha256})


def _check_whole_folder(source: Path, entry: RegistryEntry | None) -> ModelCard:
    """Card of a folder that holds a whole model."""
    shapes = {n: tuple(t.shape) for n, t in build_empty(read_config(source)).state_dict().items()}
    check_tensors(read_shapes(source / WEIGHTS_FILE), shapes, f"The weights file {source / WEIGHTS_FILE}")
    PhraseTokenizer.from_folder(source)
    card = ModelCard.read(source)
    if entry is None:
        return card
    published = build_empty(full_size_config(entry.card.resolution)).state_dict()
    if entry.kind == "lora" or shapes != {n: tuple(t.shape) for n, t in published.items()}:
        raise _not_what_it_says(source, entry)
    return entry.card.model_copy(update={"sha256": card.sha256})


def _not_what_it_says(source: Path, entry: RegistryEntry) -> CheckpointError:
    return CheckpointError(
        f"The model folder {source} does not hold {entry.name!r}, which has another architecture, base or alpha; "
        "import it under a name of your own."
    )
