"""Certificates that mail software is configured with, and whether each is valid now and fits its key.

A program that starts with a certificate that does not fit its key serves nobody, and one that has ended is refused by
clients: both are found here before the program is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from holdfast.mail.doveconf import Section

ENDS_WITHIN: Final = timedelta(days=14)
"""A mail certificate that ends so soon would end in somebody's holidays."""
BYTES_MAX: Final = 256 * 1024
_DOVECOT: Final = re.compile(r"^ssl_(server_)?(alt_)?cert(_file)?$")


class Pair(NamedTuple):
    """As configured: absolute paths; *key* may be the same file as *certificate*."""

    certificate: str
    key: str
    named_by: str


def of_postfix(settings: Mapping[str, str]) -> list[Pair]:
    """*settings*: as ``postconf -n -x`` and ``-P -x`` give them."""
    found = []
    for key, value in settings.items():
        name = key.rpartition("/")[2]
        if re.search(r"_tls_(ec|d)?cert_file$", name) and value.startswith("/"):
            of_key = settings.get(key.replace("cert_file", "key_file"), value)
            found.append(Pair(value, of_key if of_key.startswith("/") else value, f"postfix {key}"))
        elif name.endswith("_tls_chain_files"):
            found += [Pair(path, path, f"postfix {key}") for path in re.split(r"[\s,]+", value) if path.startswith("/")]
    return found


def of_dovecot(root: Section) -> list[Pair]:
    """*root*: the parsed output of ``doveconf -n -P``. 2.3 writes ``ssl_cert = </path``, 2.4 ``..._file = /path``."""
    found = []
    for section in root.all():
        for key, value in section.settings.items():
            if _DOVECOT.match(key) and (path := value.lstrip("<").strip()).startswith("/"):
                of_key = section.settings.get(key.replace("cert", "key"), "").lstrip("<").strip()
                found.append(Pair(path, of_key if of_key.startswith("/") else path, f"dovecot {key}"))
    return found


def wrong(pairs: Iterable[Pair], now: datetime) -> list[str]:
    """One sentence for each thing that is wrong. A file that is not there is left to the program's own check."""
    found = []
    for pair in dict.fromkeys(pairs):
        content = _content(pair.certificate)
        if content is None:
            continue
        try:
            certificate = x509.load_pem_x509_certificate(content)  # the first one: the chain stands behind it
        except ValueError as error:
            found.append(f"{pair.certificate} ({pair.named_by}) holds no certificate: {error}")
            continue
        if said := _time(certificate, pair.certificate, now):
            found.append(said)
        if unfit := _unfit(certificate, pair):
            found.append(unfit)
    return list(dict.fromkeys(found))


def _time(certificate: x509.Certificate, path: str, now: datetime) -> str:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if ends < now:
        return f"the certificate {path} ended on {ends:%Y-%m-%d}"
    if begins > now:
        return f"the certificate {path} is valid from {begins:%Y-%m-%d} on: is this machine's clock right?"
    return f"the certificate {path} ends on {ends:%Y-%m-%d}" if ends - now < ENDS_WITHIN else ""


def _unfit(certificate: x509.Certificate, pair: Pair) -> str:
    content = _content(pair.key)
    if content is None:
        return ""
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        return ""  # it has a passphrase, which the program knows and we need not
    except ValueError as error:
        return f"{pair.key} (for {pair.named_by}) holds no private key: {str(error).splitlines()[0]}"
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        return f"the key {pair.key} does not fit the certificate {pair.certificate} ({pair.named_by})"
    return ""


def _content(path: str) -> bytes | None:
    try:
        file = Path(path)
        return file.read_bytes() if file.stat().st_size <= BYTES_MAX else None
    except OSError:
        return None
