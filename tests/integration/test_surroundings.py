"""--chroot, other locales and other packages' plugins."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from processes import LOOPBACK, PATIENCE, SCRIPTS, Start, run

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the root")
def test_chroot(start: Start, tmp_path: Path) -> None:
    """All modules are imported before --chroot, in whose root there are none."""
    empty = tmp_path / "empty"
    (empty / "dev").mkdir(parents=True)
    (empty / "dev" / "null").touch()  # Twisted's own ports open it.
    server = start(
        "twistd", "-n", "--pidfile=", f"--chroot={empty}", "hello-listen",
        "-l", tmp_path / "log", "-e", f"haproxy:{LOOPBACK}", "-e", "unix:s",
    )  # fmt: skip
    port = server.port()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
        assert client.recv(1) == b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(f"{empty}/s")
        assert client.recv(1) == b""
    output = server.stop()
    assert "Traceback" not in output
    assert (tmp_path / "log").read_text().count('"Connection established!"') == 2
    assert '"client.address": "192.0.2.7"' in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    ],
    ids=["Latin-1", "ASCII"],
)
def test_locale(start: Start, tmp_path: Path, locale: dict[str, str]) -> None:
    """A client whose name the locale cannot encode is logged, with escapes everywhere."""
    server = start(
        "twistd", "-n", "--pidfile=", "hello-listen", "-e", "unix:s", env={**os.environ, **locale}
    )
    server.expect("Listening on unix:s")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.bind(f"{tmp_path}/☃\xe4")
        client.connect(f"{tmp_path}/s")
        assert client.recv(1) == b""
    assert server.connections(1) == [rf"unix:{tmp_path}/\u2603\xe4 -> unix:s"]
    assert "Traceback" not in server.stop()


def test_another_packages_fault(tmp_path: Path) -> None:
    """An error of another endpoint type is not reported as one of inherited sockets."""
    ended = run(
        SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen", "-e", "broken:circuit",
        cwd=tmp_path, env={"PYTHONPATH": str(PLUGINS), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("hello-listen: 'broken:circuit': ")
    assert "circuit" in line.removeprefix("hello-listen: 'broken:circuit': ")
    assert "inherited" not in line
