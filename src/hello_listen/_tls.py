"""TLS endpoints: what is wrong with their files is found at the start, not by each client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9. ]+)-----.*?-----END \1-----", re.DOTALL)


class TLSReactor:
    """
    Listens in the place of a reactor, for L{twisted.internet.endpoints.SSL4ServerEndpoint}.

    Twisted makes an endpoint's TLS context for the first client; if that fails, for each.
    """

    def __init__(self, reactor: Any) -> None:
        """
        Stand in for a reactor.

        @param reactor: an L{IReactorSSL}.
        """
        self._reactor = reactor
        self._listens = False

    def makeContext(self, endpoint: Any) -> None:
        """
        Make the context of an endpoint that listens through this. It is kept for the clients.

        @param endpoint: the endpoint.

        @raise OpenSSL.SSL.Error: OpenSSL refuses a certificate, key or parameter.
        """
        made: Deferred[Any] = endpoint.listen(None)
        failures: list[Any] = []
        made.addErrback(failures.append)
        for failure in failures:
            failure.raiseException()
        self._listens = True

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, **options: Any) -> Any:
        """
        Listen, as L{twisted.internet.interfaces.IReactorSSL} does, once the context was made.

        @param port: the port.
        @param factory: serves the connections.
        @param contextFactory: makes the context, and keeps it.
        @param options: the length of the queue, and the interface.
        """
        if self._listens:
            return self._reactor.listenSSL(port, factory, contextFactory, **options)
        return contextFactory.getContext()


def checkFiles(arguments: Mapping[str, str]) -> None:
    """
    Check the files that an C{ssl:} endpoint names.

    @param arguments: the named arguments of its description.

    @raise OSError: one cannot be read.
    @raise ValueError: one lacks what it is named for.
    """
    kinds = {"privateKey": "PRIVATE KEY", "certKey": "CERTIFICATE", "dhParameters": "DH PARAMETERS"}
    for name in kinds.keys() & arguments.keys():
        path, kind = arguments[name], kinds[name]
        if not any(
            pem[1].endswith(kind.encode()) for pem in _PEM.finditer(Path(path).read_bytes())
        ):
            raise ValueError(f"no {kind} in PEM format: {path!r}")


def checkCertificates(path: Path) -> None:
    """
    Check the certificates that C{tls:} chooses from.

    @param path: a file, or a folder of F{.pem} files.

    @raise OSError: a file cannot be read.
    @raise ValueError: there is no certificate, or one that Twisted cannot take.
    @raise OpenSSL.SSL.Error: OpenSSL refuses one that has a key.
    """
    from OpenSSL.crypto import FILETYPE_PEM
    from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair

    files = path.rglob("*.pem") if path.is_dir() else [path]
    found = [pem for file in files for pem in _PEM.finditer(file.read_bytes())]
    certificates = [Certificate.loadPEM(pem[0]) for pem in found if pem[1] == b"CERTIFICATE"]
    if not certificates:
        raise ValueError(f"no certificate in any .pem file: {str(path)!r}")
    keys = [KeyPair.load(pem[0], FILETYPE_PEM) for pem in found if pem[1].endswith(b"PRIVATE KEY")]
    byHash = {key.keyHash(): key for key in keys}
    for certificate in certificates:
        if key := byHash.get(certificate.getPublicKey().keyHash()):
            CertificateOptions(key.original, certificate.original).getContext()
        elif certificate.getIssuer() == certificate.getSubject():
            # Twisted would look for its issuer's issuer, and so on, without an end.
            raise ValueError("a self-signed certificate without its key: leave it out")
