"""Waits for what a reactor does, by turning it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.internet import reactor as globalReactor

reactor: Any = globalReactor


def until(condition: Callable[[], object], reactor: Any = reactor) -> None:
    """Let a reactor turn until a condition is true."""
    end = monotonic() + 20
    while not condition():
        assert monotonic() < end, "it did not come to pass"
        reactor.iterate(0.01)
