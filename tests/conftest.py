"""What several test modules share."""

from pathlib import Path

import pytest
import twisted.plugins

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let endpoint descriptions use C{later:}, as if another package had been installed."""
    path = [*twisted.plugins.__path__, str(PLUGINS / "twisted" / "plugins")]
    monkeypatch.setattr(twisted.plugins, "__path__", path)
