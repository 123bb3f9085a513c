"""Help, exit codes, and the one line that an error becomes."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import warnings

import pytest

from MedSAM3Core.cli import app, segment


def test_help_names_every_command_and_says_what_it_is_for(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("segment", "models", "demo", "benchmark", "finetune", "worker"):
        assert command in out
    assert "not for clinical use" in " ".join(out.split())


@pytest.mark.parametrize("command", ["segment", "models", "demo", "benchmark", "finetune", "worker"])
def test_every_command_has_help_worth_reading(run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert len(out) > 400


def test_without_a_command_it_shows_help(run) -> None:
    assert run()[0] == 0
    assert run("models")[0] == 0


def test_help_imports_nothing_that_takes_seconds() -> None:
    heavy = (
        "torch",
        "transformers",
        "scipy",
        "SimpleITK",
        "pydicom",
        "pydantic",
        "huggingface_hub",
        "openai",
    )
    code = "import sys; from MedSAM3Core.cli import main; main(['-h'])\n"
    code += f"sys.stderr.write(repr([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert done.stderr == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["segmentt"], "No such command"),
        (["segment"], "INPUT"),
        (["segment", "x.nrrd", "-o", "y.nrrd"], "--concept"),
        (["segment", "x.nrrd", "-c", "liver"], "--output"),
        (["segment", "x.nrrd", "-c", "liver", "-o", "y.nrrd", "--threshold", "2"], "--threshold"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert "--help" in err


def test_an_unexpected_error_is_one_line_without_a_traceback(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "check_request", lambda *_: 1 / 0)
    code, _, err = run("segment", "x.nrrd", "-c", "liver", "-o", "y.nrrd")
    assert code == 1
    assert err.count("\n") == 1
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


def test_libraries_warnings_are_for_debugging(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A series with an odd identifier makes pydicom warn once by its logger and once by `warnings`, for each file."""

    def warn(*_, **__):
        logging.getLogger("pydicom").warning("odd identifier")
        warnings.warn("odd value", stacklevel=1)
        return []

    warnings.simplefilter("always")
    logging.getLogger("pydicom").setLevel(logging.WARNING)  # as pydicom does
    monkeypatch.setattr("MedSAM3Core.models.registry.known_names", warn)
    assert run("models", "list", "--json")[2] == ""
    said = run("models", "list", "--json", "--debug")[2]
    assert "odd identifier" in said
    assert "odd value" in said


def test_debug_shows_the_traceback_wherever_it_stands(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "check_request", lambda *_: 1 / 0)
    for arguments in (["--debug", "segment"], ["segment", "--debug"]):
        code, _, err = run(*arguments, "x.nrrd", "-c", "liver", "-o", "y.nrrd")
        assert code == 1
        assert "Traceback" in err


def test_an_interrupt_is_code_130(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "check_request", interrupt)
    code, _, err = run("segment", "x.nrrd", "-c", "liver", "-o", "y.nrrd")
    assert code == 130
    assert err == "medsam3: Cancelled.\n"


def test_memory_running_out_is_said_in_words(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(segment, "check_request", exhaust)
    code, _, err = run("segment", "x.nrrd", "-c", "liver", "-o", "y.nrrd")
    assert code == 1
    assert "Memory ran out" in err


def test_a_reader_that_leaves_a_pipe_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m MedSAM3Core.cli segment --help | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_version_is_the_package_s(run) -> None:
    from MedSAM3Core.version import __version__

    assert run("--version") == (0, f"medsam3 {__version__}\n", "")


def test_the_base_of_usage_errors_is_what_the_parser_raises() -> None:
    assert app.UsageError.__name__ == "UsageError"
