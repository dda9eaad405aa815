"""Into the running server, additively: what is there stays as it is, what is missing comes beside it.

A plan is made first: every message with what becomes of it and why. Carrying it out adds what the plan says, in the
account's own session. Repeated, the plan finds everything there: so an interrupted restore is simply run again.

Two messages are the same when a mail client would get the same bytes for both. A message with the same Message-ID and
other bytes (the copy of a mailing list beside the one sent directly) is not the same, and comes too; the plan says so.
A folder that has a message twice gets it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from blake3 import blake3
from msgspec import Struct

from holdfast.mail import stored as storing
from holdfast.mail.headers import fields as header_fields
from holdfast.mail.headers import message_id, split_header
from holdfast.mail.imap_exchange import bytes_of, number_of
from holdfast.mail.imap_session import ImapRefused, ImapSession, Namespace
from holdfast.mail.imap_syntax import sequence_set
from holdfast.mail.stored import Unreadable
from holdfast.recover.boxes import Box
from holdfast.recover.messages import message
from holdfast.recover.wanted import Wanted
from holdfast.vault.faults import VaultDamaged

BATCH_MESSAGES_MAX: Final = 50
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of one APPEND with many messages: one transaction of the server's, and what is lost when the session ends in it."""
COMPARED_BYTES_MAX, COMPARED_MESSAGES_MAX = 16 * 1024 * 1024, 500
"""Of messages fetched at once to be compared."""
DIGEST_BYTES: Final = 16
_MESSAGE_ID_ITEM: Final = "BODY[HEADER.FIELDS (MESSAGE-ID)]"
_OVERVIEW: Final = "(RFC822.SIZE BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])"


class Verdict(StrEnum):
    ADD = "add"
    THERE = "there"
    UNREADABLE = "unreadable"
    ADDED = "added"
    REFUSED = "refused"


class Step(Struct):
    """One message of a plan. *folder*: where it goes, as the server calls it; *reason*: of the verdict, for people."""

    wanted: Wanted
    folder: str
    verdict: Verdict
    reason: str = ""
    message_id: str = ""
    flags: tuple[str, ...] = ()
    received_s: int = 0
    size: int = 0


class AccountPlan(Struct):
    """*create*: folders the server does not have; *subscribe*: those its user will see by a subscription made now."""

    account: str
    user: str
    """The account of the server that gets it."""
    steps: list[Step]
    create: list[str]
    subscribe: list[str]
    notes: list[str]

    def count(self, verdict: Verdict) -> int:
        return sum(step.verdict is verdict for step in self.steps)


class Target(NamedTuple):
    """Where to. *into_folder*: empty: each message into the folder it was in; else below that, or with *flat* right
    into it. *copies*: also what is still in its own folder."""

    into_folder: str = ""
    flat: bool = False
    copies: bool = False
    only_filled: bool = False
    """Make no folder that nothing comes into."""

    def folder(self, was_in: str) -> str:
        if not self.into_folder:
            return was_in
        return self.into_folder if self.flat else f"{self.into_folder}/{was_in}"


def plan(
    session: ImapSession,
    account: str,
    wanted: Iterable[Wanted],
    boxes: Iterable[Box],
    target: Target,
    subscribed: Iterable[str] = (),
    progress: Callable[[int, int], None] = lambda _bytes, _messages: None,
) -> AccountPlan:
    """What would be done for one account. *boxes*: its folders that are to be there afterwards, empty ones too;
    *subscribed*: folders (as in *boxes*) its user had subscribed to; *progress*: bytes and messages looked at. Raises
    ImapLost, ImapRefused, WrongKey."""
    space = session.namespace()
    have = {name.casefold() if name.upper() == "INBOX" else name for name in session.folders()}
    made = AccountPlan(account, session.user, [], [], [], [])
    by_folder: dict[str, list[Wanted]] = {}
    for one in wanted:
        by_folder.setdefault(one.box.mailbox.folder, []).append(one)
    size = 0
    for was_in, ones in by_folder.items():
        places = [space.server_name(target.folder(was_in))]
        if target.into_folder and not target.copies:
            places.append(space.server_name(was_in))
        present = [_Present(session, place) for place in dict.fromkeys(places) if _is_there(place, have)]
        asked: list[tuple[Step, bytes]] = []
        for one in ones:
            step, digest = _step(one, places[0])
            made.steps.append(step)
            asked.append((step, digest))
            size += step.size
            progress(size, len(made.steps))
        for place in present:
            place.fetch([(step.message_id, step.size) for step, _ in asked if step.verdict is Verdict.ADD])
        for step, digest in asked:
            if step.verdict is Verdict.ADD:
                _judge(step, digest, present)
    _folders(session, made, space, have, boxes, target, set(subscribed))
    return made


def _folders(
    session: ImapSession,
    made: AccountPlan,
    space: Namespace,
    have: set[str],
    boxes: Iterable[Box],
    target: Target,
    had: set[str],
) -> None:
    """Folders to make: those of *boxes*; into another folder only those that something comes into. A subscription is
    made for what is made, and for everything where the account has none at all."""
    known = set(session.subscriptions())
    filled = {step.folder for step in made.steps if step.verdict is Verdict.ADD}
    for was_in in dict.fromkeys(box.mailbox.folder for box in boxes):
        name = space.server_name(target.folder(was_in))
        if target.only_filled and name not in filled:
            continue
        if not _is_there(name, have) and name not in made.create:
            made.create.append(name)
        visible = was_in in had or bool(target.into_folder)
        if visible and name not in known and (name in made.create or not known) and name not in made.subscribe:
            made.subscribe.append(name)


def _is_there(name: str, have: set[str]) -> bool:
    return name in have or (name.upper() == "INBOX" and "inbox" in have)


class _Body(NamedTuple):
    content: bytes
    received_s: int


def _body(one: Wanted) -> _Body | Unreadable:
    """As it goes over the wire."""
    try:
        found = message(one.box.mailbox.format, one.stored, one.read)
    except VaultDamaged as error:
        return Unreadable(error.message)
    if isinstance(found, Unreadable):
        return found
    if not found.content:
        return Unreadable("it is empty: a server takes no message without a byte")
    return _Body(storing.over_the_wire(found.content), found.received_s)


def _step(one: Wanted, folder: str) -> tuple[Step, bytes]:
    """Before it is compared, and the digest of its bytes."""
    body = _body(one)
    if isinstance(body, Unreadable):
        return Step(one, folder, Verdict.UNREADABLE, body.reason), b""
    flags = tuple(flag for flag in one.stored.flags if flag != "\\Deleted")
    name, size = message_id_of(body.content), len(body.content)
    return Step(one, folder, Verdict.ADD, "", name, flags, body.received_s, size), _digest(body.content)


def _judge(step: Step, digest: bytes, present: list[_Present]) -> None:
    for place in present:
        if place.take(step.message_id, step.size, digest):
            step.verdict, step.reason = Verdict.THERE, f"the same message is in {place.folder}"
            return
    similar = any(place.knows(step.message_id) for place in present)
    step.reason = "a message with its Message-ID is there, with other contents" if similar else "not there"


class _Present:
    """What a folder of the server has. Each message of it answers for one of ours."""

    def __init__(self, session: ImapSession, folder: str) -> None:
        self.folder = folder
        self._session = session
        self._by_size: dict[tuple[str, int], list[int]] = {}
        self._ids: set[str] = set()
        self._digests: dict[int, bytes] = {}
        if session.examine(folder):
            for uid, items in session.fetch("1:*", _OVERVIEW).items():
                name = _id_in(bytes_of(items, _MESSAGE_ID_ITEM))
                self._ids.add(name)
                self._by_size.setdefault((name, number_of(items, "RFC822.SIZE")), []).append(uid)

    def knows(self, name: str) -> bool:
        return bool(name) and name in self._ids

    def fetch(self, facts: Iterable[tuple[str, int]]) -> None:
        """Read the messages that may be the same as one with such a Message-ID and size."""
        sizes = {uid: key[1] for key in set(facts) for uid in self._by_size.get(key, ())}
        batch: list[int] = []
        size = 0
        for uid in sorted(sizes):
            size += sizes[uid]
            if batch and (size > COMPARED_BYTES_MAX or len(batch) >= COMPARED_MESSAGES_MAX):
                self._fetch(batch)
                batch, size = [], sizes[uid]
            batch.append(uid)
        if batch:
            self._fetch(batch)

    def _fetch(self, uids: list[int]) -> None:
        if self._session.selected != self.folder:
            self._session.examine(self.folder)
        for uid, items in self._session.fetch(sequence_set(uids), "(BODY.PEEK[])").items():
            self._digests[uid] = _digest(bytes_of(items, "BODY[]"))

    def take(self, name: str, size: int, digest: bytes) -> bool:
        """Whether a message with these bytes is there that was not taken before; then it is taken."""
        candidates = self._by_size.get((name, size), [])
        for uid in candidates:
            if self._digests.get(uid) == digest:
                candidates.remove(uid)
                return True
        return False


def _digest(content: bytes) -> bytes:
    return blake3(content).digest(length=DIGEST_BYTES)


def message_id_of(content: bytes) -> str:
    """Of a message; empty where it has none."""
    return _id_in(split_header(content))


def _id_in(header: bytes) -> str:
    return next((message_id(value) for name, value in header_fields(header) if name == b"message-id"), "")


def execute(
    session: ImapSession, made: AccountPlan, progress: Callable[[int, int], None] = lambda _bytes, _messages: None
) -> None:
    """Do what the plan says; each step's verdict becomes ADDED or REFUSED (with the server's words). *progress*: bytes
    and messages done.

    Raises ImapLost: then what was added is added, the rest keeps its verdict, and a new plan finds out.
    """
    for folder in made.create:
        try:
            session.on_folder("CREATE", folder)
        except ImapRefused as error:
            if error.code != "ALREADYEXISTS":
                made.notes.append(f"folder {folder} could not be made: {error.message}")
    for folder in made.subscribe:
        try:
            session.on_folder("SUBSCRIBE", folder)
        except ImapRefused as error:
            made.notes.append(f"folder {folder} could not be subscribed to: {error.message}")
    size = done = 0
    for batch in _batches(made.steps):
        _append(session, batch)
        done += len(batch)
        size += sum(step.size for step in batch)
        progress(size, done)


def _batches(steps: list[Step]) -> Iterable[list[Step]]:
    batch: list[Step] = []
    size = 0
    for step in steps:
        if step.verdict is not Verdict.ADD:
            continue
        full = len(batch) >= BATCH_MESSAGES_MAX or size + step.size > BATCH_BYTES_MAX
        if batch and (full or batch[0].folder != step.folder):
            yield batch
            batch, size = [], 0
        batch.append(step)
        size += step.size
    if batch:
        yield batch


def _append(session: ImapSession, batch: list[Step]) -> None:
    """A batch at once; when the server refuses it, one by one, so that what it refuses is known."""
    ready: list[tuple[Step, tuple[bytes, tuple[str, ...], int]]] = []
    for step in batch:
        body = _body(step.wanted)
        if isinstance(body, Unreadable):
            step.verdict, step.reason = Verdict.UNREADABLE, body.reason
        else:
            ready.append((step, (body.content, step.flags, step.received_s)))
    if not ready:
        return
    try:
        session.append(batch[0].folder, [content for _, content in ready])
    except ImapRefused as error:
        if len(ready) == 1:
            ready[0][0].verdict, ready[0][0].reason = Verdict.REFUSED, error.message
            return
        for step, _ in ready:
            _append(session, [step])
        return
    for step, _ in ready:
        step.verdict, step.reason = Verdict.ADDED, ""
