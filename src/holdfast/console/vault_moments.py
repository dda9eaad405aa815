"""The moments of a vault that a search goes through, and what it needs beside them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from holdfast.console.times import TimeUnclear, parse_time
from holdfast.console.vault_at import instant_at
from holdfast.console.vault_choice import cache_folder, configuration_path
from holdfast.errors import HoldfastError
from holdfast.mail.commands import SystemCommands
from holdfast.mail.dovecot import Dovecot
from holdfast.mail.mailboxes import Accounts
from holdfast.mail.settings import MailSettings
from holdfast.node.settings import load_settings
from holdfast.recover.boxes import Moment, remembering
from holdfast.recover.headers import Headers
from holdfast.vault.faults import SnapshotUnknown
from holdfast.vault.instant import Instant
from holdfast.vault.repository import SnapshotName, Vault

LABEL_CHARS = 8


def moment_of(vault: Vault, name: SnapshotName) -> Moment:
    """Raises VaultDamaged, WrongKey, SnapshotUnknown."""
    snapshot = vault.snapshot(name)
    return Moment(name.short[:LABEL_CHARS], snapshot.taken_at_ns, snapshot.trees, remembering(vault.content))


def moment_of_instant(instant: Instant) -> Moment:
    """Its label is what ``--at`` takes."""
    position = instant.position
    label = instant.target.base.short[:LABEL_CHARS]
    if instant.target.frames and position is not None:
        label = f"{position.incarnation[:LABEL_CHARS]}:{position.sequence}"
    return Moment(label, instant.snapshot.taken_at_ns, instant.snapshot.trees, remembering(instant.vault.content))


def moments(vault: Vault) -> Iterator[Moment]:
    """Every snapshot, oldest first; one that was pruned meanwhile is passed over."""
    for name in vault.snapshots():
        try:
            yield moment_of(vault, name)
        except SnapshotUnknown:
            continue


@contextmanager
def moments_at(vault: Vault, times: Sequence[str]) -> Iterator[list[Moment]]:
    """The instants that *times* mean, oldest first."""
    with ExitStack() as stack:
        instants = [stack.enter_context(instant_at(vault, text)) for text in times]
        yield sorted((moment_of_instant(instant) for instant in instants), key=lambda moment: moment.at_ns)


@contextmanager
def headers_of(vault: Vault) -> Iterator[Headers]:
    """The headers' cache beside the vault's catalog."""
    folder = cache_folder()
    path = None if folder is None else folder / f"headers-{vault.codec.secrets.vault.hex()[:12]}.sqlite"
    headers = Headers(path)
    try:
        yield headers
    finally:
        headers.close()


def mail_settings() -> MailSettings:
    """Of this machine's site, or the defaults where there is no site."""
    path = configuration_path()
    return load_settings(path).mail if path.exists() else MailSettings()


def accounts() -> Accounts:
    """Whose mail stands where: by the Dovecot of this machine where there is one, else by looking at paths."""
    try:
        settings = mail_settings().dovecot
        program = shutil.which("doveconf", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin")
        if program is None or not Path(settings.config).exists():
            return Accounts()
        return Accounts(asyncio.run(Dovecot(settings, SystemCommands()).layout()))
    except (HoldfastError, OSError):
        return Accounts()


def day_or_time(text: str, now_ns: int, *, end: bool = False) -> int:
    """As :func:`parse_time`; a day alone is its beginning, or with *end* its end. Raises TimeUnclear."""
    try:
        return parse_time(text, now_ns)
    except TimeUnclear as error:
        try:
            begin_ns = parse_time(f"{text} 00:00", now_ns)
        except TimeUnclear:
            raise error from None
    if not end:
        return begin_ns
    day = datetime.fromtimestamp(begin_ns // 10**9).astimezone().date()
    return parse_time(f"{day} 23:59:59", now_ns)
