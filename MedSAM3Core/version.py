"""The version of this package, written once."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("MedSAM3Core")
except PackageNotFoundError:  # run from a checkout that was not installed, as inside Slicer
    __version__ = "0.1.0"
