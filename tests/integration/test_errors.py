"""Start-up errors: one line, whatever starts the service, and no file left behind."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import (
    LOOPBACK,
    SCRIPTS,
    Start,
    freePort,
    makeCertificate,
    needTLS,
    run,
    slow,
    tool,
    until,
)


@contextmanager
def busy(tmp_path: Path) -> Iterator[int]:
    """Return a port that is in use; the UNIX socket C{live} and the port 127.0.0.1 are too."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(f"{tmp_path}/live")
        unix.listen()
        yield tcp.getsockname()[1]


# Each is what is typed, and what the last line has to name; {} is a port that is in use.
USAGE_ERRORS = [
    (["-e", "tcp:notaport"], "'tcp:notaport': not a number: 'notaport'"),
    (["-e", "tcp"], "'tcp': missing: 'port'"),
    (["-e", "foo:1"], "'foo:1': Unknown endpoint type: 'foo'"),
    (["-e", "tcp:0:interfce=::1"], "no such argument: 'interfce'"),
    (["-e", "tcp:0:backlog=abc"], "'tcp:0:backlog=abc': not a number: 'abc'"),
    (["-e", "unix:"], "'unix:': missing: 'address'"),
    (["-e", "ssl:0:privateKey=no.pem"], "No such file or directory: '"),
]
# Those that are tried under twist, too.
TWIST_USAGE_ERRORS = [
    (["-e", "systemd:domain=INET:index=0"], "no such socket was inherited"),
    (["-e", "systemd:domain=INET:name=web"], "no such socket was inherited"),
    (["surplus"], "unexpected argument: 'surplus'"),
    (["--bogus"], "option --bogus not recognized"),
]
LISTEN_ERRORS = [
    ("tcp:{}:interface=127.0.0.1", "Address already in use"),
    ("tcp:99999", "bind(): port must be 0-65535"),
    ("tcp:0:interface=192.0.2.1", "Cannot assign requested address"),
    ("tcp:0:interface=no name", "Name or service not known"),
    ("unix:no/such/folder/s", "No such file or directory"),
    ("unix:live", "Address already in use"),
]
# A daemonizing twistd parses its options before it does anything else, as twistd -n does; under
# twist, too, usage errors are all ours to show.
CASES = [("twistd -n", *case) for case in USAGE_ERRORS + TWIST_USAGE_ERRORS]
CASES += [("twist", *case) for case in TWIST_USAGE_ERRORS]
CASES += [
    (how, [*before, "-e", endpoint], f"{reason}: '{endpoint}'")
    for how in ("twistd -n", "twist", "twistd")
    for before in ([], ["-e", "unix:s", "-e", "tcp:0:interface=127.0.0.1"])
    for endpoint, reason in LISTEN_ERRORS[: 1 if before else None]
]


@pytest.mark.parametrize("part", [0, *map(slow, range(1, 4))])
@pytest.mark.parametrize("how", ["twistd -n", slow("twist"), "twistd"])
def test_errors(tmp_path: Path, how: str, part: int) -> None:
    """The last line names what is wrong; no traceback, no status 0, no file is left."""
    cases = [(arguments, named) for way, arguments, named in CASES if way == how][part::4]
    folders = [tmp_path / str(number) for number in range(len(cases))]
    with ThreadPoolExecutor(4) as pool:
        checks = [
            pool.submit(check, how, folder, *case)
            for folder, case in zip(folders, cases, strict=True)
        ]
    for checked in checks:
        checked.result()


def check(how: str, folder: Path, arguments: list[str], named: str) -> None:
    """Start the service with an error, beside a live UNIX socket, and check the result."""
    folder.mkdir()
    with busy(folder) as port:
        program, *flags = how.split()
        before = sorted(folder.iterdir())
        typed = [argument.format(port) for argument in arguments]
        ended = run(SCRIPTS / program, *flags, "hello-listen", *typed, cwd=folder)
    log = folder / "twistd.log"
    if how == "twistd":
        # The daemon tells its parent before it writes its log.
        until(lambda: "hello-listen: " in log.read_text())
    logged = log.read_text() if how == "twistd" else ""
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr + logged
    assert "Stopped" not in ended.stdout + ended.stderr + logged
    last = (logged or ended.stdout + ended.stderr).splitlines()[-1]
    assert named.format(port) in last
    if how == "twistd":
        [reason, advice] = ended.stderr.splitlines()
        assert reason.startswith('An error has occurred: b"hello_listen.ListenError: ')
        assert named.format(port)[:70] in reason
        assert advice == "Please look at log file for more information."
        log.unlink()
    assert sorted(folder.iterdir()) == before


def test_log_on_the_wrong_side(tmp_path: Path) -> None:
    """Before C{hello-listen}, C{-l} is twistd's own log, which would never hold a record."""
    twistd = SCRIPTS / "twistd"
    ended = run(twistd, "-n", "-l", "who.jsonl", "--pidfile=", "hello-listen", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (
        1, "hello-listen: -l before hello-listen is twistd's log; put it after: 'who.jsonl'\n"
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_application_that_cannot_listen(tmp_path: Path) -> None:
    """Under C{twistd -y}, there is one traceback, which ends in the reason."""
    (tmp_path / "hello.tac").write_text(
        "from twisted.application.service import Application\n"
        "from hello_listen import HelloFactory, HelloService\n"
        "application = Application('hello')\n"
        "HelloService(HelloFactory(), ['unix:/no/such']).setServiceParent(application)\n"
    )
    ended = run(SCRIPTS / "twistd", "-n", "--pidfile=", "-y", "hello.tac", cwd=tmp_path)
    assert ended.returncode == 1
    output = ended.stdout + ended.stderr
    assert output.count("Traceback") == 1
    reason = "hello_listen.ListenError: No such file or directory: 'unix:/no/such'"
    assert output.splitlines()[-1].endswith(reason)


@pytest.mark.parametrize("how", [["-n"], []])
def test_address_in_use_by_another_endpoint(tmp_path: Path, how: list[str]) -> None:
    """IPv4 is part of an IPv6 endpoint without an address: the other endpoint is named."""
    port = freePort()
    endpoints = f"tcp:{port}", f"tcp6:{port}"
    ended = run(
        SCRIPTS / "twistd", *how, "--pidfile=pid", "hello-listen",
        *(part for each in endpoints for part in ("-e", each)), cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1
    named = f"Address already in use by '{endpoints[0]}': '{endpoints[1]}'"
    assert named in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the root folder")
@pytest.mark.parametrize("how", [slow(["-n"]), []])
def test_chroot_without_the_null_device(tmp_path: Path, how: list[str]) -> None:
    """The file that is missing is named, and no process waits for a daemon that died."""
    (tmp_path / "root").mkdir()
    command = SCRIPTS / "twistd", *how, "--pidfile=", "--chroot=root", "hello-listen", "-e"
    ended = run(*command, LOOPBACK, cwd=tmp_path)
    assert ended.returncode == 1
    last = (ended.stdout + ended.stderr).splitlines()[-1]
    named = f"/dev/null': '{LOOPBACK}'" if how else "needs 'root/dev/null'"
    assert last.endswith(named)
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("option", "said", "explained"),
    [
        ("--uid=nosuch", "KeyError: \"getpwnam(): name not found: 'nosuch'\"", "getpwnam()"),
        slow("--gid=nosuch", "KeyError: \"getgrnam(): name not found: 'nosuch'\"", "getgrnam"),
        ("--pidfile=no/pid", "FileNotFoundError: [Errno 2] No such file or", "FileNotFoundError"),
        slow("--rundir=no", "No such file or directory: 'no'", "--rundir"),
        slow("--logfile=no/log", "no/log'", "--logfile"),
    ],
)
def test_errors_of_twistd(tmp_path: Path, option: str, said: str, explained: str) -> None:
    """The handbook explains the last line of twistd's errors about its own options."""
    command = SCRIPTS / "twistd", "-n", "--pidfile=", option, "hello-listen", "-e", LOOPBACK
    ended = run(*command, cwd=tmp_path)
    assert ended.returncode == 1
    assert said in (ended.stdout + ended.stderr).splitlines()[-1]
    handbook = (Path(__file__).parents[2] / "src" / "deploy" / "README.md").read_text()
    rows = [line for line in handbook.splitlines() if line.startswith("| `") and explained in line]
    assert len(rows) == 1
    assert option.partition("=")[0] in rows[0]


def test_inherited_socket_of_another_name(inherit: Start) -> None:
    """A wrong name or index among inherited sockets is an error as well."""
    for wrong in ("name=mail", "index=1"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ended = inherit(listener, "-e", f"systemd:domain=INET:{wrong}")
        assert ended.wait() == 1
        assert "no such socket was inherited" in ended.lines[-1]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "No such file or directory: 'missing'"),
        slow("empty", "no certificate in any .pem file: 'empty'"),
        slow("keys", "no certificate in any .pem file: 'keys'"),
        slow("keys/key.pem", "no certificate in any .pem file: 'keys/key.pem'"),
    ],
)
@pytest.mark.parametrize("prefix", ["", slow("haproxy:")])
def test_tls_without_a_certificate(tmp_path: Path, prefix: str, path: str, reason: str) -> None:
    """A tls: endpoint that has no certificate to show is refused at the start."""
    needTLS("tls:")
    for folder in ("empty", "keys"):
        (tmp_path / folder).mkdir()
    makeCertificate(tmp_path)
    (tmp_path / "key").rename(tmp_path / "keys" / "key.pem")
    endpoint = f"{prefix}tls:{path}:0:interface=127.0.0.1"
    command = SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen", "-e", endpoint
    ended = run(*command, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [f"hello-listen: '{endpoint}': {reason}"]


def test_tls_without_pyopenssl(tmp_path: Path) -> None:
    """Without pyOpenSSL, an ssl: endpoint says what to install."""
    (tmp_path / "OpenSSL.py").write_text("raise ImportError(\"No module named 'OpenSSL'\")")
    for endpoint in ("ssl:0", "tls:certificates"):
        ended = run(
            SCRIPTS / "twistd", "-n", "hello-listen", "-e", endpoint,
            cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert ended.returncode == 1
        last = (ended.stdout + ended.stderr).splitlines()[-1]
        assert last.endswith("No module named 'OpenSSL': pip install 'twisted[tls]'")
        assert [path.name for path in tmp_path.iterdir()] == ["OpenSSL.py"]


def test_port_below_1024_without_rights(tmp_path: Path) -> None:
    """Without the right to bind a port, the error says so."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("any user may bind port 1 here")
    restrict = [] if os.geteuid() else [tool("setpriv"), "--bounding-set=-net_bind_service"]
    ended = run(
        *restrict, SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen",
        "-e", "tcp:1:interface=127.0.0.1", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stdout.endswith("Permission denied: 'tcp:1:interface=127.0.0.1'\n")
    assert "Traceback" not in ended.stdout + ended.stderr


WINDOWS = """
import os, signal, socket, sys
from importlib.metadata import entry_points

[script] = entry_points(group="console_scripts", name=sys.argv[1])
main = script.load()
sys.platform = "win32"
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "pthread_sigmask"):
    delattr(signal, name)
del os.fork, socket.AF_UNIX
del sys.argv[0]
main()
"""
"""Runs a script of Twisted without what Python lacks on Windows."""


@pytest.mark.parametrize("command", ["twistd -n hello-listen", "twist hello-listen --help"])
def test_windows(tmp_path: Path, command: str) -> None:
    """On Windows, the only line of the output says that hello-listen does not run there."""
    told = run(sys.executable, "-c", WINDOWS, *command.split(), cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "hello-listen: needs Linux or another POSIX system; this is Windows\n"
    assert not list(tmp_path.iterdir())
