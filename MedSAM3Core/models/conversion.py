"""Published checkpoints into model folders, once, with an account of every tensor."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Sam3VideoConfig

from MedSAM3Core.errors import CheckpointError, ModelError
from MedSAM3Core.models.card import ModelCard
from MedSAM3Core.models.checkpoint import Checkpoint, read_checkpoint
from MedSAM3Core.models.folder import new_folder, write_config
from MedSAM3Core.models.naming import rename_all
from MedSAM3Core.models.registry import MANIFEST_FILE
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.models.weights import (
    WEIGHTS_FILE,
    build_empty,
    check_tensors,
    describe_names,
    file_sha256,
    write_tensors,
)
from MedSAM3Core.plurals import counted
from MedSAM3Core.progress import ProgressMeter
from MedSAM3Core.version import __version__

log = logging.getLogger(__name__)

CONVERTER_VERSION = 1
"""Raised when the same source would give other tensors; a folder of another version is refused, not loaded wrongly."""

_TRACKER = ("tracker_model.", "tracker_neck.")


@dataclass(frozen=True)
class Manifest:
    """Where a converted model came from, written beside it.

    Attributes:
        source: File name of the checkpoint.
        source_sha256: Its hash.
        source_bytes: Its size.
        layout: What kind of file it was.
        converter: `CONVERTER_VERSION`.
        package: Version of this package.
        tensors: Tensors written.
        dropped: Published tensors left out on purpose.
        left_out: Entries beside the weights (optimiser state, ...).
        patched: Tensors taken from the base because the source had values that are not finite.
        from_base: Tensors taken from the base because the source has none (an image model has no tracker).
        base_sha256: Hash of the base's weights, if it was used.
        notices: Sentences for the user.
    """

    source: str
    source_sha256: str
    source_bytes: int
    layout: str
    converter: int = CONVERTER_VERSION
    package: str = __version__
    tensors: int = 0
    dropped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    patched: tuple[str, ...] = ()
    from_base: tuple[str, ...] = ()
    base_sha256: str = ""
    notices: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def is_outdated(folder: Path) -> bool:
    """Whether a model folder was converted by another version of the converter; False for what was not converted."""
    try:
        values = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        return bool(values["converter"] != CONVERTER_VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_converter(folder: Path) -> None:
    """Raise `ModelError` if a model folder was converted by another version of the converter."""
    if is_outdated(folder):
        raise ModelError(
            f"The model in {folder} was converted by another version of this package, which placed tensors otherwise; "
            f"download it again, or import its file again with 'medsam3 models import {folder.name} PATH'."
        )


def full_size_config(resolution: int = 1008) -> Sam3VideoConfig:
    """The published architecture; only tables that are computed depend on the resolution.

    Args:
        resolution: Side of the square input in pixels, a multiple of 14.
    """
    config: Any = Sam3VideoConfig()
    config.image_size = resolution
    config.detector_config.vision_config.backbone_feature_sizes = (
        config.tracker_config.vision_config.backbone_feature_sizes
    )
    config.low_res_mask_size = 4 * (resolution // 14)
    return config


def convert_checkpoint(
    source: Path,
    destination: Path,
    card: ModelCard,
    base: Path | None = None,
    config: Sam3VideoConfig | None = None,
    tokenizer: PhraseTokenizer | None = None,
    meter: ProgressMeter | None = None,
) -> Manifest:
    """Convert a published checkpoint into a model folder, which appears whole or not at all.

    Args:
        source: The file: whole or image-only, wrapped in "model" or not, with or without optimiser state; or already in
            transformers' layout.
        destination: The folder that is made, or replaced.
        card: What is known of the model.
        base: Model folder that tensors are taken from where the source has none, or has values that are not finite.
        config: Architecture; None is the published one at the card's resolution.
        tokenizer: None is CLIP's whole vocabulary.
        meter: Told "converting" in bytes; lets a cancel through, which leaves nothing.

    Returns:
        The manifest that was written into the folder.

    Raises:
        CheckpointError: Naming the tensors that are missing, unexpected, misshapen or not finite.
        OutputError: If the folder cannot be written.
        Cancelled: If the meter's token was cancelled.
    """
    checkpoint = read_checkpoint(source)
    tensors, dropped = to_transformers(checkpoint)
    config = config or full_size_config(card.resolution)
    wanted = {name: tuple(value.shape) for name, value in build_empty(config).state_dict().items()}
    donor = _Donor(base, wanted)
    absent = _add_tracker(tensors, checkpoint, donor)
    check_tensors({n: tuple(t.shape) for n, t in tensors.items()}, wanted, f"The checkpoint {source}")
    broken = _patch(tensors, source, donor)
    manifest = Manifest(
        source=source.name,
        source_sha256=file_sha256(source),
        source_bytes=source.stat().st_size,
        layout=checkpoint.layout,
        tensors=len(tensors),
        dropped=tuple(sorted(dropped)),
        left_out=checkpoint.left_out,
        patched=tuple(broken),
        from_base=tuple(absent),
        base_sha256=donor.sha256 if absent or broken else "",
        notices=_notices(source.name, absent, broken),
    )
    _write(
        destination,
        tensors,
        config,
        card,
        tokenizer or PhraseTokenizer.full(),
        manifest,
        meter or ProgressMeter(),
    )
    for notice in manifest.notices:
        log.warning(notice)
    return manifest


def _add_tracker(tensors: dict[str, Tensor], checkpoint: Checkpoint, donor: _Donor) -> list[str]:
    """Give an image model the base's tracker; returns the names that were taken."""
    if checkpoint.layout == "published video":
        return []
    absent = sorted(name for name in set(donor.wanted) - set(tensors) if name.startswith(_TRACKER))
    if absent:
        tensors |= donor.take(absent, f"{checkpoint.path} is an image model without a tracker")
    return absent


def _patch(tensors: dict[str, Tensor], source: Path, donor: _Donor) -> list[str]:
    """Take the base's tensors in the place of those that are not finite; returns their names."""
    broken = not_finite(tensors)
    if broken:
        tensors |= donor.take(broken, f"{source} has values that are not finite in {describe_names(broken)}")
    return broken


def _notices(source: str, absent: list[str], broken: list[str]) -> tuple[str, ...]:
    notices = []
    if absent:
        notices.append(
            f"The tracker ({counted(len(absent), 'tensor')}) is the base model's; {source} has none."
        )
    if broken:
        notices.append(f"Not finite in {source} and taken from the base model: {', '.join(broken)}.")
    return tuple(notices)


def to_transformers(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a checkpoint under transformers' names, and the names dropped on purpose.

    Raises:
        CheckpointError: If it is a LoRA file, of another architecture, or has names that no rule knows.
    """
    path, layout = checkpoint.path, checkpoint.layout
    if layout == "transformers":
        return dict(checkpoint.tensors), []
    if layout == "lora":
        raise CheckpointError(
            f"{path} is a LoRA file, which changes a base model and is none itself; import it as a model whose base is "
            "installed, for example medsam3-v1 on sam3."
        )
    if layout == "other":
        raise CheckpointError(
            f"{path} is not a SAM 3 checkpoint (it has {describe_names(checkpoint.tensors)}); "
            "expected tensors such as detector.backbone.vision_backbone.trunk.pos_embed."
        )
    prefix = "detector." if layout == "published image" else ""
    renamed, dropped, unknown = rename_all({prefix + n: t for n, t in checkpoint.tensors.items()})
    if unknown:
        raise CheckpointError(
            f"{path} holds {counted(len(unknown), 'tensor')} that no SAM 3 model has ({describe_names(unknown)}); "
            "it is of another version or architecture."
        )
    return renamed, dropped


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of floating tensors that hold NaN or infinity, sorted."""
    return sorted(n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all())


class _Donor:
    """The base model's tensors, opened when one is needed.

    Args:
        folder: Its model folder, or None.
        wanted: Name to shape that the new model has.
    """

    def __init__(self, folder: Path | None, wanted: dict[str, tuple[int, ...]]) -> None:
        self._folder = folder
        self.wanted = wanted

    @property
    def sha256(self) -> str:
        """Hash of the base's weights."""
        return ModelCard.read(self._folder).sha256 if self._folder else ""

    def take(self, names: Iterable[str], reason: str) -> dict[str, Tensor]:
        """Tensors by name.

        Raises:
            CheckpointError: Starting with ``reason``, if there is no base or it does not fit.
        """
        if self._folder is None:
            raise CheckpointError(
                f"{reason}; these tensors must come from the base model, so install it (sam3) first."
            )
        taken = {}
        with safe_open(self._folder / WEIGHTS_FILE, framework="pt") as file:
            held = set(file.keys())
            for name in names:
                if name not in held or tuple(file.get_slice(name).get_shape()) != self.wanted[name]:
                    raise CheckpointError(
                        f"{reason}; the base in {self._folder} has no fitting {name}, so it is another "
                        "architecture."
                    )
                taken[name] = file.get_tensor(name)
        if broken := not_finite(taken):
            raise CheckpointError(f"{reason}; the base's {describe_names(broken)} is not finite either.")
        return taken


def _write(
    destination: Path,
    tensors: dict[str, Tensor],
    config: Sam3VideoConfig,
    card: ModelCard,
    tokenizer: PhraseTokenizer,
    manifest: Manifest,
    meter: ProgressMeter,
) -> None:
    with new_folder(destination) as folder:
        write_tensors(
            tensors, folder / WEIGHTS_FILE, written=lambda done, total: meter.step("converting", done, total)
        )
        write_config(folder, config)
        tokenizer.save(folder)
        card.model_copy(update={"sha256": file_sha256(folder / WEIGHTS_FILE)}).write(folder)
        manifest.write(folder)
