"""Sockets that this process inherited from systemd (sd_listen_fds(3))."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import quoteStringArgument
from twisted.logger import Logger
from twisted.python.failure import Failure

from hello_listen._addresses import addressText, socketAddress

FIRST_DESCRIPTOR = 3
"""The first inherited descriptor (SD_LISTEN_FDS_START)."""

ENVIRONMENT_FILE = "/proc/self/environ"
"""The initial environment: Twisted removes LISTEN_FDS from os.environ."""

_log = Logger(namespace="hello_listen")


class InheritedSockets:
    """
    The sockets of a C{systemd:} description.

    @ivar descriptors: their descriptors.
    """

    def __init__(self, domain: str, index: str | None = None, name: str | None = None) -> None:
        """
        Find the sockets. All sockets of one systemd unit have the same name.

        @param domain: an address family without C{AF_}; it does not limit the search.
        @param index: the position of one socket, from 0.
        @param name: the name of one or several sockets.

        @raise AttributeError: there is no such address family.
        @raise ValueError: there is no such socket, or it cannot be served.
        """
        getattr(socket, f"AF_{domain}")
        if (index is None) == (name is None):
            raise ValueError("either index= or name= is needed")
        number = None if index is None else int(index)
        names = _names()
        passed = dict(enumerate(names, FIRST_DESCRIPTOR))
        self.descriptors = [
            descriptor
            for descriptor, itsName in passed.items()
            if itsName == name or descriptor - FIRST_DESCRIPTOR == number
        ]
        if not self.descriptors:
            others = ", ".join(map(repr, dict.fromkeys(names)))
            hint = f", only {others}" if others else " (systemd passes them, see sd_listen_fds(3))"
            raise ValueError(f"no such socket was inherited{hint}")
        for descriptor in self.descriptors:
            _check(descriptor)


class InheritedSocket:
    """
    An inherited socket and its factory, with the methods of a Twisted port that are needed.

    @ivar factory: the factory.
    """

    def __init__(self, descriptor: int, factory: Any) -> None:
        """
        Start the factory.

        @param descriptor: the socket's descriptor.
        @param factory: the factory.
        """
        self.factory = factory
        self._descriptor = descriptor
        factory.doStart()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def stopReading(self) -> None:
        """Do nothing: the port reads, not this."""

    def connectionLost(self, reason: Failure) -> None:
        """
        Stop the factory. The socket stays open, because the service manager shares it.

        @param reason: the reason that the reactor gives.
        """
        self.factory.doStop()


def warnOfUnserved(served: Collection[int]) -> None:
    """
    Log a warning for each inherited listening socket that no endpoint serves.

    @param served: the descriptors that endpoints serve.
    """
    with suppress(ValueError):
        for descriptor, name in enumerate(_names(), FIRST_DESCRIPTOR):
            if descriptor not in served:
                with suppress(ValueError):
                    domain, address = _check(descriptor)
                    endpoint = f"systemd:domain={domain}:name={quoteStringArgument(name)}"
                    _log.warn(
                        "Inherited but not served: {address}; serve it with -e {endpoint}",
                        address=address,
                        endpoint=shlex.quote(endpoint),
                    )


def _names() -> list[str]:
    """
    Return the names of descriptors, L{FIRST_DESCRIPTOR} first: sd_listen_fds_with_names(3).

    @raise ValueError: the environment is inconsistent.
    """
    try:
        environment = os.fsdecode(Path(ENVIRONMENT_FILE).read_bytes())
    except OSError:
        return []
    variables = dict(re.findall(r"([^=\0]+)=([^\0]*)", environment))
    if variables.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(variables.get("LISTEN_FDS", "0"))
    given = variables.get("LISTEN_FDNAMES")
    names = ["unknown"] * count if given is None else given.split(":")
    if len(names) != count:
        raise ValueError(f"LISTEN_FDS and LISTEN_FDNAMES disagree: {count} and {len(names)}")
    return names


def _check(descriptor: int) -> tuple[str, str]:
    """
    Return the address family, without C{AF_}, and the address of a listening TCP or UNIX socket.

    @raise ValueError: the descriptor is something else, which the message names.
    """
    try:
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ValueError(f"descriptor {descriptor} is not a socket ({error.strerror})") from error
    family, kind = (str(getattr(each, "name", each)) for each in (found.family, found.type))
    try:
        if found.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            problem = f"an {family} socket, not TCP or UNIX"
        elif found.type != socket.SOCK_STREAM:
            problem = f"a {kind} socket: use ListenStream= in the socket unit"
        elif found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return family.removeprefix("AF_"), addressText(socketAddress(found.getsockname()))
        else:
            problem = "a socket that does not listen"
            with suppress(OSError):
                found.getpeername()
                problem = "a connection: use Accept=no in the socket unit"
        raise ValueError(f"descriptor {descriptor} is {problem}")
    finally:
        found.detach()
