"""The command ``medsam3``: one module for each command, and what they share.

::

    app         commands and options, the way from an error to an exit code
    terminal    what is printed: tables, progress, JSON
    outputs     files that appear whole or not at all
    report      what a run found, as plain values
    segment, models, demo, benchmark, finetune, worker

Importing this package imports no torch: ``medsam3 --help`` answers at once.
"""

from MedSAM3Core.cli.app import main

__all__ = ["main"]
