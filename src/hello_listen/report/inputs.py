"""Finds the files of a report."""

from __future__ import annotations

import glob
import os
import select
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event

from hello_listen.report.facts import Problem
from hello_listen.report.lines import CHUNK_SIZE, isPlain

_DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


@dataclass(frozen=True)
class Input:
    """
    A log.

    @ivar name: its name, as on the command line.
    @ivar isPlain: whether DuckDB can read it directly.
    """

    name: str
    isPlain: bool

    def chunks(self, stopped: Event) -> Iterator[bytes]:
        """
        Yield its bytes.

        @param stopped: ends the iteration when set.

        @raise OSError: the file cannot be read.
        """
        with open(0 if self.name == "-" else self.name, "rb", 0, closefd=self.name != "-") as file:
            while not stopped.is_set():
                # A pipe may stay empty for ever.
                if select.select([file], [], [], 0.1)[0]:
                    chunk = file.read(CHUNK_SIZE)
                    if not chunk:
                        return
                    yield chunk


def findInputs(names: Sequence[str]) -> tuple[list[Input], list[Problem]]:
    """
    Return the readable files, each once, and the problems of others.

    @param names: files, patterns, C{-}, or descriptors such as C{/dev/fd/3}.
    """
    inputs: dict[tuple[int, int] | str, Input] = {}
    problems = []
    for name in dict.fromkeys(match for each in names for match in _matches(each)):
        try:
            status = os.fstat(0) if name == "-" else os.stat(name)
            key = (status.st_dev, status.st_ino)
            inputs.setdefault(key, _open(name, status))
        except OSError as error:
            problems.append(Problem(name, _reason(name, error)))
    return list(inputs.values()), problems


def _matches(name: str) -> list[str]:
    """Return the files that match a pattern, or the name itself if there are none."""
    if os.path.lexists(name):
        return [name]
    return sorted(path for path in glob.iglob(name, recursive=True) if not os.path.isdir(path)) or [
        name
    ]


def _open(name: str, status: os.stat_result) -> Input:
    """
    Return a file as an input.

    @raise OSError: the file cannot be read.
    """
    if name == "-":
        return Input(name, False)
    if stat.S_ISFIFO(status.st_mode):
        # Reading a named pipe would take data from its proper reader.
        if not name.startswith(_DESCRIPTORS):
            raise OSError("a named pipe, not a file")
        return Input(name, False)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("a folder" if stat.S_ISDIR(status.st_mode) else "not a file")
    if not status.st_size and name.endswith(".gz"):
        raise OSError("empty, and so not what gzip writes")
    with open(name, "rb", 0) as file:
        return Input(name, isPlain(file.read(3)))


def _reason(name: str, error: OSError) -> str:
    """Return the reason why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        if os.path.islink(name):
            return "a symbolic link to a file that does not exist"
        if "://" in name:
            return "not a file"
    return error.strerror or str(error)
