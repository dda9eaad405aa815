"""What two machines say to each other when one copies from, or compares itself with, the other: ask and answer.

A joiner (seed, heal, verify) asks, the primary answers. Messages travel over the log server's request/reply, so
everybody who can reach that server could read, change, invent or repeat them; the seal takes care of that.

Layout of a message::

    2 bytes   magic, "HX"
    1 byte    format version, 1
    1 byte    direction: 1 request, 2 reply
    1 byte    length of the requester's name
    n bytes   the requester's name
    16 bytes  the request's nonce, random; a reply repeats that of its request
    12 bytes  nonce of the seal, random
    body      AES-256-GCM over zstd over msgpack; the 16-byte tag last

Additional data of the seal: everything before the seal's nonce, then the answering machine's name. Key: HKDF-SHA256 of
the segment's key, salt = the request's nonce, info = ``holdfast exchange``; so every question and its answer have a key
of their own, and no limit of messages a key is ever near. A reply opens only for the one question it answers: an old
reply is refused. An old *request* sent again is answered again, which reveals nothing (the repeater cannot open it) and
changes nothing: all requests read.

A message that is not sound, whatever its bytes, raises ExchangeDamaged and nothing else.
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from holdfast.changes import _zstd
from holdfast.changes.change import ChangeInvalid, Meta, check_path
from holdfast.changes.digest import DIGEST_BYTES, block_count
from holdfast.changes.frame import KEY_BYTES, SegmentKey
from holdfast.changes.names import MachineName
from holdfast.errors import HoldfastError

MAGIC: Final = b"HX"
FORMAT_VERSION: Final = 1
REQUEST_NONCE_BYTES: Final = 16
SEAL_NONCE_BYTES: Final = 12
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Plain body: bounds what a damaged or hostile message can make us hold."""
CONTENT_BYTES_MAX: Final = 768 * 1024
"""Contents in one reply: below 1 MB with everything around them, so that a log server with its default limit takes
it, and a lost reply costs little."""
DIGESTS_INLINE_BYTES_MAX: Final = 64 * 1024
"""A file above 256 MB has more digests than that: they are asked for apart (ReadDigests)."""
PARTS_MAX: Final = 1024
"""Contents asked for in one request."""
LOOK_PATHS_MAX: Final = 256
ZSTD_LEVEL: Final = 1


class ExchangeDamaged(HoldfastError):
    """A message that is damaged, forged, meant for another machine, or an answer to another question."""


class EntryKind(IntEnum):
    """The same numbers as the tree index has."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3


class Entry(Struct, frozen=True, array_like=True):
    """One name of a listing, as the index of the answering machine has it.

    *content*: a file's block digests (empty when above DIGESTS_INLINE_BYTES_MAX: ask ReadDigests), or a symlink's
    target. *node* is the answerer's token for the file: names of one file have the same, contents are asked for by it.
    *links*: how many names the listing has for it.
    """

    path: bytes
    kind: EntryKind
    meta: Meta
    size: int
    content: bytes
    node: int
    links: int

    @property
    def digests_apart(self) -> bool:
        return self.kind == EntryKind.FILE and self.size > 0 and not self.content


class AuditFinding(Struct, frozen=True, array_like=True):
    """One difference between a tree and its index, or between two listings. *what* is a word (see trees/audit.py)."""

    tree: str
    path: bytes
    what: str
    detail: str = ""


# -- requests ----------------------------------------------------------------------------------------------------------


class OpenListing(Struct, frozen=True, array_like=True, tag=1):
    """Hold the trees' listing as it is now; with *barrier*: including everything done before this request."""

    barrier: bool = False


class NextPage(Struct, frozen=True, array_like=True, tag=2):
    """Entries of *tree* that follow the path *after*; None: from the root, which is the entry with the empty path."""

    listing: str
    tree: str
    after: bytes | None


class CloseListing(Struct, frozen=True, array_like=True, tag=3):
    listing: str


class PartWanted(Struct, frozen=True, array_like=True):
    node: int
    offset: int
    length: int


class ReadContents(Struct, frozen=True, array_like=True, tag=4):
    """Needs no listing held: a node that still exists is found by its token."""

    parts: tuple[PartWanted, ...]


class ReadDigests(Struct, frozen=True, array_like=True, tag=5):
    """The digests of a large file from *first_block* on, as many as fit an answer."""

    listing: str
    node: int
    first_block: int


class Look(Struct, frozen=True, array_like=True, tag=6):
    """The entries of single paths (tree, path) of a listing held."""

    listing: str
    paths: tuple[tuple[str, bytes], ...]


class StartAudit(Struct, frozen=True, array_like=True, tag=7):
    """Compare your trees with your index; *full*: contents too. One audit runs at a time."""

    full: bool


class PollAudit(Struct, frozen=True, array_like=True, tag=8):
    """What was found; *after* findings are known already."""

    audit: str
    after: int


class StopAudit(Struct, frozen=True, array_like=True, tag=9):
    audit: str


Request: TypeAlias = (
    OpenListing | NextPage | CloseListing | ReadContents | ReadDigests | Look | StartAudit | PollAudit | StopAudit
)

# -- replies -----------------------------------------------------------------------------------------------------------


class Listing(Struct, frozen=True, array_like=True, tag=1):
    """A listing is held under the token *listing*, at the given place in the log (see frame.Chain) and epoch."""

    listing: str
    incarnation: str
    sequence: int
    digest: bytes
    epoch: int
    trees: tuple[str, ...]
    directories: int
    files: int
    symlinks: int
    content_bytes: int


class Page(Struct, frozen=True, array_like=True, tag=2):
    """*done*: no more entries in this tree. A page that is not done has at least one entry."""

    entries: tuple[Entry, ...]
    done: bool


class PartState(IntEnum):
    READ = 1
    GONE = 2
    """The file is no more; its removal stands in the log after the listing's position."""
    UNREADABLE = 3


class PartRead(Struct, frozen=True, array_like=True):
    """What stands at the part's offset now; shorter than asked for at the file's end or when an answer is full."""

    state: PartState
    data: bytes = b""
    size_now: int = 0
    reason: str = ""


class Contents(Struct, frozen=True, array_like=True, tag=3):
    """Answers to the first ``len(parts)`` parts asked for, at least one; the others are to be asked for again."""

    parts: tuple[PartRead, ...]


class Digests(Struct, frozen=True, array_like=True, tag=4):
    """Empty when the node is gone."""

    digests: bytes


class Looked(Struct, frozen=True, array_like=True, tag=5):
    """Entries in the order asked for; None where nothing stands."""

    entries: tuple[Entry | None, ...]


class AuditNews(Struct, frozen=True, array_like=True, tag=6):
    """*found* counts all findings; those above a limit are counted only. *unsettled*: changed too often to be judged.

    *failure*: why the audit ended early; empty when it did not.
    """

    audit: str
    findings: tuple[AuditFinding, ...]
    found: int
    done: bool
    entries: int
    content_bytes: int
    unsettled: int
    failure: str = ""


class Expired(Struct, frozen=True, array_like=True, tag=7):
    """The listing or audit asked about is not held (any more): begin again."""


class Busy(Struct, frozen=True, array_like=True, tag=8):
    """Ask again after *retry_seconds*."""

    retry_seconds: float
    reason: str


class Failed(Struct, frozen=True, array_like=True, tag=9):
    """The answerer could not; *retry* as in HoldfastError."""

    message: str
    hint: str
    retry: bool


class Done(Struct, frozen=True, array_like=True, tag=10):
    """Nothing more to say."""


Reply: TypeAlias = Listing | Page | Contents | Digests | Looked | AuditNews | Expired | Busy | Failed | Done


# -- sealing -----------------------------------------------------------------------------------------------------------


class Direction(IntEnum):
    REQUEST = 1
    REPLY = 2


class Asked(NamedTuple):
    """One question: who asks, its nonce, what."""

    requester: MachineName
    nonce: bytes
    request: Request


_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


class ExchangeSeal:
    """Seals and opens the messages of one segment to and from the machine *answerer*."""

    def __init__(self, key: SegmentKey, answerer: MachineName) -> None:
        self._secret = key.secret
        self._answerer = answerer.encode()

    def ask(self, requester: MachineName, request: Request) -> tuple[Asked, bytes]:
        """A new question and its bytes."""
        asked = Asked(requester, os.urandom(REQUEST_NONCE_BYTES), request)
        return asked, self._seal(_head(Direction.REQUEST, requester.encode(), asked.nonce), asked.nonce, request)

    def open_request(self, message: bytes) -> Asked:
        """Raises ExchangeDamaged."""
        requester, nonce, body = self._open(message, Direction.REQUEST)
        try:
            request = _request_decoder.decode(body)
            return Asked(MachineName(requester.decode("ascii")), nonce, request)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(f"a request is unreadable ({error})") from None

    def answer(self, asked: Asked, reply: Reply) -> bytes:
        return self._seal(_head(Direction.REPLY, asked.requester.encode(), asked.nonce), asked.nonce, reply)

    def open_reply(self, asked: Asked, message: bytes) -> Reply:
        """The sound and checked answer to *asked*; raises ExchangeDamaged."""
        requester, nonce, body = self._open(message, Direction.REPLY)
        if nonce != asked.nonce or requester != asked.requester.encode():
            raise _damaged("a reply answers another question than was asked")
        try:
            reply: Reply = _reply_decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(f"a reply is unreadable ({error})") from None
        _check_reply(reply)
        return reply

    def _cipher(self, nonce: bytes) -> AESGCM:
        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=nonce, info=b"holdfast exchange").derive(self._secret))

    def _seal(self, head: bytes, nonce: bytes, body: Request | Reply) -> bytes:
        packed = _zstd.compress(_encoder.encode(body), ZSTD_LEVEL)
        seal_nonce = os.urandom(SEAL_NONCE_BYTES)
        return head + seal_nonce + self._cipher(nonce).encrypt(seal_nonce, packed, head + self._answerer)

    def _open(self, message: bytes, direction: Direction) -> tuple[bytes, bytes, bytes]:
        """The requester's name, the request's nonce, the plain body."""
        if len(message) < 5 or message[:2] != MAGIC:
            raise _damaged("it does not begin like one")
        if message[2] != FORMAT_VERSION:
            raise _damaged(f"format version {message[2]}, this program knows {FORMAT_VERSION}")
        if message[3] != direction:
            raise _damaged("a request stands where a reply should, or a reply where a request should")
        name_end = 5 + message[4]
        head_end = name_end + REQUEST_NONCE_BYTES
        body_at = head_end + SEAL_NONCE_BYTES
        if len(message) < body_at:
            raise _damaged("it is cut short")
        nonce = message[name_end:head_end]
        try:
            additional = message[:head_end] + self._answerer
            packed = self._cipher(nonce).decrypt(message[head_end:body_at], message[body_at:], additional)
            return message[5:name_end], nonce, _zstd.decompress(packed, BODY_BYTES_MAX)
        except InvalidTag:
            raise _damaged("its seal does not fit this segment's key and these two machines") from None
        except _zstd.ZstdError as error:
            raise _damaged(f"its body is unreadable ({error})") from None


def _head(direction: Direction, requester: bytes, nonce: bytes) -> bytes:
    return MAGIC + bytes((FORMAT_VERSION, direction, len(requester))) + requester + nonce


def _damaged(what: str) -> ExchangeDamaged:
    return ExchangeDamaged(
        f"a message of the exchange is damaged: {what}",
        hint="Do both machines run the same Holdfast and hold the same segment key?",
        retry=True,
    )


def check_entry(entry: Entry) -> None:
    """Raises ExchangeDamaged when *entry* could not have come from a sound index."""
    try:
        check_path(entry.path, root_allowed=entry.kind == EntryKind.DIRECTORY)
    except ChangeInvalid as error:
        raise _damaged(error.message) from None
    if entry.kind == EntryKind.FILE:
        digests_sound = len(entry.content) == DIGEST_BYTES * block_count(max(entry.size, 0)) or entry.digests_apart
        sound = entry.size >= 0 and digests_sound
    else:
        sound = entry.size == 0 and bool(entry.content) == (entry.kind == EntryKind.SYMLINK)
    if not sound or entry.links < 1 or not 0 <= entry.meta.mode <= 0o7777:
        raise _damaged(f"the entry of {entry.path[:80]!r} contradicts itself")


def _check_reply(reply: Reply) -> None:
    if isinstance(reply, Page):
        for entry in reply.entries:
            check_entry(entry)
        if not reply.done and not reply.entries:
            raise _damaged("a page is empty and not the last")
    elif isinstance(reply, Looked):
        for looked in reply.entries:
            if looked is not None:
                check_entry(looked)
    elif isinstance(reply, Contents) and not reply.parts:
        raise _damaged("an answer without contents")
    elif isinstance(reply, Digests) and len(reply.digests) % DIGEST_BYTES:
        raise _damaged("digests of a broken length")
