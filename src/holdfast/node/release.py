"""``holdfast release``: nobody is served from this machine any more, although there is no agent to see to it.

The supervisor calls it when the agent has died or was stopped. First the addresses go, because they are how clients and
the other machine's neighbours reach us: by what the agent wrote down when it took them (``served``), with nothing
imported that this does not need. Then the configuration is read, what it names besides is given back too, and the mail
software is killed. A configuration that cannot be read stops none of it that is known without.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.node import served
from holdfast.node.address import Addresses
from holdfast.node.served import Served

if TYPE_CHECKING:
    from holdfast.mail.settings import MailSettings
    from holdfast.node.address_command import CommandedAddresses
    from holdfast.node.settings import Settings

UNKNOWN_HINT: Final = (
    "The agent wrote down nothing that it serves with on this machine, and the configuration names nothing: "
    "look yourself (`ip address`, `systemctl status`), then mend the configuration (`holdfast check`)."
)


class Released(NamedTuple):
    """What was done, in sentences, and what went wrong. Nothing is served from here when *failed* is empty."""

    done: tuple[str, ...]
    failed: tuple[HoldfastError, ...]
    remarks: tuple[str, ...]


def release(configuration: Path) -> Released:
    """Stop serving. Never raises HoldfastError: everything is tried, and what failed is in the answer."""
    done: list[str] = []
    failed: list[HoldfastError] = []
    remarks: list[str] = []
    began = time.monotonic()
    run = served.run_directory(configuration)
    written: Served | None = None
    try:
        written = served.read(run)
        if written is not None and not written.command:
            _drop(written.interface, written.addresses, began, done)
    except HoldfastError as error:
        failed.append(error)
    settings = None
    try:
        settings = _settings(configuration)
    except ConfigurationError as error:
        if written is None:
            failed.append(ConfigurationError(error.message, hint=f"{error.hint} {UNKNOWN_HINT}"))
        else:
            remarks.append(f"{error.message} (what was served is known without)")
    if settings is not None and settings.me.role == "mail" and not settings.service.command:
        try:
            _drop(settings.service.interface, settings.service.addresses, began, done)
        except HoldfastError as error:
            failed.append(error)
    for mail in _mail(settings, written, failed):
        try:
            done.append(_stop(mail))
        except HoldfastError as error:
            failed.append(error)
    for command in _commands(settings, written):
        try:
            gone = command.release()
            done.append(f"gave up {', '.join(map(str, gone))} by command" if gone else "the address is not here")
        except HoldfastError as error:
            failed.append(error)
    if not failed:
        served.forget(run)
    return Released(tuple(dict.fromkeys(done)), tuple(failed), tuple(remarks))


def _drop(interface: str, addresses: tuple[str, ...], began: float, done: list[str]) -> None:
    gone = Addresses(interface, addresses).release()
    if gone:
        milliseconds = (time.monotonic() - began) * 1000
        done.append(f"gave back {', '.join(map(str, gone))} after {milliseconds:.0f} ms")


def _commands(settings: Settings | None, written: Served | None) -> list[CommandedAddresses]:
    """Where a program moves the addresses: called last, because it may take seconds."""
    from holdfast.node.address_command import CommandedAddresses

    if written is not None and written.command:
        given = (written.command, written.addresses, written.command_seconds, dict(written.environment))
        return [CommandedAddresses(*given)]
    if settings is not None and settings.me.role == "mail" and settings.service.command:
        service = settings.service
        given = (service.command, service.addresses, service.command_seconds, settings.outside_environment)
        return [CommandedAddresses(*given)]
    return []


def _settings(configuration: Path) -> Settings:
    from holdfast.node.settings import load_settings

    return load_settings(configuration)


def _mail(settings: Settings | None, written: Served | None, failed: list[HoldfastError]) -> list[MailSettings]:
    """The mail software to stop: that of the configuration, and what was started by another one."""
    import msgspec

    from holdfast.mail.settings import MailSettings

    found = [settings.mail] if settings is not None and settings.me.role == "mail" else []
    if written is not None:
        try:
            mail = msgspec.convert(written.mail, MailSettings)
            if mail not in found:
                found.append(mail)
        except msgspec.ValidationError as error:
            if not found:
                failed.append(HoldfastError(f"what the agent wrote down of the mail software is damaged: {error}"))
    return found


def _stop(mail: MailSettings) -> str:
    """Kill the mail software of this machine. Raises HoldfastError when some of it may still serve."""
    import asyncio

    from holdfast.mail.commands import SystemCommands
    from holdfast.mail.site import MailSite

    site = MailSite(mail, SystemCommands())
    asyncio.run(site.stop(force=True))
    return f"stopped {', '.join(site.services) or 'no mail software: there is none'}"
