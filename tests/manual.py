"""
Renews the manual pages by C{python manual.py}.

It takes the options from C{--help}, and the version and its date from the changelog.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hello_listen.tap import Options
from processes import SCRIPTS, run

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "src" / "man"
CHANGELOG = ROOT / ".github" / "CHANGELOG.md"

COMMANDS = {
    "hello-listen": ["twistd", "hello-listen"],
    "hello-listen-report": ["hello-listen-report"],
}
"""The command of each page."""


def renewed(name: str) -> str:
    """Return a page with its release, and the options and exit statuses that C{--help} tells."""
    program, *arguments = COMMANDS[name]
    # So wide that no text is wrapped.
    told = run(SCRIPTS / program, *arguments, "--help", env={"COLUMNS": "1000"}).stdout
    # A text that stands below its option, or is longer than a line in the source.
    told = re.sub(r"\n {5,}(?![ -])", "  ", told)
    options, _, statuses = told.partition("exit status:\n")
    page = (PAGES / f"{name}.1").read_text()
    page = re.sub("(?<= 1 ).*", lambda _: _release(), page, count=1)
    page = _replaced(page, "OPTIONS", re.findall("^ .*", options, re.MULTILINE))
    return _replaced(page, "EXIT STATUS", statuses.splitlines()) if statuses else page


def _release() -> str:
    """Return the date and the version of the newest section of the changelog, as roff."""
    section = re.search(r"^## (\S+) \((\S+)\)$", CHANGELOG.read_text(), re.MULTILINE)
    assert section, CHANGELOG
    return f'{section[2]} "{_escaped("hello-listen")} {section[1]}"'


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
