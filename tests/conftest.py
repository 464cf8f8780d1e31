"""Fixtures for all tests in this folder."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import twisted.plugins
from hypothesis import settings
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

from hello_listen import _inherited
from output import Output
from reactors import Stepping

# A shell starts what it puts in the background with signals ignored, as nohup does, which what we
# start inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGQUIT"):
    number = getattr(signal, name)
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def signalMask() -> Iterator[None]:
    """Restore the signal mask: a service blocks some signals until the reactor runs."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the endpoint type C{later:}, as another installed package would."""
    path = [*twisted.plugins.__path__, str(PLUGINS / "twisted" / "plugins")]
    monkeypatch.setattr(twisted.plugins, "__path__", path)


@pytest.fixture
def tlsEndpoints() -> None:
    """Skip the test where Twisted has no C{tls:} endpoints."""
    parsers = getPlugins(IStreamServerEndpointStringParser)
    if "tls" not in [parser.prefix for parser in parsers]:
        pytest.skip("tls: endpoints came with Twisted 26.4")


@pytest.fixture
def passOn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Pass descriptors and their environment variables to this process, as systemd does."""
    descriptors = range(200, 210)
    environment = tmp_path / "environ"
    monkeypatch.setattr(_inherited, "ENVIRONMENT_FILE", environment)
    monkeypatch.setattr(_inherited, "FIRST_DESCRIPTOR", descriptors[0])

    def passAll(*passed: int, names: str | None = None, **variables: object) -> None:
        for number, descriptor in zip(descriptors, passed, strict=False):
            os.dup2(descriptor, number)
        known = {"LISTEN_PID": os.getpid(), "LISTEN_FDS": len(passed), **variables}
        if names is not None:
            known["LISTEN_FDNAMES"] = names
        environment.write_text("".join(f"{key}={value}\0" for key, value in known.items()))

    yield passAll
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Return the path of a named pipe."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def reader(fifo: Path) -> int:
    """Return a descriptor that reads the named pipe; the test closes it."""
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Iterator[Output]:
    """Return standard output, and restore it after the test."""
    with capfd.disabled():
        changed = Output()
        yield changed
        changed.restore()


@pytest.fixture
def stepping() -> Stepping:
    """Return a reactor whose time can be set. It stays open, because a thread may still wake it."""
    return Stepping()
