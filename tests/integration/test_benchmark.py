"""The benchmark, also when a server fails while it is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processes import run, tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc"),
]
BENCHMARK = Path(__file__).parent.parent / "benchmark"

NCAT = """#!{python}
import os, socket, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("Ncat: Version 7.0"))
listener = socket.create_server(("127.0.0.1", int(sys.argv[3])))
if os.fork() == 0:
    os._exit(0)
for left in reversed(range({connections})):
    client, peer = listener.accept()
    print("Connection from 127.0.0.1:", peer[1], flush=True)
    if left:
        client.close()
# The last client sees the end once the memory of this process is gone.
os._exit(0)
"""
"""Serves so many connections, and ends; never asks for the status of a child that has ended."""


def benchmark(*arguments: str, path: str | Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the benchmark with small counts, and a folder first on the PATH."""
    tool("cc")
    return run(
        sys.executable, BENCHMARK, "--rounds=1", "--connections=20", "--clients=4", *arguments,
        env={"PATH": f"{path}:{os.environ['PATH']}"} if path else None,
    )  # fmt: skip


def rows(output: str) -> list[str]:
    """Return the first cells of all tables' rows."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [line.split(" | ")[0].removeprefix("| ") for line in lines]


def fakeNcat(tmp_path: Path, connections: int) -> Path:
    """Return a folder with an ncat that serves so many connections."""
    ncat = tmp_path / "ncat"
    ncat.write_text(NCAT.format(python=sys.executable, connections=connections))
    ncat.chmod(0o755)
    return tmp_path


def test_tables() -> None:
    """The tables have the usual servers, those of an option, and those of another environment."""
    ran = benchmark(
        "--servers=c,twisted,unix,processes-2", "--measure=clients", "--many=100",
        f"--other={sys.executable}",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    short, whole, special = map(rows, ran.stdout.split("\n\n")[:3])
    assert short[2:] == ["C", "plain Twisted", "hello-listen -l"]
    assert {"hello-listen -l, unix", "hello-listen -l, unix, other"} <= set(whole)
    assert any("hello-listen -l, processes: 2" in row for row in whole)
    assert "hello-listen -l" in special


def test_zombie(tmp_path: Path) -> None:
    """A zombie child takes no memory, and does not make the benchmark fail."""
    ran = benchmark("--servers=ncat", "--measure=", path=fakeNcat(tmp_path, 1000))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "ncat -lk" in rows(ran.stdout)
    assert "peak, MiB" in ran.stdout


@pytest.mark.parametrize(("connections", "when"), [(15, "round"), (27, "a look at the memory")])
def test_fails_late(tmp_path: Path, connections: int, when: str) -> None:
    """If a server ends while it is measured, a line says so, and all figures are printed."""
    ran = benchmark("--servers=c,ncat", "--measure=", path=fakeNcat(tmp_path, connections))
    assert ran.returncode == 1, ran.stdout + ran.stderr
    _, whole = map(rows, ran.stdout.split("\n\n")[:2])
    assert "C" in whole
    assert ("ncat -lk" in whole) == (when != "round")
    assert f"- ncat -lk: {when} failed: RuntimeError: " in ran.stdout
