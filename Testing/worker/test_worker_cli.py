"""`medsam3 segment --worker COMMAND`: the command line on the double behind a real process."""

import json
import shlex

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from worker_helpers import DOUBLE

from MedSAM3Core.cli import main


@pytest.fixture
def image(tmp_path, volume):
    path = tmp_path / "ball.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(volume.array), str(path))
    return path


def test_a_worker_command_serves_the_command_line(image, volume, tmp_path, capfd):
    output = tmp_path / "out.nrrd"
    command = ["segment", image, "-c", "liver", "-o", output, "--model", "double", "--json"]
    code = main([str(a) for a in (*command, "--worker", shlex.join(DOUBLE))])
    out, err = capfd.readouterr()
    assert code == 0, err
    expected = volume.array > volume.array.mean() + volume.array.std()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(output))) == 1, expected)
    assert json.loads(out)["concepts"][0]["voxels"] == expected.sum()


@pytest.mark.parametrize(
    ("worker", "model", "code", "words"),
    [
        ("/no/such/program", "double", 1, "could not be started"),
        ("", "double", 1, "empty"),
        (shlex.join(DOUBLE), "absent", 2, "unknown"),
    ],
)
def test_its_errors_are_one_line(image, tmp_path, capfd, worker, model, code, words):
    output = tmp_path / "out.nrrd"
    command = ["segment", image, "-c", "liver", "-o", output, "--model", model, "--worker", worker]
    assert main([str(a) for a in command]) == code
    error = capfd.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not output.exists()
