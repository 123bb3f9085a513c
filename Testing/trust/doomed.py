"""Processes that end themselves with SIGKILL in a chosen stage of a command, a run or a download.

``python doomed.py`` imports the library once and then forks a process for each line of its input, a JSON list of an
act, a stage, a folder and more; with the stage "none" the process lives and finishes. The model is a double that calls
bright what is brighter than `BRIGHT`; everything else, files, processes and locks, is the real thing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

BRIGHT = 100
NO_STRANGERS = 77
"""Exit code where root may become nobody else, as in a container with one user."""


def die(*_: object, **__: object) -> None:
    """End without a chance to clean up, as a crash, the system's memory killer or a pulled plug would."""
    os.kill(os.getpid(), signal.SIGKILL)


class BrightSegmenter:
    """Doubles `Segmenter` and its session: any concept is what is brighter than `BRIGHT`."""

    def __init__(self, stage: str = "none") -> None:
        self.stage = stage

    def open(self, volume: Any, **_: object) -> BrightSegmenter:
        self.volume = volume
        return self

    def __enter__(self) -> BrightSegmenter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def segment_many(self, concepts: Any, progress=None, cancel=None, threshold=None) -> list:
        from MedSAM3Core.segmentation import Segmentation

        if self.stage == "segment":
            die()
        array = self.volume.array if self.volume.array.ndim == 3 else self.volume.array[..., 0]
        return [Segmentation.from_mask(c, self.volume.geometry, array > BRIGHT, score=0.9) for c in concepts]

    def segment(self, concept: Any, boxes=(), progress=None, cancel=None, threshold=None, points=()):
        return self.segment_many([concept])[0]


def segment(stage: str, folder: Path) -> int:
    """``medsam3 segment`` with all three outputs."""
    from MedSAM3Core.cli import main
    from MedSAM3Core.inference.session import Segmenter

    Segmenter.from_pretrained = lambda *_, **__: die() if stage == "load" else BrightSegmenter(stage)
    if stage == "read":
        from MedSAM3Core.volume import nrrd

        nrrd._voxels = die
    elif stage == "write":
        os.fsync = die  # the voxels are in the temporary file, which has not got its name yet
    elif stage == "names":
        from MedSAM3Core.cli import outputs

        outputs.os = SimpleNamespace(**vars(os))
        rename, done = os.replace, []

        def replace(*names: object) -> None:
            if done:
                die()
            done.append(names)
            rename(*names)

        outputs.os.replace = replace
    files = [folder / "ct.nrrd", "-c", "liver", "-o", folder / "out.seg.nrrd"]
    files += ["--overlay", folder / "out.png", "--report", folder / "out.json"]
    return main(["segment", *map(str, files)])


def finetune(stage: str, folder: Path) -> int:
    """Twelve steps of the trainer of ``medsam3 finetune`` on a network of one layer, a checkpoint every four."""
    import torch
    from torch import nn

    from MedSAM3Core.training import trainer
    from MedSAM3Core.training.config import TrainingConfig

    module = nn.Linear(3, 1)
    nn.init.constant_(module.weight, 0.5)
    nn.init.zeros_(module.bias)
    steps = []

    class Lessons:
        def parameters(self) -> list:
            return [(list(module.parameters()), 1.0)]

        def prepare(self) -> None:
            return None

        def loss(self) -> dict:
            steps.append(1)
            if stage == "step" and len(steps) == 7:
                die()
            inputs = torch.randn(8, 3)
            return {"error": (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()}

    if stage == "save":
        save = torch.save

        def half(content: object, target: Any, *more: object) -> None:
            save(content, target, *more)
            if len(steps) == 8:  # the second checkpoint
                path = Path(getattr(target, "name", target))
                if hasattr(target, "flush"):
                    target.flush()
                os.truncate(path, path.stat().st_size // 2)
                die()

        trainer.torch.save = half
    stages = [{"kind": "dense", "steps": 12, "warmup": 2}]
    config = TrainingConfig(
        name="n", data=folder, output=folder / "run", stages=stages, save_every=4, bf16=False
    )
    run = trainer.Trainer(config, module, lambda _: Lessons(), SimpleNamespace(random=None))
    run.run()
    print(len(steps), [round(v, 9) for v in module.weight.detach().flatten().tolist()])
    return 0


def download(stage: str, folder: Path, endpoint: str) -> int:
    """Fetch a file from a hub that stands on this machine."""
    from MedSAM3Core.models.card import ModelCard
    from MedSAM3Core.models.hub import fetch
    from MedSAM3Core.models.registry import RegistryEntry
    from MedSAM3Core.progress import Progress, ProgressMeter

    def report(value: Progress) -> None:
        if stage == "transfer" and value.stage == "downloading" and value.step > 0.4 * value.total:
            die()
        if stage == "check" and value.stage == "checking":
            die()

    entry = RegistryEntry(kind="checkpoint", card=ModelCard(name="m"), repository="owner/m", file="m.pt")
    folder.mkdir(exist_ok=True)
    print(fetch(entry, folder, ProgressMeter(report), endpoint=endpoint))
    return 0


def install(stage: str, folder: Path) -> int:
    """Replace a model folder by another."""
    from MedSAM3Core.models.folder import new_folder

    if stage == "names":
        rename = Path.rename

        def once(self: Path, target: Path) -> Path:
            if self.name.endswith(".partial"):
                die()
            return rename(self, target)

        Path.rename = once  # type: ignore[method-assign]
    with new_folder(folder / "model") as place:
        (place / "card.json").write_text("new")
        if stage == "convert":
            die()
    return 0


def refuse(stage: str, folder: Path) -> int:
    """Begin to replace a model folder, and fail: what a second attempt on a full disk does."""
    from MedSAM3Core.errors import OutputError
    from MedSAM3Core.models.folder import new_folder

    try:
        with new_folder(folder / "model"):
            raise OSError(28, "No space left on device")
    except OutputError as error:
        print(error)
    return 0


def consent(stage: str, folder: Path) -> int:
    """Record two consents."""
    from MedSAM3Core.models.card import Licence
    from MedSAM3Core.models.consent import LicenceRequest, has_consent, record_consent

    os.environ["MEDSAM3_HOME"] = str(folder)
    first, second = (LicenceRequest(n, Licence(name=n), n) for n in ("first", "second"))
    record_consent(first)
    if stage == "record":
        os.replace = die
    record_consent(second)
    print(has_consent(first), has_consent(second))
    return 0


def overfill(stage: str, folder: Path) -> int:
    """Read a volume with too little memory for it."""
    import resource

    from MedSAM3Core.cli import main
    from MedSAM3Core.inference.session import Segmenter
    from MedSAM3Core.volume import read_volume  # noqa: F401 - imported before the limit

    if stage == "model":

        def load(*_: object, **__: object) -> None:
            import torch

            resource.setrlimit(resource.RLIMIT_AS, (_mapped() + 2**26,) * 2)
            torch.zeros(2**31)

        Segmenter.from_pretrained = load
    else:
        Segmenter.from_pretrained = lambda *_, **__: BrightSegmenter()
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + 2**26,) * 2)
    return main(["segment", str(folder / "ct.nrrd"), "-c", "liver", "-o", str(folder / "out.seg.nrrd")])


def _mapped() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(one for one in lines if one.startswith("VmSize"))
    return int(line.split()[1]) * 1024


def write_ct(path: Path, slices: int = 4) -> np.ndarray:
    """A CT with a bright block; gives the mask of the block."""
    import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

    array = np.full((slices, 12, 10), -1000, np.int16)
    array[1:3, 2:6, 3:8] = 150
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return array > BRIGHT


def disk(stage: str, folder: Path, limit: str) -> int:
    """Write one kind of output where files may have no more than ``limit`` bytes, or, with "closed", as a stranger."""
    import resource

    import writers

    from MedSAM3Core.errors import MedSAM3Error

    write = writers.WRITERS[stage](folder)
    if limit == "closed":
        try:
            os.setgid(65534)
            os.setuid(65534)
        except OSError:
            return NO_STRANGERS
    elif limit != "none":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        write()
    except MedSAM3Error as error:
        os.write(1, f"{type(error).__name__}: {error}".encode())
        return error.exit_code
    return 0


def features(stage: str, folder: Path) -> int:
    """Keep features on a disk that takes no more than 2 kB a file, or whose folder is gone."""
    import resource

    import torch

    from MedSAM3Core.inference.disk import DiskFeatures

    kept = DiskFeatures(folder / "features", 10**6, "0" * 64, 64, "float32")
    if stage == "gone":
        kept.folder.rmdir()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
    kept.write("key", torch.arange(5000.0))
    print(kept.written, kept.read("key"), len(list((folder / "features").glob("*"))))
    return 0


ACTS = (segment, finetune, download, install, refuse, consent, overfill, disk, features)


def serve() -> None:
    """Fork a process for each line; answer with its exit code, negative for a signal, as `subprocess` does."""
    import MedSAM3Core.cli.app
    import MedSAM3Core.evaluation.report
    import MedSAM3Core.inference.session
    import MedSAM3Core.models.hub
    import MedSAM3Core.training.trainer
    import MedSAM3Core.volume.reading  # noqa: F401 - each is imported once, before the forks

    print("ready", flush=True)
    for line in sys.stdin:
        name, stage, folder, *more = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(name, stage, Path(folder), more)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(name: str, stage: str, folder: Path, more: list[str]) -> None:
    """Run an act with its output in two files beside the folder, and end."""
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{folder}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 70
    try:
        code = next(one for one in ACTS if one.__name__ == name)(stage, folder, *more)
        sys.stdout.flush()
    except BaseException:  # the process ends here, whatever it is
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
