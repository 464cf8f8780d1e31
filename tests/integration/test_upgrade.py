"""Processes that replace each other on one socket lose nobody."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

import pytest

from crowd import Crowd
from logs import counted, recorded
from processes import Process, Start

pytestmark = pytest.mark.fleet
CLIENTS = 60_000
TURNS = 10
MIN_CLIENTS = 100
"""Clients that each process waits for; its predecessor may still answer up to 32."""


@pytest.mark.parametrize("prefix", ["", "haproxy:"])
@pytest.mark.parametrize("domain", ["INET", "UNIX"])
@pytest.mark.parametrize("overlap", [True, False], ids=["rolling", "restart"])
def test_upgrade(inherit: Start, tmp_path: Path, domain: str, prefix: str, overlap: bool) -> None:
    """60,000 clients are answered, recorded and named while ten processes follow the first."""

    def startNext() -> Process:
        process = inherit(
            listener, "-l", "log", "-e", f"{prefix}systemd:domain={domain}:name=hello"
        )
        process.expect("Listening on")
        return process

    with socket.socket(getattr(socket, f"AF_{domain}")) as listener:
        listener.bind(f"{tmp_path}/s" if domain == "UNIX" else ("127.0.0.1", 0))
        listener.listen(4096)
        process = startNext()
        crowd = Crowd(listener.getsockname(), proxied=bool(prefix))
        crowd.start()
        outputs = []
        try:
            for turn in range(1, TURNS + 1):
                crowd.untilEnded(max(turn * CLIENTS // (TURNS + 1), crowd.ended + MIN_CLIENTS))
                if overlap:
                    old, process = process, startNext()
                    outputs.append(old.stop())
                else:
                    outputs.append(process.stop())
                    process = startNext()
            crowd.untilEnded(max(CLIENTS, crowd.ended + MIN_CLIENTS))
        finally:
            crowd.finish()
        outputs.append(process.stop())
    assert crowd.failed == {}
    assert crowd.ended >= CLIENTS
    records = recorded(tmp_path / "log")
    assert [record for record in records if "error.type" in record] == []
    names = [(r.get("client.address", "unix"), r.get("client.port", 0)) for r in records]
    assert Counter(names) == crowd.answered
    totals = [counted(output) for output in outputs]
    assert sum(connections for connections, _, _ in totals) == crowd.ended
    assert all(lost == 0 for _, _, lost in totals)
    assert all(connections > 0 for connections, _, _ in totals)
    assert not any("Traceback" in output for output in outputs)
