"""Verify: is what the snapshots list really there, and named when it is not.

Three depths: the structure (index, snapshots, directories, sizes of packs), a part (the structure, and some packs and
archived records read whole; see ``turns`` for which), or all. Damage is told as files: of a file damaged in several
snapshots the newest is named. Reading needs a reader's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, Protocol

from blake3 import blake3

from holdfast.changes.exchange import EntryKind
from holdfast.errors import ExitStatus
from holdfast.vault.archive import FRAMES_PREFIX, archive_gaps, list_frames, when
from holdfast.vault.catalog import BlockPlace, Pack, PackState
from holdfast.vault.faults import SnapshotUnknown, VaultDamaged
from holdfast.vault.mark import missing_in_file
from holdfast.vault.objects import GRANTS_PREFIX, KEEPING_PREFIX, Codec, digest_name
from holdfast.vault.port import Found, ObjectMissing
from holdfast.vault.record import DEPTH_MAX, Entry, Snapshot, decode_part, split_ids
from holdfast.vault.repository import SnapshotName, Vault

WORKERS: Final = 2
FINDINGS_MAX: Final = 100_000
DIGITS_IN_NAMES: Final = 16


class Depth(Protocol):
    """Which packs and objects of frames are read."""

    def reads(self, name: str) -> bool:
        """Whether the object *name* is."""


class Share(NamedTuple):
    """One of *turns* shares, number *turn*; nothing with 0 turns."""

    turns: int
    turn: int = 0

    def reads(self, name: str) -> bool:
        digest = name.rpartition("/")[2].rpartition("-")[2]
        return self.turns > 0 and int(digest[:8], 16) % self.turns == self.turn % self.turns


STRUCTURE: Final = Share(0)
EVERYTHING: Final = Share(1)


def share(percent: float, turn: int) -> Share:
    """Read *percent* of all packs; with *turn* counted up (the day's number) all are read in 100 / percent turns."""
    return Share(max(round(100 / percent), 1), turn)


class Finding(NamedTuple):
    """Something is wrong. With *snapshot*: that thing cannot be restored (whole). Without: *what* is an object's name,
    and nothing of a snapshot is touched by it unless another finding says so. *whose*: what it is to people, an account
    and a folder, where somebody knows."""

    snapshot: str
    tree: str
    path: bytes
    reason: str
    what: str = ""
    whose: str = ""


class Lost(NamedTuple):
    """A file that cannot be restored whole, as its newest snapshot has it."""

    tree: str
    path: bytes
    entry: Entry


Whose = Callable[[str, bytes], str]
"""(tree, path) to whose mail that is, for people; empty when nobody knows."""


class Verified:
    """What a verify found."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.findings_total = 0
        self.snapshots = 0
        self.entries = 0
        """Names looked at; what two snapshots share counts once."""
        self.packs_read = 0
        self.bytes_read = 0
        self.bytes_to_read = 0
        self.sound: list[str] = []
        """Packs and objects of frames that were read, and are what was written."""
        self.bad: set[bytes] = set()
        """Contents that no pack gives; of packs that were not read nothing is known."""
        self.lost: list[Lost] = []
        """Files in the findings, as many as are named."""

    def found(self, finding: Finding) -> None:
        self.findings_total += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    @property
    def exit_status(self) -> ExitStatus:
        return ExitStatus.DIFFERENCES if self.findings_total else ExitStatus.DONE


class _PackRead(NamedTuple):
    pack: Pack
    reason: str
    """Empty when it is sound."""
    bad: list[bytes]
    """Ids of contents that do not come out of it."""


def verify(
    vault: Vault,
    depth: Depth = STRUCTURE,
    *,
    whose: Whose | None = None,
    progress: Callable[[Verified], None] | None = None,
) -> Verified:
    """*progress* is called while data are read. Raises WrongKey, and what the backend raises; damage is in the
    result."""
    vault.sync()
    result = Verified()
    _small_objects(vault, result)
    for pack in vault.catalog.packs():
        if pack.state is PackState.GONE:
            size = vault.backend.size(pack.name)
            reason = "is missing" if size is None else f"has {size} bytes instead of {pack.size}"
            result.found(Finding("", "", b"", f"{pack.name} {reason}", pack.name))
    packs = [pack for pack in vault.catalog.packs() if pack.state is not PackState.GONE and depth.reads(pack.name)]
    frames = [found for found in vault.backend.list(FRAMES_PREFIX) if depth.reads(found.name)]
    result.bytes_to_read = sum(pack.size for pack in packs) + sum(found.size for found in frames)
    result.bad = set(_read_packs(vault, packs, result, progress))
    _read_frames(vault, frames, result, progress)
    for gap in archive_gaps(list_frames(vault.backend)):
        reason = f"records {gap.first} to {gap.last} of log {gap.incarnation[:8]} are in no object: no instant between "
        result.found(Finding("", "", b"", reason + f"{when(gap.after_ns)} and {when(gap.before_ns)} can be restored"))
    seen: set[bytes] = set()
    for name in reversed([*vault.held(), *vault.snapshots()]):
        try:
            snapshot = vault.snapshot(name)
        except SnapshotUnknown:
            continue  # dropped meanwhile
        except VaultDamaged as error:
            result.found(Finding(name.short, "", b"", error.message, name.name))
            continue
        result.snapshots += 1
        _Check(vault, result, name, seen, whose).snapshot(snapshot)
    return result


def _small_objects(vault: Vault, result: Verified) -> None:
    """Index, keys, trash, pins and holds; the catalog may know an index object from before it was damaged."""
    problems = {problem.name: problem.message for problem in vault.catalog.problems}
    for prefix in ("keys/", GRANTS_PREFIX, "index/", "trash/", KEEPING_PREFIX):
        for found in list(vault.backend.list(prefix)):
            try:
                sound = found.name == prefix + digest_name(vault.backend.get(found.name))
            except ObjectMissing:
                continue  # by a prune, meanwhile
            if not sound:
                problems.setdefault(found.name, f"{found.name}: its bytes are not those that were written")
    for name, message in problems.items():
        result.found(Finding("", "", b"", message, name))


def _read_packs(
    vault: Vault, packs: list[Pack], result: Verified, progress: Callable[[Verified], None] | None
) -> Iterator[bytes]:
    """Yields ids of contents that no pack gives."""
    with ThreadPoolExecutor(WORKERS, "vault-verify") as pool:
        reader = _PackReader(vault)
        for at in range(0, len(packs), WORKERS):
            some = packs[at : at + WORKERS]
            jobs = [pool.submit(reader.read, *_listed(vault, pack)) for pack in some]
            for job in jobs:
                read = job.result()
                result.packs_read += 1
                result.bytes_read += read.pack.size
                if progress is not None:
                    progress(result)
                if read.reason and read.pack.state is PackState.DOOMED:
                    pass  # it goes anyway; what is needed of it is named as files
                elif read.reason:
                    result.found(Finding("", "", b"", f"{read.pack.name}: {read.reason}", read.pack.name))
                else:
                    result.sound.append(read.pack.name)
                for content_id in read.bad:
                    if not _elsewhere(vault, content_id):
                        yield content_id


def _read_frames(
    vault: Vault, frames: list[Found], result: Verified, progress: Callable[[Verified], None] | None
) -> None:
    for found in frames:
        try:
            data = vault.backend.get(found.name)
        except ObjectMissing:
            continue  # by a prune, meanwhile
        result.bytes_read += len(data)
        if progress is not None:
            progress(result)
        if found.name.rpartition("-")[2] == digest_name(data)[:DIGITS_IN_NAMES]:
            result.sound.append(found.name)
            continue
        reason = "its bytes are not those that were written: instants in and after it cannot be restored"
        result.found(Finding("", "", b"", f"{found.name}: {reason}, up to the next snapshot", found.name))


def _elsewhere(vault: Vault, content_id: bytes) -> bool:
    try:
        vault.content(content_id)
    except VaultDamaged:
        return False
    return True


class _Content(NamedTuple):
    content_id: bytes
    block: int
    at: int
    length: int


def _listed(vault: Vault, pack: Pack) -> tuple[Pack, list[BlockPlace], list[_Content]]:
    contents = [_Content(*row) for row in vault.catalog.contents_of(pack.number)]
    return pack, vault.catalog.blocks_of(pack), contents


class _PackReader:
    """Reads packs whole, from any thread."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._codec: Codec = vault.codec

    def read(self, pack: Pack, blocks: list[BlockPlace], contents: list[_Content]) -> _PackRead:
        reason = ""
        bad: list[bytes] = []
        try:
            data = self._vault.backend.get(pack.name)
            if "packs/" + digest_name(data) != pack.name:
                reason = "its bytes are not those that were written"
            kind, cipher = self._vault.pack_cipher(pack.name)
        except (ObjectMissing, VaultDamaged) as error:
            return _PackRead(pack, reason or error.message, [content.content_id for content in contents])
        number, plain = -1, b""
        for content in contents:
            if content.block != number:
                number = content.block
                place = blocks[number]
                try:
                    sealed = data[place.at : place.at + place.sealed_bytes]
                    plain = self._codec.open_block(cipher, kind, number, sealed, pack.name)
                except VaultDamaged as error:
                    plain, reason = b"", reason or error.message
            found = plain[content.at : content.at + content.length]
            if len(found) != content.length or self._codec.secrets.content_id(found) != content.content_id:
                bad.append(content.content_id)
        if bad and not reason:
            reason = "contents do not give their ids"
        return _PackRead(pack, reason, bad)


class _Check:
    """Walks one snapshot, past what a newer one showed already."""

    def __init__(
        self,
        vault: Vault,
        result: Verified,
        name: SnapshotName,
        seen: set[bytes],
        whose: Whose | None,
    ) -> None:
        self._vault = vault
        self._result = result
        self._name = name
        self._bad = result.bad
        self._seen = seen
        self._whose = whose

    def snapshot(self, snapshot: Snapshot) -> None:
        for tree in snapshot.trees:
            self._directory(tree.name, tree.content, b"", 0)

    def _directory(self, tree: str, content: bytes, path: bytes, depth: int) -> None:
        if depth > DEPTH_MAX:
            self._found(tree, path, f"it stands deeper than {DEPTH_MAX}")
            return
        for part in split_ids(content):
            key = blake3(b"\0".join((tree.encode(), path, part))).digest(length=16)
            if key in self._seen:
                continue
            self._seen.add(key)
            try:
                entries = decode_part(self._vault.content(part), part)
            except VaultDamaged as error:
                self._found(tree, path, f"names in this directory are lost: {error.message}")
                continue
            for entry in entries:
                self._entry(tree, entry, path + b"/" + entry.name if path else entry.name, depth)

    def _entry(self, tree: str, entry: Entry, path: bytes, depth: int) -> None:
        self._result.entries += 1
        if entry.kind is EntryKind.DIRECTORY:
            self._directory(tree, entry.content, path, depth + 1)
        elif entry.kind is EntryKind.FILE:
            reason = missing_in_file(self._vault, entry)
            if not reason and not self._bad.isdisjoint(split_ids(entry.content)):
                reason = "its content is damaged"
            if reason:
                self._found(tree, path, reason)
                if len(self._result.lost) < FINDINGS_MAX:
                    self._result.lost.append(Lost(tree, path, entry))

    def _found(self, tree: str, path: bytes, reason: str) -> None:
        whose = self._whose(tree, path) if self._whose is not None else ""
        self._result.found(Finding(self._name.short, tree, path, reason, whose=whose))
