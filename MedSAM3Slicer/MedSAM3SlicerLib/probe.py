"""Run by the interpreter in question, alone and with the standard library only: what is there, as JSON on stdout.

``python probe.py`` prints ``{"python": "3.12.10", "versions": {...}, "leftovers": [...], "torch": {...}, "core":
"..."}``.
"""

import importlib.metadata
import json
import pathlib
import sys
import sysconfig

WANTED = (
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "PyYAML",
    "Jinja2",
    "platformdirs",
    "psutil",
    "typer",
    "rich",
    "zstandard",
    "numpy",
    "scipy",
    "SimpleITK",
    "torchvision",
)


def versions():
    """Distribution name to version, for those that are there."""
    found = {}
    for name in WANTED:
        try:
            found[name] = importlib.metadata.version(name) or ""
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def leftovers():
    """Folders that an interrupted pip leaves behind; with them there, a package may be half old and half new."""
    site = pathlib.Path(sysconfig.get_paths()["purelib"])
    return sorted(path.name for path in site.glob("~*")) if site.is_dir() else []


def torch_state():
    """Whether torch loads and what it can compute on; a broken torch raises all kinds of things."""
    try:
        import torch

        cuda = torch.cuda.is_available()
        name = torch.cuda.get_device_name(0) if cuda else ""
        return {"loads": True, "cuda": cuda, "device": name, "build": torch.version.cuda or "cpu"}
    except BaseException as fault:  # the report is what this program is for
        return {"loads": False, "fault": f"{type(fault).__name__}: {fault}"[:400]}


def core_version():
    """Version of MedSAM3Core that this interpreter would run, "" if it finds none."""
    try:
        from MedSAM3Core.version import __version__
    except ImportError:
        return ""
    return __version__


def main():
    """Print the findings."""
    found = versions()
    document = {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "versions": found,
        "leftovers": leftovers(),
        "torch": torch_state() if "torch" in found else {"loads": False, "fault": ""},
        "core": core_version(),
    }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
