"""Reads the lines of logs that DuckDB cannot read: compressed or damaged files, and pipes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator

MAX_LINE_SIZE = 16 * 2**20
"""Upper bound of a line, in bytes; longer ones are skipped."""

CHUNK_SIZE = 2**20
"""Bytes that are read or decompressed at a time."""

_GZIP = b"\x1f\x8b"
_GZIP_BITS = 16 + zlib.MAX_WBITS
_BOM = b"\xef\xbb\xbf"
_MESSAGE = re.compile(rb'"message"\s*:\s*"(Connection|Accept queue)')
# A record ends in a brace; whitespace may follow.
_TORN = re.compile(rb"^.*[^}\s][ \t\r]*$", re.MULTILINE)
_TWISTED = re.compile(rb"\d{4}-\d\d-\d\d[T ][\d:]{8}\S* \[")


def isPlain(start: bytes) -> bool:
    """Return whether DuckDB can read a log directly, given its first bytes."""
    return not start.startswith((_GZIP, _BOM))


class Lines:
    """
    Iterates over a log in chunks of whole lines, and finds damage.

    NUL bytes, which a system crash leaves in a file, end a line. Lines of more than 16 MiB are
    skipped.

    Torn lines are replaced by a placeholder: DuckDB before 2.0 takes the next line for the rest of
    a line that ends where a value should begin.

    @ivar damage: after the iteration, the first damage that was found, or L{None}.
    @ivar hasTorn: whether there were torn lines so far.
    @ivar isFalse: whether the decompressed data is wrong, so that its lines must not count.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        """
        Read a log.

        @param chunks: its bytes, with or without gzip compression.
        """
        self.damage: str | None = None
        self.hasTorn = self.isFalse = False
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        """Yield chunks of whole lines."""
        start, isLog = b"", False
        for lines in self._whole():
            start = start or lines.lstrip()[:99]
            isLog = isLog or _MESSAGE.search(lines) is not None
            if lines.count(b"\n") > lines.count(b"}\n"):
                lines, torn = _TORN.subn(b"torn", lines)
                self.hasTorn = self.hasTorn or torn > 0
            yield lines
        if _TWISTED.match(start) and not isLog:
            self._damage(
                "Twisted's own log; the connection log is what -l names behind hello-listen"
            )
        elif start and not isLog:
            self._damage("not a connection log: no line is a record")

    def _damage(self, reason: str) -> None:
        """Record damage; the first counts."""
        self.damage = self.damage or reason

    def _whole(self) -> Iterator[bytes]:
        """Yield chunks of whole lines, up to the first damage that ends reading."""
        line, tooLong = b"", False
        try:
            for chunk in self._decompressed():
                if b"\0" in chunk:
                    self._damage("NUL bytes in it, as after the crash of a system")
                    chunk = re.sub(rb"\0+", b"\n", chunk)
                lines, end, rest = chunk.rpartition(b"\n")
                if not end:
                    line += b"" if tooLong else rest
                else:
                    yield (lines.partition(b"\n")[2] if tooLong else line + lines) + end
                    line, tooLong = rest, False
                if len(line) > MAX_LINE_SIZE:
                    self._damage("a line of more than 16 MiB")
                    line, tooLong = b"", True
        except EOFError:
            self._damage("truncated: the end of its compressed data is missing")
        except zlib.error:
            self.isFalse = True
            self._damage("left out: its compressed data is damaged")
        except OSError as error:
            self._damage(error.strerror or str(error))
        if line:
            yield line + b"\n"

    def _decompressed(self) -> Iterator[bytes]:
        """Yield the log's bytes, decompressed."""
        first = next(self._chunks, b"")
        if first.startswith(_GZIP):
            yield from _decompress(first, self._chunks)
            return
        yield first.removeprefix(_BOM)
        yield from self._chunks


def _decompress(chunk: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """
    Decompress a gzip file of one or several members.

    @raise EOFError: the file is truncated.
    @raise OSError: other data follows the last member.
    @raise zlib.error: the compressed data is damaged.
    """
    member = zlib.decompressobj(_GZIP_BITS)
    while chunk:
        yield member.decompress(chunk, CHUNK_SIZE)
        if not member.eof:
            chunk = member.unconsumed_tail or next(rest, b"")
            continue
        # Zeros may follow a member, as padding.
        chunk = member.unused_data.lstrip(b"\0") or next(rest, b"").lstrip(b"\0")
        if chunk and not _GZIP.startswith(chunk[:2]):
            raise OSError("something else behind its compressed data")
        if chunk:
            member = zlib.decompressobj(_GZIP_BITS)
    yield member.flush()
    if not member.eof:
        raise EOFError
