"""Every port of a machine: the rules of src/deploy, scanned from another machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from logs import recorded
from machines import Machines
from processes import DEPLOY, SCRIPTS, Start, run, tool

pytestmark = pytest.mark.slow

UNIT = DEPLOY / "systemd/hello-listen-every-port.socket"

# What systemd does with the unit, but for its commands.
SOCKET = """
import os, socket, sys
listening = socket.socket(socket.AF_INET6)
listening.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
listening.bind(("::", 7878))
listening.listen(65535)
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="hello")
os.execv(sys.argv[1], sys.argv[1:])
"""

SERVICES = """
import socket, threading
def serve(port):
    listening = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        client, _ = listening.accept()
        try:
            client.send(b"%d" % port)
        except ConnectionResetError:  # By nmap.
            pass
        client.close()
threading.Thread(target=serve, args=(22,), daemon=True).start()
print("ready", flush=True)
serve(8080)
"""

CALL = """
import socket, sys
for port in sys.argv[2:]:
    try:
        with socket.create_connection((sys.argv[1], port), 10) as client:
            print(port, client.recv(9).decode())
    except OSError as error:
        print(port, error.strerror)
"""

HOSTS = ["192.0.2.1", "2001:db8::1"]


class Machine:
    """A machine with services on the ports 22 and 8080, and its neighbour."""

    def __init__(self, start: Start, machines: Machines) -> None:
        """Start the services."""
        self._machines = machines
        start(*machines.near, sys.executable, "-c", SERVICES).expect("ready")
        # Or a queue that is full loses clients of a scan, as the handbook says.
        run(*machines.near, "sh", "-c", "echo 65535 > /proc/sys/net/core/somaxconn")

    def systemctl(self, action: str) -> None:
        """Run the commands of the unit, as systemctl start or stop does."""
        [line] = re.findall(
            f"^Exec{action.capitalize()}[A-Z][a-z]+=-?/usr/sbin/nft (.*)$", UNIT.read_text(), re.M
        )
        words = line.replace("/opt/hello-listen/share/hello-listen", str(DEPLOY)).split()
        assert self._machines.nft(*words) == ""

    def call(self, host: str, *ports: int) -> list[str]:
        """Return what each port of the machine says to its neighbour."""
        return run(
            *self._machines.far, sys.executable, "-c", CALL, host, *ports
        ).stdout.splitlines()

    def scan(self, host: str) -> set[int]:
        """Scan all ports of the machine from its neighbour, and return those that are open."""
        options = ["-n", "-Pn", "-sT", "-p-", *(["-6"] if ":" in host else [])]
        done = run(*self._machines.far, tool("nmap"), *options, host)
        opened = {int(port) for port in re.findall(r"^(\d+)/tcp +open", done.stdout, re.MULTILINE)}
        assert len(opened) > 65000, done.stdout[-500:] + done.stderr
        return opened


@pytest.fixture
def machine(start: Start, machines: Machines) -> Machine:
    """Return a machine without rules."""
    return Machine(start, machines)


@pytest.mark.parametrize("host", HOSTS)
def test_scan(
    start: Start, machines: Machines, machine: Machine, tmp_path: Path, host: str
) -> None:
    """A scan of all ports is recorded port by port; who serves a port keeps it."""
    server = start(
        *[*machines.near, sys.executable, "-c", SOCKET, SCRIPTS / "twistd", "-n", "--pidfile="],
        *["hello-listen", "-e", "systemd:domain=INET6:name=hello", "-l", "connections.jsonl"],
    )
    server.expect("Listening on")
    assert machine.call(host, 23) == ["23 Connection refused"]
    machine.systemctl("start")
    assert machine.call(host, 22, 8080, 23, 65535) == ["22 22", "8080 8080", "23 ", "65535 "]
    opened = machine.scan(host)
    machine.systemctl("stop")
    assert machines.nft("list", "ruleset") == ""
    assert machine.call(host, 22, 23) == ["22 22", "23 Connection refused"]
    server.stop()
    found = recorded(tmp_path / "connections.jsonl")
    assert {each["server.address"] for each in found} == {host}
    ports = {each["server.port"] for each in found}
    assert ports.isdisjoint({22, 8080})
    assert opened - ports == {22, 8080}


@pytest.mark.parametrize("host", HOSTS)
def test_redirected_scan(
    start: Start, machines: Machines, machine: Machine, tmp_path: Path, host: str
) -> None:
    """A redirected client is recorded with the port that it called; a scan loses nobody."""
    server = start(
        *[*machines.near, SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen"],
        *["-e", "redirected:tcp6:7878", "-l", "connections.jsonl"],
    )
    server.expect("Listening on")
    machines.nft("-f", DEPLOY / "nftables/every-port-redirect.nft")
    ports = [*range(1, 65536, 331)]
    assert machine.call(host, 22, 8080) == ["22 22", "8080 8080"]
    assert machine.call(host, *ports) == [f"{port} " for port in ports]
    opened = machine.scan(host)
    server.stop()
    found = recorded(tmp_path / "connections.jsonl")
    assert [each["server.port"] for each in found[: len(ports)]] == ports
    assert {each["server.address"] for each in found} == {host}
    assert len(found) >= len(ports) + len(opened - {22, 8080})


@pytest.mark.parametrize("host", HOSTS)
def test_redirected_by_iptables(
    start: Start, machines: Machines, machine: Machine, tmp_path: Path, host: str
) -> None:
    """A client that iptables redirects is recorded with the port that it called."""
    server = start(
        *[*machines.near, SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen"],
        *["-e", "redirected:tcp6:7878", "-l", "connections.jsonl"],
    )
    server.expect("Listening on")
    program = tool("ip6tables" if ":" in host else "iptables")
    redirect = ["--dport", "23:25", "-j", "REDIRECT", "--to-ports", "7878"]
    made = run(*machines.near, program, *["-t", "nat", "-A", "PREROUTING", "-p", "tcp"], *redirect)
    assert made.returncode == 0, made.stderr
    assert machine.call(host, 23, 25, 7878, 26) == ["23 ", "25 ", "7878 ", "26 Connection refused"]
    server.stop()
    found = recorded(tmp_path / "connections.jsonl")
    assert [each["server.port"] for each in found] == [23, 25, 7878]
