"""What an account has beside its mail: subscriptions and Sieve scripts, in a moment and in the running server."""

from __future__ import annotations

import os
from typing import Final

from msgspec import Struct

from holdfast.changes.exchange import EntryKind
from holdfast.mail import mailboxes
from holdfast.mail.port import Commands
from holdfast.recover.boxes import Box, Moment
from holdfast.recover.folder import home_of
from holdfast.vault.faults import PathUnknown, VaultDamaged
from holdfast.vault.record import Entry, TreeRoot, entries_of, lookup, split_ids

SECONDS_MAX: Final = 30.0
SCRIPT_BYTES_MAX: Final = 4 * 1024 * 1024
_FOLDER, _ACTIVE, _SUFFIX = b"sieve", b".dovecot.sieve", b".sieve"
"""Pigeonhole's usual places (https://doc.dovecot.org/2.3/configuration_manual/sieve/): ``file:~/sieve`` and the link to
the active script beside it."""


class Scripts(Struct):
    """Sieve scripts by name; *active*: one of them, or empty."""

    scripts: dict[str, bytes]
    active: str = ""


def subscriptions(moment: Moment, box: Box) -> tuple[str, ...]:
    """Folders that *box*'s account had subscribed to, with ``/`` between levels. Raises VaultDamaged."""
    tree = _tree(moment, box)
    path = box.mailbox.root + b"/subscriptions" if box.mailbox.root else b"subscriptions"
    separator = "." if box.mailbox.format is mailboxes.Format.MAILDIR else "/"
    content = _file(moment, tree, path)
    return () if content is None else mailboxes.subscribed(content, separator)


def scripts(moment: Moment, box: Box) -> Scripts:
    """Sieve scripts of *box*'s account. Raises VaultDamaged."""
    tree, home = _tree(moment, box), home_of(box)
    found = Scripts({})
    try:
        folder = lookup(tree, _below(home, _FOLDER), moment.read)
    except PathUnknown:
        return found
    if folder.kind is not EntryKind.DIRECTORY:
        return found
    for entry in entries_of(folder.content, moment.read):
        if entry.kind is EntryKind.FILE and entry.name.endswith(_SUFFIX) and entry.size <= SCRIPT_BYTES_MAX:
            name = os.fsdecode(entry.name.removesuffix(_SUFFIX))
            found.scripts[name] = b"".join(moment.read(part) for part in split_ids(entry.content))
    link = _entry(moment, tree, _below(home, _ACTIVE))
    if link is not None and link.kind is EntryKind.SYMLINK:
        active = os.fsdecode(link.content.rpartition(b"/")[2].removesuffix(_SUFFIX))
        found.active = active if active in found.scripts else ""
    return found


class ScriptPlan(Struct):
    """*put*: scripts that are not there; *activate*: empty when one is active already, or none was."""

    put: list[str]
    there: list[str]
    activate: str = ""
    problem: str = ""


async def plan_scripts(commands: Commands, config: str, user: str, wanted: Scripts) -> ScriptPlan:
    """Against what the server has."""
    result = await commands.run([*_doveadm(config), "list", "-u", user], timeout_seconds=SECONDS_MAX)
    if not result.ok:
        return ScriptPlan([], [], problem=f"Sieve scripts are left out: {result.words}")
    lines = [line.rstrip() for line in result.output.splitlines() if line.strip()]
    active = any(line.endswith(" ACTIVE") for line in lines)
    have = {line.removesuffix(" ACTIVE") for line in lines}
    put = [name for name in wanted.scripts if name not in have]
    activate = wanted.active if wanted.active in put and not active else ""
    return ScriptPlan(put, [name for name in wanted.scripts if name in have], activate)


async def execute_scripts(commands: Commands, config: str, user: str, wanted: Scripts, made: ScriptPlan) -> list[str]:
    """What went wrong, in sentences."""
    wrong: list[str] = []
    for name in made.put:
        argv = [*_doveadm(config), "put", "-u", user, name]
        result = await commands.run(argv, timeout_seconds=SECONDS_MAX, stdin=wanted.scripts[name])
        if not result.ok:
            wrong.append(f"Sieve script {name}: {result.words}")
    if made.activate and not wrong:
        argv = [*_doveadm(config), "activate", "-u", user, made.activate]
        result = await commands.run(argv, timeout_seconds=SECONDS_MAX)
        if not result.ok:
            wrong.append(f"Sieve script {made.activate} is not active: {result.words}")
    return wrong


def _doveadm(config: str) -> list[str]:
    return ["doveadm", *(("-c", config) if config else ()), "sieve"]


def _tree(moment: Moment, box: Box) -> TreeRoot:
    return next(tree for tree in moment.trees if tree.name == box.tree)


def _below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _entry(moment: Moment, tree: TreeRoot, path: bytes) -> Entry | None:
    try:
        return lookup(tree, path, moment.read)
    except PathUnknown:
        return None


def _file(moment: Moment, tree: TreeRoot, path: bytes) -> bytes | None:
    entry = _entry(moment, tree, path)
    if entry is None or entry.kind is not EntryKind.FILE:
        return None
    if entry.size > SCRIPT_BYTES_MAX:
        raise VaultDamaged(f"{os.fsdecode(path)} is larger than any such file should be")
    return b"".join(moment.read(part) for part in split_ids(entry.content))
