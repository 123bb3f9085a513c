"""Every `medsam3` command that README and docs show is run, or, where it cannot be, its options are parsed.

Commands are run in a folder that has the files they name, on a double of the model: what is tested is that a
newcomer who copies a line gets no complaint about the line. What needs a network, a GPU, a cluster, an endpoint,
another machine or hours of training is named in `NOT_RUN` with its reason, and its words are given to the command's
own parser.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main
from doomed import BrightSegmenter, write_ct

from MedSAM3Core.cli import main
from MedSAM3Core.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "models download": "needs the network",
    "finetune": "needs a data pack, and minutes to hours",
    "evaluate": "needs a published data set",
    "agent-ablation": "needs a data set",
    "benchmark": "takes minutes; Testing/cli/test_benchmark.py runs it small",
    "--engine ray": "needs a cluster; Testing/batch/test_ray_engine.py starts one",
    "--endpoint": "needs a language model's server; Testing/agent/test_chat.py doubles one",
    "--worker": "needs another machine; Testing/worker/test_worker_cli.py starts a worker",
    "worker": "speaks a protocol until its input ends",
    "models import": "needs a file of a published model; Testing/models/test_hub.py imports small ones",
    "models remove": "needs an installed model; Testing/models/test_hub.py removes one",
    "track": "needs a film; Testing/inference/test_sequence.py follows objects in one",
    "demo": "runs the real model for a minute; Testing/cli/test_demo.py runs it on a double",
    "/archive": "names a folder of an archive",
}
PLACEHOLDER = re.compile(r"(?:^|[\s/\"'])(?:COMMAND|NAME|PATH|URL|DATA|DIR|FILE|FOLDER)(?:$|[\s/\"'])|\.\.\.")


def commands() -> list[tuple[str, str]]:
    """Page and command line of every fenced or quoted command, each once."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        lines += re.findall(r"`(medsam3 [^`]+)`", rest)
        for line in lines:
            found.update(dict.fromkeys(_of_line(line), page.name) if _of_line(line) else {})
    return [(page, command) for command, page in found.items()]


def _of_line(line: str) -> list[str]:
    """The command of a line of a page, without what explains it: two blanks or a # end it."""
    match = re.match(r"\s*(?:\w+: )?(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?(medsam3(?: .*)?)$", line.rstrip())
    if not match or match.group(1).startswith("medsam3 ="):  # Python
        return []
    command = re.split(r"\s{2,}|\s#", match.group(1))[0]
    return [re.sub(r"\s*\[[^\]]*\]", "", command).strip()]


def reason(command: str) -> str:
    """Why a command is not run, or nothing."""
    if PLACEHOLDER.search(command):
        return "a placeholder stands in it"
    if " " not in command.removeprefix("medsam3 "):
        return "names a command"
    for words, why in NOT_RUN.items():
        if f" {words} " in f"{command} " or words in command.split() or command.endswith(words):
            return why
    return ""


ALL = commands()


def test_the_pages_were_searched() -> None:
    assert len(ALL) >= 20
    assert {"README.md", "batch-console.md", "models.md"} <= {page for page, _ in ALL}
    assert sum(not reason(command) for _, command in ALL) >= 8


@pytest.mark.parametrize(("page", "command"), ALL, ids=[command[:70] for _, command in ALL])
def test_its_options_are_known(page: str, command: str) -> None:
    """Names of commands and options exist and take what they are given; placeholders stand for a value."""
    words = shlex.split(command.replace('"$head:$port"', "host:1"))[1:]
    parse(words)


def parse(words: list[str]) -> None:
    """Give words to the parsers, which refuse an unknown command or option, without running anything."""
    command = typer.main.get_command(app)
    name = "medsam3"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] in ("COMMAND", "..."):
            return
        assert words[0] in command.commands, f"{name} has no command {words[0]}"
        command, name, words = command.commands[words[0]], f"{name} {words[0]}", words[1:]
    if "..." in words:  # the page shows a part: what it shows must still be options
        known = {option for one in command.params for option in one.opts + one.secondary_opts}
        assert {word for word in words if word.startswith("-")} <= known
        return
    with command.make_context(name, list(words), resilient_parsing=True) as context:
        assert context.args == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name, and the double in the model's place."""
    from MedSAM3Core.inference.session import Segmenter

    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: _Segmenter())
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_ct(tmp_path / "ct.nii.gz", 60)
    for name in ("scans/a.nii.gz", "scans/b/c_portal.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "ct.nii.gz", tmp_path / name)
    (tmp_path / "cases.csv").write_text("path,concepts\nscans/a.nii.gz,liver\n")
    return tmp_path


class _Segmenter(BrightSegmenter):
    """Takes the positions that a batch gives too."""

    def open(self, volume, *_: object, **__: object):
        self.volume = volume
        return self


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.skip(reason=why)] if (why := reason(command)) else [])
        for _, command in ALL
    ],
    ids=[command[:70] for _, command in ALL],
)
def test_it_runs_as_it_stands(place: Path, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    for numbers, inside in (
        (r"\d+(?:,\d+){4}", "2,1,1,8,8"),
        (r"\d+,\d+,\d+", "2,5,4"),
    ):  # within the small image
        pattern = rf"^((?:[^=]+=)?){numbers}(?=(?:,[+-])?$)"
        words = [re.sub(pattern, rf"\g<1>{inside}", word) for word in words]
    if "--resume" in words:
        main([word for word in words if word != "--resume"])
    code = main(words)
    said = capfd.readouterr()
    assert code == 0, said.err
    assert "Traceback" not in said.err


def paths(command: object, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Words of every command and group."""
    found = [name]
    for word, inner in getattr(command, "commands", {}).items():
        found += paths(inner, (*name, word))
    return found


@pytest.mark.parametrize("words", paths(typer.main.get_command(app)), ids=" ".join)
def test_help_of_every_command(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """It is there, every option says what it does, and no sentence lacks its full stop."""
    assert main([*words, "--help"]) == 0
    text = capfd.readouterr().out
    assert len(text) > 200
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    assert command.help, words
    for one in command.params:
        if one.name != "help" and not getattr(one, "hidden", False):
            assert getattr(one, "help", None), f"{words}: {one.name} has no help"
            assert one.help.strip().endswith((".", ")", "?")), f"{words}: {one.name}: {one.help}"
