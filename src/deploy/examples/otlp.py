"""Send the records on standard input to an OpenTelemetry collector, by OTLP over HTTP, as JSON."""

import json
import os
import signal
import socket
import sys
import time
from datetime import datetime
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

BATCH_SIZE = 65536  # Bytes: what a pipe holds.
RETRY = 429, 502, 503, 504  # The statuses that OTLP retries; other errors are final.


def encoded(value: object) -> dict[str, object]:
    if isinstance(value, dict):
        return {"kvlistValue": {"values": pairs(value)}}
    return {"intValue" if isinstance(value, int) else "stringValue": str(value)}


def pairs(fields: dict[str, object]) -> list[dict[str, object]]:
    return [{"key": name, "value": encoded(value)} for name, value in fields.items()]


def logRecord(line: bytes) -> dict[str, object]:
    fields = json.loads(line)
    moment = datetime.fromisoformat(fields.pop("timestamp").replace("Z", "+00:00"))
    return {
        "timeUnixNano": str(round(moment.timestamp() * 1_000_000) * 1000),
        "severityNumber": 9,  # INFO
        "body": encoded(fields.pop("message")),
        "attributes": pairs(fields),
    }


def send(url: str, lines: list[bytes]) -> None:
    resource = pairs({"service.name": "hello-listen", "host.name": socket.gethostname()})
    scope = {"scope": {"name": "hello_listen"}, "logRecords": [logRecord(line) for line in lines]}
    message = {"resourceLogs": [{"resource": {"attributes": resource}, "scopeLogs": [scope]}]}
    request = Request(url, json.dumps(message).encode(), {"Content-Type": "application/json"})  # noqa: S310
    while True:
        try:
            with urlopen(request, timeout=10) as response:  # noqa: S310
                answer = json.loads(response.read() or b"{}")
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code not in RETRY:
                sys.exit(f"{url}: {error}")
            print(f"{url}: {error}; sent again in a second", file=sys.stderr)
            time.sleep(1)
        else:
            if rejected := answer.get("partialSuccess", {}).get("rejectedLogRecords"):
                print(f"{url}: {rejected} records were rejected", file=sys.stderr)
            return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The end of the input is the end.
    rest = b""
    while data := os.read(0, BATCH_SIZE):
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            send(sys.argv[1], lines)
