"""Hypothesis draws the same examples in every run: one failing draw of thousands would fail a suite that is as it was.

New examples are looked for on purpose: ``HYPOTHESIS_PROFILE=fuzz`` draws at random and remembers what failed.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# As hypothesis itself would, but for the time that it allows: other processes share the machine.
settings.register_profile(
    "fuzz",
    settings.get_profile("default"),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
