"""Runs in the report: their counts, missing records, and what is unknown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asked import answer, run
from hello_listen.report.states import state
from written import Run, at, write

pytest.importorskip("duckdb")

COUNTS = ("connections", "recorded", "summarized", "lost", "missing")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of a log."""
    return tmp_path / "connections.jsonl"


def test_closed(log: Path) -> None:
    """A closed run has the counts of its closing line, even if rotation removed records."""
    process = Run().connection().summary(5).lose(2, 7).connection().close()
    log.write_text("".join(process.lines[3:]))
    found = answer(log)
    assert found["runs"] == [
        {
            "service.instance.id": "0123456789ab",
            "host.name": None,
            "process.pid": None,
            "first": "2026-11-22T20:00:00.000000Z",
            "last": "2026-11-22T20:00:00.000000Z",
            "state": "closed",
            "sequence.first": 3,
            "sequence.last": 5,
            "connections": 14,
            "recorded": 2,
            "summarized": 5,
            "lost": 7,
            "missing": 0,
            "packets.dropped": 0,
            "unknown": ["beginning"],
        }
    ]
    assert (found["unknown"], found["status"]) == (1, 3)
    note = "Run 0123456789ab began before these files: they hold its numbers from 3 on.\n"
    assert run("--json", log)[2] == note
    status, out, _ = run(log)
    assert status == 3
    assert note in out
    assert out.startswith(
        "Connections: 14, recorded: 2, summarized: 5, lost: 7, missing: unknown\n"
    )


def test_only_closed(log: Path) -> None:
    """If only its closing line is left, a run's beginning is unknown, unless it is empty."""
    log.write_text(Run().connection().close().lines[-1])
    found = answer(log)
    assert (found["missing"], found["unknown"], found["status"]) == (0, 1, 3)
    note = "Run 0123456789ab began before these files: they hold none of its records.\n"
    assert note in run(log)[1]
    log.write_text(Run().close().lines[-1])
    assert answer(log)["status"] == 0


@pytest.mark.parametrize("kept", [[0, 1, -1], [0, -1], [0, 1, 2, 4, -1]])
def test_missing_end(log: Path, kept: list[int]) -> None:
    """Numbers after the last record, up to the closing line's, are missing."""
    process = Run().connection().connection().summary(40).lose(3, 3).connection().close()
    log.write_text("".join(process.lines[number] for number in kept))
    numbers = {1: 1, 2: 1, 3: 1, 4: 3, 5: 1}
    present = sum(numbers.get(number, 0) for number in kept)
    found = answer(log)
    assert (found["missing"], found["unknown"], found["status"]) == (7 - present, 0, 1)


def test_missing_in_one_place_lost_in_another(log: Path) -> None:
    """Gaps in the middle and at the end add up."""
    process = Run().connection().vanish(4).connection().vanish(3).close()
    assert answer(write(log, process))["missing"] == 7


def test_lost_at_the_end(log: Path) -> None:
    """Records that only the closing line tells of, after a full disk, are lost and not missing."""
    process = Run().connection().summary(5).lose(7, 9)
    del process.lines[-1]
    write(log, process.close())
    found = answer(log)
    assert (found["lost"], found["missing"], found["status"]) == (9, 0, 0)
    assert found["runs"][0]["sequence.last"] == 9
    log.write_text("".join([process.lines[0], *process.lines[2:]]))  # A record lacks as well.
    assert answer(log)["missing"] == 8
    process = Run().lose(7, 9)
    del process.lines[-1]
    assert answer(write(log, process.close()))["missing"] == 0


@pytest.mark.parametrize(
    "kind",
    ["connection", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("summary", "lose"))],
)
def test_earlier_release(log: Path, kind: str) -> None:
    """Without C{sequence.last}, the counts show that records are missing, if not how many."""
    process = Run().connection().summary(5).lose(2, 9).connection()
    getattr(process, kind)(*((3, 3) if kind == "lose" else (9,) if kind == "summary" else ()))
    process.close(**{"sequence.last": None})
    found = answer(write(log, process))
    assert (found["missing"], found["unknown"], found["status"]) == (0, 0, 0)
    del process.lines[-2]
    found = answer(write(log, process))
    assert (found["missing"], found["unknown"], found["status"]) == (1, 1, 1)
    _, out, _ = run(log)
    assert "missing: 1 or more\n" in out
    assert "was closed by an earlier release, without its last number." in out
    del process.lines[0]
    found = answer(write(log, process))
    assert found["missing"] == 1
    log.write_text(process.lines[-1])
    found = answer(log)
    assert (found["missing"], found["runs"][0]["unknown"]) == (0, ["beginning", "end"])


def test_told_beginning(log: Path) -> None:
    """Numbers in a gap record are not missing, even at the beginning."""
    process = Run().lose(3, 3).connection().close()
    log.write_text("".join(process.lines[1:]))
    found = answer(log)
    assert (found["missing"], found["lost"], found["connections"]) == (0, 3, 4)
    assert (found["runs"][0]["sequence.first"], found["status"]) == (1, 0)


def test_told_and_recorded(log: Path) -> None:
    """A number with both a record and a gap record hides no missing one."""
    process = Run().connection().lose(5, 5).vanish().connection()
    process.sequence = 3
    process.connection().connection()
    process.sequence = 8
    assert answer(write(log, process.close()))["missing"] == 1


def test_told_twice_over(log: Path) -> None:
    """Gap records that overlap hide no missing number."""
    process = Run().lose(5, 5)
    process.sequence = 3
    process.lose(4, 4).vanish(2).connection().close()
    process.sequence = 1
    process.lose(3, 3)
    assert answer(write(log, process))["missing"] == 2


def test_status(log: Path) -> None:
    """The exit status tells missing, unknown and neither."""
    assert run(write(log, Run().connection().close()))[0] == 0
    assert run(write(log, Run().connection()))[0] == 3
    assert run(write(log, Run().connection().vanish().connection()))[0] == 1


def test_full_accept_queue(log: Path) -> None:
    """A full accept queue is told for each run that had one; that clients may be missing, by 3."""
    text = run(write(log, Run().connection().close()))[1]
    dropping = Run().drop(20).connection().drop(1000).drop(-5).close()
    status, out, _ = run(write(log, dropping, Run("ba9876543210").close()))
    note = (
        "Run 0123456789ab had a full accept queue: up to 1,020 packets of clients were dropped, "
        "so clients may be missing.\n"
    )
    assert (status, out.count(" accept queue")) == (3, 1)
    assert note in out
    assert out.startswith("Connections: 1, recorded: 1, summarized: 0, lost: 0, missing: 0\n")
    found = answer(log)
    assert [each["packets.dropped"] for each in found["runs"]] == [1020, 0]
    assert (found["unknown"], found["status"], found["lines.torn"]) == (0, 3, 0)
    write(log, Run().connection().drop(1).vanish().connection().close())
    assert run(log)[0] == 1
    assert run(write(log, Run().connection().close())) == (0, text, "")


def test_full_accept_queue_alone(log: Path) -> None:
    """If the files of a run hold nothing else, its beginning and its end are unknown."""
    log.write_text(Run().drop(1).lines[1])
    [told] = answer(log)["runs"]
    assert (told["unknown"], told["packets.dropped"]) == (["beginning", "end"], 1)
    assert "began before these files: they hold none of its records." in run(log)[1]


def test_full_accept_queue_in_a_period(log: Path) -> None:
    """Only what was dropped in the period counts."""
    process = Run()
    for process.now, packets in ((0, 1), (60, 20), (120, 300)):
        process.connection().drop(packets)
    write(log, process.close())
    assert answer(log)["runs"][0]["packets.dropped"] == 321
    assert answer(log, "--since", at(60))["runs"][0]["packets.dropped"] == 320
    found = answer(log, "--since", at(60), "--until", at(120))
    assert (found["runs"][0]["packets.dropped"], found["status"]) == (20, 3)


def test_twice(log: Path, tmp_path: Path) -> None:
    """A log and its copy count once, and a note says so."""
    write(log, Run().connection().summary(5).lose(2, 3).vanish().connection().close())
    once = answer(log)
    write(tmp_path / "copy", Run().connection().summary(5).lose(2, 3).vanish().connection().close())
    assert answer(log, tmp_path / "copy") == once | {"lines.repeated": True}
    assert "Records that were read twice count once.\n" in run(log, tmp_path / "copy")[1]


def test_same_file(log: Path, tmp_path: Path) -> None:
    """A file that is given twice, also by a link, is read once."""
    write(log, Run().connection().close(), Run(None).connection())
    (tmp_path / "link").symlink_to(log)
    os.link(log, tmp_path / "hard")
    assert answer(log, log, tmp_path / "link", tmp_path / "hard") == answer(log)


@pytest.mark.parametrize(
    "number",
    [1, 3, 5, *(pytest.param(number, marks=pytest.mark.slow) for number in (0, 2, 4, 6, 7))],
)
def test_line_twice(log: Path, tmp_path: Path, number: int) -> None:
    """A repeated line of any kind counts once, even with another timestamp."""
    process = Run().connection().lose(5, 5).drop(9).drop(9).vanish(5)
    process.summary(5).connection().close()
    once = answer(write(log, process))
    assert [once[name] for name in COUNTS] == [12, 2, 5, 5, 5]
    assert once["runs"][0]["packets.dropped"] == 18
    copy = process.lines[number].replace(at(0), at(1), 1)
    (tmp_path / "copy").write_text(copy)
    assert answer(log, tmp_path / "copy") == once | {"lines.repeated": True}
    (tmp_path / "third").write_text(copy.replace(at(1), "no time"))
    assert answer(tmp_path / "third", tmp_path / "copy", log) == once | {"lines.repeated": True}


def test_without_id(log: Path) -> None:
    """Records without an id count among clients only; missing ones are unknown."""
    process = Run(None).connection("192.0.2.9").vanish().connection("192.0.2.9").lose(2, 2)
    found = answer(write(log, process))
    assert [found[name] for name in COUNTS] == [0, 0, 0, 0, 0]
    assert (found["runs"], found["status"], found["lines.unnumbered"]) == ([], 3, 2)
    assert [client["connections"] for client in found["clients"]] == [2]
    _, out, _ = run(log)
    assert "Records without an id, counted among the clients only: 2\n" in out
    assert "missing: unknown\n" in out


def test_period(log: Path) -> None:
    """For a period, its records count; missing records are those of the whole run."""
    early, late = Run("0" * 12).connection(), Run("1" * 12).connection("192.0.2.1")
    late.vanish()
    for hour, client in enumerate(("192.0.2.2", "192.0.2.3", "192.0.2.4")):
        late.now = hour * 3600
        late.connection(client).lose(1, 2)
    write(log, early.close(), late.close())
    whole = answer(log)
    assert [whole[name] for name in COUNTS] == [11, 5, 0, 6, 1]
    assert [run["connections"] for run in whole["runs"]] == [1, 10]
    for since, until in (
        ("2026-11-22T21:00", "2026-11-22T22:00:00Z"),
        ("2026-11-22 22:00+01:00", "2026-11-22T21:00:01"),
    ):
        found = answer(log, "--since", since, "--until", until)
        assert [found[name] for name in COUNTS] == [3, 1, 0, 2, 1]
        assert [run["service.instance.id"] for run in found["runs"]] == ["1" * 12]
        assert [client["client.address"] for client in found["clients"]] == ["192.0.2.3"]
    assert answer(log, "--since", "2027-01-01")["runs"] == []
    assert answer(log, "--until", "2027-01-01")["connections"] == 11


def test_unknown_in_a_period(log: Path) -> None:
    """With a period, only what is unknown within it matters."""
    process = Run().connection().connection()
    process.now = 60
    process.connection()
    process.now = 120
    process.connection()
    log.write_text("".join(process.lines[2:]))
    for period, unknown in (
        ([], ["beginning", "end"]),
        (["--since", at(60)], ["end"]),
        (["--until", at(60)], ["beginning"]),
        (["--since", at(60), "--until", at(120)], []),
        (["--since", at(0)], ["end"]),
        (["--since", at(-1), "--until", at(121)], ["beginning", "end"]),
    ):
        found = answer(log, *period)
        assert found["runs"][0]["unknown"] == unknown, period
        assert found["status"] == (3 if unknown else 0)


class Host:
    """A host with processes, as C{/proc} shows it."""

    def __init__(self, proc: Path) -> None:
        """Boot with two processes, one of them this one."""
        self.proc = proc
        (proc / f"{os.getpid()}/ns").mkdir(parents=True)
        (proc / f"{os.getpid()}/ns/pid").touch()
        (proc / "self").symlink_to(str(os.getpid()))
        (proc / "1").mkdir()
        (proc / "sys/kernel/random").mkdir(parents=True)
        (proc / "sys/kernel/random/boot_id").write_text("f00\n")

    def start(self, pid: int, ticks: int, state: str = "S") -> dict[str, object]:
        """Start a process, and return the facts that its log has."""
        fields = " ".join(map(str, range(4, 22)))
        (self.proc / str(pid)).mkdir(exist_ok=True)
        (self.proc / f"{pid}/stat").write_text(f"{pid} (a) b) {state} {fields} {ticks} 23\n")
        namespace = (self.proc / "self/ns/pid").stat().st_ino
        run = {"closed": False, "boot": "f00", "pid": pid, "ticks": ticks}
        return run | {"namespace": namespace}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a host."""
    return Host(tmp_path)


def test_open(host: Host) -> None:
    """A run is open while its process lives, whatever the clocks say."""
    run = host.start(77, 1000)
    assert state(run, host.proc) == "open"
    assert state(run | {"closed": True}, host.proc) == "closed"


def test_killed(host: Host) -> None:
    """A run is killed if its process is gone or a zombie, or its id is another process's."""
    assert state(host.start(77, 1000) | {"pid": 78}, host.proc) == "killed"
    assert state(host.start(77, 1000, "Z"), host.proc) == "killed"
    run = host.start(1, 1000)  # As in a container, where each process is number 1.
    host.start(1, 1050)
    assert state(run, host.proc) == "killed"


@pytest.mark.parametrize(
    "other",
    [
        {"boot": "ba5"},
        {"boot": None},
        {"namespace": 1},
        {"namespace": None},
        {"pid": None},
        {"ticks": None},
    ],
)
def test_not_closed(host: Host, other: dict[str, object]) -> None:
    """A run of another boot or container, or of an earlier release, is not closed."""
    assert state(host.start(77, 1000) | other, host.proc) == "not closed"


def test_out_of_sight(host: Host) -> None:
    """If C{/proc} does not show this namespace's processes, the state is unknown."""
    run = host.start(77, 1000)
    (host.proc / "1").rename(host.proc / "hidden")
    assert state(run, host.proc) == "not closed"
    (host.proc / "hidden").rename(host.proc / "1")
    (host.proc / "77/stat").unlink()
    (host.proc / "77/stat").mkdir()  # Which cannot be read, as with hidepid=1.
    assert state(run, host.proc) == "not closed"
    (host.proc / "self").unlink()
    (host.proc / "self").symlink_to("77")
    assert state(run, host.proc) == "not closed"
    assert state(run, host.proc / "nowhere") == "not closed"


def test_states(log: Path) -> None:
    """For runs of this system's processes, the log's facts decide."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    lives = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    fields = Path(f"/proc/{lives.pid}/stat").read_text().rpartition(")")[2].split()
    here = {"host.boot.id": boot, "process.pid_namespace": namespace, "process.pid": lives.pid}
    now = {**here, "process.start_ticks": int(fields[19])}
    runs = [
        Run("0" * 12, **now),
        Run("1" * 12, **now).close(),
        Run("2" * 12, **here),
        Run("3" * 12, **(now | {"process.start_ticks": int(fields[19]) - 1})),
        Run("4" * 12, **(now | {"host.boot.id": "another"})),
        Run("5" * 12, **(now | {"process.pid": "x"})),
        Run("6" * 12),
    ]
    told = ["open", "closed", "not closed", "killed", "not closed", "not closed", "not closed"]
    assert [each["state"] for each in answer(write(log, *runs))["runs"]] == told
    assert run(write(log, runs[0]))[0] == 0  # What still writes lacks nothing.
    lives.communicate(b"\n")
    found = answer(write(log, runs[0]))
    assert (found["runs"][0]["state"], found["status"]) == ("killed", 3)
    assert "was killed, maybe before it had written its last records.\n" in run(log)[1]
