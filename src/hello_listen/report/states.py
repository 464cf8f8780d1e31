"""Whether the process of a run still lives, as far as that can be known here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def state(run: dict[str, Any], proc: Path = Path("/proc")) -> str:
    """
    Return C{closed}, C{open}, C{killed}, or C{not closed} where that cannot be told.

    @param run: a row of C{queries/runs.sql}.
    @param proc: the processes of this system, as proc(5) has them.
    """
    if run["closed"]:
        return "closed"
    lives = _lives(proc, run["boot"], run["namespace"], run["pid"], run["ticks"])
    return {True: "open", False: "killed", None: "not closed"}[lives]


def _lives(
    proc: Path, boot: str | None, namespace: int | None, pid: int | None, ticks: int | None
) -> bool | None:
    """
    Say whether a process lives; L{None} if it belongs to another system, or is out of sight.

    @param boot: the system's boot id.
    @param namespace: the inode of the process id's namespace: containers have one each.
    @param ticks: when it started: process ids are used again, in a container at each start.
    """
    try:
        # This may be /proc of another namespace, or hide what other users run (hidepid).
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
    # After the name, which may contain anything: the state, and the start as field 22 (proc(5)).
    fields = status.rpartition(b")")[2].split()
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == ticks
