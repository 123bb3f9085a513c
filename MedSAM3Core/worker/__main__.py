"""``python -m MedSAM3Core.worker``."""

import sys

from MedSAM3Core.worker.server import main

if __name__ == "__main__":
    sys.exit(main())
