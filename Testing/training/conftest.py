"""A miniature data pack: discs on noise, with the names of real concepts."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image


def _disc(shape, centre, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    """Folder with six CT volumes (left and right parotid gland) and eight endoscopy images (polyp)."""
    folder = tmp_path_factory.mktemp("pack")
    random = np.random.default_rng(0)
    ct = folder / "openkbp_headneck_ct"
    ct.mkdir()
    (ct / "labels.json").write_text(json.dumps({"1": "right parotid gland", "2": "left parotid gland"}))
    with (folder / "volumes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "labels", "concept list", "modality", "source", "licence"])
        for number in range(6):
            labels = np.zeros((8, 40, 40), np.uint8)
            labels[2:6, _disc((40, 40), (20, 10), 5)] = 1
            labels[2:6, _disc((40, 40), (20, 30), 5)] = 2
            voxels = random.normal(0, 10, labels.shape) + 80 * (labels > 0)
            for name, array in (("", voxels.astype(np.int16)), ("_labels", labels)):
                sitk.WriteImage(sitk.GetImageFromArray(array), str(ct / f"pt_{number:03d}{name}.nii.gz"))
            names = "right parotid gland;left parotid gland"
            image = f"openkbp_headneck_ct/pt_{number:03d}"
            table.writerow(
                [f"{image}.nii.gz", f"{image}_labels.nii.gz", names, "CT", "openkbp_headneck", "none"]
            )
    (folder / "kvasir").mkdir()
    with (folder / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mask", "concept", "modality", "kind", "source", "licence"])
        for number in range(8):
            mask = _disc((48, 60), random.uniform(15, 33, 2), 9)
            image = random.integers(0, 90, (48, 60, 3)) + 120 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(folder / f"kvasir/f{number}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"kvasir/f{number}_polyp.png")
            table.writerow(
                [
                    f"kvasir/f{number}.png",
                    f"kvasir/f{number}_polyp.png",
                    "polyp",
                    "endoscopy",
                    "semantic",
                    "kvasir_seg",
                    "",
                ]
            )
    (folder / "concept_groups.json").write_text(
        json.dumps({"parotid gland": ["left parotid gland", "right parotid gland"], "polyp": ["polyp"]})
    )
    return folder
