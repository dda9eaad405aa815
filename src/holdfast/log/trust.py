"""Who may talk to whom: a small certificate authority of the site's own.

``holdfast init`` makes an :class:`Authority`, ``holdfast join`` has it issue one :class:`Identity` a machine. A
certificate says three things, as URIs in its subject alternative name (RFC 5280 section 4.2.1.6), which nats-server's
``verify_and_map`` compares with its user names (server/auth.go, checkClientTLSCertSubject):

- ``holdfast:role/mail`` or ``holdfast:role/relay``: what its agent may do on the log;
- ``holdfast:role/server``: its server may join the others as a route;
- ``holdfast:machine/NAME``: whose it is (for people and for ``status``).

A second certificate on the same key, ``holdfast:role/steward``, may do one thing: move the leader of the log servers'
metadata (nats-server allows that to its system account only, and a certificate is one user).

Keys are P-256: nats-server (Go's crypto/tls) and OpenSSL take them everywhere; Ed25519 certificates are still refused
by some monitoring and proxy tools.

Rotation has two steps, and nothing is refused in between. :meth:`Authority.rotate` makes a new CA; from then on every
issue hands out trust in both. When every machine has been issued anew, :meth:`Authority.retire` ends trust in the old.
The order matters: a machine must trust the new CA before another presents a certificate made by it, so between
``rotate`` and ``retire`` certificates are signed by the *old* CA until ``sign_with_new``.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast.changes.names import MachineName, checked_name
from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.files import PRIVATE, PUBLIC, write_once

AUTHORITY_DAYS: Final = 3650
"""A CA outlives the machines it was made for; ``rotate`` is there for the rest."""
MACHINE_DAYS: Final = 825
"""What browsers and macOS allow for own CAs; long enough that a forgotten renewal is warned of for months."""
WARNING_DAYS: Final = 60
"""``status`` warns from here on."""
CLOCK_SKEW: Final = timedelta(hours=1)
"""Certificates are valid from this much before their making: the other machine's clock may be behind."""
SERVER_USER: Final = "holdfast:role/server"
STEWARD_USER: Final = "holdfast:role/steward"
HOST_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""RFC 1123 section 2.1."""


class Role(StrEnum):
    """What a machine's agent may do on the log (see server_config for the permissions)."""

    MAIL = "mail"
    RELAY = "relay"

    @property
    def user(self) -> str:
        """The name nats-server maps such a certificate to."""
        return f"holdfast:role/{self.value}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where one machine's identity lies: the CA certificates it trusts, its certificates and their key (all PEM)."""

    trust: Path
    certificate: Path
    key: Path
    steward: Path | None = None

    @classmethod
    def inside(cls, folder: Path) -> TlsFiles:
        return cls(folder / "trust.pem", folder / "machine.pem", folder / "machine.key", folder / "steward.pem")

    def as_steward(self) -> TlsFiles | None:
        """The same, presenting the steward's certificate; None where there is none (certificates from elsewhere)."""
        return replace(self, certificate=self.steward) if self.steward is not None else None


@dataclass(frozen=True, slots=True)
class Identity:
    """A machine's certificates, their key and whom it trusts, as PEM."""

    trust: bytes
    certificate: bytes
    key: bytes
    steward: bytes

    def write(self, folder: Path) -> TlsFiles:
        """Write the files into *folder* (made, mode 0700, if absent); the key readable by its owner only."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = TlsFiles.inside(folder)
        write_once(files.key, self.key, PRIVATE)
        write_once(files.trust, self.trust, PUBLIC)
        write_once(folder / "steward.pem", self.steward, PUBLIC)
        write_once(files.certificate, self.certificate, PUBLIC)
        return files


@dataclass(frozen=True, slots=True)
class Described:
    """What a certificate says, for ``status``."""

    machine: str
    roles: tuple[str, ...]
    addresses: tuple[str, ...]
    valid_from: datetime
    valid_until: datetime

    def days_left(self, now: datetime) -> float:
        return (self.valid_until - now) / timedelta(days=1)

    def warning(self, now: datetime) -> str | None:
        """A sentence for ``status`` when the certificate has expired, is not valid yet, or ends within WARNING_DAYS."""
        if now < self.valid_from:
            return f"the certificate of {self.machine} is valid from {self.valid_from:%Y-%m-%d %H:%M}: check the clock"
        left = self.days_left(now)
        if left < 0:
            return f"the certificate of {self.machine} expired on {self.valid_until:%Y-%m-%d}: issue a new one"
        if left < WARNING_DAYS:
            return f"the certificate of {self.machine} expires on {self.valid_until:%Y-%m-%d}: issue a new one"
        return None


class Authority:
    """The site's CA, in a folder of its own: ``ca.pem`` and ``ca.key``; during a changeover also ``next.pem`` and
    ``next.key``; after :meth:`sign_with_new` also ``old.pem`` (without key: it can sign nothing more).

    Invariant: every step writes what is to be trusted before what is to be signed with, so that a crash between two
    files never leaves an authority that issues certificates its own trust file does not cover.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._certificate = _certificate_in(folder / "ca.pem")
        self._key = _key_in(folder / "ca.key")
        self._finish_change()
        if self._key.public_key() != self._certificate.public_key():
            raise HoldfastError(
                f"the key and the certificate of the authority in {folder} do not belong together",
                hint="Restore that folder from a backup, or create a new authority and join every machine again.",
            )

    @classmethod
    def create(cls, site: str, folder: Path, *, now: datetime | None = None) -> Authority:
        """A new authority for *site* in *folder* (made, mode 0700). Raises ConfigurationError if there is one."""
        checked_name(site, "site")
        if (folder / "ca.pem").exists():
            raise ConfigurationError(
                f"{folder} holds a certificate authority already", hint="Use it, or choose another folder."
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(site, key, now or datetime.now(UTC))
        write_once(folder / "ca.key", _key_pem(key), PRIVATE)
        write_once(folder / "ca.pem", _pem(certificate), PUBLIC)
        return cls(folder)

    @property
    def site(self) -> str:
        name = self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        return name if isinstance(name, str) else name.decode()

    @property
    def valid_until(self) -> datetime:
        return self._certificate.not_valid_after_utc

    def trust(self) -> bytes:
        """The CA certificates a machine of this site accepts now, PEM, one after the other."""
        extra = [self.folder / name for name in ("next.pem", "old.pem") if (self.folder / name).exists()]
        return b"".join([_pem(self._certificate), *(path.read_bytes() for path in extra)])

    def issue(
        self,
        machine: MachineName,
        addresses: Iterable[str],
        days: int = MACHINE_DAYS,
        *,
        role: Role = Role.MAIL,
        now: datetime | None = None,
    ) -> Identity:
        """A fresh key and certificate for *machine*, answering to *addresses* (IP addresses or host names).

        *days* is cut to the CA's own end. Raises ConfigurationError for a bad name or address, or an expired CA.
        """
        checked_name(machine, "machine")
        moment = now or datetime.now(UTC)
        if moment >= self.valid_until:
            raise ConfigurationError(
                f"the certificate authority in {self.folder} expired on {self.valid_until:%Y-%m-%d}",
                hint="Make a new one (holdfast trust rotate) and issue every machine anew.",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        validity = (moment - CLOCK_SKEW, min(moment + timedelta(days=days), self.valid_until))
        links = (role.user, SERVER_USER, f"holdfast:machine/{machine}")
        certificate = self._signed(machine, key, _names(machine, addresses, links), validity)
        steward = self._signed(machine, key, _names(machine, (), (STEWARD_USER,)), validity)
        return Identity(self.trust(), _pem(certificate), _key_pem(key), _pem(steward))

    def _signed(
        self,
        machine: MachineName,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
        validity: tuple[datetime, datetime],
    ) -> x509.Certificate:
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder()
            .subject_name(_name(self.site, machine))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(validity[0])
            .not_valid_after(validity[1])
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_issuer_identifier(self._certificate), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def rotate(self, *, now: datetime | None = None) -> None:
        """First step of a changeover: make the next CA and trust it beside this one; this one goes on signing.

        Now bring :meth:`trust` to every machine (issue each anew), then :meth:`sign_with_new`. Idempotent.
        """
        if (self.folder / "next.pem").exists():
            return
        key = ec.generate_private_key(ec.SECP256R1())
        write_once(self.folder / "next.key", _key_pem(key), PRIVATE)
        write_once(self.folder / "next.pem", _pem(_self_signed(self.site, key, now or datetime.now(UTC))), PUBLIC)

    def sign_with_new(self) -> None:
        """Second step, when every machine trusts both: the new CA signs, the old is still trusted.

        Now issue every machine anew, then :meth:`retire`. Raises ConfigurationError when :meth:`rotate` was not called.
        """
        if not (self.folder / "next.pem").exists():
            raise ConfigurationError("no new certificate authority waits", hint="Begin with the rotate step.")
        write_once(self.folder / "old.pem", _pem(self._certificate), PUBLIC)
        write_once(self.folder / "ca.key", (self.folder / "next.key").read_bytes(), PRIVATE)
        self._key = _key_in(self.folder / "ca.key")
        self._finish_change()

    def retire(self) -> None:
        """Last step, when every machine has a certificate of the new CA: stop trusting the old. Idempotent."""
        (self.folder / "old.pem").unlink(missing_ok=True)

    def _finish_change(self) -> None:
        """The end of sign_with_new, also after a crash in it: the waiting certificate belongs to the key that signs."""
        waiting = self.folder / "next.pem"
        if not waiting.exists() or _certificate_in(waiting).public_key() != self._key.public_key():
            return
        write_once(self.folder / "ca.pem", waiting.read_bytes(), PUBLIC)
        self._certificate = _certificate_in(self.folder / "ca.pem")
        waiting.unlink()
        (self.folder / "next.key").unlink(missing_ok=True)


def describe(path: Path) -> Described:
    """What the (first) certificate in the PEM file *path* says. Raises ConfigurationError if it cannot be read."""
    certificate = _certificate_in(path)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    links = names.get_values_for_type(x509.UniformResourceIdentifier)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Described(
        machine=str(common[0].value) if common else "?",
        roles=tuple(link.removeprefix("holdfast:role/") for link in links if link.startswith("holdfast:role/")),
        addresses=tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
        + tuple(names.get_values_for_type(x509.DNSName)),
        valid_from=certificate.not_valid_before_utc,
        valid_until=certificate.not_valid_after_utc,
    )


def _self_signed(site: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # The moment is part of the name: OpenSSL looks issuers up by name, and an old and a new CA are trusted together.
    name = _name(site, f"Holdfast CA {now:%Y-%m-%d %H:%M:%S.%f}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _names(machine: MachineName, addresses: Iterable[str], links: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(machine)]
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(_host_name(address)))
    return [*names, *(x509.UniformResourceIdentifier(link) for link in links)]


def _host_name(text: str) -> str:
    name = text.lower().rstrip(".")
    if len(name) > 253 or not all(HOST_LABEL.fullmatch(label) for label in name.split(".")):
        raise ConfigurationError(f"address {text!r} is neither an IP address nor a host name", hint="Say 192.0.2.7.")
    return name


def _name(site: str, common: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, site)
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_in(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        hint = "Join this machine again."
        raise ConfigurationError(f"{path} is not a readable certificate: {error}", hint=hint) from error


def _key_in(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        hint = "Restore it from a backup."
        raise ConfigurationError(f"{path} is not a readable private key: {error}", hint=hint) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} is not an elliptic-curve key", hint="Restore it from a backup.")
    if os.stat(path).st_mode & 0o077:
        hint = f"chmod 600 {path}, and think who may have read it."
        raise ConfigurationError(f"{path} can be read by others", hint=hint)
    return key
