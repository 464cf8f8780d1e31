"""The files of src/deploy that shut out whoever touches a canary, run by their programs."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from headers import LOCAL, inet, tlv
from logs import counted
from machines import CLOSED, LINK_LOCAL, Machines
from processes import (
    DEPLOY,
    LOOPBACK,
    PATIENCE,
    SCRIPTS,
    Process,
    Start,
    deployed,
    familyOf,
    freePort,
    lacking,
    run,
    tool,
    until,
)

pytestmark = pytest.mark.slow
Address = tuple[str, int] | str

FILTER = DEPLOY / "fail2ban/filter.conf"
CONFIGURATION = Path("/etc/fail2ban")
HUB = "/usr/share/crowdsec/hub/parsers"
EAST = {"TZ": "XYZ-9:30"}
"""A time zone in which a time in UTC, read as a local one, is long ago."""

JSON = (
    '{"timestamp": "2026-11-24T20:19:34.0Z", "message": "Connection established!", '
    '"network.transport": "tcp", "network.type": "ipv4", "client.address": "192.0.2.66", '
    '"client.port": 1, "server.address": "0", "server.port": 1, "service.instance.id": "0", '
    '"sequence": 1}'
)
TEXT = "2026-11-24T20:19:34+0000 [hello_listen#info] Connection established! 192.0.2.66:1 -> 0:1"

CROWDSEC = """
common: {log_media: stdout, log_level: info}
config_paths: {config_dir: etc, data_dir: data, simulation_path: etc/simulation.yaml, hub_dir: hub,
    index_path: hub/.index.json, notification_dir: etc, plugin_dir: etc}
crowdsec_service: {acquisition_path: etc/acquis.yaml}
cscli: {output: human}
db_config: {type: sqlite, db_path: data/crowdsec.db}
api:
  client: {credentials_path: credentials}
  server: {listen_uri: LAPI, profiles_path: etc/profiles.yaml}
prometheus: {enabled: false}
"""
"""Debian's settings, with folders, a port and nothing of crowdsec.net."""

FORGED = [
    *["", '"', "\\", "\n", "\r\n", "\u2028", "192.0.2.66", "-> 1:1", " via 192.0.2.66:1"],
    *[' a="', " (failed)", '"}', '", "client.address": "192.0.2.66', TEXT, JSON],
]
"""What somebody sends who wants 192.0.2.66 to be banned."""


def send(address: Address, data: bytes = b"", source: str = "") -> None:
    """Connect from an address of this machine or as a named UNIX socket, and wait until the end."""
    with socket.socket(familyOf(address)) as client:
        client.settimeout(PATIENCE)
        if source:
            client.bind(source if isinstance(address, str) else (source, 0))
        client.connect(address)
        with suppress(OSError):  # The canary may have closed the connection.
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
    if source and isinstance(address, str):
        Path(source).unlink(missing_ok=True)


def bannedByFail2ban(log: Path) -> set[str]:
    """Return whom fail2ban's own tool finds in a log."""
    found = run(tool("fail2ban-regex"), "-o", "<ip>", log, FILTER)
    assert (found.returncode, found.stderr) == (0, "")
    return set(found.stdout.split())


def bannedByCrowdSec(log: Path) -> set[str]:
    """Return whom CrowdSec bans as it reads a log, with the other parsers that Debian's brings."""
    program, command = tool("crowdsec"), tool("cscli")
    folder = log.parent / f"crowdsec-{log.name}"
    (folder / "data").mkdir(parents=True)
    (folder / "hub").symlink_to(Path(HUB).parent)
    own = f"{DEPLOY}/crowdsec"
    for source, copy in (
        (f"{HUB}/s00-raw/crowdsecurity/syslog-logs.yaml", "parsers/s00-raw/raw.yaml"),
        (f"{own}/parser.yaml", "parsers/s01-parse/hello-listen.yaml"),
        (f"{HUB}/s02-enrich/crowdsecurity/dateparse-enrich.yaml", "parsers/s02-enrich/date.yaml"),
        (f"{own}/acquis.yaml", "acquis.yaml"),
        (f"{own}/scenario.yaml", "scenarios/hello-listen.yaml"),
        ("/etc/crowdsec/profiles.yaml", "profiles.yaml"),
        ("/etc/crowdsec/simulation.yaml", "simulation.yaml"),
    ):
        (folder / "etc" / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / "etc" / copy)
    shutil.copytree("/etc/crowdsec/patterns", folder / "etc/patterns")
    (folder / "credentials").touch()
    lapi = f"127.0.0.1:{freePort()}"
    (folder / "config.yaml").write_text(CROWDSEC.replace("LAPI", lapi))
    add = ["machines", "add", "test", "--password", "secret", "-f", "credentials", "-u"]
    added = run(command, "-c", "config.yaml", *add, f"http://{lapi}", cwd=folder)
    assert added.returncode == 0, added.stderr
    [labels] = re.findall("^labels: {type: (.*)}$", deployed("crowdsec/acquis.yaml"), re.MULTILINE)
    done = run(program, "-c", "config.yaml", "-dsn", f"file://{log}", "-type", labels, cwd=folder)
    said = done.stdout + done.stderr
    assert (done.returncode, "crowdsec shutdown" in said) == (0, True), said
    return set(re.findall(r"hello-listen/canary-touched by ip (\S+) : 4h ban", said))


@pytest.fixture(params=["json", "text"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The log of one kind of record."""
    return tmp_path / ("log.jsonl" if request.param == "json" else "twistd.log")


class Canary:
    """A hello-listen that writes one kind of record, in a time zone of its own."""

    def __init__(
        self,
        start: Start,
        log: Path,
        *endpoints: str,
        options: str = "",
        within: Sequence[str] = (),
    ) -> None:
        """Start it by a command, and wait until it listens."""
        self._said = log.parent / "twistd.log"
        before = len(self._listening())
        self._process = start(
            *[*within, SCRIPTS / "twistd", "-n", "--pidfile=", f"--logfile={self._said}"],
            "hello-listen",
            *(["-l", log] if log != self._said else []),
            *options.split(),
            *(part for endpoint in endpoints for part in ("-e", endpoint)),
            env={**os.environ, **EAST},
        )
        until(lambda: len(self._listening()) == before + len(endpoints))
        self.addresses: list[Address] = [
            str(log.parent / unix) if unix else (host, int(port))
            for unix, host, port in self._listening()[before:]
        ]

    def _listening(self) -> list[tuple[str, str, str]]:
        """Return its endpoints' names."""
        said = self._said.read_text() if self._said.exists() else ""
        pattern = r"Listening on (?:unix:(.*)|\[?(.*?)\]?:(\d+))$"
        return re.findall(pattern, said, re.MULTILINE)

    def stop(self) -> None:
        """Stop it: its log is then whole."""
        self._process.stop()


@pytest.mark.parametrize(("banned", "clients"), [(bannedByFail2ban, 250), (bannedByCrowdSec, 16)])
def test_who_is_banned(
    start: Start,
    log: Path,
    banned: Callable[[Path], set[str]],
    clients: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TCP clients are banned and nobody else, whatever clients and proxies send or are called."""
    monkeypatch.chdir(log.parent)  # UNIX clients' names are short and begin with what they choose.
    canary = Canary(
        *(start, log, LOOPBACK, r"tcp6:0:interface=\:\:1", f"haproxy:{LOOPBACK}"),
        *("unix:s", "haproxy:unix:p"),
        options="--summarize 127.0.0.3 --per-client 20 --trusted-proxy 127.0.0.1",
    )
    v4, v6, tcp, unix, proxied = canary.addresses
    for _ in range(21):
        send(v4, source="127.0.0.2")
    send(v4, source="127.0.0.3")
    send(v6)
    send(unix)
    send(tcp, b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
    send(tcp, inet(0x21, "2001:db8::7", "2001:db8::1", 3, 4, extensions=tlv(2, b"name")))
    send(tcp, inet(0x21, "::ffff:192.0.2.8", "::ffff:192.0.2.1", 3, 4))
    send(tcp, inet(0x11, "192.0.2.66", "192.0.2.1", 3, 4), source="127.0.0.4")  # Not trusted.
    send(tcp, LOCAL)
    send(tcp, b"GET / HTTP/1.0\r\n\r\n")
    send(tcp)
    expected = {"127.0.0.2", "::1", "192.0.2.7", "2001:db8::7", "192.0.2.8", "192.0.2.67"}
    for number, (one, other) in enumerate(product(FORGED, FORGED)):
        text = (one + other).encode()
        client = f"198.51.100.{number % clients}"
        extensions = tlv(2, text) + tlv(5, text[:128])
        send(tcp, inet(0x11, client, "192.0.2.1", 1, 2, extensions=extensions))
        send(tcp, b"PROXY UNKNOWN " + text[:80] + b"\r\n")
        expected.add(client)
        if 0 < len(text) < 108:
            name = text.decode()
            client = client.replace("198.51", "203.0")
            send(unix, source=name)
            send(proxied, LOCAL, source=name)
            send(proxied, inet(0x11, client, "192.0.2.1", 1, 2), source=name)
            # In Twisted's log, such a name looks like an error.
            if log.suffix == ".jsonl" or not name.endswith(")"):
                expected.add(client)
    canary.stop()
    with log.open("a") as file:  # If it were not escaped, what they send would ban.
        line = JSON if log.suffix == ".jsonl" else TEXT
        file.write(line.replace("192.0.2.66", "192.0.2.67") + "\n")
    for kind in ("Connections summarized", "proxy_header_invalid", "proxy_not_trusted"):
        assert kind in log.read_text()
    assert banned(log) == expected


def aged(line: str, minutes: int) -> str:
    """Return a line of a log as if it were so many minutes older."""
    [stamp] = re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d{4})", line)
    form = "%Y-%m-%dT%H:%M:%S.%f%z" if "." in stamp else "%Y-%m-%dT%H:%M:%S%z"
    then = datetime.strptime(stamp, form) - timedelta(minutes=minutes)
    return line.replace(stamp, then.strftime(form).replace("+0000", "Z"))


def jailed(
    start: Start, log: Path, *replacements: tuple[str, str], within: Sequence[str] = ()
) -> Process:
    """Start fail2ban's server by a command, with Debian's settings and ours, beside a log."""
    folder = log.parent
    settings = folder / "fail2ban"
    if not CONFIGURATION.is_dir():
        lacking("fail2ban is not installed")
    shutil.copytree(CONFIGURATION, settings, ignore=shutil.ignore_patterns("*.local", "jail.d"))
    (settings / "jail.d").mkdir()
    (settings / "fail2ban.local").write_text(f"[Definition]\ndbfile = {folder}/bans.sqlite3\n")
    shutil.copy(FILTER, settings / "filter.d/hello-listen.conf")
    (settings / "jail.d/hello-listen.conf").write_text(
        deployed(
            "fail2ban/jail.conf",
            ("/var/log/hello-listen/connections.jsonl", str(log)),
            *replacements,
        )
    )
    return start(
        *(
            *within,
            tool("fail2ban-server"),
            "-f",
            "-c",
            settings,
            "-s",
            folder / "socket",
            "-p",
            folder / "pid",
        ),
        *("--logtarget", "STDOUT"),
        env={**os.environ, **EAST},
    )


def test_fail2ban_bans_clients(start: Start, log: Path, tmp_path: Path) -> None:
    """Its server bans clients of the last ten minutes and of now, but not those of ignoreip."""
    before = Canary(start, log, f"haproxy:{LOOPBACK}")
    send(before.addresses[0], b"PROXY TCP4 198.51.100.1 192.0.2.1 1 2\r\n")
    before.stop()
    [line] = re.findall(".*198.51.100.1.*\n", log.read_text())
    older = [(11, "198.51.100.2"), (9, "198.51.100.3")]
    lines = [aged(line, age).replace("198.51.100.1", client) for age, client in older]
    log.write_text("".join(lines) + log.read_text())
    dummy = ("nftables[type=allports]", f"dummy[target={tmp_path}/bans]")
    server = jailed(start, log, dummy, ("::1\n", "::1 198.51.100.4\n"))
    server.expect("Ban 198.51.100.1$")
    [proxied] = Canary(start, log, f"haproxy:{LOOPBACK}").addresses
    for ip in ("198.51.100.4", "127.0.0.9", "198.51.100.5"):
        send(proxied, inet(0x11, ip, "192.0.2.1", 1, 2))
    send(proxied, inet(0x21, "2001:db8::5", "2001:db8::1", 1, 2))
    banned = ["198.51.100.1", "198.51.100.3", "198.51.100.5", "2001:db8::5"]
    bans = tmp_path / "bans"
    until(lambda: sorted(re.findall(r"\+(.*)", bans.read_text())) == banned)
    server.stop()
    said = "\n".join(server.lines)
    assert sorted(re.findall(r"Found (\S+) ", said)) == banned
    assert re.findall(r"Ignore (\S+) ", said) == ["198.51.100.4", "127.0.0.9"]


def test_nftables_bans_clients(start: Start, machines: Machines, tmp_path: Path) -> None:
    """Who touches the canary is dropped, with its /64; others and link-local clients are not."""
    machines.nft("-f", DEPLOY / "nftables/ban.nft")
    said = tmp_path / "twistd.log"
    output, log = os.pipe()
    server = start(
        *[*machines.near, SCRIPTS / "twistd", "-n", "--pidfile=", "--logfile=twistd.log"],
        *["hello-listen", "-e", "tcp6:0", "-l", "-"],
        stdout=log,
    )
    start(*machines.near, "sh", DEPLOY / "nftables/ban.sh", stdin=output)
    os.close(log)
    os.close(output)
    until(lambda: said.exists() and "Listening" in said.read_text())
    port = int(re.findall(r"Listening on .*:(\d+)$", said.read_text(), re.MULTILINE)[0])
    for source in (LINK_LOCAL, "192.0.2.66", "2001:db8:0:6::66"):
        assert run(*machines.touch(source, port)).returncode in CLOSED
    until(lambda: machines.banned() == {"192.0.2.66", "2001:db8:0:6::/64"})
    machines.nft("-f", DEPLOY / "nftables/ban.nft")  # Again: who is banned stays banned.
    for source in ("192.0.2.66", "2001:db8:0:6::67"):
        start(*machines.touch(source, port))
    until(lambda: len(re.findall(r"packets [1-9]", machines.nft("list", "ruleset"))) == 2)
    for source in (LINK_LOCAL, "192.0.2.67", "2001:db8:0:7::66"):
        assert run(*machines.touch(source, port)).returncode in CLOSED
    server.stop()
    assert counted(said.read_text()) == (6, 6, 0)


@pytest.mark.parametrize("target", ["192.0.2.1", "2001:db8::1"])
def test_fail2ban_bans_a_scan(
    start: Start, machines: Machines, tmp_path: Path, target: str
) -> None:
    """A host that scans with nmap finds all ports closed the second time; another host does not."""
    log = tmp_path / "log.jsonl"
    canary = Canary(start, log, "tcp6:0", "tcp6:0", within=machines.near)
    first, second = (int(address[1]) for address in canary.addresses)
    server = jailed(start, log, within=machines.near)
    server.expect("Server ready")

    def scan(port: int) -> str:
        """Return nmap's word for the state of a port."""
        family = ["-6"] if ":" in target else []
        done = run(
            *machines.far,
            tool("nmap"),
            "-n",
            "-Pn",
            "-sT",
            "--max-retries=0",
            f"-p{port}",
            *family,
            target,
        )
        [state] = re.findall(rf"^{port}/tcp +(\S+)", done.stdout, re.MULTILINE)
        return str(state)

    assert scan(first) == "open"
    server.expect(" Ban ")
    until(lambda: scan(second) != "open")
    bystander = "2001:db8:0:7::66" if ":" in target else "192.0.2.67"
    assert run(*machines.touch(bystander, second)).returncode in CLOSED


def test_nobody_gets_another_banned_by_nftables(
    start: Start, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever clients and proxies send or are called, only clients of valid records are banned."""
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log.jsonl"
    canary = Canary(start, log, f"haproxy:{LOOPBACK}", "haproxy:unix:p", "unix:s", LOOPBACK)
    tcp, proxied, unix, direct = canary.addresses
    for text in (each.encode() for each in FORGED):
        send(tcp, inet(0x11, "198.51.100.1", "192.0.2.1", 1, 2, extensions=tlv(2, text)))
        send(tcp, b"PROXY UNKNOWN " + text[:80] + b"\r\n")
        send(tcp, text)
        if 0 < len(text) < 108:
            send(unix, source=text.decode())
            send(proxied, LOCAL, source=text.decode())
    send(tcp, inet(0x21, "64:ff9b::c633:6402", "2001:db8::1", 1, 2))
    send(direct, source="127.0.0.7")
    canary.stop()
    machines.nft("-f", DEPLOY / "nftables/ban.nft")
    reader = [*machines.near, "sh", "-c", f'(cat; echo; echo [1; echo 2) < {log} | sh "$@"', "sh"]
    assert run(*reader, DEPLOY / "nftables/ban.sh").stderr == ""
    assert machines.banned() == {"127.0.0.7"}
    assert run(*reader, DEPLOY / "nftables/ban.sh", "proxied").stderr == ""
    assert machines.banned() == {"127.0.0.7", "198.51.100.1", "64:ff9b::c633:6402"}
