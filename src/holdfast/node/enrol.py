"""How machines become a site: ``init`` on the first, a bundle carried to each other one, ``join`` there.

``init`` makes, on the machine that holds the mail today:

    /etc/holdfast/holdfast.toml      the configuration, the same on every machine but for its line ``machine``
    /etc/holdfast/authority/         the site's certificate authority (keep a copy in a safe)
    /etc/holdfast/tls/               this machine's certificate, key, and whom it trusts
    /etc/holdfast/segment.key        seals the frames; on mail machines only, never on a relay
    /etc/holdfast/relay.key          seals the side streams; on every machine
    /etc/holdfast/bundles/NAME.join  for each other machine: all of the above it needs, sealed

A bundle is sealed with a join code (128 random bits as words of five letters and digits) that ``init`` prints and that
travels another way than the file: scrypt (RFC 7914; N 2^15, r 8, p 1) of the code is the AES-256-GCM key. ``join``
opens it and writes the files. Nothing is started by either; the agent does that.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from msgspec import Struct

from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import MachineName
from holdfast.errors import ConfigurationError, HoldfastError, Refused
from holdfast.files import PRIVATE, PUBLIC, write_once
from holdfast.log.side_seal import RelayKey
from holdfast.log.trust import Authority, Identity, Role, TlsFiles
from holdfast.node.settings import Settings, parse_settings

CONFIGURATION_FOLDER: Final = Path("/etc/holdfast")
MAGIC: Final = b"HFJOIN1\n"
ALPHABET: Final = "abcdefghjkmnpqrstuvwxyz23456789"
"""Without i, l, o, 0, 1: a code is read over the telephone."""
CODE_LETTERS: Final = 26
"""31^26 is above 2^128."""


class Bundle(Struct, frozen=True):
    """What another machine needs to belong to the site. *segment_key* is empty for a relay; *relay_key* is in bundles
    made since there are side streams."""

    configuration: str
    trust: bytes
    certificate: bytes
    key: bytes
    steward: bytes
    segment_key: bytes
    relay_key: bytes = b""


class Folder:
    """Where the files of this page are on a machine."""

    def __init__(self, base: Path = CONFIGURATION_FOLDER) -> None:
        self.base = base
        self.configuration = base / "holdfast.toml"
        self.authority = base / "authority"
        self.tls = base / "tls"
        self.segment_key = base / "segment.key"
        self.relay_key = base / "relay.key"
        self.bundles = base / "bundles"

    def tls_files(self) -> TlsFiles:
        return TlsFiles.inside(self.tls)

    def read_segment_key(self) -> SegmentKey:
        """Raises ConfigurationError."""
        try:
            return SegmentKey(bytes.fromhex(self.segment_key.read_text().strip()))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self.segment_key} cannot be read: {error}",
                hint="It came with `holdfast init` or `holdfast join`: run that again, or restore it from your safe.",
            ) from None

    def read_relay_key(self) -> RelayKey:
        """Raises ConfigurationError."""
        try:
            return RelayKey(bytes.fromhex(self.relay_key.read_text().strip()))
        except (OSError, ValueError, HoldfastError) as error:
            raise ConfigurationError(
                f"{self.relay_key} cannot be read: {error}",
                hint="`holdfast trust renew` where `holdfast init` ran, then `holdfast join` with its bundle here.",
            ) from None


def make_code() -> str:
    """A fresh join code, in groups of five."""
    letters = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LETTERS))
    return "-".join(letters[at : at + 5] for at in range(0, CODE_LETTERS, 5))


def _cipher(code: str, salt: bytes) -> AESGCM:
    plain = re.sub(r"[\s-]", "", code.lower())
    return AESGCM(Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(plain.encode()))


def seal_bundle(bundle: Bundle, code: str) -> bytes:
    salt, nonce = os.urandom(16), os.urandom(12)
    return MAGIC + salt + nonce + _cipher(code, salt).encrypt(nonce, msgspec.msgpack.encode(bundle), MAGIC)


def open_bundle(data: bytes, code: str) -> Bundle:
    """Raises ConfigurationError: not a bundle, or not this code."""
    if not data.startswith(MAGIC):
        raise ConfigurationError("that file is no join bundle", hint="Take bundles/NAME.join from the first machine.")
    rest = data[len(MAGIC) :]
    try:
        plain = _cipher(code, rest[:16]).decrypt(rest[16:28], rest[28:], MAGIC)
        return msgspec.msgpack.decode(plain, type=Bundle)
    except (InvalidTag, ValueError, msgspec.DecodeError):
        raise ConfigurationError(
            "the join code does not open this bundle", hint="Type the code that `holdfast init` printed with it."
        ) from None


def _identity(authority: Authority, settings: Settings, machine: str) -> Identity:
    described = next(m for m in settings.machines if m.name == machine)
    role = Role.RELAY if described.role == "relay" else Role.MAIL
    return authority.issue(MachineName(machine), [described.address, machine], role=role)


def configuration_for(text: str, machine: str) -> str:
    """The configuration *text* with its line ``machine`` naming *machine*."""
    changed, count = re.subn(r"(?m)^machine\s*=.*$", f'machine = "{machine}"', text, count=1)
    if not count:
        raise ConfigurationError("the configuration has no line `machine = ...`", hint="Add it at the top.")
    return changed


def create_site(configuration: str, folder: Folder) -> dict[str, str]:
    """``holdfast init``: write this machine's files and a bundle for each other. Machine name to join code.

    Refuses when the folder holds a site already.
    """
    settings = parse_settings(configuration, "the configuration to be written")
    if folder.configuration.exists():
        raise Refused(
            f"{folder.configuration} exists: this machine belongs to a site already",
            hint="`holdfast status` shows it. To begin anew, move the folder away first.",
        )
    folder.base.mkdir(mode=0o755, parents=True, exist_ok=True)
    authority = Authority.create(settings.site, folder.authority)
    key = SegmentKey.generate()
    _identity(authority, settings, settings.machine).write(folder.tls)
    write_once(folder.segment_key, key.secret.hex().encode() + b"\n", PRIVATE)
    make_relay_key(folder)
    codes = {}
    for machine in settings.machines:
        if machine.name != settings.machine:
            codes[machine.name] = write_bundle(configuration, authority, key, machine.name, folder)
    write_once(folder.configuration, configuration.encode(), PUBLIC)
    return codes


def make_relay_key(folder: Folder) -> None:
    """A site from before there were side streams gets its relay key by ``holdfast trust renew``."""
    if not folder.relay_key.exists():
        write_once(folder.relay_key, RelayKey.generate().secret.hex().encode() + b"\n", PRIVATE)


def write_bundle(configuration: str, authority: Authority, key: SegmentKey, machine: str, folder: Folder) -> str:
    """Write ``bundles/MACHINE.join`` with a fresh certificate; the join code."""
    text = configuration_for(configuration, machine)
    settings = parse_settings(text, "the configuration")
    identity = _identity(authority, settings, machine)
    relay_key = folder.read_relay_key().secret
    secret = b"" if settings.me.role == "relay" else key.secret
    code = make_code()
    folder.bundles.mkdir(mode=0o700, exist_ok=True)
    bundle = Bundle(text, identity.trust, identity.certificate, identity.key, identity.steward, secret, relay_key)
    write_once(folder.bundles / f"{machine}.join", seal_bundle(bundle, code), PRIVATE)
    return code


def renew_site(folder: Folder) -> dict[str, str]:
    """``holdfast trust renew``: a fresh certificate for this machine and a bundle for each other. Name to join code."""
    text = folder.configuration.read_text(encoding="utf-8")
    settings = parse_settings(text, str(folder.configuration))
    if not (folder.authority / "ca.key").exists():
        raise Refused(
            f"{folder.authority} is not on this machine",
            hint="Run this on the machine where `holdfast init` ran, or bring that folder here from your safe.",
        )
    authority = Authority(folder.authority)
    key = folder.read_segment_key()
    make_relay_key(folder)
    _identity(authority, settings, settings.machine).write(folder.tls)
    others = [machine.name for machine in settings.machines if machine.name != settings.machine]
    return {name: write_bundle(text, authority, key, name, folder) for name in others}


def join_site(bundle: Bundle, folder: Folder) -> Settings:
    """``holdfast join``: write the files. The same site's configuration is replaced (a renewal); another's is not."""
    settings = parse_settings(bundle.configuration, "the bundle's configuration")
    if folder.configuration.exists():
        present = parse_settings(folder.configuration.read_text(), str(folder.configuration))
        if (present.site, present.machine) != (settings.site, settings.machine):
            raise Refused(
                f"this machine is {present.machine!r} of site {present.site!r}, "
                f"the bundle is for {settings.machine!r} of {settings.site!r}",
                hint=f"To leave the old site, move {folder.base} and {present.state_directory} away first.",
            )
    folder.base.mkdir(mode=0o755, parents=True, exist_ok=True)
    Identity(bundle.trust, bundle.certificate, bundle.key, bundle.steward).write(folder.tls)
    if bundle.segment_key:
        write_once(folder.segment_key, bundle.segment_key.hex().encode() + b"\n", PRIVATE)
    if bundle.relay_key:
        write_once(folder.relay_key, bundle.relay_key.hex().encode() + b"\n", PRIVATE)
    write_once(folder.configuration, bundle.configuration.encode(), PUBLIC)
    return settings


def initial_configuration(
    *,
    site: str,
    machine: str,
    machines: dict[str, tuple[str, str]],
    service_addresses: tuple[str, ...],
    interface: str,
    mail_lines: str = "",
    failover: str = "",
) -> str:
    """The text ``init`` writes, with every key a site usually touches. *machines*: name to (role, address).

    *failover*: the policy; empty: automatic where three machines make it possible.
    """
    policy = failover or ("automatic" if len(machines) >= 3 else "manual")
    lines = [
        f"# Holdfast: site {site}. The same file on every machine, but for the line `machine`.",
        "# Every key: docs/reference/configuration.md. After a change: `holdfast check`, then restart the agent.",
        "# On the primary a restart interrupts mail for some seconds: switch over first (docs/operations/upgrade.md).",
        "",
        f'site = "{site}"',
        f'machine = "{machine}"',
        f'first_primary = "{machine}"   # who starts the log when there is none',
        "",
    ]
    for name, (role, address) in machines.items():
        lines += ["[[machines]]", f'name = "{name}"', f'role = "{role}"', f'address = "{address}"', ""]
    quoted = ", ".join(f'"{address}"' for address in service_addresses)
    lines += [
        "[service]                     # where clients find the mail server, whichever machine it is on",
        f"addresses = [{quoted}]",
        f'interface = "{interface}"',
        "",
        "[log]",
        "retention_hours = 72          # a standby away for longer is compared and mended by a scan",
        "",
        "[copy]",
        "batch_milliseconds = 50       # a batch fills so long at most, while changes keep coming",
        "seed_bytes_per_second = 0     # 0: as fast as it goes",
        "",
        "[failover]                    # what happens without a person: docs/concepts/failover.md",
        f'policy = "{policy}"',
        "",
        "# [relay]                     # relays may take mail in, too: docs/systems/relay.md",
        "",
        "[mail]                        # found by asking doveconf, postconf and Radicale's own configuration",
        mail_lines.rstrip("\n"),
        "",
    ]
    return "\n".join(lines)
