"""A certificate for each supplier of blocks, and how its callers know it: by its digest.

No authority signs them. The control plane tells a node the digests of the source's certificate and
of its peers', over a connection that is trusted already.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from zeropull.errors import AccessDenied
from zeropull.linux.files import replace_file

_VALID = datetime.timedelta(days=3650)
_EARLIER = datetime.timedelta(days=1)  # clocks of other machines


def ensure_certificate(path: Path, name: str) -> str:
    """Make `path` (PEM: key and certificate, 0600) unless it is there; returns the certificate's
    SHA-256 as 64 hex digits.

    Raises:
        OSError: it cannot be written.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, _make(name))
    certificate = x509.load_pem_x509_certificate(path.read_bytes().partition(b"-----END ")[2])
    return certificate.fingerprint(hashes.SHA256()).hex()


def server_context(path: Path) -> ssl.SSLContext:
    """For a supplier: TLS 1.3 with the key and certificate at `path`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(path)
    return context


def client_context() -> ssl.SSLContext:
    """For a caller, who compares the certificate's digest with `check_peer`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_peer(connection: socket.socket, digest: str, name: str) -> None:
    """Hold the other side's certificate to its digest (64 hex digits).

    Raises:
        AccessDenied: it has another one; nothing has been sent to it.
    """
    assert isinstance(connection, ssl.SSLSocket)
    found = hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()
    if not hmac.compare_digest(found, digest):
        raise AccessDenied(f"{name} has a certificate with the digest {found}, expected {digest}")


def _make(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
