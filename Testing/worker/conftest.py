"""Volumes, and worker processes that serve the double of `double_worker.py`."""

import numpy as np
import pytest
from worker_helpers import DOUBLE

from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker import WorkerClient


@pytest.fixture(scope="session")
def volume():
    """A bright ball in noise, tilted, with unequal spacing."""
    k, j, i = np.ogrid[:12, :20, :24]
    ball = ((k - 6) ** 2 + (j - 9) ** 2 + (i - 11) ** 2) < 20
    noise = np.random.default_rng(3).integers(-50, 50, ball.shape)
    affine = np.array([[-0.8, 0.1, 0, 12.5], [0, -0.7, 0.5, -3], [0, 0.2, 2.5, 40], [0, 0, 0, 1]])
    return Volume.from_array(
        np.where(ball, 300, noise).astype(np.int16), ijk_to_ras=affine, modality="CT", name="ball"
    )


@pytest.fixture
def make_client(tmp_path):
    """Makes clients of the double, with arguments for it and for `WorkerClient`; all are closed at the end."""
    clients = []

    def make(*arguments, command=None, **options):
        options.setdefault("temporary", tmp_path)
        client = WorkerClient([*(command or DOUBLE), *arguments], **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
    assert not list(tmp_path.glob("medsam3-worker-*")), "a closed client left its folder behind"


@pytest.fixture
def client(make_client):
    return make_client()
