"""Frozen encoders against LoRA against full fine-tuning: the same small data, steps and base, judged on held-out
patients.

``python Testing/training/compare_methods.py DATA --concept polyp --base demo --output FOLDER``; DATA is a folder that
``medsam3 evaluate`` reads, with a test split. Patients of the test split are judged by ``medsam3 evaluate``, before
(the base) and after each method. Writes FOLDER/report/report.html and prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import yaml

from MedSAM3Core.cli import main
from MedSAM3Core.evaluation.datasets import choose_some, read_dataset

METHODS = {"frozen": 1e-4, "lora": 4e-4, "full": 1e-4}
"""Method to its learning rate; LoRA's small matrices start at nothing and need a higher one."""


def write_table(data: Path, concept: str, patients: int, folder: Path) -> Path:
    """A ``cases.csv`` with a few training cases, so that "small data" is small for every method alike."""
    found = read_dataset(data).cases
    train = choose_some([c for c in found if c.split == "train" and concept in c.references], patients)
    rows = ["image,concept,mask,patient,split,kind,value"]
    for case in train:
        reference = case.references[concept]
        kind = "instance" if reference.kind == "instances" else ""
        value = str(reference.values[0]) if reference.values else ""
        rows.append(
            f"{case.image.resolve()},{concept},{reference.files[0].resolve()},{case.patient},,{kind},{value}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def run_method(method: str, arguments: argparse.Namespace, cases: Path) -> tuple[Path, dict]:
    """Fine-tune by one method; gives the model's folder and what the command said, seconds included."""
    output = arguments.output / method
    recipe = {
        "name": f"{method}-{arguments.concept.replace(' ', '-')}",
        "base": arguments.base,
        "method": method,
        "data": [{"folder": str(cases.resolve())}],
        "output": str(output.resolve()),
        "steps": arguments.steps,
        "batch": 4,
        "learning_rate": METHODS[method],
        "encoder_rate": 1.0,
        "lora": {"rank": 8, "alpha": 16},
        "validation": {"share": 0.2, "every": max(10, arguments.steps // 6), "patience": 0},
        "save_every": 50,
    }
    path = arguments.output / f"{method}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    started = time.monotonic()
    print(f"{method}: {arguments.steps} steps", file=sys.stderr, flush=True)
    if main(["finetune", str(path)]):
        sys.exit(1)
    return output / "model", {"method": method, "seconds": round(time.monotonic() - started, 1)}


def run() -> int:
    """Train by each method and evaluate all of them at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--concept", default="polyp")
    parser.add_argument("--base", default="demo")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output = arguments.output.resolve()
    cases = write_table(arguments.data, arguments.concept, arguments.patients, arguments.output / "data")
    done = [run_method(method, arguments, cases) for method in METHODS]
    (arguments.output / "seconds.json").write_text(json.dumps([facts for _, facts in done], indent=2))
    models = [
        word for folder in (arguments.base, *(str(path) for path, _ in done)) for word in ("--model", folder)
    ]
    words = ["evaluate", str(arguments.data), *models, "-c", arguments.concept, "--split", "test"]
    modes = ["--mode", "text", "--mode", "text+box", "--limit", str(arguments.limit)]
    return main([*words, *modes, "-o", str(arguments.output / "report")])


if __name__ == "__main__":
    sys.exit(run())
