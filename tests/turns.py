"""The real reactor, turned by tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as globalReactor

reactor: Any = globalReactor


def until(condition: Callable[[], object]) -> None:
    """Let the reactor turn until a condition is true."""
    end = reactor.seconds() + 20
    while not condition():
        assert reactor.seconds() < end, "it did not come to pass"
        reactor.iterate(0.01)
