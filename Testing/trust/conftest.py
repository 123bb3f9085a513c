"""One process that has imported the library, from which the tests of faults fork theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from acting import Acts


@pytest.fixture(scope="session")
def acts() -> Iterator[Acts]:
    """See `acting.Acts`."""
    one = Acts()
    yield one
    one.close()
