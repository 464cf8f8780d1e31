"""What several test modules share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import twisted.plugins
from hypothesis import settings
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

from output import Output

# A shell starts what it puts in the background with signals ignored, as nohup does, which what we
# start inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGQUIT"):
    number = getattr(signal, name, signal.SIGINT)
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let endpoint descriptions use C{later:}, as if another package had been installed."""
    path = [*twisted.plugins.__path__, str(PLUGINS / "twisted" / "plugins")]
    monkeypatch.setattr(twisted.plugins, "__path__", path)


@pytest.fixture
def tlsEndpoints() -> None:
    """Skip the test where Twisted has no C{tls:} endpoints."""
    parsers = getPlugins(IStreamServerEndpointStringParser)
    if "tls" not in [parser.prefix for parser in parsers]:
        pytest.skip("tls: endpoints came with Twisted 26.4")


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Return the path of a named pipe."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def reader(fifo: Path) -> int:
    """Return a descriptor that reads the named pipe, and is the test's to close."""
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Iterator[Output]:
    """Return standard output, which is what it was after the test."""
    with capfd.disabled():
        changed = Output()
        yield changed
        changed.restore()
