"""Run by the worker's interpreter: download a model and print how far it is, one JSON object a line.

``python modeltool.py NAME``; the panel has asked for the licence before. A fault is one line on stderr and exit code 2.
"""

import json
import sys


def main() -> int:
    """Download the model named on the command line."""
    from MedSAM3Core.errors import MedSAM3Error
    from MedSAM3Core.models.installing import download_model

    def show(progress):
        megabytes = {"done": progress.step, "total": progress.total, "fraction": progress.fraction}
        print(json.dumps({"progress": megabytes}), flush=True)

    try:
        download_model(sys.argv[1], lambda request: True, show, None)
    except MedSAM3Error as fault:
        print(str(fault), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
