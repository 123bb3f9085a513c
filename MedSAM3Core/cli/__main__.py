"""``python -m MedSAM3Core.cli``: the same as ``medsam3``."""

import sys

from MedSAM3Core.cli import main

sys.exit(main())
