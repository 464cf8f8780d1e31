"""hello-listen in a container: the deployed files, a real image, and all that a container lacks."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logs import account
from processes import (
    DEPLOY,
    LOOPBACK,
    SCRIPTS,
    Process,
    Start,
    children,
    run,
    tool,
    until,
    untilEnd,
)

pytestmark = pytest.mark.slow

NOBODY = 65534
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of a container."""

SYSTEM = [path for name in ("bin", "sbin", "lib", "lib32", "lib64") if (path := Path("/", name))]


def listed(name: str, what: str) -> list[str]:
    """Return a list in a deployed file, in JSON or in YAML's flow style."""
    text = (DEPLOY / "container" / name).read_text()
    [found] = re.findall(rf"^ *{what}:? \[(.*)\]$", text, re.MULTILINE)
    return [each.strip('" ') for each in found.split(",")]


def entrypoint() -> list[str]:
    """Return the command that the image starts with, in this environment."""
    program, *options = listed("Containerfile", "ENTRYPOINT")
    return [str(SCRIPTS / program), *options]


COMMANDS = {
    "image": [*entrypoint(), *listed("Containerfile", "CMD")],
    "compose": [*entrypoint(), *listed("compose.yaml", "command")],
    "kubernetes": [*entrypoint(), *listed("kubernetes.yaml", "args")],
    "twistd": [
        str(SCRIPTS / "twistd"), "-n", "--pidfile=", "hello-listen",
        *("-e", "tcp:7878", "--status", "tcp:7880"),
    ],
}  # fmt: skip


def startAlone(start: Start, folder: Path, command: list[str]) -> Process:
    """Start a command as process 1, without /proc, home and rights, and one folder to write in."""
    links = [("--symlink", os.readlink(path), path) for path in SYSTEM if path.is_symlink()]
    # Nothing else is there.
    shown = [Path(path) for path in ("/usr", sys.base_prefix, sys.prefix)]
    above = [("--dir", folder) for path in shown for folder in reversed(path.parents[:-1])]
    binds = [("--ro-bind", path, path) for path in shown]
    user = ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    if os.geteuid() == 0:
        user = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        ids = f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"
        command = [tool("setpriv"), *ids, *command]
    return start(
        "bwrap", *user, "--unshare-pid", "--as-pid-1", "--die-with-parent", "--clearenv",
        *(part for option in (*links, *above, *binds) for part in option),
        "--dev", "/dev", "--bind", folder, "/log", "--remount-ro", "/", "--chdir", "/log", *command,
    )  # fmt: skip


def kill(server: Process, number: int) -> None:
    """Send a signal to process 1 of a container, the only child of the program that made it."""
    [child] = children(server.pid)
    os.kill(child, number)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_process_1(start: Start, tmp_path: Path, command: list[str]) -> None:
    """As process 1, it starts again after SIGKILL, also on its UNIX socket, and ends at SIGTERM."""
    folder = tmp_path / "log"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    command = [LOOPBACK if re.fullmatch(r"tcp:78\d+", part) else part for part in command]
    logs = [folder / "connections.jsonl"] if "connections.jsonl" in command else []
    for number in (1, 2, 3):
        server = startAlone(start, folder, [*command, "-e", "unix:s"])
        server.expect("Status on 127")
        port = server.port()
        server.expect("Listening on unix:s")
        untilEnd(("127.0.0.1", port))
        untilEnd(str(folder / "s"))
        for log in logs:  # A kill may lose the last hundredth of a second.
            until(lambda log=log, count=2 * number: log.read_text().count('"sequence"') == count)
        if number < 3:
            kill(server, signal.SIGKILL)
            server.wait()
            assert (folder / "s").is_socket()
    kill(server, signal.SIGTERM)
    assert server.wait() == 0
    said = server.said()
    assert re.search("Connections: 2(, recorded: 2, summarized: 0, lost: 0)?$", said, re.MULTILINE)
    assert "Traceback" not in said
    assert list(folder.iterdir()) == logs


def test_schemas() -> None:
    """The Compose and Kubernetes files are what their schemas demand."""
    folder = DEPLOY / "container"
    for command in (
        ["kubernetes-validate", "--strict", folder / "kubernetes.yaml"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", folder / "compose.yaml"],
    ):
        program = SCRIPTS / str(command[0])
        checked = run(program if program.exists() else tool(str(command[0])), *command[1:])
        assert checked.returncode == 0, checked.stdout + checked.stderr


SETTINGS = """
[containers]
# podman's own limits are beyond those of some machines.
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
# The base of the image lacks it.
volumes = ["/usr:/usr:ro"]
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""

ALONE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)
root = os.open("/", os.O_RDONLY)
call("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0)
os.fchdir(root)
if not os.path.samestat(os.stat("."), os.stat("/")):
    # In a chroot, to which runc would not come back: make it the root of the namespace.
    call("pivot_root", b".", b".")
    call("umount2", b".", 2)
os.chdir("/")
os.execlp("sh", "sh", "-ec", "mount -t tmpfs tmpfs /run; ip link set lo up; echo up; exec cat")
"""

Podman = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inside(start: Start) -> list[str]:
    """Return how a command begins to run where /run is empty and the network only the loopback."""
    holder = start(
        "unshare", "--net", "--mount", sys.executable, "-c", ALONE,
        stdin=subprocess.PIPE, patience=600,
    )  # fmt: skip
    holder.expect("up")
    return [tool("nsenter"), f"--target={holder.pid}", "--net", "--mount", "--root", "--wd"]


@pytest.fixture
def podman(inside: list[str]) -> Iterator[Podman]:
    """Run podman, or what runs it, with storage and a network of the test's own."""
    folder = Path(tempfile.mkdtemp())  # podman wants a short path.
    (folder / "containers.conf").write_text(SETTINGS.format(folder=folder))
    program = folder / "podman"
    command = [
        *inside, tool("podman"), "--root", f"{folder}/root", "--runroot", f"{folder}/run",
        "--tmpdir", f"{folder}/tmp", "--storage-driver", "vfs", "--runtime", tool("runc"),
        "--cgroup-manager", "cgroupfs",
    ]  # fmt: skip
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o700)

    def runPodman(*arguments: object, by: str = "podman") -> subprocess.CompletedProcess[str]:
        settings = {
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "PATH": f"{folder}:{os.environ['PATH']}",
        }
        ended = run(program if by == "podman" else tool(by), *arguments, env=settings)
        print(by, *arguments, ended.stdout, ended.stderr, sep="\n")  # Shown in a failure.
        return ended

    yield runPodman
    runPodman("rm", "--all", "--force", "--time", 0)
    shutil.rmtree(folder)


@pytest.fixture
def image(podman: Podman, tmp_path: Path) -> str:
    """
    Build the image without a network, and return its name.

    Its base is this system's /usr, because no registry can be reached, and debootstrap takes as
    long as all of the test.
    """
    with tarfile.open(tmp_path / "base.tar", "w") as base:
        for path in SYSTEM:
            if path.is_symlink():
                base.add(path)
        for name in ("dev", "etc", "opt", "proc", "run", "sys", "tmp", "usr"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            base.addfile(folder)
    assert podman("import", tmp_path / "base.tar", "localhost/base").returncode == 0
    # The packages that its Python needs.
    python = shutil.which("python3", path=PATH)
    run(python, "-m", "venv", tmp_path / "env")
    made = run(
        tmp_path / "env" / "bin" / "pip", "wheel", "-q", "-w", tmp_path / "wheels",
        f"{DEPLOY.parents[1]}[status]", "hatchling",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (tmp_path / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    built = podman(
        "build", "--layers=false", "--format", "docker", "--network", "none",
        "--build-arg", "BASE=localhost/base",
        "--volume", "/usr:/usr:ro", "--volume", f"{tmp_path}/wheels:/wheels:ro",
        "--volume", f"{tmp_path}/pip.conf:/etc/pip.conf:ro",
        "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro",  # Debian's pip 26 wants certificates.
        "-f", DEPLOY / "container" / "Containerfile", "-t", "hello-listen", DEPLOY.parents[1],
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return "hello-listen"


CONNECT = """
import socket
for _ in range({}):
    socket.create_connection(("127.0.0.1", 7878)).recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may surely run containers")
def test_image(podman: Podman, image: str, inside: list[str]) -> None:
    """The image runs on a read-only root, says whether it is healthy, and counts each client."""

    def untilHealthy(name: str) -> None:
        until(lambda: podman("healthcheck", "run", name).returncode == 0)

    def startContainer(name: str, *arguments: object) -> None:
        started = podman(
            "run", "--detach", "--name", name, "--network", "none", "--read-only",
            "--cap-drop", "all", "--security-opt", "no-new-privileges", image, *arguments,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr

    startContainer("plain")
    untilHealthy("plain")
    assert podman("exec", "plain", "python3", "-c", CONNECT.format(3)).returncode == 0
    assert podman("stop", "--time", 40, "plain").returncode == 0
    state = podman("inspect", "--format", "{{.State.ExitCode}} {{.Config.User}}", "plain").stdout
    assert state == f"0 {NOBODY}:{NOBODY}\n"
    logs = podman("logs", "plain")
    records = [json.loads(line) for line in logs.stdout.splitlines()]
    assert [each.get("client.address") for each in records] == [None, *["127.0.0.1"] * 3, None]
    assert records[-1]["lost"] == 0
    assert "Listening on 0.0.0.0:7878" in logs.stderr
    assert not re.search("Traceback|plugin cache|established", logs.stderr)

    startContainer("unhealthy", "-e", "tcp:7878")
    assert podman("healthcheck", "run", "unhealthy").returncode == 1

    # The gateway of podman's network hides clients on the same machine.
    compose = ["-f", DEPLOY / "container" / "compose.yaml", "-p", "trial"]
    upped = podman(*compose, "up", "--detach", "--no-build", by="podman-compose")
    assert upped.returncode == 0, upped.stderr
    name = "trial_hello-listen_1"
    untilHealthy(name)
    assert run(*inside, sys.executable, "-c", CONNECT.format(100)).returncode == 0
    asked = run(
        *inside, tool("curl"), "-q", "-s", "--noproxy", "*", "-H", "Host: hello-listen:7880",
        "http://127.0.0.1:7880/healthz",
    )  # fmt: skip
    assert asked.stdout == "OK\n"
    volume = podman("volume", "inspect", "--format", "{{.Mountpoint}}", "trial_log").stdout.strip()
    log = Path(volume, "connections.jsonl")
    until(lambda: log.read_text().count("established") == 10)
    podman("kill", "--signal", "KILL", name)
    assert podman("start", name).returncode == 0
    untilHealthy(name)
    assert run(*inside, sys.executable, "-c", CONNECT.format(10)).returncode == 0
    warning = "The first 100 connections came from the gateway 10."
    assert podman("logs", name).stderr.count(warning) == 1
    assert podman(*compose, "down", by="podman-compose").returncode == 0
    assert account(log) == (20, 0)
