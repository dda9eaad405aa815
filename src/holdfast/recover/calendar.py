"""Events, tasks and contacts into the running Radicale, additively.

Nobody but its owner has the password of a calendar, so the items are added where Radicale keeps them: while its own
lock (``.Radicale.lock`` of the storage folder, flock(2)) is held, each by a file written beside and linked to its name,
which fails when the name is taken. Radicale looks at its directories at every request: it need not be told, and its
clients are told by the next synchronisation.

The same item is there when its collection has its UID with the same bytes. With other bytes it was changed since: it is
left alone (a collection cannot hold two of one UID, RFC 4791 4.1), and the plan says into which other collection it
could go.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.errors import ConfigurationError, EnvironmentUnfit, Refused
from holdfast.files import sync_folder
from holdfast.mail import groupware_items
from holdfast.recover.groupware import Version
from holdfast.vault.faults import VaultDamaged

LOCK_NAME: Final = ".Radicale.lock"
LOCK_SECONDS_MAX: Final = 30.0
LOCK_LOOK_SECONDS: Final = 0.02
ITEM_MODE, FOLDER_MODE = 0o600, 0o700
"""As Radicale makes them with its default umask."""


class ItemVerdict(StrEnum):
    ADD = "add"
    THERE = "there"
    CHANGED = "changed since"
    UNREADABLE = "unreadable"
    ADDED = "added"


class ItemStep(Struct):
    """*folder*: the collection's directory below the storage folder; *reason*: of the verdict, for people."""

    version: Version
    folder: bytes
    verdict: ItemVerdict
    reason: str = ""
    content: bytes = b""
    properties: bytes = b""
    """Of the collection, where it has to be made."""


def plan_items(
    storage: Path,
    versions: Iterable[Version],
    read: Callable[[Version], tuple[bytes, bytes]],
    into: str = "",
) -> list[ItemStep]:
    """What would be done. *read*: an item's content and its collection's properties, out of the vault. *into*: the name
    of another collection of the same owner. Raises ConfigurationError (no storage folder)."""
    if not (storage / os.fsdecode(groupware_items.COLLECTIONS)).is_dir():
        hint = "Name Radicale's configuration in [mail.radicale]: config, or give --radicale FOLDER."
        raise ConfigurationError(f"{storage} is no storage folder of Radicale", hint=hint)
    return [_step(storage, version, read, into) for version in versions]


def _step(storage: Path, version: Version, read: Callable[[Version], tuple[bytes, bytes]], into: str) -> ItemStep:
    folder = _folder(version, into)
    try:
        content, properties = read(version)
    except VaultDamaged as error:
        return ItemStep(version, folder, ItemVerdict.UNREADABLE, error.message)
    if into:
        properties = _renamed(properties, into)
    step = ItemStep(version, folder, ItemVerdict.ADD, "not there", content, properties)
    _judge(storage, step)
    return step


def _judge(storage: Path, step: ItemStep) -> None:
    """Against what is there now."""
    path = storage / os.fsdecode(step.folder)
    if not path.is_dir():
        step.reason = f"not there; its collection {os.fsdecode(step.folder)} is made"
        return
    for file in sorted(path.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        there = file.read_bytes()
        if there == step.content:
            step.verdict, step.reason = ItemVerdict.THERE, f"the same item is there ({file.name})"
            return
        other = groupware_items.item(there)
        if other is not None and other.uid and other.uid == step.version.item.uid:
            step.verdict = ItemVerdict.CHANGED
            step.reason = f"{file.name} has its UID and other contents: it stays. Another collection: --into-folder"
            return


def execute_items(storage: Path, steps: list[ItemStep]) -> None:
    """Do what the plan says, under Radicale's lock; each step is judged again first. Raises Refused (the lock is held
    for long), EnvironmentUnfit (no right to write there)."""
    try:
        with _locked(storage):
            owner = storage.stat()
            for step in steps:
                if step.verdict is ItemVerdict.ADD:
                    _judge(storage, step)
                if step.verdict is ItemVerdict.ADD:
                    _add(storage, step, (owner.st_uid, owner.st_gid))
    except PermissionError as error:
        raise EnvironmentUnfit(f"{error.filename}: {error.strerror}", hint="Run it as root.") from None


@contextmanager
def _locked(storage: Path) -> Iterator[None]:
    descriptor = os.open(storage / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, ITEM_MODE)
    try:
        if os.fstat(descriptor).st_uid != storage.stat().st_uid:  # we made it: Radicale must be able to open it
            os.fchown(descriptor, storage.stat().st_uid, storage.stat().st_gid)
        _wait_for(descriptor, storage)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, storage: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS_MAX
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                hint = "A request of Radicale's takes long: repeat, or stop Radicale first."
                raise Refused(f"{storage / LOCK_NAME} is held for {LOCK_SECONDS_MAX:.0f} s", hint=hint) from None
            time.sleep(LOCK_LOOK_SECONDS)


def _add(storage: Path, step: ItemStep, owner: tuple[int, int]) -> None:
    folder = storage / os.fsdecode(step.folder)
    _make(storage, folder, step.properties, owner)
    name = os.fsdecode(step.version.entry.name)
    temporary = folder / f".Radicale.tmp-{secrets.token_hex(8)}"
    try:
        _write(temporary, step.content, owner)
        while True:
            try:
                os.link(temporary, folder / name)
                break
            except FileExistsError:  # another item took the name since
                stem, dot, suffix = name.rpartition(".")
                name = f"{stem or suffix}-{secrets.token_hex(4)}{dot}{suffix if stem else ''}"
        temporary.unlink()
        sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)
    step.verdict, step.reason = ItemVerdict.ADDED, ""


def _make(storage: Path, folder: Path, properties: bytes, owner: tuple[int, int]) -> None:
    """The collection's directory, with all above it; its properties last: they make it a collection."""
    missing = [path for path in (folder, *folder.parents) if storage in path.parents and not path.exists()]
    for path in reversed(missing):
        path.mkdir(FOLDER_MODE)
        os.chown(path, *owner)
    target = folder / os.fsdecode(groupware_items.PROPERTIES)
    if missing and properties:
        temporary = folder / f".Radicale.tmp-{secrets.token_hex(8)}"
        _write(temporary, properties, owner)
        temporary.rename(target)
        sync_folder(folder.parent)


def _write(path: Path, data: bytes, owner: tuple[int, int]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, ITEM_MODE)
    with open(descriptor, "wb") as file:
        os.fchown(descriptor, *owner)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _folder(version: Version, into: str) -> bytes:
    path = version.shelf.path
    if not into:
        return path
    plain = re.sub(r"[^a-z0-9]+", "-", into.lower()).strip("-") or "restored"
    return path.rpartition(b"/")[0] + b"/" + plain.encode()


def _renamed(properties: bytes, name: str) -> bytes:
    try:
        read = json.loads(properties)
    except ValueError:
        read = {}
    made = {**(read if isinstance(read, dict) else {}), "D:displayname": name}
    return json.dumps(made).encode()
