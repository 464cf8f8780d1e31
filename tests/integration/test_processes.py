"""Process: a failing program ends the test's wait, and the failure shows its output."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from browser import Browser
from processes import Start, freePort, run, until, untilListening


def test_program_that_fails(start: Start, tmp_path: Path) -> None:
    """If a program fails, a wait fails at once, with its status, its output and its files."""
    script = "echo no folder; echo no port >errors; exit 3"
    start("sh", "-c", script, files=["errors"])
    with pytest.raises(AssertionError, match=r"^/.* ended with status 3\nno folder\nno port$"):
        untilListening(tmp_path / "socket")


def test_program_that_leaves_another(start: Start) -> None:
    """A wait does not last until the program's own children close the output."""
    # cat runs until the test ends, and holds the pipe.
    start("sh", "-c", "exec 3<&0; cat <&3 & echo no folder; kill -ABRT $$", stdin=-1)
    with pytest.raises(AssertionError, match=r"^/.* ended with status -6\nno folder$"):
        until(lambda: False)


def test_program_that_says_something_else(start: Start) -> None:
    """If an expected line never comes, the failure shows the actual output and the status."""
    program = start("sh", "-c", "echo no folder; exit 3")
    with pytest.raises(AssertionError, match=r"(?s)matches 'ready' in .* status 3\nno folder"):
        program.expect("ready")


def test_program_that_ended_as_it_should(start: Start) -> None:
    """After a program that succeeded or was terminated by its test, other waits go on."""
    assert start("sh", "-c", "exit 3").wait() == 3
    start("sh", "-c", "exit 0")
    told = start("cat", stdin=-1)
    told.kill(signal.SIGTERM)
    until(lambda: not Path(f"/proc/{told.pid}").exists())


def test_chromium_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Chromium cannot start, opening a page fails with its output."""
    (tmp_path / "chromium").write_text("#!/bin/sh\necho no display; exit 3\n")
    (tmp_path / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    browser = Browser(tmp_path)
    with pytest.raises(AssertionError, match=r"Chromium does not answer(?s:.*)\nno display"):
        browser.page()
    browser.close()


@pytest.mark.slow
def test_program_that_hangs() -> None:
    """A program that does not end is killed, and the failure shows its output."""
    with pytest.raises(AssertionError, match="no folder"):
        run("sh", "-c", "echo no folder; exec cat /dev/zero >/dev/null", patience=3)


def test_nginx_needs_nothing_of_roots(nginx: Start, tmp_path: Path) -> None:
    """nginx creates all its files in the test's folder, so that an ordinary user can run it."""
    port = freePort()
    nginx(port, http=f"server {{ listen 127.0.0.1:{port}; }}")
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {
        "body", "fastcgi", f"nginx-{port}.conf", f"nginx-{port}.pid", "proxy", "scgi", "uwsgi",
    }  # fmt: skip
