"""TLS endpoints: reports errors in their files at the start, instead of for each client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9. ]+)-----.*?-----END \1-----", re.DOTALL)


class TLSReactor:
    """
    The reactor of an L{twisted.internet.endpoints.SSL4ServerEndpoint}, which makes the TLS context.

    Twisted makes the context for the first client, and tries again for each if that fails.
    """

    def __init__(self, reactor: Any) -> None:
        """
        Wrap a reactor.

        @param reactor: an L{IReactorSSL}.
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
        if not any(
            pem[1].endswith(kind.encode()) for pem in _PEM.finditer(Path(path).read_bytes())
        ):
            raise ValueError(f"no {kind} in PEM format: {path!r}")


def checkCertificates(path: Path) -> None:
    """
    Check the certificates of a C{tls:} endpoint.

    @param path: a file, or a folder of F{.pem} files.

    @raise OSError: a file cannot be read.
    @raise ValueError: there is no certificate, or a self-signed one has no key.
    @raise OpenSSL.SSL.Error: OpenSSL rejects a certificate that has a key.
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
            # Twisted would follow its chain of issuers in an endless loop.
            raise ValueError("a self-signed certificate without its key: leave it out")
