"""Whom TLS believes: the file of certificate authorities that may be configured. Used towards Redis and auth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificates
from OpenSSL.crypto import X509
from twisted.internet.ssl import Certificate, trustRootFromCertificates

__all__ = ["trust_root"]


def trust_root(ca: str) -> Any:
    """Twisted's trust root for a file of authorities in PEM; ``None``, the platform's own, for an empty path.

    Raises ``OSError`` or ``ValueError`` when the file cannot be read.
    """
    if not ca:
        return None
    found = load_pem_x509_certificates(Path(ca).read_bytes())
    return trustRootFromCertificates([Certificate(X509.from_cryptography(each)) for each in found])
