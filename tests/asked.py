"""Runs the report's command in this process."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from hello_listen import report


def run(*arguments: object) -> tuple[int, str, str]:
    """Return the status, the output and the errors of the report."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = report.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def answer(*arguments: object) -> dict[str, Any]:
    """Return what C{--json} prints, with the C{status}."""
    status, out, _ = run("--json", *arguments)
    found: dict[str, object] = json.loads(out)
    return found | {"status": status}
