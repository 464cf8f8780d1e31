"""The certificates of a C{tls:} endpoint, and the server names that clients ask for."""

from __future__ import annotations

from collections.abc import Sequence
from os import stat
from typing import Any

from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName
from OpenSSL.crypto import FILETYPE_PEM
from OpenSSL.SSL import Connection
from twisted.internet import endpoints
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair
from twisted.python.filepath import FilePath
from zope.interface import implementer

from hello_listen._tls import PEM


def checkCertificates(path: str) -> list[bytes]:
    """
    Check the certificates of a C{tls:} endpoint.

    @param path: a C{.pem} file, or a folder of such files.

    @return: the DNS names that the certificates are for, in alphabetical order.

    @raise OSError: a file cannot be read.
    @raise ValueError: no certificate can be used, or a self-signed one has no key.
    @raise OpenSSL.SSL.Error: OpenSSL rejects a certificate that has a key.
    """
    stat(path)
    found = [
        pem
        for file in FilePath(path).walk()
        if file.basename().endswith(".pem") and file.isfile()
        for pem in PEM.finditer(file.getContent())
    ]
    certificates = [Certificate.loadPEM(pem[0]) for pem in found if pem[1] == b"CERTIFICATE"]
    if not certificates:
        raise ValueError(f"no certificate in any .pem file: {path!r}")
    keys = [KeyPair.load(pem[0], FILETYPE_PEM) for pem in found if pem[1].endswith(b"PRIVATE KEY")]
    names = set[bytes]()
    byHash = {key.keyHash(): key for key in keys}
    for certificate in certificates:
        if key := byHash.get(certificate.getPublicKey().keyHash()):
            CertificateOptions(key.original, certificate.original).getContext()
            names.update(_dnsNames(certificate))
        elif certificate.getIssuer() == certificate.getSubject():
            # Twisted would follow its chain of issuers in an endless loop.
            raise ValueError("a self-signed certificate without its key: leave it out")
    if not names:
        raise ValueError(f"no certificate has a key and a DNS name (subjectAltName): {path!r}")
    return sorted(names)


def _dnsNames(certificate: Certificate) -> list[bytes]:
    """Return the DNS names that a certificate is for; its common name does not count (RFC 9525)."""
    extensions = certificate.original.to_cryptography().extensions
    try:
        names = extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        return []
    return [name.encode() for name in names.get_values_for_type(DNSName)]


class NamedConnection(Connection):
    """
    A TLS connection that asks for a certificate that exists.

    Twisted logs any other name that a client sends, and with a traceback one that is not ASCII.
    """

    names: Sequence[bytes] = ()
    """The known server names; the first stands in for any unknown name."""

    def get_servername(self) -> bytes | None:
        """Return the client's server name (SNI, RFC 6066); until the handshake, a known one."""
        name = super().get_servername()
        if self.get_finished():
            return name
        wildcard = b"*." + (name or b"").partition(b".")[2]
        return name if name in self.names or wildcard in self.names else self.names[0]


@implementer(IOpenSSLServerConnectionCreator)
class NamedConnections:
    """Makes a L{NamedConnection} for each client."""

    def __init__(self, creator: Any, names: Sequence[bytes]) -> None:
        """
        Wrap Twisted's own creator, which has the TLS context.

        @param creator: an L{IOpenSSLServerConnectionCreator}.
        @param names: the known server names; the first stands in for any unknown name.
        """
        self._creator = creator
        self._names = names

    def serverConnectionForTLS(self, protocol: Any) -> NamedConnection:
        """Return a connection."""
        made = NamedConnection(self._creator.serverConnectionForTLS(protocol).get_context())
        made.names = self._names
        return made


def withKnownNames(endpoint: Any, names: Sequence[bytes]) -> Any:
    """
    Return an endpoint that looks up known server names only.

    @param endpoint: a C{tls:} endpoint, made by Twisted.
    @param names: the names of its certificates.
    """
    creator = NamedConnections(endpoint.connectionCreator, names)
    # Twisted before 26.4 has no wrapServerTLS.
    return endpoints.wrapServerTLS(creator, endpoint.endpoint)
