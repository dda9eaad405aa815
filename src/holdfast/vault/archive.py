"""Archived frames: the records of the log between snapshots, as objects of the vault.

An object holds frames that follow each other, opened, and says which record of the log stands before its first: so a
reader sees whether the next object goes on where it ended. Which frames, and when they were captured, stands in the
object's name: an archiver learns from a listing where to go on, whichever machine it is on.

The same frames in two objects (a put whose answer was lost, two machines archiving at once) are harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from holdfast.changes.change import Change
from holdfast.changes.frame import Chain, Frame, Promotion
from holdfast.changes.names import Incarnation
from holdfast.changes.names import Sequence as LogSequence
from holdfast.vault.faults import VaultDamaged, WrongKey
from holdfast.vault.objects import TREE_ZSTD_LEVEL, Codec, ObjectKind, Sealed, Sealer, digest_name
from holdfast.vault.port import Backend, ObjectMissing
from holdfast.vault.repository import Vault

FRAMES_PREFIX: Final = "frames/"
LENGTH_BYTES: Final = 4
BLOCK_BYTES: Final = 4 * 1024 * 1024
"""Of plain frames in one sealed block. They are compressed like directories: quickly, beside the mail software."""
_NAME: Final = re.compile(r"frames/([0-9a-f]{32})-(\d{16})-(\d{16})-(\d{20})-(\d{20})-[0-9a-f]{16}")
_encode: Final = msgspec.msgpack.Encoder().encode


class FramesName(NamedTuple):
    """An object of frames as the store lists it; needs no key. *from_ns*, *to_ns*: the earliest and the latest time
    its frames were captured at, nanoseconds since 1970 by the primary's clock."""

    name: str
    incarnation: Incarnation
    first: LogSequence
    last: LogSequence
    from_ns: int
    to_ns: int


class ArchivedFrame(Struct, frozen=True, array_like=True):
    sequence: int
    epoch: int
    writer: str
    captured_at_ns: int
    more: bool
    """The batch goes on in the next frame: no instant ends here."""
    changes: tuple[Change, ...]
    promotion: Promotion | None = None


class ArchivedFrames(Struct, frozen=True):
    """What one object holds. *previous*, *digest*: of the frames, as they were in the log, before the first and of the
    last (see docs/formats/frame.md: the chain)."""

    segment: str
    incarnation: str
    previous: bytes
    digest: bytes
    frames: tuple[ArchivedFrame, ...]


class Archiving:
    """Frames collected for the next object, in the order of the log."""

    def __init__(self) -> None:
        self._frames: list[ArchivedFrame] = []
        self._segment = ""
        self._incarnation = ""
        self._previous = b""
        self._digest = b""
        self.bytes = 0
        """Of the frames in the log; about what the object will have."""

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def last(self) -> LogSequence:
        return LogSequence(self._frames[-1].sequence)

    @property
    def whole(self) -> bool:
        """Whether an instant ends with the last frame."""
        return not self._frames or not self._frames[-1].more

    def add(self, frame: Frame, chain: Chain, size: int) -> None:
        """*chain*: the place after *frame*; *size*: its bytes in the log."""
        header = frame.header
        if not self._frames:
            self._segment, self._incarnation = header.segment, header.incarnation
            self._previous = header.previous
        archived = ArchivedFrame(
            header.sequence,
            header.epoch,
            header.writer,
            header.captured_at_ns,
            header.more,
            frame.changes,
            frame.promotion,
        )
        self._frames.append(archived)
        self._digest = chain.digest
        self.bytes += size

    def record(self) -> ArchivedFrames:
        return ArchivedFrames(self._segment, self._incarnation, self._previous, self._digest, tuple(self._frames))


def seal_frames(vault: Vault, record: ArchivedFrames) -> Sealed:
    """The object of *record*, to be put. Raises WrongKey: the vault is open for reading only."""
    if vault.wrapper is None:
        raise WrongKey("this vault is open for reading only", hint="Give the writer key that `vault init` made.")
    sealer = Sealer(vault.codec, vault.wrapper, ObjectKind.FRAMES)
    plain = _encode(record)
    parts = [sealer.header]
    for number, at in enumerate(range(0, len(plain), BLOCK_BYTES)):
        sealed = sealer.seal(number, plain[at : at + BLOCK_BYTES], TREE_ZSTD_LEVEL)
        parts += (len(sealed).to_bytes(LENGTH_BYTES, "big"), sealed)
    data = b"".join(parts)
    first, last = record.frames[0].sequence, record.frames[-1].sequence
    times = [frame.captured_at_ns for frame in record.frames]
    name = f"{record.incarnation}-{first:016d}-{last:016d}-{min(times):020d}-{max(times):020d}"
    return Sealed(f"{FRAMES_PREFIX}{name}-{digest_name(data)[:16]}", data)


def read_frames(vault: Vault, listed: FramesName) -> ArchivedFrames:
    """What *listed* holds. Raises VaultDamaged (also when it is missing), WrongKey, and what the backend raises."""
    try:
        data = vault.backend.get(listed.name)
    except ObjectMissing:
        raise VaultDamaged(f"{listed.name} is missing", name=listed.name) from None
    if listed.name.rpartition("-")[2] != digest_name(data)[:16]:
        raise VaultDamaged(f"{listed.name}: its bytes are not those that were written", name=listed.name)
    record = _decoded(b"".join(_plain_blocks(vault.codec, vault, data, listed.name)), listed.name)
    numbers = [frame.sequence for frame in record.frames]
    wanted = list(range(listed.first, listed.last + 1))
    if record.incarnation != listed.incarnation or numbers != wanted:
        raise VaultDamaged(f"{listed.name}: it holds other records than it is named for", name=listed.name)
    return record


def _plain_blocks(codec: Codec, vault: Vault, data: bytes, name: str) -> Iterator[bytes]:
    kind, cipher, at = codec.unwrap(data, vault.readers, name)
    if kind is not ObjectKind.FRAMES:
        raise VaultDamaged(f"{name}: it is an object of another kind", name=name)
    number = 0
    while at < len(data):
        end = at + LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES], "big")
        yield codec.open_block(cipher, kind, number, data[at + LENGTH_BYTES : end], name)
        at, number = end, number + 1


def _decoded(plain: bytes, name: str) -> ArchivedFrames:
    try:
        return msgspec.msgpack.decode(plain, type=ArchivedFrames)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VaultDamaged(f"{name}: it is unreadable ({error})", name=name) from None


def list_frames(backend: Backend, incarnation: str = "") -> list[FramesName]:
    """All objects of frames (of one incarnation), in order of incarnations and records."""
    names = (parse_name(found.name) for found in backend.list(FRAMES_PREFIX + incarnation))
    return sorted((name for name in names if name is not None), key=lambda name: (name.incarnation, *name[2:4]))


def parse_name(name: str) -> FramesName | None:
    """None: it is no object of frames this program knows."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    incarnation, *numbers = match.groups()
    first, last, from_ns, to_ns = map(int, numbers)
    return FramesName(name, Incarnation(incarnation), LogSequence(first), LogSequence(last), from_ns, to_ns)


def covering(frames: Iterable[FramesName], after: int, through: int) -> tuple[list[FramesName], int]:
    """Of *frames* (one incarnation) those that hold the records ``after + 1`` to *through*, as few as there are; and
    how far they reach without a gap: *through* when all are there."""
    ordered = sorted(frames, key=lambda name: (name.first, -name.last))
    chosen: list[FramesName] = []
    reached, at = after, 0
    while reached < through:
        best: FramesName | None = None
        while at < len(ordered) and ordered[at].first <= reached + 1:
            if ordered[at].last > reached and (best is None or ordered[at].last > best.last):
                best = ordered[at]
            at += 1
        if best is None:
            break
        chosen.append(best)
        reached = best.last
    return chosen, min(reached, through)


def when(at_ns: int) -> str:
    """For messages: UTC, to the millisecond."""
    moment = datetime.fromtimestamp(at_ns / 1e9, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d} UTC"


class ArchiveGap(NamedTuple):
    """Records of one log that no object holds, though later ones are there. *after_ns*, *before_ns*: when what stands
    beside them was captured."""

    incarnation: Incarnation
    first: LogSequence
    last: LogSequence
    after_ns: int
    before_ns: int


def archive_gaps(frames: Iterable[FramesName]) -> Iterator[ArchiveGap]:
    """Where instants are missing: an object is, or the log was trimmed before its records were archived."""
    before: FramesName | None = None
    for name in sorted(frames, key=lambda name: (name.incarnation, name.first)):
        if before is None or before.incarnation != name.incarnation:
            before = name
        elif name.first > before.last + 1:
            first, last = LogSequence(before.last + 1), LogSequence(name.first - 1)
            yield ArchiveGap(name.incarnation, first, last, before.to_ns, name.from_ns)
        if name.last >= before.last:
            before = name


def archived_through(frames: Sequence[FramesName], after: int) -> int:
    """How far *frames* (one incarnation) go on from *after* without a gap."""
    end = max((name.last for name in frames), default=LogSequence(after))
    return covering(frames, after, end)[1] if end > after else after
