"""The manual pages."""

from __future__ import annotations

import pytest

from manual import COMMANDS, PAGES, renewed
from processes import run, tool


@pytest.mark.parametrize("name", COMMANDS)
def test_options(name: str) -> None:
    """A page tells what C{--help} tells; else C{python tests/manual.py} renews it."""
    assert (PAGES / f"{name}.1").read_text() == renewed(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("command", ["groff -man -ww -z", "mandoc -Tlint"])
def test_format(name: str, command: str) -> None:
    """The formatters of manual pages find nothing to warn of."""
    program, *arguments = command.split()
    checked = run(tool(program), *arguments, PAGES / f"{name}.1")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
