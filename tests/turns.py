"""Waits for events by running a reactor turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.internet import reactor as globalReactor

from reactors import TIMEOUT

reactor: Any = globalReactor


def until(condition: Callable[..., object], reactor: Any = reactor) -> None:
    """Run turns of a reactor until a condition is true."""
    end = monotonic() + TIMEOUT
    while not condition():
        assert monotonic() < end, "timeout: the condition is still false"
        reactor.iterate(0.01)


def turnFor(seconds: float) -> None:
    """Run turns of the reactor for a while."""
    end = monotonic() + seconds
    until(lambda: monotonic() >= end)
