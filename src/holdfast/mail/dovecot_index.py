"""Dovecot's index of a mailbox, read: which messages it has, their flags and keywords. Pure; it never writes.

``dovecot.index`` is a state, ``dovecot.index.log`` (and ``.log.2`` before it) what happened since; the state now is
both. Both are needed for sdbox and mdbox: nothing else knows their flags, and for mdbox nothing else knows which
folder a message is in. The same format holds mdbox's map (``dovecot.map.index``): where in ``m.*`` a message lies.

Written from the description of the format in Dovecot's sources (src/lib-index/mail-index.h, mail-index-private.h,
mail-transaction-log.h, 2.3.19 and 2.4) and tried against indexes that Dovecot wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from holdfast.errors import HoldfastError

MAP_EXTENSION: Final = "map"
REFERENCE_EXTENSION: Final = "ref"
MDBOX_EXTENSION: Final = "mdbox"
KEYWORDS: Final = "keywords"
_KEPT: Final = frozenset({MAP_EXTENSION, REFERENCE_EXTENSION, MDBOX_EXTENSION})

ANSWERED, FLAGGED, DELETED, SEEN, DRAFT = 0x01, 0x02, 0x04, 0x08, 0x10
SYSTEM_FLAGS: Final = (
    (ANSWERED, "\\Answered"),
    (FLAGGED, "\\Flagged"),
    (DELETED, "\\Deleted"),
    (SEEN, "\\Seen"),
    (DRAFT, "\\Draft"),
)

_HEADER: Final = struct.Struct("<BBHIIB3xIIIIIIIIIIIIII")
"""major, minor, base size, header size, record size, compat, indexid, flags, uid validity, next uid, messages, recent,
seen, deleted, first recent, first unseen, first deleted, log seq, log tail, log head."""
_EXTENSION: Final = struct.Struct("<IIHHHH")
_LOG_HEADER: Final = struct.Struct("<BBHIIII")
_INTRO: Final = struct.Struct("<IIIHHHH")
_MAJOR, _LOG_MAJOR = 7, 1
_LITTLE_ENDIAN: Final = 1
_NONE: Final = 0xFFFFFFFF

_EXPUNGE, _APPEND, _FLAGS = 0x1, 0x2, 0x4
_HEADER_UPDATE, _EXT_INTRO, _EXT_RESET = 0x20, 0x40, 0x80
_EXT_REC_UPDATE, _KEYWORD_UPDATE, _KEYWORD_RESET = 0x200, 0x400, 0x800
_EXT_INCREMENT, _EXPUNGE_GUID, _BOUNDARY = 0x1000, 0x2000, 0x80000
_TYPE_MASK, _EXPUNGE_PROTECTION, _EXTERNAL = 0x0FFFFFFF, 0xCD90, 0x10000000
_UID_VALIDITY_AT, _NEXT_UID_AT = 24, 28


class IndexUnreadable(HoldfastError):
    """The files are no index this program knows, or damaged, or do not belong together."""


class _Extension:
    def __init__(self, name: str, reset_id: int, offset: int, size: int) -> None:
        self.name = name
        self.reset_id = reset_id
        self.offset = offset
        self.size = size
        self.values: dict[int, bytes] = {}


class Index:
    """A mailbox's state. ``flags``: by UID, in order of UIDs; ``keywords``: by UID, only where there are some."""

    def __init__(self) -> None:
        self.uid_validity = 0
        self.next_uid = 1
        self.flags: dict[int, int] = {}
        self.keywords: dict[int, set[str]] = {}
        self._extensions: list[_Extension] = []

    def values(self, extension: str) -> dict[int, bytes]:
        """What an extension keeps for each message: MAP_EXTENSION, REFERENCE_EXTENSION or MDBOX_EXTENSION."""
        for known in self._extensions:
            if known.name == extension:
                return {uid: value for uid, value in known.values.items() if uid in self.flags}
        return {}

    def imap_flags(self, uid: int) -> tuple[str, ...]:
        """System flags and keywords, as IMAP names them."""
        system = tuple(name for bit, name in SYSTEM_FLAGS if self.flags[uid] & bit)
        return system + tuple(sorted(self.keywords.get(uid, ())))


def read_index(index: bytes | None, log: bytes | None, older_log: bytes | None = None) -> Index:
    """The state that the files hold together: ``dovecot.index`` (not there in a young mailbox), ``dovecot.index.log``
    and ``dovecot.index.log.2``. Raises IndexUnreadable."""
    try:
        return _read(index, log, older_log)
    except (struct.error, IndexError, UnicodeDecodeError, MemoryError) as error:
        raise IndexUnreadable(f"an index of Dovecot is damaged ({error})") from None


def _read(index: bytes | None, log: bytes | None, older_log: bytes | None) -> Index:
    state = Index()
    sequence, offset, index_id = 0, 0, None
    if index:
        sequence, offset, index_id = _read_main(state, index)
    logs = [read for data in (older_log, log) if data and (read := _LogFile(data)).usable(index_id)]
    if not index:
        logs = _from_beginning(logs)
        if not logs:
            raise IndexUnreadable("there is no index, or only a part of it")
    for file in logs:
        if file.sequence < sequence:
            continue
        if file.sequence == sequence:
            file.apply(state, offset)
            continue
        if index and file.previous == 0:
            state = Index()  # begun anew: what was before counts no more
        elif index and file.previous > sequence:
            raise IndexUnreadable("an index log is missing between the index and what is there")
        file.apply(state, 0)
        sequence = file.sequence
    return state


def _from_beginning(logs: list[_LogFile]) -> list[_LogFile]:
    """The logs from the one on that nothing comes before."""
    for at in range(len(logs) - 1, -1, -1):
        if logs[at].previous == 0:
            return logs[at:]
    return []


def _read_main(state: Index, data: bytes) -> tuple[int, int, int]:
    """``dovecot.index`` into *state*; log sequence and offset it goes up to, and the index's id."""
    header = _HEADER.unpack_from(data)
    major, _, base_size, header_size, record_size, compat, index_id = header[:7]
    if major != _MAJOR or not compat & _LITTLE_ENDIAN:
        raise IndexUnreadable(f"an index of format {major} is not known")
    state.uid_validity, state.next_uid, count = header[8], header[9], header[10]
    log_sequence, _, log_head = header[17:20]
    if header_size + count * record_size > len(data) or record_size < 5:
        raise IndexUnreadable("an index of Dovecot is cut off")
    keyword_names = _read_extensions(state, data, _aligned(base_size), header_size)
    records = memoryview(data)[header_size : header_size + count * record_size]
    for at in range(0, len(records), record_size):
        uid = int.from_bytes(records[at : at + 4], "little")
        state.flags[uid] = records[at + 4]
        for extension in state._extensions:
            if not extension.offset:
                continue
            if extension.name == KEYWORDS:
                bits = int.from_bytes(records[at + extension.offset :][: extension.size], "little")
                if bits:
                    state.keywords[uid] = {name for bit, name in enumerate(keyword_names) if bits >> bit & 1}
            elif extension.name in _KEPT:
                value = bytes(records[at + extension.offset :][: extension.size])
                if any(value):
                    extension.values[uid] = value
    return log_sequence, log_head, index_id


def _read_extensions(state: Index, data: bytes, at: int, end: int) -> list[str]:
    """The extensions' headers into *state*, in order; the names of the keywords."""
    names: list[str] = []
    while at + _EXTENSION.size < end:
        header_size, reset_id, offset, size, _, name_size = _EXTENSION.unpack_from(data, at)
        name = data[at + _EXTENSION.size :][:name_size].decode("ascii")
        body = at + _aligned(_EXTENSION.size + name_size)
        state._extensions.append(_Extension(name, reset_id, offset, size))
        if name == KEYWORDS:
            names = _keyword_names(data[body : body + header_size])
        at = body + _aligned(header_size)
    return names


def _keyword_names(header: bytes) -> list[str]:
    if len(header) < 4:
        return []
    count = int.from_bytes(header[:4], "little")
    names_at = 4 + 8 * count
    offsets = [struct.unpack_from("<I", header, 4 + 8 * number + 4)[0] for number in range(count)]
    return [header[names_at + at :].split(b"\0", 1)[0].decode("utf-8", "replace") for at in offsets]


def _aligned(size: int) -> int:
    return (size + 7) & ~7


class _LogFile:
    """One log file, and the applying of its records."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        major, _, self._begin, self._index_id, self.sequence, self.previous, _ = _LOG_HEADER.unpack_from(data)
        if major != _LOG_MAJOR:
            raise IndexUnreadable(f"an index log of format {major} is not known")
        self._current: _Extension | None = None
        self._record_size = 0
        self._reset_id = 0

    def usable(self, index_id: int | None) -> bool:
        return self._index_id != 0 and index_id in (None, self._index_id)

    def apply(self, state: Index, offset: int) -> None:
        """All records from *offset* on (0: all). A record that is not complete is where the file ends."""
        for at, kind, body in self._records():
            if at >= offset:
                self._one(state, kind, body)

    def _records(self) -> Iterator[tuple[int, int, memoryview]]:
        data = memoryview(self._data)
        at = self._begin
        while at + 8 <= len(data):
            size = _size(bytes(data[at : at + 4]))
            if size < 8 or at + size > len(data):
                return
            kind, body = int.from_bytes(data[at + 4 : at + 8], "little"), data[at + 8 : at + size]
            if kind & _TYPE_MASK == _BOUNDARY and at + int.from_bytes(body[:4], "little") > len(data):
                return
            yield at, kind, body
            at += size

    def _one(self, state: Index, kind: int, body: memoryview) -> None:
        external = bool(kind & _EXTERNAL)
        what = kind & _TYPE_MASK
        if what in (_EXPUNGE, _EXPUNGE | _EXPUNGE_PROTECTION):
            if external:
                for first, last in _pairs(body):
                    _expunge(state, _uids(state, first, last))
        elif what in (_EXPUNGE_GUID, _EXPUNGE_GUID | _EXPUNGE_PROTECTION):
            if external:
                _expunge(state, [int.from_bytes(body[at : at + 4], "little") for at in range(0, len(body) - 19, 20)])
        elif what == _APPEND:
            for at in range(0, len(body) - 7, 8):
                uid = int.from_bytes(body[at : at + 4], "little")
                if uid >= state.next_uid:
                    state.flags[uid] = body[at + 4]
                    state.next_uid = uid + 1
        elif what == _FLAGS:
            for at in range(0, len(body) - 11, 12):
                first, last, add, remove = struct.unpack_from("<IIBB", body, at)
                for uid in _uids(state, first, last):
                    state.flags[uid] = state.flags[uid] & ~remove & 0xFF | add
        elif what == _HEADER_UPDATE:
            _header_update(state, body)
        elif what == _KEYWORD_UPDATE:
            _keyword_update(state, body)
        elif what == _KEYWORD_RESET:
            for first, last in _pairs(body):
                for uid in _uids(state, first, last):
                    state.keywords.pop(uid, None)
        elif what == _EXT_INTRO:
            self._introduce(state, body)
        elif self._current is not None:
            self._extension(state, what, body)

    def _introduce(self, state: Index, body: memoryview) -> None:
        """The extension that the records after this one are about; new ones get the next number."""
        self._current = None
        at = 0
        while at + _INTRO.size <= len(body):
            number, reset_id, _, record_size, _, _, name_size = _INTRO.unpack_from(body, at)
            name = bytes(body[at + _INTRO.size : at + _INTRO.size + name_size]).decode("ascii")
            found: _Extension | None = None
            if number != _NONE:
                found = state._extensions[number] if number < len(state._extensions) else None
            else:
                found = next((known for known in state._extensions if known.name == name), None)
                if found is None:
                    found = _Extension(name, reset_id, 0, record_size)
                    state._extensions.append(found)
            self._current, self._record_size, self._reset_id = found, record_size, reset_id
            at += (_INTRO.size + name_size + 3) & ~3

    def _extension(self, state: Index, what: int, body: memoryview) -> None:
        current = self._current
        assert current is not None
        if what == _EXT_RESET:
            current.reset_id = int.from_bytes(body[:4], "little")
            if len(body) < 5 or not body[4]:
                current.values.clear()
            return
        if current.name not in _KEPT or self._reset_id != current.reset_id:
            return
        if what == _EXT_REC_UPDATE:
            step = (4 + self._record_size + 3) & ~3
            for at in range(0, len(body) - step + 1, step):
                uid = int.from_bytes(body[at : at + 4], "little")
                current.values[uid] = bytes(body[at + 4 : at + 4 + self._record_size])
        elif what == _EXT_INCREMENT:
            for at in range(0, len(body) - 7, 8):
                uid, difference = struct.unpack_from("<Ii", body, at)
                size = self._record_size
                old = int.from_bytes(current.values.get(uid, b""), "little")
                new = max(0, old + difference) & ((1 << 8 * size) - 1)
                current.values[uid] = new.to_bytes(size, "little")


def _size(data: bytes) -> int:
    """A record's size: 28 bits, 7 in each byte, in units of 4; 0 for a record whose writing was not finished."""
    if not all(byte & 0x80 for byte in data):
        return 0
    number = 0
    for byte in data:
        number = number << 7 | byte & 0x7F
    return number << 2


def _pairs(body: memoryview) -> Iterator[tuple[int, int]]:
    for at in range(0, len(body) - 7, 8):
        yield struct.unpack_from("<II", body, at)


def _uids(state: Index, first: int, last: int) -> list[int]:
    """Those of first to last that are there."""
    if last - first < len(state.flags):
        return [uid for uid in range(first, last + 1) if uid in state.flags]
    return [uid for uid in state.flags if first <= uid <= last]


def _expunge(state: Index, uids: list[int]) -> None:
    for uid in uids:
        state.flags.pop(uid, None)
        state.keywords.pop(uid, None)


def _header_update(state: Index, body: memoryview) -> None:
    at = 0
    while at + 4 <= len(body):
        offset, size = struct.unpack_from("<HH", body, at)
        data = bytes(body[at + 4 : at + 4 + size])
        for field_at in (_UID_VALIDITY_AT, _NEXT_UID_AT):
            if offset <= field_at and field_at + 4 <= offset + size:
                value = int.from_bytes(data[field_at - offset :][:4], "little")
                if field_at == _UID_VALIDITY_AT:
                    state.uid_validity = value
                else:
                    state.next_uid = max(state.next_uid, value)
        at += (4 + size + 3) & ~3


def _keyword_update(state: Index, body: memoryview) -> None:
    change, _, name_size = struct.unpack_from("<BBH", body)
    name = bytes(body[4 : 4 + name_size]).decode("utf-8", "replace")
    for first, last in _pairs(body[(4 + name_size + 3) & ~3 :]):
        for uid in _uids(state, first, last):
            if change == 1:
                state.keywords.get(uid, set()).discard(name)
            else:
                state.keywords.setdefault(uid, set()).add(name)
