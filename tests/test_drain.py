"""In-flight handshakes, as Linux lists them in C{/proc/net/tcp}."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock

from hello_listen import _drain as module
from hello_listen._drain import handshakes, localName

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1EC6 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 26203 1
   1: 0100007F:1EC7 0100007F:D0B1 06 00000000:00000000 03:000017CC 00000000     0        0 0 3
   2: 0200007F:1EC8 0100007F:D0B2 03 00000000:00000000 01:00000063 00000000     0        0 0 1
   3: 0100007F:1EC9 0100007F:D0B3 01 00000000:00000000 00:00000000 00000000     0        0 30303 1
"""
"""Two connections, one of which has ended, a listening socket, and an in-flight handshake."""


def test_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in-flight handshake is found by address and port, and by its port alone."""
    monkeypatch.setattr(module, "TABLE", str(tmp_path / "tcp"))
    (tmp_path / "tcp").write_text(TABLE)
    (tmp_path / "tcp6").write_text(TABLE.replace("03", "01"))
    reactor = MemoryReactorClock()
    found: list[set[bytes] | None] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        handshakes(reactor, family).look().addCallback(found.append)
    reactor.advance(0)
    assert found == [{b"0200007F:1EC8", b":1EC8"}, set()]


def test_one_reading_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All look-ups of one reactor turn share one reading of the table; later ones read it again."""
    monkeypatch.setattr(module, "TABLE", str(tmp_path / "tcp"))
    (tmp_path / "tcp").write_text(TABLE)
    reactor = MemoryReactorClock()
    results: list[object] = []
    for _ in range(2):
        handshakes(reactor, socket.AF_INET).look().addCallback(results.append)
    reactor.advance(0)
    (tmp_path / "tcp").unlink()
    handshakes(reactor, socket.AF_INET).look().addCallback(results.append)
    reactor.advance(0)
    assert results[0] is results[1]
    assert results[2] is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has the table of handshakes")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_names(host: str) -> None:
    """L{localName} writes an address as the system's table does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        table = Path(module.TABLE + "6" * (family == socket.AF_INET6)).read_bytes()
        names = [row.split()[1] for row in table.splitlines()[1:]]
        assert localName(family, host, port) in names
        assert any(name.endswith(localName(family, None, port)) for name in names)
