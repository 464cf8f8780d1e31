"""C{ssl:} endpoints: reports errors in their files at the start, instead of for each client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

PEM = re.compile(rb"-----BEGIN ([A-Z0-9. ]+)-----.*?-----END \1-----", re.DOTALL)
"""Matches one object of a PEM file."""


class TLSReactor:
    """
    The reactor of an L{twisted.internet.endpoints.SSL4ServerEndpoint}, which makes the TLS context.

    Twisted makes the context for the first client, and tries again for each if that fails.
    """

    def __init__(self, reactor: Any) -> None:
        """
        Wrap a reactor.

        @param reactor: an L{twisted.internet.interfaces.IReactorSSL}.
        """
        self._reactor = reactor
        self._listens = False

    def makeContext(self, endpoint: Any) -> None:
        """
        Make the context of an endpoint that has this reactor. The endpoint keeps the context.

        @param endpoint: the endpoint.

        @raise OpenSSL.SSL.Error: OpenSSL rejects a certificate, key or parameter.
        """
        made: Deferred[Any] = endpoint.listen(None)
        failures: list[Any] = []
        made.addErrback(failures.append)
        for failure in failures:
            failure.raiseException()
        self._listens = True

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, **options: Any) -> Any:
        """
        Listen, or within L{makeContext} only make the context.

        @param port: the port.
        @param factory: the factory.
        @param contextFactory: makes the context, and caches it.
        @param options: C{backlog} and C{interface}.
        """
        if self._listens:
            return self._reactor.listenSSL(port, factory, contextFactory, **options)
        return contextFactory.getContext()


def checkFiles(arguments: Mapping[str, str]) -> None:
    """
    Check the files of an C{ssl:} endpoint.

    @param arguments: the keyword arguments of its description.

    @raise OSError: a file cannot be read.
    @raise ValueError: a file lacks the key, certificate or parameters that it is to contain.
    """
    kinds = {"privateKey": "PRIVATE KEY", "certKey": "CERTIFICATE", "dhParameters": "DH PARAMETERS"}
    for name in kinds.keys() & arguments.keys():
        path, kind = arguments[name], kinds[name]
        if not any(pem[1].endswith(kind.encode()) for pem in PEM.finditer(Path(path).read_bytes())):
            raise ValueError(f"no {kind} in PEM format: {path!r}")
