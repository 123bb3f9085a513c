"""What docs/security.md promises: nothing runs from data, secrets stay secret, temporary places are private."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doomed import BrightSegmenter, write_ct

from MedSAM3Core.cli import main

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for room in ("MedSAM3Core", "MedSAM3Slicer") for path in sorted((ROOT / room).rglob("*.py"))]
SECRETS = {
    "HF_TOKEN": "hf_plantedPlantedPlantedPlanted01",
    "OPENAI_API_KEY": "sk-planted-planted-planted-02",
    "MEDSAM3_AGENT_KEY": "planted-agent-key-03",
    "HTTPS_PROXY": "http://user:planted-password-04@127.0.0.1:9",
}


# Nothing is executed from data ---------------------------------------------------------------------------------------

_FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"),
    *(
        "pickle.Unpickler",
        "dill.load",
        "joblib.load",
        "marshal.loads",
        "shelve.open",
        "yaml.load",
        "yaml.unsafe_load",
    ),
    *("yaml.full_load", "pandas.read_pickle", "subprocess.getoutput", "code.interact", "runpy.run_path"),
}
_FORBIDDEN_KEYWORDS = {"weights_only": False, "allow_pickle": True, "shell": True, "trust_remote_code": True}


def dangers(source: str) -> list[str]:
    """Calls in Python text that would run what a file or a server says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in _FORBIDDEN_CALLS:
            found.append(f"line {node.lineno}: {name}")
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        found += [
            f"line {node.lineno}: {key}={value}"
            for key, value in _FORBIDDEN_KEYWORDS.items()
            if given.get(key, not value) is value
        ]
        if name == "torch.load" and given.get("weights_only") is not True:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and given.get("allow_pickle") is not False:
            found.append(f"line {node.lineno}: np.load without allow_pickle=False")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "pickle.loads(x)",
        "yaml.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert dangers(text)


def test_nothing_is_executed_from_data() -> None:
    assert len(SOURCES) > 150
    found = {
        path.relative_to(ROOT).as_posix(): said
        for path in SOURCES
        if (said := dangers(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch owned']",
        "!!python/name:os.system",
        "a: !!python/module:os",
        "when: 2001-13-45",
        "? [a, b]\n: c",
        "x: " + "[" * 5000,
        "x: !!int nonsense",
        "\x00",
    ],
)
def test_yaml_makes_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    from MedSAM3Core.yamlfile import read_yaml

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(yaml.YAMLError):
        read_yaml(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(yaml.YAMLError):
        read_yaml(path)
    assert not (tmp_path / "owned").exists()


def test_names_in_a_manifest_do_not_lead_out_of_the_output_folder(tmp_path: Path) -> None:
    from MedSAM3Core.batch import BatchSettings
    from MedSAM3Core.batch.discover import read_manifest

    names = ["../../etc/cron.d/x", "/etc/passwd", "C:\\Windows\\x", "..", "a/../../b", "....//x", "~root/x"]
    lines = ["path,name", *(f'a.nrrd,"{name}"' for name in names), "../../../x.nrrd,"]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(lines) + "\n")
    settings = BatchSettings(tmp_path / "out")
    for case in read_manifest(manifest, ["liver"]).cases:
        for path in (settings.output_of(case), settings.tile_of(case.key)):
            assert path.resolve().is_relative_to((tmp_path / "out").resolve()), case.key


# Secrets -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    from MedSAM3Core.inference.session import Segmenter

    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: BrightSegmenter())
    write_ct(tmp_path / "ct.nrrd")
    return tmp_path


def test_planted_secrets_are_nowhere(
    planted: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With --debug, which logs everything, through success, failure, a download that fails and a batch."""
    caplog.set_level(logging.DEBUG)
    image, out = str(planted / "ct.nrrd"), planted / "out"
    segment = [
        "segment",
        image,
        "-c",
        "liver",
        "-o",
        str(planted / "o.seg.nrrd"),
        "--report",
        str(planted / "o.json"),
    ]
    agent = [
        "agent",
        image,
        "the liver",
        "-o",
        str(planted / "a.seg.nrrd"),
        "--endpoint",
        "http://127.0.0.1:9/v1",
    ]
    calls = [
        segment,
        ["segment", str(planted / "absent.nrrd"), "-c", "liver", "-o", str(planted / "o.nrrd")],
        ["models", "list"],
        ["models", "download", "medsam3-v1", "--accept-licence"],
        ["batch", image, "-c", "liver", "-o", str(out)],
        [*agent, "--mllm", "m", "--yes"],
        [*agent, "--mllm", "m", "--dry-run"],
    ]
    codes = [main([*call, "--debug"]) for call in calls]
    assert codes[0] == 0
    assert codes[1] == 2
    printed = capfd.readouterr()
    written = [path.read_bytes() for path in planted.rglob("*") if path.is_file()]
    everything = b"\n".join([printed.out.encode(), printed.err.encode(), caplog.text.encode(), *written])
    assert len(everything) > 5000
    for name, secret in SECRETS.items():
        needle = "planted-password-04" if "PROXY" in name else secret
        assert needle.encode() not in everything, name


# Neighbours and the network ------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_temporary_places_are_private(tmp_path: Path, mask: int) -> None:
    import numpy as np

    from MedSAM3Core.worker.folder import PrivateFolder

    before = os.umask(mask)
    try:
        folder = PrivateFolder(tmp_path)
        name = folder.write(np.zeros(3))
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600
        folder.discard()
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_are_made_by_tempfile_only() -> None:
    """Names in /tmp that can be foreseen can be taken before us; tempfile's cannot, and are private."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if text.startswith(("/tmp", "/var/tmp", "/dev/shm")) or (
                isinstance(node, ast.Attribute) and ast.unparse(node) == "tempfile.mktemp"
            ):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


CUT_OFF = """
import socket, sys
def refuse(*_, **__): raise AssertionError("the network was used")
listening = socket.socket.listen
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.socket.bind = refuse
from MedSAM3Core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_segmentation_needs_no_network(tmp_path: Path) -> None:
    """The real demo model on a small image, in a process in which no socket can be bound or connected."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(2).integers(68, 188, (48, 48), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    words = ["segment", str(tmp_path / "a.png"), "-c", "nucleus", "-o", str(tmp_path / "o.seg.nrrd")]
    done = subprocess.run(
        [sys.executable, "-c", CUT_OFF, *words], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.seg.nrrd").exists()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="/proc is Linux's")
def test_no_port_is_opened(tmp_path: Path) -> None:
    """A worker process with an open volume holds pipes and files, no socket."""
    import numpy as np

    from MedSAM3Core.worker import WorkerClient

    double = ROOT / "Testing/worker/double_worker.py"
    array = np.arange(24.0).reshape(2, 3, 4)
    with (
        WorkerClient([sys.executable, str(double)], temporary=tmp_path) as client,
        client.open(array, model="double") as session,
    ):
        session.segment("ball")
        held = links(f"/proc/{client.pid}/fd")
        assert [link for link in held if link.startswith("pipe:")]
        assert {link for link in held if link.startswith("socket:")} <= links("/proc/self/fd")


def links(folder: str) -> set[str]:
    """What the descriptors of a process are."""
    found = set()
    for one in Path(folder).iterdir():
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone already
            found.add(os.readlink(one))
    return found


def test_the_report_holds_no_environment(planted: Path) -> None:
    arguments = ["segment", str(planted / "ct.nrrd"), "-c", "liver", "-o", str(planted / "o.nrrd"), "--json"]
    assert main(arguments) == 0
    report = planted / "r.json"
    assert main([*arguments[:-1], "--report", str(report)]) == 0
    known = {"input", "outputs", "notices", "concepts", "seconds", "stage_seconds"}
    assert known <= set(json.loads(report.read_text()))
