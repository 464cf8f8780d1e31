"""Chromium, driven over its DevTools protocol on a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import select
import time
from base64 import b64decode
from contextlib import suppress
from pathlib import Path
from typing import Any

from processes import PATIENCE, Process, tool

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """A headless Chromium, which records its pages' requests and console messages."""

    def __init__(self, folder: Path) -> None:
        """Start Chromium, with its profile in a folder."""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # It reads from its descriptor 3, and writes to 4.
        numbers = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        connect = 'exec 3<&{} 4>&{}; exec "$@"'.format(*numbers)
        command = ["bash", "-c", f"{connect} >chromium.log 2>&1", "-", tool("chromium"), *FLAGS]
        self._process = Process(
            [*command, f"--user-data-dir={folder}"], folder, 20 * PATIENCE, ["chromium.log"],
            pass_fds=numbers,
        )  # fmt: skip
        for end in (commands, answers, *numbers):
            os.close(end)
        self._data = b""
        self._number = 0
        self._events: list[dict[str, object]] = []

    def send(self, method: str, session: str | None = None, **parameters: object) -> Any:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        with suppress(BrokenPipeError):  # The test that waits for the answer gets an error.
            os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def events(self, session: str) -> list[dict[str, Any]]:
        """Return the events of a page so far."""
        return [event for event in self._events if event.get("sessionId") == session]

    def _read(self) -> dict[str, Any]:
        """Return the next message; keep it if it is an event."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            assert data, f"timeout: Chromium does not answer\n{self._process.said()}"
            self._data += data
        line, _, self._data = self._data.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self._events.append(message)
        return message

    def page(self, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Page:
        """Open an empty page."""
        return Page(self, width, scheme, scripts)

    def close(self) -> None:
        """End it."""
        self._process.stop()
        self._process.end()
        os.close(self._commands)
        os.close(self._answers)


class Page:
    """A page, in a profile of its own."""

    def __init__(self, browser: Browser, width: int, scheme: str, scripts: bool) -> None:
        """Open it."""
        self._browser = browser
        self._forgotten = 0
        context = browser.send("Target.createBrowserContext")["browserContextId"]
        target = browser.send("Target.createTarget", url="about:blank", browserContextId=context)
        self._session: str = browser.send(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)

    def send(self, method: str, **parameters: object) -> Any:
        """Call a method of the protocol for this page."""
        return self._browser.send(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Show an address, and wait until all of it is loaded."""
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, patience: float = PATIENCE) -> None:
        """Wait until an expression of JavaScript is true."""
        until = time.monotonic() + patience
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"timeout: still false: {expression}"

    def text(self, selector: str = "body") -> str:
        """Return the text that is shown of an element."""
        text: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def complaints(self, forget: bool = False) -> list[str]:
        """Return console messages and uncaught exceptions, optionally without repetitions."""
        complaints = [
            json.dumps(event["params"])
            for event in self._browser.events(self._session)
            if event["method"]
            in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        ]
        fresh = complaints[self._forgotten :]
        if forget:
            self._forgotten = len(complaints)
        return fresh

    def requests(self) -> list[str]:
        """Return the URLs of all requests."""
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events(self._session)
            if event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path) -> None:
        """Save a screenshot of the whole page."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(shot["data"]))
