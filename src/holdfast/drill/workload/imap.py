"""A small IMAP client (RFC 9051, RFC 3501, with UIDPLUS, MOVE, CONDSTORE and QRESYNC: RFC 4315, 6851, 7162).

It sends one command at a time and gives its untagged responses as values. It needs a server with non-synchronising
literals (RFC 7888), as Dovecot is.
"""

from __future__ import annotations

import time

from msgspec import Struct

from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, Line, NotSent, Patience
from holdfast.mail import imap_syntax as syntax
from holdfast.mail.imap_exchange import (
    Answer,
    Exchange,
    by_uid,
    bytes_of,
    flags_of,
    items_of,
    listed,
    number,
    number_of,
    separator_of,
    word,
)
from holdfast.mail.imap_syntax import Value

__all__ = ["ImapClient", "Selected", "bytes_of", "flags_of", "number_of"]


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
        self._exchange = Exchange()
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
        self._line.send(*self._exchange.begin(text, *(() if literal is None else (literal,))))
        while True:
            answer = self._exchange.take(self._response())
            if answer is None:
                continue
            if answer.status == "BYE":
                self.close()
                raise AnswerLost(f"{self._line.endpoint}: {answer.text}", retry=True)
            if answer.status != "OK":
                raise Declined(answer.status, f"{text.split(' ')[0]}: {answer.text}")
            return answer

    def enable_qresync(self) -> None:
        self.command("ENABLE CONDSTORE QRESYNC")

    def separator(self) -> str:
        """The character between a folder and its child."""
        return separator_of(self.command('LIST "" ""'))

    def folders(self) -> list[str]:
        """Every folder that can be selected, by Unicode name, sorted."""
        return listed(self.command('LIST "" "*"'), "LIST")

    def subscriptions(self) -> list[str]:
        return listed(self.command('LSUB "" "*"'), "LSUB")

    def select(self, folder: str, *, read_only: bool = False, parameters: str = "") -> Selected:
        """SELECT or EXAMINE; *parameters* such as ``(CONDSTORE)`` or ``(QRESYNC (...))``."""
        verb = "EXAMINE" if read_only else "SELECT"
        self.selected = None
        answer = self.command(f"{verb} {syntax.folder_to_wire(folder)}{' ' + parameters if parameters else ''}")
        exists = 0
        changed: dict[int, dict[str, Value]] = {}
        vanished: list[int] = []
        for response in answer.untagged:
            if word(response, 1) == "EXISTS":
                exists = int(word(response, 0))
            elif word(response, 1) == "FETCH":
                items = items_of(response)
                changed[number(items["UID"])] = items
            elif word(response, 0) == "VANISHED":
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
        return by_uid(self.command(f"UID FETCH {uids} {items}"))

    def store(self, uids: tuple[int, ...], action: str, flags: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
        """UID STORE; the flags that each message now has, as the server says, for those it touched."""
        answer = self.command(f"UID STORE {syntax.sequence_set(uids)} {action} ({' '.join(flags)})")
        return {uid: flags_of(items) for uid, items in by_uid(answer).items() if "FLAGS" in items}

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
            if word(response, 0) == "VANISHED" and isinstance(response[-1], bytes):
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
