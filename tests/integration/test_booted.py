"""The handbook's commands on a machine that systemd runs, with everything that they need."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from booted import BootedMachine, commands
from machines import CLOSED, Machines
from processes import Start, run, tool, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may boot a machine"),
]

FILES = "/opt/hello-listen/share/hello-listen"
LOG = "/var/log/hello-listen/connections.jsonl"
REPORT = "/opt/hello-listen/bin/hello-listen-report"

REFUSED, TIMEOUT = 7, 28
"""curl's statuses."""

RECEIVER = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(message["message"], flush=True)
        self.send_response(200)
        self.end_headers()
server = http.server.HTTPServer(("192.0.2.66", 8000), Handler)
print("ready", flush=True)
server.serve_forever()
"""


@pytest.fixture
def booted(start: Start, machines: Machines, tmp_path: Path) -> Iterator[BootedMachine]:
    """Boot a machine, and switch it off."""
    machine = BootedMachine(start, machines, tmp_path)
    yield machine
    machine.end()


def status(booted: BootedMachine) -> dict[str, Any]:
    """Return what the page shows."""
    answer: dict[str, Any] = json.loads(booted.run("curl -q -s http://127.0.0.1:7880/status.json"))
    return answer


def test_canary(booted: BootedMachine, machines: Machines) -> None:
    """The handbook's canary records, shows its page, and is reported, rotated and stopped."""
    for program in "curl", "logrotate":
        tool(program)
    [install, look] = commands("A canary as a service")
    # hello-listen is installed.
    booted.run(install.partition("\n")[2])
    run(*machines.touch("192.0.2.66", 23))
    page, report = look.splitlines()
    assert json.loads(booted.run(page))["connections"] == 1
    counts = "Connections: {0}, recorded: {0}, summarized: 0, lost: 0, missing: 0"
    told = booted.run(report)
    assert counts.format(1) in told
    assert " open " in told
    booted.run("logrotate --force /etc/logrotate.d/hello-listen")
    run(*machines.touch("192.0.2.67", 5900))
    booted.run("systemctl reload hello-listen-canary; systemctl stop hello-listen-canary")
    told = booted.run(report)
    assert counts.format(2) in told
    assert " closed " in told
    assert "192.0.2.67" in told


def test_socket(booted: BootedMachine, machines: Machines) -> None:
    """A socket loses nobody as its process is restarted, or as two processes share it."""
    [link, share] = commands("A socket that outlives the process")
    booted.run(link)

    def touch(*actions: str) -> None:
        """Connect twice during each of some actions."""
        for action in actions:
            booted.run(f"systemctl --no-block {action}")
            for source in "192.0.2.66", "2001:db8:0:6::66":
                assert run(*machines.touch(source, 7878)).returncode in CLOSED

    # systemd allows five starts in ten seconds.
    touch(*["restart hello-listen.service", "reload hello-listen.service"] * 2)
    booted.run(f"cd {FILES}/systemd; {share}")
    touch(*["restart hello-listen@1", "restart hello-listen@2"] * 3)
    booted.run("systemctl stop hello-listen.socket hello-listen@1 hello-listen@2")
    report = json.loads(booted.run(f"{REPORT} --json {LOG}"))
    assert (report["recorded"], report["missing"]) == (20, 0)


def test_every_port(start: Start, booted: BootedMachine, machines: Machines) -> None:
    """A scan of all ports is in page, report and notification whole; then its client is banned."""
    for program in "curl", "fail2ban-server", "nft":
        tool(program)
    receiver = start(*machines.far, sys.executable, "-c", RECEIVER)
    receiver.expect("ready")
    [every] = commands("Every port")
    # hello-listen is installed.
    booted.run(every.partition("\n")[2])
    assert booted.run("systemctl is-active take-back.timer") == "active\n"
    assert booted.run("cat /proc/sys/net/core/somaxconn") == "65535\n"
    [notify] = [block for block in commands("Notifications") if "notify.conf" in block]
    booted.run("echo json://192.0.2.66:8000/ > urls.txt")
    booted.run(notify.replace("-canary", "-every-port"))
    scan = run(*machines.far, tool("nmap"), "-n", "-Pn", "-sT", "-p-", "192.0.2.1")
    opened = set(map(int, re.findall(r"^(\d+)/tcp +open", scan.stdout, re.MULTILINE)))
    assert len(opened) > 65_000
    until(lambda: status(booted)["recorded"] >= len(opened))
    shown = status(booted)
    assert shown["connections"] == shown["recorded"]
    assert shown["clients"][0]["connections"] == shown["connections"]
    assert shown["distinct_ports"] >= len(opened)
    booted.run("systemctl start take-back.service")
    until(lambda: booted.run("nft list ruleset") == "")
    assert run(*machines.touch("192.0.2.66", 23)).returncode == REFUSED
    report = json.loads(booted.run(f"{REPORT} --json {LOG}"))
    assert report["missing"] == 0
    [client] = report["clients"]
    assert client["client.address"] == "192.0.2.66"
    assert client["connections"] == report["connections"] == shown["connections"]
    assert opened <= {server["server.port"] for server in report["servers"]}
    receiver.expect(r"^1 new client, 1 connection since \S+ 192\.0\.2\.66 \(1, port \d+\)$")
    told = receiver.expect(
        r"^1 client on further ports, (\d+) connections since .*: 192\.0\.2\.66 "
    )
    assert int(told[1]) == shown["connections"] - 1
    [journal, ban] = commands("fail2ban")
    booted.run(journal.partition("\n")[2])
    booted.run(f"cd {FILES}; systemctl start hello-listen-every-port; {ban}")
    until(lambda: "192.0.2.66" in booted.tell("fail2ban-client status hello-listen"))
    banned = machines.touch("192.0.2.66", 23)
    until(lambda: run(*banned, "--max-time", "1").returncode == TIMEOUT)
    assert run(*machines.touch("192.0.2.67", 23)).returncode in CLOSED
