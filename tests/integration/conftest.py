"""Start programs for a test, and end them with it."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import roundtrip
from machines import FAR, NEAR, Machines
from processes import (
    INHERIT,
    SCRIPTS,
    Process,
    Start,
    lacking,
    listens,
    run,
    tool,
    unprivileged,
    until,
)
from roundtrip import Far

STREAM = "/usr/lib/nginx/modules/ngx_stream_module.so"

# A relative path is one below the folder that -p names. nginx makes all five temporary folders when
# it starts; its defaults are below /var/lib/nginx, where only root may make them.
NGINX = """
daemon off;
master_process off;
pid {name}.pid;
error_log stderr;
{stream}
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {http}
}}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program, by its name beside this Python or on the PATH, with its arguments."""
    processes: list[Process] = []

    def startProcess(program: str, *arguments: object, **options: Any) -> Process:
        beside = SCRIPTS / program
        path = str(beside) if beside.exists() else tool(program)
        command = [path, *map(str, arguments)]
        processes.append(Process(command, tmp_path, **options))
        return processes[-1]

    yield startProcess
    for process in reversed(processes):
        print(process.said())  # pytest shows it if the test has failed.
        process.end()


@pytest.fixture
def hello(start: Start) -> Start:
    """Start C{twistd -n hello-listen} with arguments."""
    return lambda *arguments, **options: start(
        "twistd", "-n", "--pidfile=", "hello-listen", *arguments, **options
    )


@pytest.fixture
def nginx(start: Start, tmp_path: Path) -> Start:
    """Start nginx with a port and its stream block, or what is in http; wait until it listens."""

    def startNginx(port: int, *, stream: str = "", http: str = "") -> Process:
        if stream:
            stream = f"load_module {tool(STREAM, os.F_OK)};\n{stream}"
        path = tmp_path / f"nginx-{port}.conf"
        path.write_text(NGINX.format(name=path.stem, stream=stream, http=http))
        process = start("nginx", "-p", tmp_path, "-e", "stderr", "-c", path)
        until(lambda: listens(port))
        return process

    return startNginx


@pytest.fixture
def inherit(start: Start) -> Start:
    """Start C{twistd -n hello-listen} with sockets that it inherits, and arguments."""

    def startHeir(
        inherited: socket.socket | list[socket.socket],
        *arguments: object,
        names: str = "hello",
        reactor: str = "default",
    ) -> Process:
        passed = inherited if isinstance(inherited, list) else [inherited]
        descriptors = [each.fileno() for each in passed]
        return start(
            "python", "-c", INHERIT, ":".join(map(str, descriptors)), names, SCRIPTS / "twistd",
            "-n", "--pidfile=", f"--reactor={reactor}", "hello-listen", *arguments,
            pass_fds=descriptors,
        )  # fmt: skip

    return startHeir


@pytest.fixture
def descriptors() -> Iterator[int]:
    """Raise this process's limit of descriptors to the maximum, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def limited(hello: Start) -> Start:
    """Start C{twistd -n hello-listen} that may have so many descriptors, with arguments."""

    def startLimited(count: int, *arguments: object) -> Process:
        server = hello(*arguments)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (count, count))
        return server

    return startLimited


@pytest.fixture
def far(start: Start, endpoint: str) -> Iterator[Far]:
    """Start a server for clients whose packets take their time."""
    alone = [tool("unshare"), "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    ip = tool("ip")
    if run(*alone, ip, "tuntap", "add", "far", "mode", "tun").returncode != 0:
        # Whether an ordinary user may is the system's choice.
        (pytest.skip if os.geteuid() else lacking)("cannot create a TUN device")
    near, channel = socket.socketpair()
    with near, channel:
        server = start(
            *alone, sys.executable, roundtrip.__file__, channel.fileno(),
            ip, *unprivileged(), SCRIPTS / "twistd", "-n",
            "--pidfile=", "hello-listen", "-l", "log", "-e", endpoint, pass_fds=[channel.fileno()],
        )  # fmt: skip
        channel.close()
        _, passed, _, _ = socket.recv_fds(near, 16, 2)
        assert passed, server.said()
    yield Far(server, passed[0])
    for descriptor in passed:
        os.close(descriptor)


@pytest.fixture
def machines(start: Start) -> Machines:
    """Make two machines, of which this user is root; whether others may is the system's choice."""
    user = os.geteuid() != 0
    alone = [tool("unshare"), "--net", *(["--map-root-user"] if user else [])]
    made = run(*alone, tool("ip"), *["link", "add", "near", "type", "veth", "peer", "far"])
    if made.returncode != 0:
        (pytest.skip if user else lacking)(f"cannot create a network namespace: {made.stderr}")
    wait = "sh", "-c", "echo ready; exec sleep 600"
    first = start(*alone, *wait, patience=600)
    first.expect("ready")
    own = ["--user", "--preserve-credentials"] if user else []
    path = ["env", f"PATH={os.environ['PATH']}:/usr/sbin:/sbin"]  # Where root finds nft.
    near = [tool("nsenter"), f"--target={first.pid}", "--net", *own, *path]
    second = start(*near, "unshare", "--net", *wait, patience=600)
    second.expect("ready")
    far = [tool("nsenter"), f"--target={second.pid}", "--net", *own]
    for command, lines in (near, NEAR), (far, FAR):
        done = run(*command, "sh", "-ec", lines.format(far=second.pid))
        assert (done.returncode, done.stderr) == (0, "")
    return Machines(near, far)
