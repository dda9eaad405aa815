"""Frames: a batch of changes as one message of the log.

Layout of a frame, all numbers big-endian::

    2 bytes   magic, "HF"
    1 byte    format version, 1
    2 bytes   length of the header
    header    msgpack array, the fields of FrameHeader in order
    body      AES-256-GCM over the compressed body; the 16-byte tag last

Everything before the body is authenticated with it (it is the additional data). The plain body is zstd over msgpack:
an array of changes for kind ``changes``, a Promotion for kind ``promotion``.

Key: HKDF-SHA256 of the segment's key, salt = incarnation, info = ``holdfast frame`` and the epoch; so a key seals the
frames of one epoch of one incarnation. Nonces are random; at 2^32 frames an epoch must end (NIST SP 800-38D, 8.3),
which at 1,000 frames a second is after 49 days of a steady maximum: the limit is checked against the sequence.

Chain: ``previous`` is the BLAKE3 digest (32 bytes) of the whole frame before, zeros in the first one of an incarnation.
Together with ``sequence`` every reader sees a gap, a fork and a damaged frame.

A machine without the segment's key (a relay) can read headers: which position, which epoch, who wrote. Nothing of the
mail, no path, no number of changes; sizes and times are visible.
"""

from __future__ import annotations

import os
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from holdfast.changes import _zstd
from holdfast.changes.change import Change
from holdfast.changes.names import Epoch, Incarnation, MachineName, Position, SegmentName, Sequence
from holdfast.errors import HoldfastError

MAGIC: Final = b"HF"
FORMAT_VERSION: Final = 1
PREFIX_BYTES: Final = 5
HEADER_BYTES_MAX: Final = 4096
"""A header is about 150 bytes; more than a page would be somebody's attack."""
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Plain body after decompression: bounds a reader's memory against a damaged or hostile frame."""
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
"""The log server's max_payload. Writers stay near FRAME_CONTENT_BYTES."""
FRAME_CONTENT_BYTES: Final = 1024 * 1024
"""A writer closes a frame when its changes hold this much content: large enough to compress well and to fill the wire,
small enough that a frame lost on the way costs little."""
FRAMES_PER_KEY_MAX: Final = 2**32
ZSTD_LEVEL: Final = 1
"""Measured on mail: level 3 makes frames 4 % smaller and costs twice the time."""
CHAIN_START: Final = bytes(32)
KEY_BYTES: Final = 32


class FrameKind(IntEnum):
    CHANGES = 1
    PROMOTION = 2


class FrameDamaged(HoldfastError):
    """Bytes that are no sound frame of this log: damaged, forged, cut short, sealed with another key, or too new."""


class FrameHeader(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kind: FrameKind
    segment: SegmentName
    incarnation: Incarnation
    sequence: Sequence
    epoch: Epoch
    writer: MachineName
    captured_at_ns: int
    """The writer's wall clock when the batch was read: for people and for "any second", never for safety."""
    previous: bytes
    nonce: bytes
    more: bool = False
    """The batch goes on in the next frame: this position is not a whole instant. A copy at an interval is one batch,
    its promotion included; the frame without changes that ends it has as ``captured_at_ns`` the instant it is of."""

    @property
    def position(self) -> Position:
        return Position(self.incarnation, self.sequence)


class Promotion(Struct, frozen=True, array_like=True):
    """The machine that wrote this record is the primary of the header's epoch from here on."""

    machine: MachineName
    reason: str
    planned: bool


class Frame(NamedTuple):
    """A frame, opened. *promotion* is set for that kind, else *changes* holds the batch."""

    header: FrameHeader
    changes: tuple[Change, ...]
    promotion: Promotion | None


_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(FrameHeader)
_changes_decoder = msgspec.msgpack.Decoder(tuple[Change, ...])
_promotion_decoder = msgspec.msgpack.Decoder(Promotion)


class SegmentKey:
    """The secret of a segment: seals and opens its frames. Never given to a relay."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise FrameDamaged(f"a segment key has {KEY_BYTES} bytes, this one {len(secret)}", hint="Copy it anew.")
        self.secret = secret
        self._cipher = lru_cache(maxsize=8)(self._derive)

    @classmethod
    def generate(cls) -> SegmentKey:
        return cls(os.urandom(KEY_BYTES))

    def _derive(self, incarnation: str, epoch: int) -> AESGCM:
        info = b"holdfast frame" + epoch.to_bytes(8, "big")
        hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=bytes.fromhex(incarnation), info=info)
        return AESGCM(hkdf.derive(self.secret))

    def cipher(self, incarnation: Incarnation, epoch: Epoch) -> AESGCM:
        return self._cipher(incarnation, epoch)


class Chain(NamedTuple):
    """Where a log's writer or reader stands: the last record's sequence and digest."""

    incarnation: Incarnation
    sequence: Sequence
    digest: bytes

    @property
    def position(self) -> Position:
        return Position(self.incarnation, self.sequence)

    def after(self, frame: bytes) -> Chain:
        """The place after *frame*, which is the next record."""
        return Chain(self.incarnation, Sequence(self.sequence + 1), frame_digest(frame))


def chain_start(incarnation: Incarnation) -> Chain:
    return Chain(incarnation, Sequence(0), CHAIN_START)


def frame_digest(frame: bytes) -> bytes:
    return blake3(frame).digest()


class FrameWriter(NamedTuple):
    """Who writes: the fixed part of the headers."""

    segment: SegmentName
    machine: MachineName
    epoch: Epoch
    key: SegmentKey


def pack_changes(changes: tuple[Change, ...]) -> bytes:
    """The compressed body of a batch: the part of sealing that needs no place in the chain yet."""
    return _zstd.compress(_header_encoder.encode(changes), ZSTD_LEVEL)


def pack_promotion(promotion: Promotion) -> bytes:
    return _zstd.compress(_header_encoder.encode(promotion), ZSTD_LEVEL)


def seal(
    writer: FrameWriter, chain: Chain, kind: FrameKind, packed: bytes, *, captured_at_ns: int, more: bool = False
) -> bytes:
    """The frame that follows *chain*, from a body made by :func:`pack_changes` or :func:`pack_promotion`."""
    assert chain.sequence < FRAMES_PER_KEY_MAX, "an epoch's key has sealed all it may: promote anew"
    header = FrameHeader(
        kind=kind,
        segment=writer.segment,
        incarnation=chain.incarnation,
        sequence=Sequence(chain.sequence + 1),
        epoch=writer.epoch,
        writer=writer.machine,
        captured_at_ns=captured_at_ns,
        previous=chain.digest,
        nonce=os.urandom(12),
        more=more,
    )
    encoded = _header_encoder.encode(header)
    clear = MAGIC + bytes((FORMAT_VERSION,)) + len(encoded).to_bytes(2, "big") + encoded
    return clear + writer.key.cipher(chain.incarnation, writer.epoch).encrypt(header.nonce, packed, clear)


def _damaged(what: str, *, hint: str = "The reader heals by a scan; `holdfast status` tells when.") -> FrameDamaged:
    return FrameDamaged(f"a frame is damaged: {what}", hint=hint)


def read_header(frame: bytes) -> tuple[FrameHeader, int]:
    """The header of *frame*, and where the body starts. Needs no key, proves nothing. Raises FrameDamaged."""
    if len(frame) < PREFIX_BYTES or frame[:2] != MAGIC:
        raise _damaged("it does not begin like one")
    if frame[2] != FORMAT_VERSION:
        raise _damaged(f"format version {frame[2]}, this program knows {FORMAT_VERSION}", hint="Update Holdfast here.")
    body_at = PREFIX_BYTES + int.from_bytes(frame[3:5], "big")
    if body_at - PREFIX_BYTES > HEADER_BYTES_MAX or body_at > len(frame):
        raise _damaged("its header is longer than it is")
    try:
        header = _header_decoder.decode(frame[PREFIX_BYTES:body_at])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(f"its header is unreadable ({error})") from None
    if len(header.nonce) != 12 or len(header.previous) != 32 or len(header.incarnation) != 32:
        raise _damaged("its header has fields of wrong length")
    return header, body_at


def open_frame(frame: bytes, key: SegmentKey) -> Frame:
    """Authenticate, decrypt and decode. Whatever the bytes are, raises nothing but FrameDamaged."""
    header, body_at = read_header(frame)
    try:
        cipher = key.cipher(header.incarnation, header.epoch)
        packed = cipher.decrypt(header.nonce, frame[body_at:], frame[:body_at])
    except (InvalidTag, ValueError, OverflowError):
        raise _damaged("its seal does not fit this segment's key") from None
    try:
        body = _zstd.decompress(packed, BODY_BYTES_MAX)
        if header.kind is FrameKind.PROMOTION:
            return Frame(header, (), _promotion_decoder.decode(body))
        return Frame(header, _changes_decoder.decode(body), None)
    except (msgspec.DecodeError, UnicodeDecodeError, _zstd.ZstdError) as error:
        raise _damaged(f"its body is unreadable ({error})") from None


def follow_chain(chain: Chain, frame: bytes, header: FrameHeader) -> Chain:
    """The place after *frame*, when it is the true successor of *chain*; raises FrameDamaged (gap or fork) if not."""
    if header.incarnation != chain.incarnation:
        raise _damaged(f"it belongs to log {header.incarnation[:8]}, not {chain.incarnation[:8]}")
    if header.sequence != chain.sequence + 1:
        raise _damaged(f"it is number {header.sequence}, expected {chain.sequence + 1}")
    if header.previous != chain.digest:
        raise _damaged(f"number {header.sequence} does not follow the record before it: the chain forks")
    return chain.after(frame)
