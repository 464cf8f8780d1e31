"""The files of src/deploy, run with no change but the test's own ports and folders."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from logs import recorded, untilWritten
from processes import (
    DEPLOY,
    LOOPBACK,
    SCRIPTS,
    Start,
    curl,
    deployed,
    freePort,
    listens,
    makeCertificate,
    run,
    tool,
    until,
    untilEnd,
)

FILES = [path.relative_to(DEPLOY).as_posix() for path in DEPLOY.glob("*/*")]
LOG_TO_OUTPUT = (
    "import sys; from twisted.python import log; log.startLogging(sys.stdout, setStdout=0)"
)
UNITS = [name for name in FILES if re.fullmatch(r"systemd/.*\.(service|socket)", name)]
INSTALLED = "/opt/hello-listen/bin", str(SCRIPTS)
NFT = "/usr/sbin/nft"

RULES_TEST = """
rule_files: [rules.yml]
evaluation_interval: 15s
tests:
  - name: nobody has connected
    interval: 1m
    input_series:
      - {series: 'up{job="hello-listen", instance="i"}', values: 1x20}
      - {series: 'hello_listen_connections_total{job="hello-listen", instance="i", server="0.0.0.0:1"}', values: 0x20}
    alert_rule_test:
      - {eval_time: 1m, alertname: CanaryTouched}
      - {eval_time: 10m, alertname: CanaryTouched}
      - {eval_time: 10m, alertname: CanaryDead}
      - {eval_time: 10m, alertname: ConnectionsLost}
      - {eval_time: 10m, alertname: ProbeNotCounted}
  - name: the first connection, two minutes after the start
    interval: 15s
    input_series:
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="j", instance="i", server="192.0.2.1:1"}', values: _x8 120x80}
    alert_rule_test:
      - {eval_time: 1m45s, alertname: CanaryTouched}
      - {eval_time: 2m45s, alertname: CanaryTouched, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 6m45s, alertname: CanaryTouched, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 7m15s, alertname: CanaryTouched}
  - name: the first connection, before the first scrape
    interval: 15s
    input_series:
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="j", instance="i", server="192.0.2.1:1"}', values: _x8 100x80}
    alert_rule_test:
      - {eval_time: 2m, alertname: CanaryTouched, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 7m, alertname: CanaryTouched}
  - name: a connection, a restart after the next scrape, and a connection that the new process counts
    interval: 15s
    input_series:
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="j", instance="i", server="192.0.2.1:1"}', values: 0 stale _x78 1200x80}
    alert_rule_test:
      - {eval_time: 4m, alertname: CanaryTouched, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 10m, alertname: CanaryTouched}
      - {eval_time: 20m15s, alertname: CanaryTouched, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 35m, alertname: CanaryTouched}
  - name: notifications that fail once, and then for long
    interval: 1m
    input_series:
      - {series: 'hello_listen_notifications_failing{job="j", instance="i"}', values: 0 1 0x9 1x10 0x9}
    alert_rule_test:
      - {eval_time: 1m, alertname: NotificationsFail}
      - {eval_time: 9m, alertname: NotificationsFail}
      - {eval_time: 14m, alertname: NotificationsFail}
      - {eval_time: 17m, alertname: NotificationsFail, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 24m, alertname: NotificationsFail}
  - name: two nodes, one of them quiet, the other at two addresses
    interval: 15s
    input_series:
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="j", instance="i", server="192.0.2.1:1"}', values: 0x80}
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="j", instance="i", server="192.0.2.2:1"}', values: _x60 900x40}
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="j", instance="k", server="192.0.2.3:1"}', values: 0x99}
    alert_rule_test:
      - {eval_time: 14m, alertname: CanaryTouched}
      - {eval_time: 15m, alertname: CanaryTouched, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
  - name: connections are lost
    interval: 1m
    input_series:
      - {series: 'hello_listen_lost_total{job="j", instance="i"}', values: 0x9 5x20}
    alert_rule_test:
      - {eval_time: 9m, alertname: ConnectionsLost}
      - {eval_time: 11m, alertname: ConnectionsLost, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
  - name: an accept queue was full
    interval: 1m
    input_series:
      - {series: 'hello_listen_dropped_packets_total{job="j", instance="i", server="[::]:7878"}', values: 0x9 5x20}
    alert_rule_test:
      - {eval_time: 9m, alertname: QueueFull}
      - {eval_time: 11m, alertname: QueueFull, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 20m, alertname: QueueFull}
  - name: the log cannot be written
    interval: 1m
    input_series:
      - {series: 'hello_listen_log_failing{job="j", instance="i"}', values: 0 1 0}
    alert_rule_test:
      - {eval_time: 0m, alertname: ConnectionsLost}
      - {eval_time: 1m, alertname: ConnectionsLost, exp_alerts: [{exp_labels: {job: j, instance: i}}]}
      - {eval_time: 2m, alertname: ConnectionsLost}
  - name: one of two canaries does not answer
    interval: 15s
    input_series:
      - {series: 'up{job="hello-listen", instance="i"}', values: 1x7 0x20}
      - {series: 'up{job="hello-listen", instance="k"}', values: 1x27}
    alert_rule_test:
      - {eval_time: 2m, alertname: CanaryDead}
      - {eval_time: 4m, alertname: CanaryDead, exp_alerts: [{exp_labels: {job: hello-listen, instance: i}}]}
  - name: no canary is scraped
    interval: 15s
    input_series:
      - {series: 'up{job="other", instance="i"}', values: 1x20}
    alert_rule_test:
      - {eval_time: 2m, alertname: CanaryDead, exp_alerts: [{exp_labels: {job: hello-listen}}]}
  - name: probes of three canaries, of which one counts them, one does not, and one refuses them
    interval: 15s
    input_series:
      - {series: 'probe_success{job="hello-listen-probe", instance="i"}', values: 1x80}
      - {series: 'probe_success{job="hello-listen-probe", instance="k"}', values: 1x80}
      - {series: 'probe_success{job="hello-listen-probe", instance="l"}', values: 0x80}
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="hello-listen", instance="i", server="192.0.2.1:7881"}', values: 0+15x80}
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="hello-listen", instance="k", server="192.0.2.3:7881"}', values: 0+15x40 600x40}
    alert_rule_test:
      - {eval_time: 10m, alertname: CanaryTouched}
      - {eval_time: 10m, alertname: ProbeNotCounted}
      - {eval_time: 15m, alertname: ProbeNotCounted, exp_alerts: [{exp_labels: {job: hello-listen-probe, instance: k}}]}
  - name: another program answers the probes, and the canary has not counted one
    interval: 15s
    input_series:
      - {series: 'probe_success{job="hello-listen-probe", instance="i"}', values: 1x80}
      - {series: 'hello_listen_connections_total{job="hello-listen", instance="i", server="192.0.2.1:7881"}', values: 0x80}
      - {series: 'hello_listen_last_connection_timestamp_seconds{job="hello-listen", instance="i", server="192.0.2.1:1"}', values: 0+15x80}
    alert_rule_test:
      - {eval_time: 2m, alertname: ProbeNotCounted, exp_alerts: [{exp_labels: {job: hello-listen-probe, instance: i}}]}
"""  # noqa: E501


def verify(*units: Path) -> None:
    """Fail if systemd finds anything wrong with units in a folder."""
    # Whoever runs the tests may have no manual pages.
    checked = run(
        tool("systemd-analyze"), "verify", "--man=no", *units,
        env={"SYSTEMD_UNIT_PATH": f"{units[0].parent}:"},
    )  # fmt: skip
    found = re.findall(".*hello-listen.*", checked.stderr)
    assert (checked.returncode, found) == (0, []), checked.stderr


def commandOf(unit: str) -> list[str]:
    """Return the command that a unit runs at last."""
    commands: list[str] = re.findall(r"^ExecStart=((?:.*\\\n)*.+)$", unit, re.MULTILINE)
    return commands[-1].replace("\\\n", " ").split()


def test_each_file_says_what_it_is() -> None:
    """The first line of each file says what it does and where it goes."""
    assert len(FILES) >= 18
    for name in FILES:
        if name.endswith(".json"):  # Which has no comments.
            assert json.loads((DEPLOY / name).read_text())["description"], name
            continue
        assert re.match(r'(# |""")\S.*', (DEPLOY / name).read_text()), name


def test_embedding_program(start: Start, tmp_path: Path) -> None:
    """The program runs, prints who connected, and ends at SIGINT."""
    text = deployed("examples/embedding.py", (":7878:", ":0:"))
    (tmp_path / "program.py").write_text(f"{LOG_TO_OUTPUT}\n{text}")
    server = start(sys.executable, "-u", "program.py")
    name, _ = untilEnd(("127.0.0.1", int(server.expect(r"starting on (\d+)")[1])))
    server.expect(f"^{name.replace(':', ' ')}$")
    server.kill(signal.SIGINT)
    assert server.wait() == 0


def test_tac(start: Start, tmp_path: Path) -> None:
    """twistd serves both endpoints, and the log is complete."""
    (tmp_path / "hello.tac").write_text(deployed("examples/hello.tac", (":7878:", ":0:")))
    server = start("twistd", "--pidfile=", "-ny", "hello.tac")
    port = server.port()
    server.expect("Listening on unix:hello.sock")
    name, _ = untilEnd(("127.0.0.1", port))
    untilEnd(f"{tmp_path}/hello.sock")
    assert server.connections(2) == [f"{name} -> 127.0.0.1:{port}", "unix: -> unix:hello.sock"]
    assert "Connections: 2, recorded: 2, summarized: 0, lost: 0" in server.stop()
    assert len((tmp_path / "connections.jsonl").read_text().splitlines()) == 4


def test_canary(start: Start, tmp_path: Path) -> None:
    """It serves several ports, limits each client, and shows both on the page."""
    ports = ("tcp6:2323", "tcp6:1433", "tcp6:3389", "tcp6:5900")
    text = deployed("examples/canary.tac", *((port, "tcp6:0") for port in ports), (":7880:", ":0:"))
    (tmp_path / "canary.tac").write_text(text)
    server = start("twistd", "--pidfile=", "-ny", "canary.tac")
    addresses = [("127.0.0.1", server.port()) for _ in ports]
    status = int(server.expect(r"starting on (\d+)$")[1])
    for _ in range(3):
        for address in addresses:
            untilEnd(address)
    shown = json.loads(curl(f"http://127.0.0.1:{status}/status.json").stdout)
    assert shown["connections"] == 12
    assert len(shown["endpoints"]) == len(ports)
    assert "Connections: 12, recorded: 10, summarized: 2, lost: 0" in server.stop()
    assert len(recorded(tmp_path / "connections.jsonl")) == 10


def test_rotation(hello: Start, tmp_path: Path) -> None:
    """logrotate renames the log, and the next connection makes a new one."""
    log = tmp_path / "connections.jsonl"
    server = hello("-e", LOOPBACK, "-l", log)
    port = server.port()
    untilEnd(("127.0.0.1", port))
    untilWritten(log, 2)
    rules = tmp_path / "rotation"
    rules.write_text(deployed("logrotate/hello-listen", ("/var/log/hello-listen", str(tmp_path))))
    rotated = run(tool("logrotate"), "-f", "-s", tmp_path / "state", rules)
    assert (rotated.returncode, rotated.stderr) == (0, "")
    assert not log.exists()
    untilEnd(("127.0.0.1", port))
    untilWritten(log, 1)
    server.stop()
    assert [each["sequence"] for each in recorded(tmp_path / "connections.jsonl.1")] == [1]
    assert [each["sequence"] for each in recorded(log)] == [2]


@pytest.mark.parametrize("unit", UNITS)
def test_unit(tmp_path: Path, unit: str) -> None:
    """systemd-analyze finds no mistake in a unit, and a service well sandboxed."""
    # systemd-analyze only asks whether a program exists, and README's test command needs no nft.
    nft = NFT if Path(NFT).exists() else "/bin/true"
    for name in UNITS:
        text = (DEPLOY / name).read_text().replace(*INSTALLED).replace(NFT, nft)
        (tmp_path / Path(name).name).write_text(text)
    path = tmp_path / Path(unit).name
    verify(path)
    if path.suffix == ".service":
        rated = run(tool("systemd-analyze"), "security", "--offline=yes", "--threshold=20", path)
        assert rated.returncode == 0, rated.stdout


def test_units_of_several_processes(tmp_path: Path) -> None:
    """The service works as a template unit, whose first instance gets the socket."""
    service = deployed("systemd/hello-listen.service", INSTALLED)
    (tmp_path / "hello-listen@.service").write_text(service)
    shutil.copy(DEPLOY / "systemd" / "hello-listen.socket", tmp_path)
    (tmp_path / "hello-listen.socket.d").mkdir()
    shutil.copy(DEPLOY / "systemd" / "processes.conf", tmp_path / "hello-listen.socket.d")
    verify(tmp_path / "hello-listen.socket", tmp_path / "hello-listen@1.service")


def test_units_of_a_node(start: Start, tmp_path: Path) -> None:
    """A node's units are valid; its command serves clients and shows them in the status."""
    for name in ("hello-listen.socket", "hello-listen-status.socket"):
        shutil.copy(DEPLOY / "systemd" / name, tmp_path)
    service = deployed("systemd/hello-listen.service", INSTALLED)
    (tmp_path / "hello-listen.service").write_text(service)
    drop = deployed("systemd/node.conf", INSTALLED, ("/var/log/hello-listen", str(tmp_path)))
    (tmp_path / "hello-listen.service.d").mkdir()
    (tmp_path / "hello-listen.service.d" / "node.conf").write_text(drop)
    verify(*tmp_path.glob("hello-listen*.*t"), tmp_path / "hello-listen.service")
    node = start(
        "systemd-socket-activate", f"--listen={tmp_path}/hello", f"--listen={tmp_path}/status",
        "--fdname=hello:status", *commandOf(drop.replace("INET6", "UNIX")),
    )  # fmt: skip
    node.expect("Listening on .*status")
    asked = curl("--unix-socket", tmp_path / "status", "http://localhost/healthz")
    assert asked.stdout, node.stop()
    header = r"printf 'PROXY TCP4 192.0.2.7 10.0.0.10 1 7878\r\n'"
    run("sh", "-c", f"{header} | {tool('socat')} - UNIX:{tmp_path}/hello")
    until(lambda: "192.0.2.7" in (tmp_path / "connections.jsonl").read_text())


def test_unit_of_a_canary(start: Start, tmp_path: Path) -> None:
    """The command serves its ports and its page, and limits each client."""
    unit = deployed(
        "systemd/hello-listen-canary.service",
        INSTALLED, ("/var/log/hello-listen", str(tmp_path)), (":7880:", ":0:"), (" $OPTIONS", ""),
    )  # fmt: skip
    command = [re.sub(r"^tcp6:\d+$", "tcp6:0", part) for part in commandOf(unit)]
    server = start(*command)
    status = int(server.expect(r"Status on .*:(\d+)$")[1])
    for _ in range(command.count("tcp6:0")):
        port = server.port()
        for _ in range(3):
            untilEnd(("127.0.0.1", port))
    shown = json.loads(curl(f"http://127.0.0.1:{status}/status.json").stdout)
    assert (shown["connections"], len(shown["endpoints"])) == (12, 4)
    assert "Connections: 12, recorded: 10, summarized: 2, lost: 0" in server.stop()
    assert len(recorded(tmp_path / "connections.jsonl")) == 10


def test_linked_units(tmp_path: Path) -> None:
    """Systemd links and enables the units where the package has put them."""
    installed = Path("/opt/hello-listen/share/hello-listen")
    shutil.copytree(DEPLOY, tmp_path / installed.relative_to("/"))
    own = tmp_path / "etc" / "systemd" / "system"
    own.mkdir(parents=True)
    enabling = {unit for unit in UNITS if "[Install]" in (DEPLOY / unit).read_text()}
    for unit in UNITS:
        verb = "enable" if unit in enabling else "link"
        done = run(tool("systemctl"), f"--root={tmp_path}", verb, installed / unit)
        assert done.returncode == 0, done.stderr
        assert (own / Path(unit).name).readlink() == installed / unit
    enabled = {path.name for path in own.glob("*.wants/*")}
    assert enabled == {Path(unit).name for unit in enabling}


@pytest.mark.parametrize("proxy", ["haproxy", "nginx"])
def test_proxy(start: Start, hello: Start, nginx: Start, tmp_path: Path, proxy: str) -> None:
    """The proxy passes its port on, and names each client."""
    server = hello("-e", f"haproxy:{LOOPBACK}")
    front = freePort()
    ports = (("7879", str(server.port())), ("7878", str(front)))
    if proxy == "nginx":
        nginx(front, stream=deployed("nginx/proxy.conf", *ports))
    else:
        (tmp_path / "haproxy.cfg").write_text(deployed("haproxy/single.cfg", *ports))
        start("haproxy", "-db", "-f", "haproxy.cfg")
        until(lambda: listens(front))
    name, _ = untilEnd(("127.0.0.1", front), source="127.0.0.2")
    server.expect(f"Connection established! {name} -> 127.0.0.1:{front} via ")


def test_nginx_with_a_password(hello: Start, nginx: Start, tmp_path: Path) -> None:
    """nginx asks for a password, and forwards requests that have it."""
    server = hello("-e", LOOPBACK, "--status", "unix:status.sock")
    server.port()
    port = freePort()
    block = deployed(
        "nginx/password.conf",
        ("/run/hello-listen/status.sock", f"{tmp_path}/status.sock"),
        ("/etc/nginx/hello-listen.htpasswd", f"{tmp_path}/htpasswd"),
        ("/etc/nginx/server.pem", f"{tmp_path}/server.pem"),
        ("listen 443", f"listen 127.0.0.1:{port}"),
    )
    (tmp_path / "server.pem").write_text(makeCertificate(tmp_path))
    hashed = run(tool("openssl"), "passwd", "-apr1", "secret").stdout.strip()
    (tmp_path / "htpasswd").write_text(f"me:{hashed}\n")
    nginx(port, http=block)
    url = f"https://127.0.0.1:{port}/status/"
    assert "401" in curl("-ik", url).stdout.splitlines()[0]
    assert "200" in curl("-ik", "-u", "me:secret", url).stdout.splitlines()[0]
    assert curl("-k", "-u", "me:secret", f"{url}healthz").stdout == "OK\n"
    server.stop()


def test_alert_rules(tmp_path: Path) -> None:
    """Alerts fire at connections, dead canaries, uncounted probes, losses and full queues."""
    rules = DEPLOY / "prometheus" / "alert-rules.yml"
    checked = run(tool("promtool"), "check", "rules", rules)
    assert checked.returncode == 0, checked.stderr
    assert "6 rules found" in checked.stdout
    (tmp_path / "rules.yml").write_text(re.sub(r" *annotations:\n.*\n", "", rules.read_text()))
    (tmp_path / "test.yml").write_text(RULES_TEST)
    tested = run(tool("promtool"), "test", "rules", "test.yml", cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_fleet_rules() -> None:
    """Prometheus finds nothing wrong with the fleet's files."""
    checked = run(tool("promtool"), "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert "5 rules found" in checked.stdout


@pytest.mark.slow
def test_dashboard_and_probe(hello: Start, start: Start, tmp_path: Path) -> None:
    """
    A real Prometheus scrapes and probes a canary by the deployed files.

    Each query of the dashboard has a result there, and the alerts fire that should.
    """
    server = hello(
        "-e", LOOPBACK, "-e", f"haproxy:{LOOPBACK}", "-e", LOOPBACK,
        "--status", LOOPBACK, "-l", "c.jsonl",
    )  # fmt: skip
    status = int(server.expect(r"Status on .*:(\d+)$")[1])
    canary, proxied, probed = (server.port() for _ in range(3))
    web, blackbox = freePort(), freePort()
    ports = (":7881", f":{probed}"), (":7880", f":{status}")
    (tmp_path / "prometheus.yml").write_text(
        deployed("prometheus/canary.yml", *ports, (":9115", f":{blackbox}"), ("l: 15s", "l: 1s"))
    )
    (tmp_path / "alert-rules.yml").write_text(
        deployed("prometheus/alert-rules.yml", ports[0], ("for: 1m", "for: 1s"), ("< 150", "< 3"))
    )
    modules = tmp_path / "blackbox.yml"
    modules.write_text("modules: {tcp_connect: {prober: tcp}}")
    start(
        "prometheus-blackbox-exporter", f"--config.file={modules}",
        f"--web.listen-address=127.0.0.1:{blackbox}",
    )  # fmt: skip
    until(lambda: listens(blackbox))
    prometheus = start(
        "prometheus", f"--web.listen-address=127.0.0.1:{web}", "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
    )  # fmt: skip
    prometheus.expect("ready to receive web requests")

    def ask(path: str, **values: str) -> Any:
        """Return the data of an answer of Prometheus."""
        url = f"http://127.0.0.1:{web}/api/v1/{path}?{urlencode(values)}"
        answer = json.loads(curl("-g", url).stdout)
        assert answer["status"] == "success", (answer, values)
        return answer["data"]

    def alerts() -> set[str]:
        """Return the names of the alerts that fire."""
        known = ask("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in known if each["state"] == "firing"}

    instance = f"127.0.0.1:{status}"
    counted = f'hello_listen_connections_total{{server="127.0.0.1:{probed}"}} > 2'
    until(lambda: ask("query", query=counted)["result"])
    assert alerts() == set()
    untilEnd(("127.0.0.1", canary))
    until(lambda: alerts() == {"CanaryTouched"})
    curl(f"http://127.0.0.1:{proxied}/")  # Sends no PROXY header.

    dashboard = json.loads((DEPLOY / "grafana/hello-listen.json").read_text())
    jobs, instances = (each["query"]["query"] for each in dashboard["templating"]["list"][1:])
    for text, values in (jobs, ["hello-listen"]), (instances, [instance]):
        [(match, label)] = re.findall(r"^label_values\((.*), (\w+)\)$", text)
        match = match.replace("$job", "hello-listen")
        assert ask(f"label/{label}/values", **{"match[]": match}) == values
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert len({target["expr"] for target in targets}) == len(targets) > 15
    for target in targets:
        query = target["expr"]
        for name, value in (
            ("$job", "hello-listen"), ("$instance", ".*"),
            ("$__rate_interval", "1m"), ("$__range", "1m"),
        ):  # fmt: skip
            query = query.replace(name, value)
        assert "$" not in query
        until(lambda query=query: ask("query", query=query)["result"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)

    # A process that hangs still has an accept queue.
    server.kill(signal.SIGSTOP)
    until(lambda: {"CanaryDead", "ProbeNotCounted"} <= alerts())
    dead = [each for each in ask("alerts")["alerts"] if "Dead" in each["labels"]["alertname"]]
    assert dead[0]["annotations"]["summary"] == f"No answer from {instance} for a minute"
    server.kill(signal.SIGCONT)
    until(lambda: alerts() == {"CanaryTouched"})
    server.stop()
