"""What a returned primary holds that the log never got: named before it is moved aside.

Its tree index stands at its last commit; its own records after that are read again, up to the other machine's
promotion. What the trees then differ in is what it did unseen: captured by nobody. The list is written to
``rejoin-<when>.json`` in the state directory (``unseen.Report``); the seed that follows keeps the things themselves
aside. Flags of messages stand there by their names, as this machine's own ``dovecot-keywords`` had them: the seed
replaces that file, too.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from holdfast.changes.change import KIND_NAMES, Link, Rename, SetMeta
from holdfast.changes.frame import follow_chain, open_frame
from holdfast.errors import HoldfastError
from holdfast.files import write_once
from holdfast.log.port import Log
from holdfast.mail.files import read_or_none
from holdfast.mail.mailboxes import maildir_keywords
from holdfast.node.unseen import Report, Unlogged, flag_changes
from holdfast.node.world import World
from holdfast.trees.index import Index
from holdfast.trees.replay import Replay
from holdfast.trees.spec import Tree
from holdfast.watch.watcher import Watcher

LISTED_MAX: Final = 100_000
NAMED_MAX: Final = 20
"""In the history; the file has all up to LISTED_MAX."""


async def report_unlogged(world: World, index: Index, log: Log) -> Path | None:
    """Write the list; None when it cannot be told (the log was trimmed or replaced since), with the reason in history.

    The index is as before afterwards.
    """
    try:
        await _read_own_records(world, index, log)
        report = await asyncio.to_thread(_differences, world, index)
    except (HoldfastError, OSError) as error:
        world.history.record("what only this machine has cannot be told from the log", str(error))
        return None
    finally:
        index.rollback()
    when = datetime.fromtimestamp(world.clocks.wall_seconds()).strftime("%Y-%m-%dT%H-%M-%S")
    path = world.settings.state / f"rejoin-{when}.json"
    write_once(path, msgspec.json.format(msgspec.json.encode(report)), 0o600)
    named = [f"{change.kind} {change.tree}/{change.path}" for change in report.unlogged[:NAMED_MAX]]
    count = len(report.unlogged) + report.more
    world.history.record(
        f"this machine differs from what it had logged in {count} places", f"all in {path}", first=named
    )
    return path


async def _read_own_records(world: World, index: Index, log: Log) -> None:
    chain, epoch = index.chain, index.epoch
    last = (await log.state()).last
    replay = Replay(index, world.owners)
    if chain.sequence >= last:
        return
    async for record in log.follow(chain.sequence):
        frame = open_frame(record.payload, world.segment_key())
        if frame.header.epoch != epoch:
            return
        chain = follow_chain(chain, record.payload, frame.header)
        if not frame.changes:
            replay.abandon()
        for change in frame.changes:
            replay.apply(change)
        if chain.sequence >= last:
            return


def _differences(world: World, index: Index) -> Report:
    trees = [Tree(spec) for spec in world.local.state.trees]
    watcher = Watcher(index, trees, world.owners)
    roots = {str(tree.name): tree.root for tree in trees}
    found: list[Unlogged] = []
    more = 0
    try:
        parts = watcher.scan(lambda progress: None, doubt_since_ns=world.local.state.doubt_since_ns or None)
        for part in parts:
            for change in part.changes:
                if isinstance(change, SetMeta):
                    continue
                if len(found) >= LISTED_MAX:
                    more += 1
                    continue
                to = _printable(change.to) if isinstance(change, Rename | Link) else ""
                found.append(Unlogged(KIND_NAMES[type(change)], change.tree, _printable(change.path), to))
    finally:
        watcher.stop()
    flags = flag_changes(found, lambda tree, folder: _keywords(roots[tree] / folder))
    return Report(tuple(found), more, flags)


def _keywords(directory: Path) -> dict[str, str]:
    return maildir_keywords(read_or_none(directory / "dovecot-keywords") or b"")


def _printable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
