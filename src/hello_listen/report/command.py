"""The command line of C{hello-listen-report}."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

from hello_listen._addresses import asciiText
from hello_listen._place import GeoError
from hello_listen.report.data import toJSON
from hello_listen.report.drawing import checkTarget, writeDrawing
from hello_listen.report.inputs import findInputs
from hello_listen.report.moments import TIME_EXAMPLES, moment
from hello_listen.report.text import toNotes, toProblems, toText

EXIT_STATUSES = """
exit status:
  0  nothing is missing
  1  something is missing
  2  error: there is no report, or it lacks what could not be read of a file
  3  nothing is known to be missing, but something may be: a run was killed, was not closed and
     its process cannot be seen from here, began before these files, or had a full accept queue;
     or records have no id

A run that is open, because its process is still running, is no error.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Print the report.

    @param arguments: the command line, by default that of the process.

    @return: the exit status, as C{--help} tells.
    """
    options = _parse(arguments)
    if sys.stdout is None:
        return _fail("standard output is closed")
    try:
        with _stoppable():
            return _report(options)
    except KeyboardInterrupt:
        return _fail("interrupted")
    except OSError as error:
        return _fail(str(error).partition("] ")[2] or str(error))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="hello-listen-report",
        description="Tell who connected, how often and when, and whether anything is missing.",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a log, also .gz; a pattern; - for standard input"
    )
    parser.add_argument("--since", type=moment, metavar="TIME", help=f"{TIME_EXAMPLES}; in UTC")
    parser.add_argument("--until", type=moment, metavar="TIME", help="end of the period, exclusive")
    parser.add_argument(
        "--top", type=_number, default=20, metavar="N", help="clients to list (default: 20)"
    )
    parser.add_argument(
        "--sort",
        choices=("connections", "first", "last"),
        default="connections",
        help="clients on top: with the most connections, or the latest first or last one",
    )
    parser.add_argument(
        "--mmdb",
        action="append",
        default=[],
        metavar="FILE",
        help="tell countries or networks by this MaxMind database (needs maxminddb); repeatable",
    )
    parser.add_argument("--svg", metavar="FILE", help="draw the connections over time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.since and options.until and options.since >= options.until:
        parser.error("--until is not after --since")
    return options


def _number(text: str) -> int:
    """Parse the number of clients."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"not a number of clients: {text!r}")
    return int(text)


def _report(options: argparse.Namespace) -> int:
    """Make the report and print it, and return the exit status."""
    try:
        import duckdb

        from hello_listen.report.asking import ask
        from hello_listen.report.database import Database
    except ImportError:
        return _fail("needs DuckDB: pip install duckdb")
    places = None
    if options.mmdb:
        try:
            from hello_listen.geo import GeoDatabases
        except ImportError:
            return _fail("--mmdb needs maxminddb: pip install maxminddb")
        try:
            places = GeoDatabases(options.mmdb)
        except GeoError as error:
            return _fail(f"--mmdb: {error}")
    if options.svg is not None:
        checkTarget(options.svg)
    inputs, problems = findInputs(options.files)
    if not inputs:
        return _fail(*toProblems(problems))
    choices = options.since, options.until, options.sort, options.top, places
    try:
        with (
            TemporaryDirectory(prefix="hello-listen-report-") as folder,
            closing(Database(folder)) as database,
            ThreadPoolExecutor(1) as pool,
        ):
            asked = pool.submit(ask, database, inputs, problems, *choices)
            try:
                report = asked.result()
            except KeyboardInterrupt:
                # DuckDB ignores signals.
                database.stop()
                raise
    except GeoError as error:
        return _fail(f"--mmdb: {error}")
    except duckdb.Error as error:
        return _fail(str(error).split("\n\n")[0].rpartition("Error: ")[2].split("\n")[0])
    if report.problems and report.isEmpty:
        return _fail(*toProblems(report.problems))
    if options.svg is not None:
        writeDrawing(report, options.svg)
    if options.json:
        _warn(toNotes(report))
    _print(toJSON(report) if options.json else "\n".join(toText(report)))
    return report.status


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raise L{KeyboardInterrupt} at the first signal that ends the process; ignore later ones."""
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers: dict[int, Any] = {}

    def stop(*_: object) -> None:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            handlers[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _print(text: str) -> None:
    """
    Print to standard output.

    @raise OSError: it cannot be written. A reader that ends early, such as head, is no error.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # The interpreter flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _warn(lines: Iterable[str]) -> None:
    """Print to standard error, if it is open."""
    for line in lines:
        if sys.stderr is not None:
            with suppress(OSError):
                print(line, file=sys.stderr)


def _fail(*reasons: str) -> int:
    """Print the reasons why there is no report, and return the exit status."""
    _warn(f"hello-listen-report: {asciiText(reason)}" for reason in reasons)
    return 2
