"""The site's certificate: self-signed, for the service name, the same on every machine that may serve it."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from holdfast.files import PRIVATE, PUBLIC, write_once

VALID_DAYS: Final = 365
BACKDATED: Final = datetime.timedelta(hours=25)
"""Drills set clocks back; the certificate is not what they test."""


def make(folder: Path, name: str, addresses: Sequence[str], now: datetime.datetime) -> tuple[Path, Path]:
    """Certificate and key in *folder*, made when they are not there yet."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    if certificate.exists() and key.exists():
        return certificate, key
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    write_once(key, private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), PRIVATE)
    write_once(certificate, made.public_bytes(pem), PUBLIC)
    return certificate, key
