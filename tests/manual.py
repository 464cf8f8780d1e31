"""Puts what C{--help} tells into the manual pages: C{python manual.py} renews them."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hello_listen.tap import Options
from processes import SCRIPTS, run

PAGES = Path(__file__).parents[1] / "src" / "man"

COMMANDS = {
    "hello-listen": ["twistd", "hello-listen"],
    "hello-listen-report": ["hello-listen-report"],
}
"""The command of each page."""


def renewed(name: str) -> str:
    """Return a page with the options, and the exit statuses if any, that C{--help} tells."""
    program, *arguments = COMMANDS[name]
    # So wide that no text is wrapped.
    told = run(SCRIPTS / program, *arguments, "--help", env={"COLUMNS": "1000"}).stdout
    # A text that stands below its option, or is longer than a line in the source.
    told = re.sub(r"\n {5,}(?![ -])", "  ", told)
    options, _, statuses = told.partition("exit status:\n")
    page = (PAGES / f"{name}.1").read_text()
    page = _replaced(page, "OPTIONS", re.findall("^ .*", options, re.MULTILINE))
    return _replaced(page, "EXIT STATUS", statuses.splitlines()) if statuses else page


def _replaced(page: str, section: str, told: list[str]) -> str:
    """Return a page whose section has an entry for each indented line, and the other lines."""
    before, head, after = page.partition(f".SH {section}\n")
    lines = "".join(f"{line}\n" for each in told if each for line in _lines(each))
    return before + head + lines + after[after.index(".SH ") :]


def _lines(told: str) -> Iterator[str]:
    """Yield a line of a help text as lines of roff."""
    term, _, text = told.strip().partition("  ") if told.startswith(" ") else ("", "", told)
    yield ".TP" if term else ".PP"
    if term:
        named = re.sub("--([a-z-]+)=", _withArgument, term)
        # Values in italics, all else bold.
        term = re.sub(r"[A-Z]+|\{.*\}", r"\\fI\g<0>\\fB", _escaped(named))
        yield rf"\fB{term}\fR"
    yield from textwrap.wrap(_escaped(" ".join(text.split())), 80, break_on_hyphens=False)


def _withArgument(option: re.Match[str]) -> str:
    """Return an option of Twisted's with the name of its value, which Twisted does not show."""
    method = getattr(Options, "opt_" + option[1].replace("-", "_"))
    _, argument = inspect.signature(method).parameters
    return option[0] + argument.upper()


def _escaped(text: str) -> str:
    """Return a text as roff."""
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    for each in COMMANDS:
        (PAGES / f"{each}.1").write_text(renewed(each))
