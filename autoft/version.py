"""The version, for the package's metadata and the records of runs."""

__version__ = "0.1.0"
