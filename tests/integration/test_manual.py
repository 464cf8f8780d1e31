"""The manual pages, and the completion of zsh."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manual import COMMANDS, PAGES, renewed
from processes import PATIENCE, SCRIPTS, run, tool


@pytest.mark.parametrize("name", COMMANDS)
def test_options(name: str) -> None:
    """A page agrees with C{--help} and the changelog; else C{python tests/manual.py} renews it."""
    assert (PAGES / f"{name}.1").read_text() == renewed(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("command", ["groff -man -ww -z", "mandoc -Tlint"])
def test_format(name: str, command: str) -> None:
    """The formatters of manual pages find nothing to warn of."""
    program, *arguments = command.split()
    checked = run(tool(program), *arguments, PAGES / f"{name}.1")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.fixture
def zsh(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Type into a zsh that completes, until it shows a text."""
    ours, theirs = pty.openpty()
    path = f"{SCRIPTS}:{os.environ['PATH']}"
    shell = subprocess.Popen(
        [tool("zsh"), "-f", "-i"], cwd=tmp_path, start_new_session=True,
        env={**os.environ, "PATH": path, "PS1": "ready>", "TERM": "dumb"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)

    def typeUntil(typed: str, shown: str) -> None:
        os.write(ours, typed.encode())
        said = ""
        while shown not in said:
            assert select.select([ours], [], [], PATIENCE)[0], said
            said += os.read(ours, 4096).decode()

    typeUntil("", "ready>")
    typeUntil("autoload -U compinit && compinit -u -D\n", "ready>")
    yield typeUntil
    shell.kill()
    shell.wait()
    os.close(ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("--endp", "--endpoint="),
        ("-e tcp:1 --endp", "--endpoint="),
        ("--summarize 10.0.0.1 --summ", "--summarize="),
        ("--connection-log con", "connections.jsonl"),
        ("--status unix:s --mmdb ", "--mmdb places.mmdb"),
        ("--notify ur", "urls.txt"),
    ],
)
def test_completion(
    zsh: Callable[[str, str], None], tmp_path: Path, typed: str, completed: str
) -> None:
    """Zsh completes options, also those that were given before, and names of files."""
    for name in ("connections.jsonl", "places.mmdb", "urls.txt"):
        (tmp_path / name).touch()
    zsh(f"twistd -n hello-listen {typed}\t", completed)
