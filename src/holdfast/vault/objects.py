"""Objects as bytes: packs, index, trash, snapshots. Pure; docs/formats/vault.md says what stands where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from holdfast.changes import _zstd
from holdfast.changes.digest import DIGEST_BYTES
from holdfast.vault.faults import VaultDamaged, VaultNewer
from holdfast.vault.keys import Readers, Secrets, Wrapper, new_key
from holdfast.vault.port import OBJECT_BYTES_MAX

MAGIC: Final = b"HV"
FORMAT_VERSION: Final = 1
HEAD_BYTES: Final = 4
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
TAIL_BYTES: Final = 4
HEADER_BYTES_MAX: Final = 6 + 65535
CONTENT_BYTES_MAX: Final = 1024 * 1024
"""Where files are cut: most messages are one content, and an append to a large mailbox file stores 1 MiB at most."""
BLOCK_PLAIN_BYTES_MAX: Final = 8 * 1024 * 1024
"""A reader's limit; see Sizes for the writer's."""
DIRECTORY_BYTES_MAX: Final = OBJECT_BYTES_MAX
KEEPING_PREFIX: Final = "keeping/"
GRANTS_PREFIX: Final = "grants/"
ZSTD_LEVEL: Final = 6
"""Measured on 60 MB of messages in blocks of 4 MB: 0.236 of their size at 120 MB/s on one processor; level 3 gives
0.253 at 320 MB/s, level 9 0.228 at 80 MB/s. Blocks of 8 MB give 0.231."""
BASE64_ZSTD_LEVEL: Final = 1
"""Six bits a byte is all there is to gain, and every level finds it (0.754 of the size, 700 MB/s)."""
TREE_ZSTD_LEVEL: Final = 3


class Sizes(NamedTuple):
    """How a writer cuts; readers take any."""

    block_bytes: int = 4 * 1024 * 1024
    """A block of contents is closed before it holds more: an account's restore reads few bytes beside its own."""
    base64_block_bytes: int = 256 * 1024
    """The same for contents of base64: nothing is gained by larger ones, and an attachment that came in many messages
    is far from most of them, so that it is read alone."""
    parts_block_bytes: int = 1024 * 1024
    """The same for parts of directories: showing one folder opens one block."""
    pack_blocks: int = 8
    """Full ones, small ones count less. So a pack has at most 37 MiB: one upload, one object in memory, one key."""
    block_contents: int = 8_192
    pack_contents: int = 65_536
    """With many tiny files: an index object lists 16 packs, in 20 bytes a content, and must stay far below the size of
    an object; a writer has the ids of three packs in memory."""
    index_packs: int = 16
    """Work an interrupted backup has to find again by reading the ends of packs, at most."""


SIZES: Final = Sizes()


class ObjectKind(IntEnum):
    CONTENTS = 1
    PARTS = 2
    SNAPSHOT = 3
    INDEX = 4
    TRASH = 5
    FRAMES = 6
    KEEPING = 7
    GRANT = 8


class Block(Struct, frozen=True, array_like=True):
    sealed_bytes: int
    plain_bytes: int
    contents: int


class Directory(Struct, frozen=True, array_like=True):
    """What a pack holds. *blocks_at*: where the first block begins; *ids*: ``DIGEST_BYTES`` each; *lengths*: of the
    contents, in the same order."""

    blocks_at: int
    blocks: tuple[Block, ...]
    ids: bytes
    lengths: tuple[int, ...]

    def id_at(self, number: int) -> bytes:
        return self.ids[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]


class PackEntry(Struct, frozen=True, array_like=True):
    """One pack in an index object."""

    pack: str
    size: int
    directory: Directory


class Sealed(NamedTuple):
    """An object ready to be written."""

    name: str
    data: bytes


T = TypeVar("T")
_encode: Final = msgspec.msgpack.Encoder().encode


def digest_name(data: bytes) -> str:
    return blake3(data).hexdigest()


def _head(kind: ObjectKind) -> bytes:
    return MAGIC + bytes((FORMAT_VERSION, kind))


def _nonce(number: int) -> bytes:
    return number.to_bytes(NONCE_BYTES, "big")


def _damaged(name: str, what: str) -> VaultDamaged:
    return VaultDamaged(f"{name}: {what}", name=name)


class Codec:
    """Makes and opens the objects of one vault."""

    def __init__(self, secrets: Secrets) -> None:
        self.secrets = secrets

    # -- packs -------------------------------------------------------------------------------------------------------

    def open_block(self, cipher: AESGCM, kind: ObjectKind, number: int, sealed: bytes, name: str) -> bytes:
        """Raises VaultDamaged (*name* is the pack's)."""
        try:
            packed = cipher.decrypt(_nonce(number), sealed, _head(kind) + self.secrets.vault)
            return _zstd.decompress(packed, BLOCK_PLAIN_BYTES_MAX)
        except (InvalidTag, _zstd.ZstdError):
            raise _damaged(name, f"block {number} is damaged") from None

    def unwrap(self, header: bytes, readers: Readers, name: str) -> tuple[ObjectKind, AESGCM, int]:
        """From an object's first bytes: its kind, its cipher, and where its blocks begin.

        Raises VaultDamaged, VaultNewer, WrongKey.
        """
        kind, wrapped, end = self.wrapped_key(header, name)
        return kind, self.secrets.block_cipher(readers.unwrap(wrapped, name)), end

    def wrapped_key(self, header: bytes, name: str) -> tuple[ObjectKind, bytes, int]:
        """The same with the key as it stands there. Raises VaultDamaged, VaultNewer."""
        kind = self._checked_head(header, name)
        end = 6 + int.from_bytes(header[4:6], "big")
        if len(header) < end:
            raise _damaged(name, "it is cut short")
        return kind, header[6:end], end

    def pack(self, kind: ObjectKind, header: bytes, blocks: Sequence[bytes], directory: Directory) -> Sealed:
        tail = self._seal_listing(kind, directory)
        data = b"".join((header, *blocks, tail, len(tail).to_bytes(TAIL_BYTES, "big")))
        return Sealed("packs/" + digest_name(data), data)

    def open_directory(self, kind_head: bytes, tail: bytes, name: str) -> Directory:
        """*tail*: the sealed directory, without its length."""
        kind = self._checked_head(kind_head, name)
        return self._open_listing(kind, tail, Directory, name)

    # -- objects for writers -----------------------------------------------------------------------------------------

    def index(self, entries: Sequence[PackEntry]) -> Sealed:
        data = _head(ObjectKind.INDEX) + self._seal_listing(ObjectKind.INDEX, entries)
        return Sealed("index/" + digest_name(data), data)

    def open_index(self, data: bytes, name: str) -> tuple[PackEntry, ...]:
        return self._open_named(ObjectKind.INDEX, data, tuple[PackEntry, ...], name)

    def trash(self, packs: Sequence[str]) -> Sealed:
        data = _head(ObjectKind.TRASH) + self._seal_listing(ObjectKind.TRASH, packs)
        return Sealed("trash/" + digest_name(data), data)

    def open_trash(self, data: bytes, name: str) -> tuple[str, ...]:
        return self._open_named(ObjectKind.TRASH, data, tuple[str, ...], name)

    def keeping(self, record: Struct) -> Sealed:
        data = _head(ObjectKind.KEEPING) + self._seal_listing(ObjectKind.KEEPING, record)
        return Sealed(KEEPING_PREFIX + digest_name(data), data)

    def open_keeping(self, data: bytes, record: type[T], name: str) -> T:
        return self._open_named(ObjectKind.KEEPING, data, record, name)

    def grant(self, record: Struct) -> Sealed:
        data = _head(ObjectKind.GRANT) + self._seal_listing(ObjectKind.GRANT, record)
        return Sealed(GRANTS_PREFIX + digest_name(data), data)

    def open_grant(self, data: bytes, record: type[T], name: str) -> T:
        return self._open_named(ObjectKind.GRANT, data, record, name)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshot(self, wrapper: Wrapper, taken_at_ns: int, record: Struct, place: str = "") -> Sealed:
        """*place*: what stands in the name between time and digest."""
        sealer = Sealer(self, wrapper, ObjectKind.SNAPSHOT)
        data = sealer.header + sealer.seal(0, _encode(record), TREE_ZSTD_LEVEL)
        between = f"{place}-" if place else ""
        return Sealed(f"snapshots/{taken_at_ns:020d}-{between}{digest_name(data)[:16]}", data)

    def open_snapshot(self, data: bytes, readers: Readers, record: type[T], name: str) -> T:
        if name.rpartition("-")[2] != digest_name(data)[:16]:
            raise _damaged(name, "its bytes are not those that were written")
        kind, cipher, at = self.unwrap(data, readers, name)
        plain = self.open_block(cipher, kind, 0, data[at:], name)
        try:
            return msgspec.msgpack.decode(plain, type=record)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(name, f"it is unreadable ({error})") from None

    # -- common ------------------------------------------------------------------------------------------------------

    def _checked_head(self, data: bytes, name: str) -> ObjectKind:
        if data[:2] != MAGIC or len(data) < HEAD_BYTES:
            raise _damaged(name, "it does not begin like an object of a vault")
        if data[2] != FORMAT_VERSION:
            raise VaultNewer(f"{name} has format version {data[2]}, this program knows 1", hint="Update Holdfast here.")
        try:
            return ObjectKind(data[3])
        except ValueError:
            raise _damaged(name, f"it is of unknown kind {data[3]}") from None

    def _seal_listing(self, kind: ObjectKind, value: Any) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        packed = _zstd.compress(_encode(value), TREE_ZSTD_LEVEL)
        return nonce + self.secrets.index_cipher.encrypt(nonce, packed, _head(kind) + self.secrets.vault)

    def _open_named(self, kind: ObjectKind, data: bytes, shape: type[T], name: str) -> T:
        if name.rpartition("/")[2] != digest_name(data):
            raise _damaged(name, "its bytes are not those that were written")
        if self._checked_head(data, name) is not kind:
            raise _damaged(name, "it is an object of another kind")
        return self._open_listing(kind, data[HEAD_BYTES:], shape, name)

    def _open_listing(self, kind: ObjectKind, sealed: bytes, shape: type[T], name: str) -> T:
        nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            packed = self.secrets.index_cipher.decrypt(nonce, body, _head(kind) + self.secrets.vault)
            return msgspec.msgpack.decode(_zstd.decompress(packed, DIRECTORY_BYTES_MAX), type=shape)
        except (InvalidTag, ValueError, _zstd.ZstdError, msgspec.DecodeError) as error:
            raise _damaged(name, f"its list of contents is unreadable ({error or 'seal broken'})") from None


class Sealer:
    """The key of one new pack or snapshot: seals its blocks, from any thread."""

    def __init__(self, codec: Codec, wrapper: Wrapper, kind: ObjectKind) -> None:
        key = new_key()
        wrapped = wrapper.wrap(key)
        self.header = _head(kind) + len(wrapped).to_bytes(2, "big") + wrapped
        self._cipher = codec.secrets.block_cipher(key)
        self._aad = _head(kind) + codec.secrets.vault

    def seal(self, number: int, plain: bytes, level: int) -> bytes:
        return self._cipher.encrypt(_nonce(number), _zstd.compress(plain, level), self._aad)
