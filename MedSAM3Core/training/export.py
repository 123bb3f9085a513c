"""The model folder that comes out of a run, and its card: what it was trained on and how well it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.heldout import Score, absent_share, evaluate_cases, summarise
from MedSAM3Core.faults import first_fault
from MedSAM3Core.inference.session import Segmenter
from MedSAM3Core.models.card import DataSource, ModelCard
from MedSAM3Core.models.folder import save_model_folder
from MedSAM3Core.models.tokenizer import PhraseTokenizer
from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.training.finetune import Run, read_groups
from MedSAM3Core.training.pack import Case, read_pack, split_of


def export_run(run: Run) -> Path:
    """Write the run's averaged weights as a model folder, ``model`` below its output.

    Returns:
        The folder.
    """
    run.load_average()
    run.network.fold()
    folder = run.config.output / "model"
    tokenizer = PhraseTokenizer.from_folder(run.config.output / "tokenizer")
    save_model_folder(folder, run.network.model, tokenizer, describe(run), torch.float16)
    return folder


def describe(run: Run) -> ModelCard:
    """Card of a run: what its card file says, the concepts and the data it was trained on.

    Raises:
        InputError: If the card file is wrong, naming the field.
    """
    values = {}
    if run.config.card is not None:
        values = yaml.safe_load(run.config.card.read_text(encoding="utf-8"))
    trained = [case for case in run.cases if split_of(case.patient) == "train"]
    concepts = {name for case in trained for name in case.concepts}
    try:
        card = ModelCard(name=run.config.name, **values)
    except ValidationError as error:
        raise InputError(
            f"The card {run.config.card} is wrong at {first_fault(error)}; correct it."
        ) from error
    return card.model_copy(
        update={"concepts": tuple(sorted(concepts | set(run.groups))), "training_data": data_sources(trained)}
    )


def data_sources(cases: Sequence[Case]) -> tuple[DataSource, ...]:
    """Collections of some cases with their licences and number of patients."""
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases:
        patients[case.source, case.licence].add(case.patient)
    return tuple(
        DataSource(name=source, licence=licence, cases=len(names))
        for (source, licence), names in sorted(patients.items())
    )


def judge(
    folder: Path,
    data: Path,
    split: str = "test",
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> list[Score]:
    """Measure a model folder on the held-out patients of a pack and write the mean Dice into its card."""
    cases = [case for case in read_pack(data) if split_of(case.patient) == split]
    scores = evaluate_cases(Segmenter.from_pretrained(folder), cases, read_groups(data), progress, cancel)
    figures = {f"{s.concept} ({s.source})": round(s.dice, 3) for s in summarise(scores)}
    measured = {"held_out_dice": figures, "held_out_absent": round(absent_share(scores), 3)}
    card = ModelCard.read(folder).model_copy(update=measured)
    card.write(folder)
    return scores
