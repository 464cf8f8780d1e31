"""The examples in the docstrings of the public classes."""

from __future__ import annotations

import sys
from doctest import DocTestFinder, DocTestRunner
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

import hello_listen
import hello_listen.status
from geodata import countries
from hello_listen.connection import Extensions
from hello_listen.geo import GeoDatabases
from hello_listen.tap import Options
from turns import until

EXPORTED = [
    getattr(package, name)
    for package in (hello_listen, hello_listen.status)
    for name in package.__all__
    if name != "__version__"
]


@pytest.mark.parametrize("public", [*EXPORTED, Extensions, GeoDatabases, Options])
def test_example(public: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public class has an example, which gives what it shows, and which ends."""
    countries(tmp_path)
    monkeypatch.chdir(tmp_path)
    module = sys.modules[public.__module__]
    [found] = DocTestFinder(recurse=False).find(public, public.__name__, module, {}, {})
    assert found.examples
    failed, _ = DocTestRunner().run(found, clear_globs=False)
    assert not failed
    for value in found.globs.values():
        if isinstance(value, Deferred):
            until(lambda value=value: value.called)
            assert not isinstance(value.result, Failure)
