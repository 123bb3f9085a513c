from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from panel_scene import ROOT, NoCommand

from MedSAM3Core.errors import Cancelled, InputError, WorkerError
from MedSAM3SlicerLib import installation
from MedSAM3SlicerLib.installation import (
    Installer,
    PipProcess,
    SlicerPackaging,
    judge,
    readRequirements,
    satisfies,
)
from MedSAM3SlicerLib.processes import BackgroundCommand
from MedSAM3SlicerLib.workers import coreFolder, workerSetup

REQUIREMENTS = ROOT / "MedSAM3Slicer/Resources/requirements.txt"


def complete():
    """What a probe says when everything is there."""
    return json.loads(NoCommand(["python", "probe.py"]).result())


def finish(installer, seconds=300):
    deadline = time.monotonic() + seconds
    while installer.isBusy and time.monotonic() < deadline:
        installer.tick()
        time.sleep(0.01)
    assert not installer.isBusy


def isOver(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class RecordingPip:
    """Doubles pip: keeps the arguments, ends at once, with a fault if it was given one."""

    def __init__(self, fault=None):
        self.calls, self.fault, self.done, self.log = [], fault, True, "pip said this"

    def __call__(self, setup):
        return self

    def install(self, arguments, onLine):
        self.calls.append(list(arguments))
        onLine("Collecting torch")
        return self

    def result(self, timeout=None):
        if self.fault:
            raise self.fault

    def cancel(self):
        """Ends at once anyway."""


def test_the_real_probe_of_this_interpreter():
    installer = Installer(REQUIREMENTS)
    installer.check()
    finish(installer)
    assert installer.findings.problems == ()
    assert installer.findings.summary.startswith(f"Everything is there: Python {sys.version.split()[0]}")
    assert "demo" in [model.name for model in installer.models] or installer.models


def test_nothing_there_says_what_and_how_large():
    document = complete() | {"versions": {}, "torch": {"loads": False, "fault": ""}}
    findings = judge(document, REQUIREMENTS, "in Slicer's own Python")
    assert findings.problems[0] == "torch is not installed."
    assert findings.missing[0] == "torch>=2.9"
    installer = Installer(REQUIREMENTS, findings=findings)
    assert "about 260 MB, or 2 560 MB with support for a graphics card" in installer.plan()
    assert "nothing of yours is sent" in installer.plan()


def test_an_old_version_is_named_with_what_is_needed():
    document = complete()
    document["versions"]["transformers"] = "4.57.0"
    findings = judge(document, REQUIREMENTS, "")
    assert findings.problems == ("transformers 4.57.0 is installed; >=5.23,<6 is needed.",)


@pytest.mark.parametrize(
    "damage",
    [{"torch": {"loads": False, "fault": "OSError: libtorch.so"}}, {"leftovers": ["~orch"]}],
    ids=["does not load", "interrupted"],
)
def test_half_an_installation_is_repaired(damage):
    findings = judge(complete() | damage, REQUIREMENTS, "")
    assert findings.repair == ("torch>=2.9",)
    assert "repair it" in findings.problems[0]
    pip = RecordingPip()
    installer = Installer(REQUIREMENTS, findings=findings, pip=pip, run=NoCommand)
    installer.install()
    finish(installer)
    (call,) = pip.calls
    assert call[-3:] == ["--force-reinstall", "--no-deps", "torch>=2.9"]
    assert installer.findings.ready


def test_installing_pins_what_slicers_modules_use(tmp_path):
    findings = judge(complete() | {"versions": {}, "torch": {"loads": False, "fault": ""}}, REQUIREMENTS, "")
    pip = RecordingPip()
    installer = Installer(REQUIREMENTS, findings=findings, pip=pip, run=NoCommand)
    installer.install()
    finish(installer)
    torch, packages = pip.calls
    assert torch[-1] == "torch>=2.9"
    assert "transformers>=5.23,<6" in packages
    constraints = Path(packages[packages.index("-c") + 1]).read_text()
    assert constraints.startswith("numpy==")
    assert not any(word.startswith(("sam3", "torchvision")) for word in packages)


def test_offline_takes_wheels_from_a_folder(tmp_path):
    findings = judge(complete() | {"versions": {}, "torch": {"loads": False, "fault": ""}}, REQUIREMENTS, "")
    pip = RecordingPip()
    installer = Installer(REQUIREMENTS, findings=findings, pip=pip, run=NoCommand, torchInstaller=pytest.fail)
    with pytest.raises(InputError, match="holds no wheels"):
        installer.install(tmp_path)
    (tmp_path / "torch-2.13.0-cp312-none-any.whl").write_bytes(b"")
    installer.install(tmp_path)
    finish(installer)
    for call in pip.calls:
        assert call[call.index("--no-index") : call.index("--no-index") + 3] == [
            "--no-index",
            "--find-links",
            str(tmp_path),
        ]


def test_torch_comes_through_the_pytorch_extension_where_there_is_one():
    findings = judge(complete() | {"versions": {}, "torch": {"loads": False, "fault": ""}}, REQUIREMENTS, "")
    asked = []
    pip = RecordingPip()
    installer = Installer(
        REQUIREMENTS, findings=findings, pip=pip, run=NoCommand, torchInstaller=lambda: asked.append("torch")
    )
    installer.install()
    finish(installer)
    assert asked == ["torch"]
    assert len(pip.calls) == 1


def test_a_pip_that_fails_is_one_sentence_with_the_log():
    findings = judge(complete() | {"versions": {}, "torch": {"loads": False, "fault": ""}}, REQUIREMENTS, "")
    said = []
    pip = RecordingPip(WorkerError("python failed (No space left on device).", "See the report."))
    installer = Installer(REQUIREMENTS, findings=findings, pip=pip, run=NoCommand)
    installer.failed.connect(said.append)
    installer.install()
    finish(installer)
    assert said == ["python failed (No space left on device). See the report."]
    assert "Collecting torch" in installer.report()
    assert not installer.isBusy


def test_what_the_pytorch_extension_raises_is_a_sentence_too():
    findings = judge(complete() | {"versions": {}, "torch": {"loads": False, "fault": ""}}, REQUIREMENTS, "")

    def broken():
        raise RuntimeError("no index reachable")

    said = []
    installer = Installer(
        REQUIREMENTS, findings=findings, pip=RecordingPip(), run=NoCommand, torchInstaller=broken
    )
    installer.failed.connect(said.append)
    installer.install()
    finish(installer)
    assert said == ["Installing torch failed (no index reachable)."]


def test_slicer_packaging_is_used_without_blocking():
    calls = {}

    class Packaging:
        @staticmethod
        def pip_install(requirements, **options):
            calls.update(options, requirements=requirements)

    answer = SlicerPackaging(Packaging).install(["-c", "file", "transformers"], print)
    assert calls["requirements"] == ["-c", "file", "transformers"]
    assert calls["blocking"] is False
    assert not answer.done
    calls["completedCallback"](1)
    assert answer.done
    with pytest.raises(WorkerError, match="code 1"):
        answer.result()


def test_a_real_pip_in_a_process_of_its_own():
    lines = []
    pending = PipProcess(sys.executable).install(
        ["--no-index", "surely-not-a-package-of-this-name"], lines.append
    )
    with pytest.raises(WorkerError, match="failed"):
        pending.result(300)
    assert "surely-not-a-package" in pending.log


@pytest.mark.parametrize("accepted", [False, True])
def test_a_download_needs_the_licence(accepted):
    commands = []

    class Command(NoCommand):
        def __init__(self, command, env=None, onLine=None):
            super().__init__(command)
            commands.append(command[1:])
            if "modeltool" in command[1]:
                onLine('{"progress": {"done": 50000000, "total": 100000000, "fraction": 0.5}}')

    installer = Installer(REQUIREMENTS, run=Command)
    if not accepted:
        with pytest.raises(InputError, match="not accepted yet"):
            installer.download("sam3", accepted)
        assert commands == []
        return
    installer.download("sam3", accepted)
    finish(installer)
    assert commands[0][0].endswith("modeltool.py")
    assert commands[0][1] == "sam3"
    assert [model.name for model in installer.models] == ["demo", "medsam3-v1"]


def test_progress_of_a_download_is_said():
    class Slow(NoCommand):
        done = False

        def __init__(self, command, env=None, onLine=None):
            super().__init__(command)
            onLine('{"progress": {"done": 50000000, "total": 100000000, "fraction": 0.5}}')

    said = []
    installer = Installer(REQUIREMENTS, run=Slow)
    installer.said.connect(said.append)
    installer.download("sam3", True)
    installer.tick()
    installer.tick()
    assert said[-1] == "Downloading sam3: 50 of 100 MB"


@pytest.mark.skipif(os.name == "nt", reason="looks for a process by POSIX means")
def test_cancelling_stops_the_whole_tree(tmp_path):
    script = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    )
    command = BackgroundCommand([sys.executable, "-c", script])
    while not command.lines:
        time.sleep(0.01)
    child = int(command.lines[0])
    command.cancel()
    with pytest.raises(Cancelled):
        command.result(60)
    deadline = time.monotonic() + 60
    while not isOver(child):
        assert time.monotonic() < deadline, "the process is still there"
        time.sleep(0.01)


def test_a_program_that_does_not_exist_is_a_sentence():
    with pytest.raises(WorkerError, match="could not be started"):
        BackgroundCommand(["/no/such/python"]).result()


@pytest.mark.parametrize(
    ("version", "wanted", "ok"),
    [
        ("2.13.0+cpu", "torch>=2.9", True),
        ("2.8.1", "torch>=2.9", False),
        ("5.23.0", "transformers>=5.23,<6", True),
        ("6.0", "transformers>=5.23,<6", False),
        ("", "torch>=2.9", False),
    ],
)
def test_versions_are_compared_as_numbers(version, wanted, ok):
    assert satisfies(version, wanted) is ok


def test_requirements_agree_with_the_projects_own():
    """What the module installs for the worker is what the library asks for, beside what Slicer brings."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bundled = {"numpy", "scipy", "SimpleITK", "pydicom", "pillow", "torch"}
    expected = {line for line in project if line.split(">")[0] not in bundled}
    assert set(readRequirements(REQUIREMENTS)) == expected
    assert installation.TORCH in project


def test_the_worker_is_this_interpreter_with_this_core(monkeypatch):
    setup = workerSetup("")
    assert setup.command[1:] == ("-m", "MedSAM3Core.worker")
    assert setup.env["PYTHONPATH"].split(os.pathsep)[0] == str(coreFolder())
    assert setup.place == "in Slicer's own Python"


def test_a_path_or_a_folder_means_an_interpreter(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.symlink_to(sys.executable)
    for text in (str(python), str(tmp_path), f'"{tmp_path}"'):
        setup = workerSetup(text, {"PATH": "/usr/bin", "LANG": "C"})
        assert setup.command == (str(python), "-m", "MedSAM3Core.worker")
        assert setup.env["LANG"] == "C"
        assert "VIRTUAL_ENV" not in setup.env


def test_a_command_runs_as_it_is_typed():
    setup = workerSetup("env A=1 medsam3 worker", {"PATH": os.environ["PATH"]})
    assert setup.command == ("env", "A=1", "medsam3", "worker")
    with pytest.raises(WorkerError, match="is no program on this computer"):
        workerSetup("no-such-program worker")
