"""A recorded history: operations on a model, the frames that tell them, and how things stood after each."""

from __future__ import annotations

from typing import Any

from holdfast.changes.change import Meta
from holdfast.changes.digest import content_digests
from holdfast.changes.exchange import EntryKind
from holdfast.changes.frame import FrameKind, open_frame, pack_changes, seal
from holdfast.changes.names import Position, Sequence
from holdfast.trees.index import NodeKind
from holdfast.trees.stat import Owners
from holdfast.vault.archive import Archiving, seal_frames
from holdfast.vault.backup import put_snapshot
from holdfast.vault.record import Snapshot, TreeRoot, split_ids, walk
from holdfast.vault.repository import Vault
from tests.apply.model import INCARNATION, KEY, TREE, LogRecord, LogWriter, Model, Op

SECOND = 10**9
START_NS = 1_790_000_000 * SECOND
Picture = dict[bytes, tuple[Any, ...]]


class History:
    """Frame number n was captured at ``START_NS`` + n seconds. ``pictures``: by sequence, of whole instants."""

    def __init__(self) -> None:
        self.model = Model()
        self.log = LogWriter()
        self.records: list[LogRecord] = []
        self.pictures: dict[int, Picture] = {0: self.model.picture()}

    def do(self, ops: list[Op], *, frames: int = 1) -> None:
        """*ops* as one batch of several frames, when there are changes enough."""
        changes = [change for op in ops for change in self.model.do(op)]
        if not changes:
            return
        size = -(-len(changes) // frames)
        cuts = [changes[at : at + size] for at in range(0, len(changes), size)]
        for number, cut in enumerate(cuts):
            self._append(pack_changes(tuple(cut)), more=number + 1 < len(cuts))
        self.pictures[self.last] = self.model.picture()

    def _append(self, packed: bytes, *, more: bool) -> None:
        at_ns = START_NS + (self.last + 1) * SECOND
        raw = seal(self.log.writer, self.log.chain, FrameKind.CHANGES, packed, captured_at_ns=at_ns, more=more)
        self.log.raw.append(raw)
        self.log.chain = self.log.chain.after(raw)
        self.records.append(LogRecord(open_frame(raw, KEY), self.log.chain))

    @property
    def last(self) -> int:
        return self.log.chain.sequence

    def archive(self, vault: Vault, first: int, last: int) -> None:
        """One object with the frames *first* to *last*."""
        archiving = Archiving()
        for record in self.records[first - 1 : last]:
            archiving.add(record.frame, record.chain, 100)
        made = seal_frames(vault, archiving.record())
        vault.backend.put(made.name, made.data)


def position(sequence: int) -> Position:
    return Position(INCARNATION, Sequence(sequence))


def first_snapshot(vault: Vault) -> None:
    """The empty tree at the log's beginning."""
    root = TreeRoot(TREE, b"/mail", Meta(0o755, "#0", "#0", 0), b"")
    put_snapshot(vault, Snapshot(START_NS, "main", (root,), 0, 0, incarnation=INCARNATION, sequence=0))


def picture_of(vault: Vault, snapshot: Snapshot) -> Picture:
    """Comparable with ``Model.picture``."""
    found = list(walk(snapshot.tree(TREE).content, vault.content))
    names: dict[bytes, list[bytes]] = {}
    for path, entry in found:
        names.setdefault(entry.link or b"alone " + path, []).append(path)
    pictured: Picture = {}
    owners = Owners()
    for path, entry in found:
        meta = entry.meta
        owner = owners.uid(meta.owner), owners.gid(meta.group)
        same = tuple(sorted(names[entry.link or b"alone " + path]))
        if entry.kind is EntryKind.DIRECTORY:
            pictured[path] = (NodeKind.DIRECTORY, meta.mode, owner, meta.xattrs, same)
        elif entry.kind is EntryKind.SYMLINK:
            pictured[path] = (NodeKind.SYMLINK, owner, meta.mtime_ns, entry.content, same)
        else:
            content = b"".join(vault.content(content_id) for content_id in split_ids(entry.content))
            assert len(content) == entry.size
            digests = content_digests(content)
            pictured[path] = (NodeKind.FILE, meta.mode, owner, meta.mtime_ns, meta.xattrs, digests, same)
    return pictured
