"""The IMAP client's half of a conversation without the connection: what to send, what came back. Pure.

RFC 9051, RFC 3501. One command at a time. Literals are sent without waiting (LITERAL+, RFC 7888), as Dovecot allows.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from holdfast.mail import imap_syntax as syntax
from holdfast.mail.imap_syntax import Value

SESSION_FLAG: Final = "\\Recent"
"""Belongs to a session, not to the message (RFC 9051 appendix E)."""
_CODE: Final = re.compile(rb"\[([A-Za-z0-9-]+)(?: ([^\]]*))?\]")
_STATUS: Final = (b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH")


class Answer(Struct):
    """A command's answer: untagged responses in order, and response codes (the last of each) by upper-case name.

    *status*: ``OK``, ``NO``, ``BAD``, or ``BYE`` when the server took its leave instead of answering."""

    untagged: list[list[Value]]
    codes: dict[str, str]
    text: str = ""
    status: str = ""


class Exchange:
    """The commands of one session."""

    def __init__(self) -> None:
        self._number = 0
        self._tag = b""
        self._leaving = False
        self._answer = Answer([], {})

    def begin(self, text: str, *literals: bytes | str) -> list[bytes]:
        """The bytes of a command: *text*, then its literals (bytes) with what stands between them (str) in order."""
        self._number += 1
        self._tag = b"a%d" % self._number
        self._leaving = text.startswith("LOGOUT")
        self._answer = Answer([], {})
        chunks = [self._tag + b" " + text.encode()]
        for part in literals:
            chunks += [part.encode()] if isinstance(part, str) else [b" {%d+}\r\n" % len(part), part]
        return [*chunks, b"\r\n"]

    def take(self, parts: list[bytes]) -> Answer | None:
        """One response (text, literal, text, ...) of the server; the answer when that ended it."""
        head, _, rest = parts[0].partition(b" ")
        if head == b"+":
            return None
        word = rest.split(b" ", 1)[0].upper()
        if word not in _STATUS:
            self._answer.untagged.append(syntax.parse([rest, *parts[1:]]))
            return None
        if found := _CODE.search(rest):
            self._answer.codes[found[1].decode().upper()] = (found[2] or b"").decode("utf-8", "replace")
        if head != self._tag and (word != b"BYE" or self._leaving):
            return None
        self._answer.status = word.decode()
        self._answer.text = rest.decode("utf-8", "replace")
        return self._answer


def word(response: list[Value], index: int) -> str:
    """An atom of a response in capitals; empty where there is none."""
    value = response[index] if len(response) > index else None
    return value.decode("utf-8", "replace").upper() if isinstance(value, bytes) else ""


def items_of(response: list[Value]) -> dict[str, Value]:
    """What a FETCH response tells, by upper-case name."""
    listed = response[2]
    assert isinstance(listed, list)
    return {
        key.decode().upper(): value
        for key, value in zip(listed[::2], listed[1::2], strict=True)
        if isinstance(key, bytes)
    }


def by_uid(answer: Answer) -> dict[int, dict[str, Value]]:
    """The FETCH responses of an answer, by UID, each item by its upper-case name (``BODY[]``, ``FLAGS``)."""
    found: dict[int, dict[str, Value]] = {}
    for response in answer.untagged:
        if word(response, 1) == "FETCH":
            items = items_of(response)
            if "UID" in items:
                found.setdefault(number(items["UID"]), {}).update(items)
    return found


def listed(answer: Answer, verb: str) -> list[str]:
    """The folders of a LIST or LSUB answer that can be selected, by Unicode name, sorted."""
    names: list[str] = []
    for response in answer.untagged:
        if word(response, 0) != verb or not isinstance(response[1], list) or not isinstance(response[3], bytes):
            continue
        attributes = {item.lower() for item in response[1] if isinstance(item, bytes)}
        if not attributes & {b"\\noselect", b"\\nonexistent"}:
            names.append(syntax.folder_from_wire(response[3]))
    return sorted(names)


def separator_of(answer: Answer) -> str:
    """Of the answer to ``LIST "" ""``: the character between a folder and its child."""
    for response in answer.untagged:
        if word(response, 0) == "LIST" and isinstance(response[2], bytes):
            return response[2].decode()
    return "/"


def flags_of(items: dict[str, Value]) -> tuple[str, ...]:
    """Flags and keywords of a FETCH response, sorted, without the session's ``\\Recent``."""
    flags = items.get("FLAGS")
    assert isinstance(flags, list)
    names = (flag.decode("utf-8", "replace") for flag in flags if isinstance(flag, bytes))
    return tuple(sorted(name for name in names if name != SESSION_FLAG))


def number_of(items: dict[str, Value], name: str) -> int:
    """A number, or a list of one number (MODSEQ); 0 when it was not sent."""
    value = items.get(name)
    return 0 if value is None else number(value[0] if isinstance(value, list) else value)


def bytes_of(items: dict[str, Value], name: str) -> bytes:
    value = items.get(name)
    return value if isinstance(value, bytes) else b""


def number(value: Value) -> int:
    assert isinstance(value, bytes)
    return int(value)
