"""The version, for all that name it."""

__version__ = "1.0.0"
