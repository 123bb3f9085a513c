"""What every test may rely on: surroundings that decide nothing, and the same examples in every run.

Hypothesis would draw other examples each time, and one failing draw of thousands fails a suite that is as it was. New
examples are looked for on purpose: ``HYPOTHESIS_PROFILE=fuzz`` draws at random and remembers what failed.
"""

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# The folders here are named as packages are, one even as Slicer's own; pytest puts them on the path.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

_WIDTHS_AND_COLOURS = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "CLICOLOR_FORCE")
_WIDTHS_AND_COLOURS += ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS", "TERMINAL_WIDTH")
_WAYS_OUT = (
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "HF_HUB_OFFLINE",
)
_OURS = tuple(name for name in os.environ if name.startswith("MEDSAM3_"))
for _name in (*_WIDTHS_AND_COLOURS, *_WAYS_OUT, *_OURS):
    os.environ.pop(_name, None)
# The number of cores decides the order of sums, and tiny networks on several threads spend their time waiting.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
