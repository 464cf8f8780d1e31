"""Parses times of the command line."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone

TIME_EXAMPLES = "24h, 7d, yesterday, 2026-11-24 or 2026-11-24T20:19"

_UNIT_NAMES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str) -> datetime:
    """
    Return a time in UTC, without a time zone.

    @param text: a date or time of ISO 8601, in UTC unless it has an offset; C{today} or
        C{yesterday}, for midnight UTC; or a duration before now, such as C{24h}.

    @raise ArgumentTypeError: it is none of these.
    """
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        if text in ("today", "yesterday"):
            return midnight - timedelta(days=text == "yesterday")
        if ago := re.fullmatch(r"(\d+)([mhdw])", text, re.ASCII):
            return now - timedelta(**{_UNIT_NAMES[ago[2]]: int(ago[1])})
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (time.astimezone(timezone.utc) if time.tzinfo else time).replace(tzinfo=None)
    except (OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"not a time: {text!r}, but {TIME_EXAMPLES} are") from None
