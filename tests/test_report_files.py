"""The report's input: file names, damaged files, and pipes."""

from __future__ import annotations

import gzip
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest

from asked import answer, run
from hello_listen.report.inputs import Input
from written import Run, write

duckdb = pytest.importorskip("duckdb")
reading = importlib.import_module("hello_listen.report.reading")

GOOD = Run("f" * 12).connection().connection().close()
PROCESS = Run().connection().connection().connection().close()
DATA = "".join(PROCESS.lines).encode()
CUT = DATA.index(b"\n", DATA.index(b'"sequence": 1')) + 1
"""Where the first record ends."""

NUL = "NUL bytes in it, as after the crash of a system"
TOO_LONG = "a line of more than 16 MiB"
TRUNCATED = "truncated: the end of its compressed data is missing"
DAMAGED = "left out: its compressed data is damaged"
NO_LOG = "not a connection log: no line is a record"
MIB = 2**20


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log without any fault."""
    return write(tmp_path / "connections.jsonl", GOOD)


def flipped(data: bytes, at: int) -> bytes:
    """Return data with one byte changed."""
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at:][1:]


def packed(data: bytes) -> bytes:
    """Return data as gzip writes it."""
    return gzip.compress(data, mtime=0)


PACKED = packed(DATA)


def between(middle: bytes) -> bytes:
    """Return the log with something between two lines."""
    return DATA[:CUT] + middle + DATA[CUT:]


@pytest.mark.parametrize(
    ("make", "reason", "records"),
    [
        (lambda: between(b"\0" * 5000), NUL, 3),
        (lambda: between(b"\0"), NUL, 3),
        pytest.param(lambda: between(b"\0" * (40 * MIB)), NUL, 3, marks=pytest.mark.slow),
        (lambda: DATA[: CUT - 9] + b"\0" * 9 + DATA[CUT:], NUL, 2),
        (lambda: DATA + b"\0" * 5000, NUL, 3),
        (lambda: b"\0" * 5000 + DATA, NUL, 3),
        (lambda: packed(between(b"\0")), NUL, 3),
        (lambda: between(b"x" * (17 * MIB) + b"\n"), TOO_LONG, 3),
        pytest.param(
            lambda: between(b"x" * (40 * MIB) + b"\n"), TOO_LONG, 3, marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: packed(between(b"x" * (40 * MIB) + b"\n")), TOO_LONG, 3, marks=pytest.mark.slow
        ),
        pytest.param(lambda: DATA[:CUT] + b"x" * (40 * MIB), TOO_LONG, 1, marks=pytest.mark.slow),
        (lambda: PACKED[:-8], TRUNCATED, 3),
        (lambda: PACKED[:-1], TRUNCATED, 3),
        (lambda: PACKED[:12], TRUNCATED, 0),
        (lambda: PACKED + PACKED[:30], TRUNCATED, 3),
        (lambda: PACKED + b"garbage", "something else behind its compressed data", 3),
        (lambda: flipped(PACKED, -6), DAMAGED, 0),
        (lambda: flipped(PACKED, 40), DAMAGED, 0),
        (lambda: b"garbage\n", NO_LOG, 0),
        (lambda: b'\n\n{}\n[1]\n{"message": "hi"}\n', NO_LOG, 0),
        (lambda: packed(b"garbage\n"), NO_LOG, 0),
    ],
)
def test_damaged(
    log: Path, tmp_path: Path, make: Callable[[], bytes], reason: str, records: int
) -> None:
    """A damaged file is named with the reason, and its readable records count."""
    bad = tmp_path / "bad"
    bad.write_bytes(make())
    found = answer(bad, log)
    assert found["status"] == 2
    assert found["problems"] == [{"file": str(bad), "reason": reason}]
    assert sum(client["connections"] for client in found["clients"]) == 2 + records
    status, out, err = run(bad, log)
    assert (status, err) == (2, "")
    assert f"\n{bad}: {reason}\n" in out


def test_unreadable(log: Path, tmp_path: Path) -> None:
    """A file that cannot be read is named, and the rest is reported."""
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty.gz").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    reasons = {
        "dangling": "a symbolic link to a file that does not exist",
        "empty.gz": "empty, and so not what gzip writes",
        "fifo": "a named pipe, not a file",
        "folder": "a folder",
        "loop": "Too many levels of symbolic links",
        "none": "No such file or directory",
        "none*": "No such file or directory",
    }
    names = [tmp_path / name for name in reasons]
    found = answer(*names, "s3://bucket/log", "http://127.0.0.1/log", "/dev/null", log)
    assert (found["status"], found["recorded"]) == (2, 2)
    told = {problem["file"]: problem["reason"] for problem in found["problems"]}
    expected = {str(tmp_path / name): reason for name, reason in reasons.items()}
    expected |= dict.fromkeys(
        ("s3://bucket/log", "http://127.0.0.1/log", "/dev/null"), "not a file"
    )
    assert told == expected
    status, out, err = run(*names)
    assert (status, out) == (2, "")
    assert sorted(err.splitlines()) == sorted(
        f"hello-listen-report: {file}: {reason}"
        for file, reason in expected.items()
        if file.startswith(str(tmp_path))
    )


NAMES = (
    *("it's [1]*.jsonl", "a?b.jsonl", "%41 $x {y}.jsonl", "b\\[s]\\*.jsonl", "\udcff.jsonl"),
    *("kind=canary/log", "timestamp=2026-01-01/log", "client=x/sequence=7.jsonl"),
    *("server.port=1/service.instance.id=x", "x.csv", "x.parquet", "plain.gz", "-x", "s3:/x"),
)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name is taken literally, whatever it means to a shell or to DuckDB."""
    monkeypatch.chdir(tmp_path)
    write(Path("it's 1.jsonl"), Run("1" * 12).connection())
    write(Path("aXb.jsonl"), Run("2" * 12).connection())
    expected = answer(write(Path("log"), GOOD))
    assert expected["status"] == 0
    for number, name in enumerate(NAMES):
        Path(name).parent.mkdir(exist_ok=True)
        write(Path(name), GOOD)
        assert answer("--", name if number % 2 else tmp_path / name) == expected
        Path(name).write_bytes(gzip.compress(Path(name).read_bytes()))
    assert answer("--", *NAMES) == expected | {"lines.repeated": True}


@pytest.mark.parametrize("name", ["kind=canary", "[1]*", "%41 {x}'"])
def test_temporary_folder(
    log: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the temporary folder does not matter, either."""
    write(log, GOOD, Run("e" * 12).connection("2001:db8::1").close())
    expected = answer(log)
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    assert answer(log) == expected
    assert os.listdir(tmp_path / name) == []


def test_patterns(tmp_path: Path) -> None:
    """A pattern matches files; ** matches folders, too."""
    for n, name in enumerate(("c.jsonl", "c.jsonl.1", "c.jsonl.2", "other", "folder/c.jsonl")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, Run(f"{n:012}").connection().close())
    assert answer(f"{tmp_path}/c.*")["recorded"] == 3
    assert answer(f"{tmp_path}/c.jsonl.[12]", f"{tmp_path}/c.jsonl*")["recorded"] == 3
    assert answer(f"{tmp_path}/**")["recorded"] == 5


def test_compressed(tmp_path: Path) -> None:
    """Compressed files are recognized by their content; several members and padding are fine."""
    expected = answer(write(tmp_path / "log", GOOD))
    lines = [line.encode() for line in GOOD.lines]
    parts = b"".join(map(gzip.compress, lines))
    for content in (gzip.compress(b"".join(lines)), parts, parts + b"\0" * 99):
        (tmp_path / "packed").write_bytes(content)
        assert answer(tmp_path / "packed") == expected
    much = Run().connection().close()
    much.lines[2:2] = ["\n"] * 3_000_000  # Several pieces, of which each is one that zlib makes.
    with gzip.open(tmp_path / "much.gz", "wt") as file:
        file.writelines(much.lines)
    assert answer(tmp_path / "much.gz")["recorded"] == 1


def test_compressed_log_of_any_size(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed log is read in parts, one at a time on the disk."""
    monkeypatch.setattr(reading, "PART_SIZE", 1)
    large = Run("e" * 12)
    for _ in range(20_000):
        large.connection()
    data = "".join(large.close().lines).encode()
    assert len(data) > 3 * MIB
    log.write_bytes(packed(data))
    found = answer(log)
    assert (found["recorded"], found["missing"], found["status"]) == (20_000, 0, 0)
    assert found["clients"][0]["connections"] == 20_000


def test_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark or CRLF line ends cost no record."""
    expected = answer(write(tmp_path / "log", GOOD))
    content = "".join(GOOD.lines).replace("\n", "\r\n").encode()
    (tmp_path / "edited").write_bytes(b"\xef\xbb\xbf" + content)
    assert answer(tmp_path / "edited") == expected


def test_record_that_is_cut_anywhere(tmp_path: Path) -> None:
    """Wherever a crash truncates a record, those before and after it count."""
    process = Run().connection().cutAnywhere().close()
    found = answer(write(tmp_path / "log", process))
    assert (found["missing"], found["status"]) == (0, 0)
    assert found["clients"][0]["connections"] == process.counts["recorded"]
    assert found["lines.torn"] == len(process.lines) - process.sequence - 2


def test_torn(log: Path) -> None:
    """Lines that are no JSON are counted and reported; the others count."""
    process = Run().connection().connection().connection()
    whole = "".join(process.lines).encode()
    glued = whole.splitlines()[0] + b" garbage\n" + whole.splitlines()[0] + whole.splitlines()[0]
    torn = b"\n\xff\xfe\n" + b"[" * 100 + b"\n" + glued + b"\n" + whole[:40]
    log.write_bytes(whole + torn)
    status, out, _ = run(log)
    assert status == 3
    assert "Lines that are no records (torn, or of another log): 5\n" in out
    found = answer(log)
    assert (found["recorded"], found["problems"]) == (3, [])
    assert found["lines.torn"] == 5


@pytest.mark.parametrize(
    "head",
    [
        "2026-11-24T20:19:34+0000 [hello_listen#info] Connection established! 127.0.0.1:5 -> x",
        "2026-11-24 20:19:34+0000 [-] Log opened.",
    ],
)
def test_log_of_twistd(log: Path, tmp_path: Path, head: str) -> None:
    """For twistd's own log, as of -l before hello-listen, the report says so."""
    other = tmp_path / "twistd.log"
    other.write_text(f"{head}\n" * 9)
    reason = "Twisted's own log; the connection log is what -l names behind hello-listen"
    assert run(other) == (2, "", f"hello-listen-report: {other}: {reason}\n")
    found = answer(other, log)
    assert found["problems"] == [{"file": str(other), "reason": reason}]
    assert (found["recorded"], found["status"]) == (2, 2)


@pytest.mark.parametrize("start", ["2026-11-24T20:19:34+0000 [x] y\n", "garbage\n"])
def test_mixed(log: Path, start: str) -> None:
    """A connection log may contain other lines, as from standard output."""
    log.write_text(start + "".join(GOOD.lines))
    found = answer(log)
    assert (found["problems"], found["lines.torn"], found["status"]) == ([], 1, 0)


def test_many_problems(log: Path, tmp_path: Path) -> None:
    """Twenty unreadable files are named, and the others counted."""
    names = [tmp_path / f"none{n}" for n in range(50)]
    out = run(log, *names)[1]
    assert out.count("No such file") == 20
    assert "\nThe same goes for 30 more files.\n" in out
    assert len(answer(log, *names)["problems"]) == 50


def feed(data: bytes) -> int:
    """Return a descriptor from which data can be read, once."""
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb") as file:
            file.write(data)

    Thread(target=write, daemon=True).start()
    return reader


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/{0}", "/proc/self/fd/{0}"])
def test_pipe(log: Path, name: str) -> None:
    """A log can be read from standard input or a shell's <()."""
    expected = answer(log)
    kept = os.dup(0)
    try:
        for data in (log.read_bytes(), gzip.compress(log.read_bytes())):
            pipe = feed(data)
            os.dup2(pipe, 0)
            assert answer(name.format(pipe)) == expected
            os.close(pipe)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


class Impatience(Event):
    """An event that is set after it was asked for once."""

    def is_set(self) -> bool:
        """Return whether it is set."""
        found = super().is_set()
        self.set()
        return found


def test_idle_pipe() -> None:
    """Reading from a pipe without data ends when the report is stopped."""
    reader, writer = os.pipe()
    assert list(Input(f"/dev/fd/{reader}", isPlain=False).chunks(Impatience())) == []
    os.close(reader)
    os.close(writer)


def test_stopped_database(tmp_path: Path) -> None:
    """After an interrupt, no further query runs."""
    database = reading.Database(str(tmp_path))
    database.stop()
    with pytest.raises(duckdb.InterruptException):
        database.run("tables")
    database.close()


def test_standard_input(log: Path) -> None:
    """Standard input may be a file; a closed one is an error."""
    expected = answer(log)
    kept = os.dup(0)
    try:
        with log.open() as file:
            os.dup2(file.fileno(), 0)
        assert answer("-") == expected
        os.close(0)
        found = answer("-", log)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert found["problems"] == [{"file": "-", "reason": "Bad file descriptor"}]
    assert (found["recorded"], found["status"]) == (2, 2)


def test_nothing_read_without_permission(log: Path) -> None:
    """A file that the user may not read is named."""
    assert run(log)[0] == 0  # The modules to import may be out of that user's reach.
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        secret = write(Path(folder) / "secret", GOOD)
        secret.chmod(0)
        if user == 0:
            os.seteuid(65534)
        try:
            found = run(secret)
        finally:
            os.seteuid(user)
    assert found == (2, "", f"hello-listen-report: {secret}: Permission denied\n")
