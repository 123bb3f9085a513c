import subprocess
import sys

import pytest

import MedSAM3Core


def test_importing_the_package_needs_no_torch() -> None:
    code = "import MedSAM3Core, sys; MedSAM3Core.Box; MedSAM3Core.Segmentation; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize("name", MedSAM3Core.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(MedSAM3Core, name) is not None
    assert name in dir(MedSAM3Core)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        MedSAM3Core.nothing  # noqa: B018
