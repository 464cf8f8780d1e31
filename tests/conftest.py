"""What several test modules share."""

import os
from pathlib import Path

import pytest
import twisted.plugins

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let endpoint descriptions use C{later:}, as if another package had been installed."""
    path = [*twisted.plugins.__path__, str(PLUGINS / "twisted" / "plugins")]
    monkeypatch.setattr(twisted.plugins, "__path__", path)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Return the path of a named pipe."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def reader(fifo: Path) -> int:
    """Return a descriptor that reads the named pipe, and is the test's to close."""
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
