"""Readable reasons for errors of endpoints, and suggested descriptions."""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import suppress
from ipaddress import IPv4Address as IPv4
from ipaddress import IPv6Address as IPv6
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

from hello_listen._addresses import printable

# Python errors that the parsers leak, and readable replacements.
_REASONS = (
    (r"((?:No module|import).* '?OpenSSL.*)", r"\1: pip install 'twisted[tls]'"),
    (r"invalid literal for int\(\) with base \d+: (.*)", r"not a number: \1"),
    (r".*got an unexpected keyword argument ('.*?').*", r"no such argument: \1"),
    (r".*got multiple values for argument ('.*?').*", r"given twice: \1"),
    (r".*missing \d+ required positional arguments?: (.*)", r"missing: \1"),
    (r".*takes .* positional arguments? but \d+ .*given", r"too many arguments"),
    (r"module 'socket' has no attribute 'AF_(.*)'", r"no such domain: '\1'"),
    (r"generator raised StopIteration", r"ends in a backslash that escapes nothing"),
)

# host:port as other programs write it, with or without an endpoint's type or a URL's scheme.
_HOST_AND_PORT = re.compile(
    r"(?:tcp6?:)?(?:\w+://)?(?P<host>\*?|[\d.]+|localhost|\[[\da-f:.]+\]):(?P<port>\d+)/?"
    r"|(?:https?:)?(?P<only>\d+)",
    re.I,
)


def parseReason(error: Exception) -> str:
    """
    Return why a description cannot be parsed.

    @param error: the error that a parser raised.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}"
    if type(error).__module__.startswith("OpenSSL"):
        return "TLS: " + ", ".join(reason for *_, reason in error.args[0] if reason)
    text = str(error)
    for pattern, words in _REASONS:
        if re.fullmatch(pattern, text, re.DOTALL):
            return re.sub(pattern, words, text, flags=re.DOTALL)
    return text or type(error).__name__


def availableTypes(reason: str) -> str:
    """
    Return the types of endpoints, if the reason is an unknown type, else C{""}.

    @param reason: the reason that L{parseReason} returned.
    """
    unknown = re.match("Unknown endpoint type: '(.*)'", reason)
    if unknown is None:
        return ""
    plugins = {each.prefix for each in getPlugins(IStreamServerEndpointStringParser)}
    types = {"haproxy", "redirected", "ssl", "tcp", "unix"} | plugins
    udp = "; UDP has no connections" if unknown[1].lower().startswith("udp") else ""
    return f"{udp}; there are {', '.join(sorted(types))}"


def corrected(description: str) -> str:
    """
    Return a description that the user may have meant, which may be wrong as well.

    @param description: a description that cannot be parsed.
    """
    found = _HOST_AND_PORT.fullmatch(description)
    if found:
        host, port = (found["host"] or "").strip("*"), found["port"] or found["only"]
        kind = "tcp6" if host.startswith("[") else "tcp"
        description = f"{kind}:{port}" + (host and f":interface={host.strip('[]')}")
    kind, colon, arguments = description.partition(":")
    unescaped = r"interface=([^\\]*?)(?=:\w+=|$)"
    return f"{kind.lower()}{colon}{re.sub(unescaped, _escapedInterface, arguments)}"


def listenReason(error: Any, description: str) -> str:
    """
    Return why an endpoint cannot be bound.

    @param error: the error that was raised.
    @param description: the endpoint's description.
    """
    if isinstance(error, CannotListenError):
        return listenReason(error.socketError, description)
    reason = getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__
    file = os.fsdecode(getattr(error, "filename", None) or "")
    return printable(reason if file in description else f"{reason}: {file!r}")


def occupies(address: IAddress, error: Any) -> bool:
    """
    Say whether a socket is the reason why another one cannot be bound.

    @param address: the socket's address.
    @param error: the error that was raised.
    """
    inUse = isinstance(error, CannotListenError) and isinstance(error.socketError, OSError)
    if not inUse or error.socketError.errno != errno.EADDRINUSE:
        return False
    with suppress(OSError, ValueError):
        if isinstance(address, UNIXAddress) and isinstance(error.port, str):
            return os.path.samefile(address.name or "", error.port)
        if isinstance(address, (IPv4Address, IPv6Address)) and address.port == error.port:
            name = error.interface or ""
            wanted = _ip(name if ":" in name else socket.gethostbyname(name))
            bound = _ip(address.host)
            # :: is all of IPv4 as well.
            return bound == wanted or any(
                each.is_unspecified and (each.version == 6 or bound.version == wanted.version)
                for each in (bound, wanted)
            )
    return False


def _ip(host: str) -> IPv4 | IPv6:
    """Return an IP address, an IPv4-mapped one as IPv4."""
    ip = ip_address(host)
    return getattr(ip, "ipv4_mapped", None) or ip


def _escapedInterface(host: re.Match[str]) -> str:
    """Return an interface argument, with the colons of an IPv6 address escaped."""
    return "interface=" + host[1].replace(":", r"\:")
