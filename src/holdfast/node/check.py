"""``holdfast check``: would an agent start with these files, and what in them asks for trouble.

An error is what the agent does not start with: it raises ConfigurationError, naming file, key and what was expected.
A warning is what it starts with, and a person should know; nothing of it is asked of the network or of an agent.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from holdfast.errors import ConfigurationError
from holdfast.log.trust import describe
from holdfast.node import netlink
from holdfast.node.enrol import Folder
from holdfast.node.settings import Settings, load_settings


class Checked(Struct, frozen=True):
    """A configuration that an agent starts with."""

    file: str
    site: str
    machine: str
    role: str
    machines: int
    warnings: tuple[str, ...]


def check(configuration: Path, now: datetime) -> Checked:
    """Read everything an agent reads before it starts. Raises ConfigurationError."""
    settings = load_settings(configuration)
    folder = Folder(configuration.parent)
    files = folder.tls_files()
    for path in (files.trust, files.key):
        _readable(path)
    described = describe(files.certificate)
    if settings.me.role == "mail":
        folder.read_segment_key()
    if settings.relay.takes_mail:
        folder.read_relay_key()
    warnings = [*_warnings(settings)]
    if described.machine != settings.machine:
        warnings.append(
            f"{files.certificate} is the certificate of {described.machine!r}, and the line `machine` says "
            f"{settings.machine!r}: was the file copied from another machine?"
        )
    if ends := described.warning(now):
        warnings.append(ends)
    return Checked(
        str(configuration), settings.site, settings.machine, settings.me.role, len(settings.machines), tuple(warnings)
    )


def _readable(path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}",
            hint="It came with `holdfast init` or `holdfast join`: run that again, or restore it from your safe.",
        ) from None


def _warnings(settings: Settings) -> Iterator[str]:
    if settings.without_majority:
        yield settings.without_majority
    interfaces = [name for _, name in socket.if_nameindex()]
    own = ipaddress.ip_address(settings.me.address)
    try:
        if not any(there.ip == own for name in interfaces for there in netlink.addresses(name)):
            yield f"machines: {settings.machine!r} has address = {settings.me.address!r}, which is not here now"
    except OSError as error:
        yield f"the addresses of this machine cannot be read: {error}"
    if settings.me.role != "mail":
        return
    if not settings.service.addresses:
        yield "service.addresses is empty: clients would have to be told where the mail server is after a takeover"
    elif settings.service.interface not in interfaces:
        yield f"service.interface = {settings.service.interface!r} is not here, but {', '.join(interfaces)}"
    try:
        if settings.mail.probe.account() is None:
            yield "mail.probe.user is empty: probes stop at the greeting, and show less than a login would"
    except ConfigurationError as error:
        yield error.message
