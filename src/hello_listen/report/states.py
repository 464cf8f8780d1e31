"""Finds out whether the process of a run is still alive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def state(run: dict[str, Any], proc: Path = Path("/proc")) -> str:
    """
    Return C{closed}, C{open}, C{killed}, or C{not closed} if the process cannot be seen.

    @param run: a row of C{queries/runs.sql}.
    @param proc: the path of proc(5).
    """
    if run["closed"]:
        return "closed"
    lives = _lives(proc, run["boot"], run["namespace"], run["pid"], run["ticks"])
    return {True: "open", False: "killed", None: "not closed"}[lives]


def _lives(
    proc: Path, boot: str | None, namespace: int | None, pid: int | None, ticks: int | None
) -> bool | None:
    """
    Return whether a process is alive; L{None} if it is of another system or cannot be seen.

    @param boot: the system's boot ID.
    @param namespace: the inode of the PID namespace: each container has its own.
    @param pid: the process ID.
    @param ticks: the start time, in ticks: process IDs are reused, in a container at each start.
    """
    try:
        # This may be /proc of another namespace, or hide processes of other users (hidepid).
        seen = os.readlink(proc / "self") == str(os.getpid()) and (proc / "1").exists()
        here = (proc / "sys/kernel/random/boot_id").read_text().strip() == boot
        if not (seen and here) or (proc / "self/ns/pid").stat().st_ino != namespace:
            return None
    except OSError:
        return None
    if pid is None or ticks is None:
        return None
    try:
        status = (proc / f"{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return None
    # After the name, which may contain anything: field 3, the state, and field 22, the start.
    fields = status.rpartition(b")")[2].split()
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == ticks
