"""Keys and certificates for TLS."""

from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

# Twisted uses what pyOpenSSL has deprecated.
passesX509 = pytest.mark.filterwarnings("ignore:.*cryptography:DeprecationWarning")


def pem(*names: str, bits: int = 2048, issuer: str = "localhost") -> tuple[str, str]:
    """Return a key, and its certificate for DNS names."""
    key = rsa.generate_private_key(65537, bits)
    by, name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
        for text in (issuer, "localhost")
    )
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(by, name, key.public_key(), 1, now, now + timedelta(days=1))
    if names:
        extension = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
        builder = builder.add_extension(extension, critical=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = builder.sign(key, hashes.SHA256())
    return private.decode(), certificate.public_bytes(Encoding.PEM).decode()
