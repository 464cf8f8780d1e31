"""The version, for all that name it."""

__version__ = "2.0.0"
