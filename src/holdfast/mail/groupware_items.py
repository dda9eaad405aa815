"""Events, tasks and contacts as files: iCalendar (RFC 5545) and vCard (RFC 6350), as far as finding them needs. Pure.

Radicale keeps a collection as a directory with ``.Radicale.props`` (JSON) and one file for each item, below
``collection-root/<user>/``.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Struct

PROPERTIES: Final = b".Radicale.props"
COLLECTIONS: Final = b"collection-root"
VALUE_CHARS_MAX: Final = 500
_KINDS: Final = {"VEVENT": "event", "VTODO": "task", "VJOURNAL": "journal", "VCARD": "contact"}
_LINE: Final = re.compile(r"([A-Za-z0-9.-]{1,80})((?:;(?:[^\":]|\"[^\"]*\")*)?):(.*)", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class Item(Struct, frozen=True, array_like=True):
    """*title*: SUMMARY, or FN. *when*: DTSTART as written; empty for contacts. *more*: e-mail addresses, organisation,
    place: also looked through."""

    kind: str = ""
    uid: str = ""
    title: str = ""
    when: str = ""
    more: str = ""


class Collection(Struct, frozen=True):
    """*kind*: calendar or addressbook, empty for what is neither."""

    name: str
    kind: str


def item(data: bytes) -> Item | None:
    """The first component of a file (an event with changed occurrences has several); None when there is none."""
    kind, values = "", dict[str, str]()
    others: list[str] = []
    for line in re.sub(r"\r?\n[ \t]", "", data.decode("utf-8", "replace")).splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        name, value = found[1].rpartition(".")[2].upper(), found[3]
        if name == "BEGIN" and not kind:
            kind = _KINDS.get(value.strip().upper(), "")
        elif name == "END" and kind and _KINDS.get(value.strip().upper()) == kind:
            break
        elif kind and name in ("EMAIL", "ORG", "LOCATION", "TEL", "NICKNAME"):
            others.append(_plain(value))
        elif kind:
            values.setdefault(name, _plain(value))
    if not kind:
        return None
    title = values.get("SUMMARY") or values.get("FN") or values.get("N", "")
    return Item(kind, values.get("UID", ""), title, values.get("DTSTART", ""), " ".join(others)[:VALUE_CHARS_MAX])


def collection(properties: bytes, directory: bytes) -> Collection:
    """What ``.Radicale.props`` says; the directory's name where it gives no other."""
    try:
        read = msgspec.json.decode(properties, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        read = {}
    kind = {"VCALENDAR": "calendar", "VADDRESSBOOK": "addressbook"}.get(str(read.get("tag", "")), "")
    return Collection(str(read.get("D:displayname") or directory.decode("utf-8", "backslashreplace")), kind)


def owner_of(path: bytes) -> str:
    """The user of a collection's directory in the tree; empty where none is told."""
    parts = path.split(b"/")
    at = parts.index(COLLECTIONS) + 1 if COLLECTIONS in parts else 0
    return parts[at].decode("utf-8", "backslashreplace") if at < len(parts) - 1 else ""


def _plain(value: str) -> str:
    text = _ESCAPED.sub(lambda found: " " if found[1] in "nN" else found[1], value)
    return " ".join(text.split())[:VALUE_CHARS_MAX]
