"""The messages in a box: which there are, and how their bytes are read out of the vault."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Final, NamedTuple, Protocol

import msgspec
from blake3 import blake3

from holdfast.changes.exchange import EntryKind
from holdfast.mail import mailboxes, stored
from holdfast.mail.dovecot_index import MAP_EXTENSION, MDBOX_EXTENSION, Index, IndexUnreadable, read_index
from holdfast.mail.mailboxes import Format
from holdfast.mail.stored import Unreadable
from holdfast.recover.boxes import Box, Problems, below
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.objects import CONTENT_BYTES_MAX
from holdfast.vault.record import Entry, Read, entries_of, split_ids

INDEX_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of a folder's index files: fifty times those of a folder with 100,000 messages."""
IDENTITY_BYTES: Final = 16
MAPS_KEPT_MAX: Final = 16
"""Of mdbox stores, read and held: one is 100 bytes a message."""
_decoder: Final = msgspec.msgpack.Decoder(tuple[Entry, ...])


class Stored(NamedTuple):
    """One message. *key*: stays while it is in the folder. *path*: its file in the tree; *content*: the file's ids;
    *at*, *length*: where in an mdbox file it stands (0, 0: the file is the message)."""

    key: bytes
    path: bytes
    content: bytes
    size: int
    mtime_ns: int
    flags: tuple[str, ...]
    at: int = 0
    length: int = 0

    @property
    def identity(self) -> bytes:
        """The same for the same bytes in the same kind of file."""
        if not self.length:
            if len(self.content) == IDENTITY_BYTES:
                return self.content
            return blake3(self.content).digest(length=IDENTITY_BYTES)
        first, ids = self._span()
        return blake3(b"%d %d " % (self.at - first * CONTENT_BYTES_MAX, self.length) + b"".join(ids)).digest(
            length=IDENTITY_BYTES
        )

    def _span(self) -> tuple[int, list[bytes]]:
        first = self.at // CONTENT_BYTES_MAX
        return first, split_ids(self.content)[first : (self.at + self.length - 1) // CONTENT_BYTES_MAX + 1]

    def raw(self, read: Read) -> bytes:
        """Its bytes in the file. Raises VaultDamaged."""
        if not self.length:
            return b"".join(read(content_id) for content_id in split_ids(self.content))
        first, ids = self._span()
        begin = self.at - first * CONTENT_BYTES_MAX
        data = read(ids[0]) if len(ids) == 1 else b"".join(read(content_id) for content_id in ids)
        return data[begin : begin + self.length]


class Message(NamedTuple):
    """A message's own bytes, as they were received."""

    content: bytes
    received_s: int


def message(form: Format, found: Stored, read: Read) -> Message | Unreadable:
    """The whole message. Raises VaultDamaged."""
    raw = found.raw(read)
    received_s = found.mtime_ns // 10**9
    if form is not Format.MAILDIR:
        part = stored.dbox_message(b"2 M1e C0\n" + raw if found.length else raw)
        if isinstance(part, Unreadable):
            return part
        if part.parts_elsewhere:
            return Unreadable("its attachments are stored apart (mail_attachment_dir); only Dovecot can join them")
        raw = part.stored
        received_s = part.received_s if part.received_s is not None else received_s
    plain = stored.plain(raw)
    return plain if isinstance(plain, Unreadable) else Message(plain, received_s)


class Memory(Protocol):
    """Keeps what was worked out of contents, which never change."""

    def recall(self, table: str, identity: bytes) -> bytes | None: ...

    def keep(self, table: str, identity: bytes, value: bytes) -> None: ...


class _Turn(NamedTuple):
    """Between two states of one Maildir: the keys of files that went, and the files that came."""

    went: list[bytes]
    came: list[Stored]


class Reader:
    """The messages of boxes."""

    def __init__(self, problems: Problems, memory: Memory | None = None) -> None:
        self._problems = problems
        self._memory = memory
        self._maps: dict[bytes, tuple[Index, dict[bytes, Entry]]] = {}

    def messages(self, box: Box, read: Read) -> Iterator[Stored]:
        """All of a box. Raises VaultDamaged (a directory cannot be read), WrongKey."""
        if box.mailbox.format is Format.MAILDIR:
            return self._maildir(box, read)
        try:
            return iter(list(self.dbox(box, read, set(), frozenset())))
        except IndexUnreadable as error:
            self._problems.add(_place(box), error.message)
            return self._without_index(box, read) if box.mailbox.format is Format.SDBOX else iter(())

    def dbox(self, box: Box, read: Read, keys: set[bytes], known: Set[bytes]) -> Iterator[Stored]:
        """Of a box in sdbox or mdbox: the messages whose keys are not *known*; all keys into *keys*. Raises
        IndexUnreadable, and as :meth:`messages`."""
        if box.mailbox.format is Format.SDBOX:
            return self._sdbox(box, read, keys, known)
        return self._mdbox(box, read, keys, known)

    def _maildir(self, box: Box, read: Read) -> Iterator[Stored]:
        words = _Words(box, read)
        for path, directory in box.directories:
            for part in split_ids(directory.content):
                for entry in _entries(part, read):
                    if _is_message(entry):
                        yield words.stored(path, entry)

    def maildir_turn(self, old: Box | None, old_read: Read, box: Box, read: Read) -> tuple[set[bytes], list[Stored]]:
        """Between two states of one Maildir: the keys of files that went, and the files that came. Parts that both
        states share are not read, names that both have are passed over; the same two states are looked at once.
        Raises as :meth:`messages`."""
        if self._memory is None or old is None:
            turn = _turn(old, old_read, box, read)
        else:
            both = msgspec.msgpack.encode((old.state, box.state, box.mailbox.path))
            identity = blake3(both).digest(length=IDENTITY_BYTES)
            known = self._memory.recall("turn", identity)
            turn = _turn(old, old_read, box, read) if known is None else _turns.decode(known)
            if known is None:
                self._memory.keep("turn", identity, msgspec.msgpack.encode(turn))
        return set(turn.went), turn.came

    def _sdbox(self, box: Box, read: Read, keys: set[bytes], known: Set[bytes]) -> Iterator[Stored]:
        path, directory = box.directories[0]
        files = {entry.name: entry for entry in entries_of(directory.content, read)}
        index = _index(files, b"dovecot.index", read)
        for uid in index.flags:
            key = b"%d.%d" % (index.uid_validity, uid)
            keys.add(key)
            entry = files.get(b"u.%d" % uid)
            if key in known:
                continue
            if entry is None or entry.kind is not EntryKind.FILE:
                self._problems.add(_place(box), f"the index has message {uid}, and its file is not there")
                continue
            flags = index.imap_flags(uid)
            yield Stored(key, below(path, entry.name), entry.content, entry.size, entry.meta.mtime_ns, flags)

    def _without_index(self, box: Box, read: Read) -> Iterator[Stored]:
        """sdbox: the files themselves, without flags."""
        path, directory = box.directories[0]
        for entry in entries_of(directory.content, read):
            if entry.kind is EntryKind.FILE and entry.name.startswith(b"u.") and entry.name[2:].isdigit():
                key = b"0." + entry.name[2:]
                yield Stored(key, below(path, entry.name), entry.content, entry.size, entry.meta.mtime_ns, ())

    def _mdbox(self, box: Box, read: Read, keys: set[bytes], known: Set[bytes]) -> Iterator[Stored]:
        files = {entry.name: entry for entry in entries_of(box.directories[0][1].content, read)}
        index = _index(files, b"dovecot.index", read)
        mapped, storage = self._map(box, read)
        places = mapped.values(MAP_EXTENSION)
        for uid, value in index.values(MDBOX_EXTENSION).items():
            key = b"%d.%d" % (index.uid_validity, uid)
            keys.add(key)
            if key in known:
                continue
            place = places.get(int.from_bytes(value[:4], "little"), b"")
            number, at, length = (int.from_bytes(place[i : i + 4], "little") for i in (0, 4, 8))
            entry = storage.get(b"m.%d" % number)
            if entry is None or not length or at + length > entry.size:
                self._problems.add(_place(box), f"message {uid} is not where the map of storage/ says")
                continue
            path = below(box.directories[1][0], entry.name)
            flags = index.imap_flags(uid)
            yield Stored(key, path, entry.content, entry.size, entry.meta.mtime_ns, flags, at, length)

    def _map(self, box: Box, read: Read) -> tuple[Index, dict[bytes, Entry]]:
        content = box.directories[1][1].content
        if content not in self._maps:
            files = {entry.name: entry for entry in entries_of(content, read)}
            index = _index(files, b"dovecot.map.index", read)
            if len(self._maps) >= MAPS_KEPT_MAX:
                self._maps.clear()
            self._maps[content] = index, files
        return self._maps[content]


def _index(files: dict[bytes, Entry], name: bytes, read: Read) -> Index:
    """Raises IndexUnreadable, VaultDamaged."""
    wanted = [files.get(name + suffix) for suffix in (b"", b".log", b".log.2")]
    if sum(entry.size for entry in wanted if entry is not None) > INDEX_BYTES_MAX:
        raise IndexUnreadable("an index is larger than any should be")
    return read_index(*(None if entry is None else _file(entry.content, read) for entry in wanted))


def _turn(old: Box | None, old_read: Read, box: Box, read: Read) -> _Turn:
    words = _Words(box, read)
    turn = _Turn([], [])
    for number, (path, directory) in enumerate(box.directories):
        now = dict.fromkeys(split_ids(directory.content))
        before = dict.fromkeys(split_ids(old.directories[number][1].content)) if old is not None else {}
        names = {e.name for part in before if part not in now for e in _entries(part, old_read) if _is_message(e)}
        for part in now:
            if part not in before:
                for entry in _entries(part, read):
                    if entry.name in names:
                        names.remove(entry.name)
                    elif _is_message(entry):
                        turn.came.append(words.stored(path, entry))
        turn.went.extend(map(mailboxes.base_name, names))
    return turn


_turns: Final = msgspec.msgpack.Decoder(_Turn)


class _Words:
    """Makes messages of the entries of one Maildir; equal endings of names are read once."""

    def __init__(self, box: Box, read: Read) -> None:
        self._keywords = mailboxes.maildir_keywords(_file(box.keywords, read)) if box.keywords else {}
        self._flags: dict[bytes, tuple[str, ...]] = {}

    def stored(self, path: bytes, entry: Entry) -> Stored:
        key, _, ending = entry.name.partition(b":2,")
        flags = self._flags.get(ending)
        if flags is None:
            flags = self._flags[ending] = mailboxes.maildir_flags(entry.name, self._keywords)
        return Stored(key, below(path, entry.name), entry.content, entry.size, entry.meta.mtime_ns, flags)


def _is_message(entry: Entry) -> bool:
    return entry.kind is EntryKind.FILE and not entry.name.startswith(b".")


def _entries(part: bytes, read: Read) -> tuple[Entry, ...]:
    """Of one part of a directory. Names are not checked here, as :func:`~holdfast.vault.record.decode_part` does it for
    whoever makes files of them: that takes four times as long. Raises VaultDamaged."""
    try:
        return _decoder.decode(read(part))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VaultDamaged(f"part {part.hex()} of a directory is unreadable ({error})") from None


def _file(content: bytes, read: Read) -> bytes:
    return b"".join(read(content_id) for content_id in split_ids(content))


def _place(box: Box) -> str:
    return f"{box.account}, {box.mailbox.folder}"
