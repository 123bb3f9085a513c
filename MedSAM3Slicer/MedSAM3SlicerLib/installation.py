"""What is there, what is missing, how to get it: packages into Slicer's Python, and models.

Nothing is installed or downloaded but by a press of its own button, after saying what and how large it is.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from MedSAM3Core.errors import Cancelled, InputError, MedSAM3Error, WorkerError
from MedSAM3Core.version import __version__
from MedSAM3SlicerLib.processes import BackgroundCommand
from MedSAM3SlicerLib.runs import Pending
from MedSAM3SlicerLib.signals import Signal
from MedSAM3SlicerLib.workers import WorkerSetup, coreFolder, workerSetup

logger = logging.getLogger(__name__)

TORCH = "torch>=2.9"
TORCH_BYTES = {"cpu": 200_000_000, "cuda": 2_500_000_000}
PACKAGES_BYTES = 60_000_000
_PROBE = Path(__file__).resolve().parent / "probe.py"
_MODEL_TOOL = Path(__file__).resolve().parent / "modeltool.py"


@dataclass(frozen=True)
class Findings:
    """What the chosen interpreter has.

    Attributes:
        place: Which interpreter, in words.
        problems: One sentence each, empty when everything is there.
        missing: Requirements to install, in pip's words.
        repair: Packages that are half there and must be installed afresh.
        summary: One sentence when all is well.
        device: Where the model will compute, in words.
    """

    place: str = ""
    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    summary: str = ""
    device: str = ""

    @property
    def ready(self) -> bool:
        """Whether a worker can run."""
        return not self.problems


@dataclass(frozen=True)
class ModelEntry:
    """A model as the panel lists it.

    Attributes:
        name: Registry name.
        title: A few words.
        installed: Whether it can be used now.
        size: Bytes on disk, or of the download.
        licence: Name of the weights' licence.
        kind: "shipped", "checkpoint", "lora" or "own".
    """

    name: str
    title: str = ""
    installed: bool = False
    size: int = 0
    licence: str = ""
    kind: str = "checkpoint"


DEMO = ModelEntry("demo", "Demonstration model, comes with the extension", True, kind="shipped")


class Pip(Protocol):
    """Runs ``pip install`` with a requester's arguments and reports how it goes."""

    def install(self, arguments: Sequence[str], onLine: Callable[[str], None]) -> Pending:
        """Begin; the answer comes when pip has ended, an error if it failed."""


class PipProcess:
    """pip in a process of its own: any interpreter, and Slicer before 5.12.

    Args:
        python: The interpreter to install into.
        env: Its environment.
    """

    def __init__(self, python: str, env: Mapping[str, str] | None = None) -> None:
        self._python, self._env = python, env

    def install(self, arguments: Sequence[str], onLine: Callable[[str], None]) -> Pending:
        """Begin ``python -m pip install``."""
        command = [self._python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
        return BackgroundCommand(command, self._env, onLine)


class SlicerPackaging:
    """``slicer.packaging`` of Slicer 5.12 and later, which knows what else is being installed.

    Args:
        packaging: The module ``slicer.packaging``.
    """

    def __init__(self, packaging: Any) -> None:
        self._packaging = packaging

    def install(self, arguments: Sequence[str], onLine: Callable[[str], None]) -> Pending:
        """Begin, without blocking the window."""
        answer = _Answer()
        self._packaging.pip_install(
            list(arguments),
            blocking=False,
            show_progress=False,
            requester="MedSAM3",
            logCallback=onLine,
            completedCallback=answer.settle,
        )
        return answer


class _Answer:
    """The end of a ``slicer.packaging`` installation."""

    def __init__(self) -> None:
        self._code: int | None = None

    @property
    def done(self) -> bool:
        """Whether pip has ended."""
        return self._code is not None

    def settle(self, code: int) -> None:
        """pip has ended with this code."""
        self._code = code

    def result(self, timeout: float | None = None) -> int:
        """0, or `WorkerError`."""
        if self._code != 0:
            raise WorkerError(f"pip ended with code {self._code}.", "See the report for what it said.")
        return 0

    def cancel(self) -> None:
        """Not offered by ``slicer.packaging``; pip goes on to its end."""


@dataclass
class Installer:
    """Checks, installs and repairs, one thing at a time, driven by `tick`.

    Args:
        requirements: The file with the packages beside torch.
        workerText: The panel's worker field; says which interpreter is meant.
        startupEnvironment: For a foreign interpreter.
        pip: Makes a `Pip` for an interpreter; None takes ``slicer.packaging`` where it exists and fits.
        torchInstaller: Installs torch (the PyTorch extension's), None when that extension is not there.
        run: Starts a background command; replaced in tests.
    """

    requirements: Path
    workerText: str = ""
    startupEnvironment: Mapping[str, str] | None = None
    pip: Callable[[WorkerSetup], Pip] | None = None
    torchInstaller: Callable[[], None] | None = None
    run: Callable[..., Any] = BackgroundCommand
    findings: Findings = field(default_factory=Findings)
    models: tuple[ModelEntry, ...] = (DEMO,)

    def __post_init__(self) -> None:
        self.queued = Signal()
        self.changed = Signal()
        self.said = Signal()
        self.failed = Signal()
        self.log: list[str] = []
        self._queue: list[tuple[str, Callable[[], Pending], Callable[[Any], None]]] = []
        self._pending: Pending | None = None
        self._finish: Callable[[Any], None] = lambda _: None
        self.doing = ""
        self.cards: dict[str, dict[str, Any]] = {}
        self._downloaded: dict[str, float] | None = None

    # What the page asks for -----------------------------------------------------------------------------------------

    @property
    def isBusy(self) -> bool:
        """Whether something is going on."""
        return self._pending is not None or bool(self._queue)

    def plan(self) -> str:
        """What the install button will do and how large it is, in a sentence; empty when nothing is missing."""
        wanted = [*self.findings.repair, *self.findings.missing]
        if not wanted:
            return ""
        size = PACKAGES_BYTES if len(wanted) > 1 or not _isTorch(wanted[0]) else 0
        names = ", ".join(re.split(r"[<>=!~]", name)[0] for name in wanted)
        text = f"Install {names} into {self.findings.place or 'Slicer'}: about {_megabytes(size)} MB"
        if any(_isTorch(name) for name in wanted):
            low, high = (_megabytes(size + TORCH_BYTES[kind]) for kind in ("cpu", "cuda"))
            text = f"Install {names} into {self.findings.place or 'Slicer'}: about {low} MB, "
            text += f"or {high} MB with support for a graphics card"
        return text + ". They come from the Python Package Index; nothing of yours is sent."

    def check(self) -> None:
        """Look at what the chosen interpreter has, and which models there are."""
        self._enqueue("Checking what is there", self._startProbe, self._onProbe)

    def install(self, folder: Path | None = None) -> None:
        """Install what is missing and repair what is half there.

        Args:
            folder: Wheels to install from, without the internet; None takes the Python Package Index.

        Raises:
            InputError: If the folder holds no wheels.
        """
        source = _offlineArguments(folder) if folder is not None else []
        wanted = list(dict.fromkeys([*self.findings.repair, *self.findings.missing]))
        torch = [name for name in wanted if _isTorch(name)]
        others = [name for name in wanted if not _isTorch(name)]
        force = ["--force-reinstall", "--no-deps"] if self.findings.repair else []
        if torch:
            self._enqueue("Installing torch", lambda: self._startTorch(torch, source, force), self._ignore)
        if others:
            arguments = [*self._constraints(), *source, *others]
            self._enqueue(
                "Installing packages", lambda: self._pip().install(arguments, self._hear), self._ignore
            )
        self.check()

    def refreshModels(self) -> None:
        """Ask which models there are."""
        self._enqueue("Looking for models", lambda: self._startModels("list", "--json"), self._onModels)

    def download(self, name: str, licenceAccepted: bool) -> None:
        """Download a model.

        Raises:
            InputError: If its licence was not accepted.
        """
        if not licenceAccepted:
            raise InputError(f"The licence of {name} is not accepted yet; read it and tick the box.")
        self._enqueue(f"Downloading {name}", lambda: self._startDownload(name), self._ignore)
        self.refreshModels()

    def describe(self, name: str) -> None:
        """Ask for a model's card: licence, training data, limits, how to cite it."""
        if name not in self.cards:
            self._enqueue(
                f"Reading about {name}", lambda: self._startModels("info", name, "--json"), self._onCard
            )

    def importModel(self, name: str, path: Path, licenceAccepted: bool) -> None:
        """Take a weights file or a model folder that is on this computer already.

        Raises:
            InputError: If its licence was not accepted.
        """
        if not licenceAccepted:
            raise InputError(f"The licence of {name} is not accepted yet; read it and tick the box.")
        arguments = ("import", name, str(path), "--accept-licence", "--json")
        self._enqueue(f"Importing {name}", lambda: self._startModels(*arguments), self._ignore)
        self.refreshModels()

    def remove(self, name: str) -> None:
        """Delete a model from this computer."""
        self._enqueue(f"Removing {name}", lambda: self._startModels("remove", name, "--json"), self._ignore)
        self.refreshModels()

    def cancel(self) -> None:
        """Stop what is going on and forget what was to follow."""
        self._queue.clear()
        if self._pending is not None:
            self._pending.cancel()

    def tick(self) -> None:
        """Go on as far as possible without waiting."""
        if self._pending is None and self._queue:
            self.doing, start, self._finish = self._queue.pop(0)
            self.said.emit(self.doing + "...")
            self._guard(lambda: setattr(self, "_pending", start()))
        elif self._pending is not None and not self._pending.done and self._downloaded is not None:
            done, total = (_megabytes(self._downloaded[name]) for name in ("done", "total"))
            self.said.emit(f"{self.doing}: {done} of {total} MB")
        elif self._pending is not None and self._pending.done:
            self._downloaded = None
            pending, self._pending = self._pending, None
            self._guard(lambda: self._finish(pending.result(0)))
            self._keepLog(pending)
            self.changed.emit()

    def report(self) -> str:
        """Everything that was said, for a bug report."""
        return "\n".join(self.log[-400:])

    # Steps ----------------------------------------------------------------------------------------------------------

    def _setup(self) -> WorkerSetup:
        return workerSetup(self.workerText, self.startupEnvironment)

    def _python(self) -> str:
        """The interpreter that is meant; a command such as ssh has none here and is its own administrator's affair."""
        setup = self._setup()
        if setup.command[1:] != ("-m", "MedSAM3Core.worker"):
            raise InputError(
                f"The worker is started by {setup.command[0]}; install there, with pip, what MedSAM3Core needs."
            )
        return setup.command[0]

    def _startProbe(self) -> Pending:
        setup = self._setup()
        return self.run([self._python(), str(_PROBE)], setup.env)

    def _onProbe(self, output: str) -> None:
        self.findings = judge(json.loads(output), self.requirements, self._setup().place)
        self.refreshModels()

    def _startModels(self, *arguments: str) -> Pending:
        setup = self._setup()
        return self.run(
            [self._python(), "-m", "MedSAM3Core.cli", "models", *arguments], setup.env, self._hear
        )

    def _startDownload(self, name: str) -> Pending:
        return self.run([self._python(), str(_MODEL_TOOL), name], self._setup().env, self._onDownloadLine)

    def _onDownloadLine(self, line: str) -> None:
        """On the reader's thread: only keeps the number, the next tick shows it."""
        try:
            self._downloaded = json.loads(line)["progress"]
        except (ValueError, KeyError, TypeError):
            self._hear(line)

    def _onCard(self, output: str) -> None:
        document = json.loads(output)
        self.cards[document["name"]] = document.get("card", {})

    def _onModels(self, output: str) -> None:
        document = json.loads(output)
        entries = [
            ModelEntry(
                m["name"],
                m.get("title", ""),
                m["installed"],
                m.get("bytes", 0),
                m.get("licence", ""),
                m["kind"],
            )
            for m in document["models"]
        ]
        self.models = tuple(sorted(entries, key=lambda entry: (not entry.installed, entry.name != "demo")))

    def _startTorch(self, wanted: Sequence[str], source: Sequence[str], force: Sequence[str]) -> Pending:
        if self.torchInstaller is not None and not self.workerText.strip() and not source and not force:
            self.torchInstaller()
            return _Done()
        return self._pip().install([*self._constraints(), *source, *force, *wanted], self._hear)

    def _pip(self) -> Pip:
        setup = self._setup()
        if self.pip is not None:
            return self.pip(setup)
        packaging = _slicerPackaging() if not self.workerText.strip() else None
        return SlicerPackaging(packaging) if packaging is not None else PipProcess(self._python(), setup.env)

    def _constraints(self) -> list[str]:
        """Keep what Slicer's compiled modules use (numpy, scipy, SimpleITK) as it is."""
        pinned = [f"{name}=={version}" for name, version in self._bundled.items()]
        if not pinned or self.workerText.strip():
            return []
        path = Path(tempfile.gettempdir()) / "medsam3-constraints.txt"
        path.write_text("\n".join(pinned) + "\n", encoding="utf-8")
        return ["-c", str(path)]

    @property
    def _bundled(self) -> dict[str, str]:
        import importlib.metadata

        return {name: importlib.metadata.version(name) for name in ("numpy", "scipy") if _isInstalled(name)}

    def _enqueue(self, title: str, start: Callable[[], Pending], finish: Callable[[Any], None]) -> None:
        self._queue.append((title, start, finish))
        self.queued.emit()

    def _ignore(self, _: Any) -> None:
        pass

    def _hear(self, line: str) -> None:
        self.log.append(line)

    def _keepLog(self, pending: Any) -> None:
        self.log.extend(getattr(pending, "log", "").splitlines()[-200:])

    def _guard(self, call: Callable[[], None]) -> None:
        """A step that fails ends the queue with a sentence; the window lives on."""
        try:
            call()
        except Cancelled:
            self._stop("Stopped.")
        except MedSAM3Error as fault:
            self._stop(str(fault))
        except (ValueError, KeyError, OSError) as fault:
            logger.exception("%s failed.", self.doing)
            self._stop(f"{self.doing} failed ({type(fault).__name__}: {fault}).")
        except Exception as fault:  # what the PyTorch extension raises is not ours to know
            logger.exception("%s failed.", self.doing)
            self._stop(f"{self.doing} failed ({fault}).")

    def _stop(self, sentence: str) -> None:
        self._queue.clear()
        self._pending = None
        self.log.append(sentence)
        self.failed.emit(sentence)
        self.changed.emit()


class _Done:
    """An answer that is there already."""

    done = True

    def result(self, timeout: float | None = None) -> None:
        """Nothing."""

    def cancel(self) -> None:
        """Nothing."""


def judge(document: Mapping[str, Any], requirements: Path, place: str) -> Findings:
    """What a probe's answer means.

    Args:
        document: What ``probe.py`` printed.
        requirements: The file with the packages beside torch.
        place: Which interpreter, in words.
    """
    versions, torch = document["versions"], document["torch"]
    problems, missing, repair = [], [], []
    for wanted in [TORCH, *readRequirements(requirements)]:
        name = re.split(r"[<>=!~]", wanted)[0]
        version = versions.get(name)
        if version is None:
            missing.append(wanted)
            problems.append(f"{name} is not installed.")
        elif not satisfies(version, wanted):
            missing.append(wanted)
            problems.append(
                f"{name} {version or 'of unknown version'} is installed; {wanted[len(name) :]} is needed."
            )
    if document["leftovers"]:
        names = sorted({leftover.lstrip("~").lower() for leftover in document["leftovers"]})
        problems.append(
            f"An interrupted installation left {', '.join(document['leftovers'])} behind; repair it."
        )
        repair += [TORCH] if any(name in "torch" or "orch" in name for name in names) else []
    if "torch" in versions and not torch["loads"]:
        problems.append(
            f"torch {versions['torch']} is installed but does not load ({torch['fault']}); repair it."
        )
        repair.append(TORCH)
    if not document["core"]:
        problems.append("MedSAM3Core is not found by this Python; install the extension again.")
    elif document["core"] != __version__:
        problems.append(f"MedSAM3Core {document['core']} is there; {__version__} is needed.")
    return _findings(document, place, problems, missing, repair)


def _findings(
    document: Mapping[str, Any], place: str, problems: list[str], missing: list[str], repair: list[str]
) -> Findings:
    torch = document["torch"]
    device = ""
    if torch["loads"]:
        device = (
            f"graphics card {torch['device']}" if torch["cuda"] else "processor (no CUDA graphics card found)"
        )
    summary = ""
    if not problems:
        summary = f"Everything is there: Python {document['python']}, torch {document['versions']['torch']}, {device}."
    return Findings(place, tuple(problems), tuple(missing), tuple(dict.fromkeys(repair)), summary, device)


def readRequirements(path: Path) -> list[str]:
    """Requirements of a file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version satisfies a requirement such as ``transformers>=5.23,<6``; local parts (+cpu) are ignored."""
    have = _numbers(version)
    for operator, limit in re.findall(r"(>=|<=|==|<|>)\s*([0-9][0-9.]*)", wanted):
        bound = _numbers(limit)
        width = max(len(have), len(bound))
        a, b = (numbers + (0,) * (width - len(numbers)) for numbers in (have, bound))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b}[operator]:
            return False
    return bool(have)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _isTorch(requirement: str) -> bool:
    return re.split(r"[<>=!~]", requirement)[0] == "torch"


def _isInstalled(name: str) -> bool:
    import importlib.metadata

    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _offlineArguments(folder: Path) -> list[str]:
    if not any(folder.glob("*.whl")):
        raise InputError(f"The folder {folder} holds no wheels (*.whl); choose one that pip download made.")
    return ["--no-index", "--find-links", str(folder)]


def _megabytes(size: float) -> str:
    return f"{round(size / 1e6, -1):,.0f}".replace(",", " ")


def _slicerPackaging() -> Any:
    """``slicer.packaging`` of Slicer 5.12 and later, or None."""
    try:
        module = importlib.import_module("slicer.packaging")
    except ImportError:
        return None
    return module if hasattr(module, "pip_install") else None


def pytorchExtension() -> Callable[[], None] | None:
    """How the PyTorch extension installs torch for this computer's graphics card; None when it is not installed."""
    try:
        module = importlib.import_module("PyTorchUtils")
    except ImportError:
        return None

    def install() -> None:
        module.PyTorchUtilsLogic().installTorch(
            askConfirmation=False, torchVersionRequirement=TORCH[len("torch") :]
        )

    return install


def environmentForCore() -> str:
    """The folder to put on another Python's path, for the documentation and the report."""
    return str(coreFolder())
