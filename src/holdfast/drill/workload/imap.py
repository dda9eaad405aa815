"""A small IMAP client (RFC 9051, RFC 3501, with UIDPLUS, MOVE, CONDSTORE and QRESYNC: RFC 4315, 6851, 7162).

It sends one command at a time and gives its untagged responses as values. It needs a server with non-synchronising
literals (RFC 7888), as Dovecot is.
"""

from __future__ import annotations

import re
import time
from typing import Final

from msgspec import Struct

from holdfast.drill.checkers.facts import SESSION_FLAG
from holdfast.drill.workload import imap_syntax as syntax
from holdfast.drill.workload.imap_syntax import Value
from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, Line, NotSent, Patience

_CODE: Final = re.compile(rb"\[([A-Za-z0-9-]+)(?: ([^\]]*))?\]")
_STATUS: Final = (b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH")


class Answer(Struct):
    """A command's answer: untagged responses in order, and response codes (the last of each) by upper-case name."""

    untagged: list[list[Value]]
    codes: dict[str, str]
    text: str = ""


class Selected(Struct, frozen=True):
    """What SELECT or EXAMINE told. *highest_modseq* 0: the folder keeps none."""

    folder: str
    uid_validity: int
    uid_next: int
    highest_modseq: int
    exists: int
    changed: dict[int, dict[str, Value]]
    """FETCH responses by UID, as QRESYNC gives them."""
    vanished: list[int]


class ImapClient:
    """A logged-in session. ``answered_by`` is the text the server greeted with."""

    def __init__(self, endpoint: Endpoint, patience: Patience, user: str, password: str) -> None:
        """Connect and log in. Raises NotSent or Declined: nothing can have been changed."""
        self._line = Line(endpoint, patience)
        self._tag = 0
        self.selected: Selected | None = None
        try:
            greeting = self._line.line()
            self.answered_by = greeting.decode("utf-8", "replace").removeprefix("* ")
            if not greeting.upper().startswith((b"* OK", b"* PREAUTH")):
                raise Declined("BYE", self.answered_by, temporary=True)
            if endpoint.tls == "starttls":
                self.command("STARTTLS")
                self._line.start_tls()
            self.command(f"LOGIN {syntax.quoted(user)} {syntax.quoted(password)}")
        except AnswerLost as error:
            raise NotSent(error.message, retry=True) from error

    def command(self, text: str, literal: bytes | None = None) -> Answer:
        """Send *text* (and *literal* at its end); the answer once the server said OK.

        Raises Declined (NO, BAD), NotSent, AnswerLost.
        """
        self._tag += 1
        tag = b"a%d" % self._tag
        line = tag + b" " + text.encode()
        if literal is None:
            self._line.send(line + b"\r\n")
        else:
            self._line.send(line + b" {%d+}\r\n" % len(literal), literal, b"\r\n")
        answer = Answer([], {})
        while True:
            parts = self._response()
            head, _, rest = parts[0].partition(b" ")
            if head == b"+":
                continue
            word = rest.split(b" ", 1)[0].upper()
            if word in _STATUS:
                if found := _CODE.search(rest):
                    answer.codes[found[1].decode().upper()] = (found[2] or b"").decode("utf-8", "replace")
                if head == tag:
                    answer.text = rest.decode("utf-8", "replace")
                    if word != b"OK":
                        raise Declined(word.decode(), f"{text.split(' ')[0]}: {answer.text}")
                    return answer
                if word == b"BYE" and not text.startswith("LOGOUT"):
                    self.close()
                    raise AnswerLost(f"{self._line.endpoint}: {rest.decode('utf-8', 'replace')}", retry=True)
                continue
            answer.untagged.append(syntax.parse([parts[0].partition(b" ")[2], *parts[1:]]))

    def enable_qresync(self) -> None:
        self.command("ENABLE CONDSTORE QRESYNC")

    def separator(self) -> str:
        """The character between a folder and its child."""
        for response in self.command('LIST "" ""').untagged:
            if _word(response, 0) == "LIST" and isinstance(response[2], bytes):
                return response[2].decode()
        return "/"

    def folders(self) -> list[str]:
        """Every folder that can be selected, by Unicode name, sorted."""
        return self._listed("LIST")

    def subscriptions(self) -> list[str]:
        return self._listed("LSUB")

    def select(self, folder: str, *, read_only: bool = False, parameters: str = "") -> Selected:
        """SELECT or EXAMINE; *parameters* such as ``(CONDSTORE)`` or ``(QRESYNC (...))``."""
        verb = "EXAMINE" if read_only else "SELECT"
        self.selected = None
        answer = self.command(f"{verb} {syntax.folder_to_wire(folder)}{' ' + parameters if parameters else ''}")
        exists = 0
        changed: dict[int, dict[str, Value]] = {}
        vanished: list[int] = []
        for response in answer.untagged:
            if _word(response, 1) == "EXISTS":
                exists = int(_word(response, 0))
            elif _word(response, 1) == "FETCH":
                items = _items(response)
                changed[_number(items["UID"])] = items
            elif _word(response, 0) == "VANISHED":
                last = response[-1]
                assert isinstance(last, bytes)
                vanished.extend(syntax.numbers(last))
        self.selected = Selected(
            folder,
            int(answer.codes.get("UIDVALIDITY", "0")),
            int(answer.codes.get("UIDNEXT", "0")),
            int(answer.codes.get("HIGHESTMODSEQ", "0")),
            exists,
            changed,
            vanished,
        )
        return self.selected

    def unselect(self) -> None:
        """UNSELECT (RFC 3691): leave the folder, expunge nothing."""
        if self.selected is not None:
            self.command("UNSELECT")
            self.selected = None

    def fetch(self, uids: str, items: str) -> dict[int, dict[str, Value]]:
        """UID FETCH: by UID, each item by its upper-case name (``BODY[]``, ``FLAGS``)."""
        return self._by_uid(self.command(f"UID FETCH {uids} {items}"))

    def store(self, uids: tuple[int, ...], action: str, flags: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
        """UID STORE; the flags that each message now has, as the server says, for those it touched."""
        answer = self.command(f"UID STORE {syntax.sequence_set(uids)} {action} ({' '.join(flags)})")
        return {uid: flags_of(items) for uid, items in self._by_uid(answer).items() if "FLAGS" in items}

    def transfer(self, verb: str, uids: tuple[int, ...], target: str) -> tuple[int, dict[int, int]]:
        """UID COPY or UID MOVE: (UIDVALIDITY of the target, UID there by UID here). Empty: there was nothing to do."""
        answer = self.command(f"UID {verb} {syntax.sequence_set(uids)} {syntax.folder_to_wire(target)}")
        code = answer.codes.get("COPYUID", "")
        if not code:
            return 0, {}
        validity, here, there = code.encode().split(b" ")
        return int(validity), dict(zip(syntax.numbers(here), syntax.numbers(there), strict=True))

    def expunge(self, uids: tuple[int, ...]) -> tuple[int, ...]:
        """UID EXPUNGE; the UIDs which the server says are gone (needs QRESYNC enabled: VANISHED)."""
        gone: list[int] = []
        for response in self.command(f"UID EXPUNGE {syntax.sequence_set(uids)}").untagged:
            if _word(response, 0) == "VANISHED" and isinstance(response[-1], bytes):
                gone.extend(syntax.numbers(response[-1]))
        return tuple(uid for uid in gone if uid in set(uids))

    def append(self, folder: str, content: bytes, flags: tuple[str, ...], internal_date_s: int) -> tuple[int, int]:
        """APPEND; (UIDVALIDITY, UID) of the new message."""
        when = time.strftime("%d-%b-%Y %H:%M:%S +0000", time.gmtime(internal_date_s))
        answer = self.command(f'APPEND {syntax.folder_to_wire(folder)} ({" ".join(flags)}) "{when}"', content)
        validity, _, uid = answer.codes.get("APPENDUID", "0 0").partition(" ")
        return int(validity), int(uid)

    def on_folder(self, verb: str, *folders: str) -> None:
        """CREATE, DELETE, RENAME, SUBSCRIBE, UNSUBSCRIBE."""
        self.command(f"{verb} {' '.join(syntax.folder_to_wire(folder) for folder in folders)}")

    def logout(self) -> None:
        """Take leave; errors no longer matter: nothing is under way."""
        try:
            self.command("LOGOUT")
        except (NotSent, AnswerLost, Declined):
            pass
        finally:
            self.close()

    def close(self) -> None:
        self._line.close()

    def _response(self) -> list[bytes]:
        parts = [self._line.line()]
        while (size := syntax.literal_size(parts[-1])) is not None:
            parts.append(self._line.counted(size))
            parts.append(self._line.line())
        return parts

    def _listed(self, verb: str) -> list[str]:
        names: list[str] = []
        for response in self.command(f'{verb} "" "*"').untagged:
            if _word(response, 0) != verb or not isinstance(response[1], list) or not isinstance(response[3], bytes):
                continue
            attributes = {item.lower() for item in response[1] if isinstance(item, bytes)}
            if not attributes & {b"\\noselect", b"\\nonexistent"}:
                names.append(syntax.folder_from_wire(response[3]))
        return sorted(names)

    def _by_uid(self, answer: Answer) -> dict[int, dict[str, Value]]:
        found: dict[int, dict[str, Value]] = {}
        for response in answer.untagged:
            if _word(response, 1) == "FETCH":
                items = _items(response)
                if "UID" in items:
                    found.setdefault(_number(items["UID"]), {}).update(items)
        return found


def flags_of(items: dict[str, Value]) -> tuple[str, ...]:
    """Flags and keywords of a FETCH response, sorted, without the session's ``\\Recent``."""
    flags = items.get("FLAGS")
    assert isinstance(flags, list)
    return tuple(
        sorted(
            name
            for flag in flags
            if isinstance(flag, bytes) and (name := flag.decode("utf-8", "replace")) != SESSION_FLAG
        )
    )


def number_of(items: dict[str, Value], name: str) -> int:
    """A number, or a list of one number (MODSEQ); 0 when it was not sent."""
    value = items.get(name)
    return 0 if value is None else _number(value[0] if isinstance(value, list) else value)


def bytes_of(items: dict[str, Value], name: str) -> bytes:
    value = items.get(name)
    return value if isinstance(value, bytes) else b""


def _items(response: list[Value]) -> dict[str, Value]:
    listed = response[2]
    assert isinstance(listed, list)
    return {
        key.decode().upper(): value
        for key, value in zip(listed[::2], listed[1::2], strict=True)
        if isinstance(key, bytes)
    }


def _number(value: Value) -> int:
    assert isinstance(value, bytes)
    return int(value)


def _word(response: list[Value], index: int) -> str:
    value = response[index] if len(response) > index else None
    return value.decode("utf-8", "replace").upper() if isinstance(value, bytes) else ""
