"""What a drill records, and nothing that judges it: the journal of a workload, and the state of mailboxes.

Both are plain values that travel as JSON (msgspec): a drill writes them inside one machine and judges them in another.

Times come in pairs: ``mono_ns`` (CLOCK_MONOTONIC, comparable between processes of one host, a lab's machines
included) and ``real_ns`` (CLOCK_REALTIME, for people and for comparing with mail software's own logs).
"""

from __future__ import annotations

import enum

from msgspec import Struct

# --- the journal: what was done -------------------------------------------------------------------------------------


class Ref(Struct, frozen=True):
    """One message as an IMAP client names it: its UID in the selected folder, and its Message-ID (without ``<>``)."""

    uid: int
    message_id: str


class Deliver(Struct, frozen=True, tag="deliver"):
    """A message handed in by SMTP or LMTP for the INBOX of each of *recipients* (account names).

    *body_digest* covers what follows the first empty line: relays add header lines, and must not touch the body.
    *purpose* is ``load`` or ``probe``; *attempt* counts from 1, a client that got no answer sends the message again.
    """

    message_id: str
    recipients: tuple[str, ...]
    body_digest: str
    size_bytes: int
    shape: str
    attempt: int = 1
    purpose: str = "load"


class Append(Struct, frozen=True, tag="append"):
    """IMAP APPEND (RFC 9051 6.3.12). *internal_date_s* is seconds since 1970."""

    folder: str
    message_id: str
    body_digest: str
    size_bytes: int
    flags: tuple[str, ...]
    internal_date_s: int


class Store(Struct, frozen=True, tag="store"):
    """IMAP STORE of flags and keywords on messages of *folder*."""

    folder: str
    messages: tuple[Ref, ...]
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class Copy(Struct, frozen=True, tag="copy"):
    folder: str
    messages: tuple[Ref, ...]
    target: str


class Move(Struct, frozen=True, tag="move"):
    """IMAP MOVE (RFC 6851)."""

    folder: str
    messages: tuple[Ref, ...]
    target: str


class Expunge(Struct, frozen=True, tag="expunge"):
    """IMAP UID EXPUNGE (RFC 4315) of messages marked ``\\Deleted`` before."""

    folder: str
    messages: tuple[Ref, ...]


class CreateFolder(Struct, frozen=True, tag="create_folder"):
    folder: str


class RenameFolder(Struct, frozen=True, tag="rename_folder"):
    """The folder and all below it (RFC 9051 6.3.6); *separator* is the server's."""

    folder: str
    target: str
    separator: str


class DeleteFolder(Struct, frozen=True, tag="delete_folder"):
    folder: str


class Subscribe(Struct, frozen=True, tag="subscribe"):
    folder: str
    wanted: bool
    """False: UNSUBSCRIBE."""


class PutSieve(Struct, frozen=True, tag="put_sieve"):
    """ManageSieve PUTSCRIPT, then SETACTIVE when *active* (RFC 5804)."""

    name: str
    digest: str
    active: bool


class MakeCollection(Struct, frozen=True, tag="make_collection"):
    """MKCALENDAR (RFC 4791) or extended MKCOL for an address book (RFC 6352)."""

    href: str


class DavPut(Struct, frozen=True, tag="dav_put"):
    """PUT of one calendar item or card. *mark* is a word inside the item which its content is recognised by."""

    href: str
    mark: str


class DavDelete(Struct, frozen=True, tag="dav_delete"):
    href: str


Doing = (
    Deliver
    | Append
    | Store
    | Copy
    | Move
    | Expunge
    | CreateFolder
    | RenameFolder
    | DeleteFolder
    | Subscribe
    | PutSieve
    | MakeCollection
    | DavPut
    | DavDelete
)


class Result(enum.Enum):
    """What a client knows about one attempt."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """The server said no: nothing is promised."""
    NOT_DONE = "not done"
    """The client could not ask completely (no connection, or cut while sending): it cannot have happened."""
    UNKNOWN = "unknown"
    """Asked completely, and no answer came: it may or may not have happened."""


class Begin(Struct, frozen=True, tag="begin"):
    """First line of a journal. *seed* and *settings* (the plan as JSON) reproduce the workload's choices."""

    seed: int
    settings: str
    mono_ns: int
    real_ns: int


class Attempt(Struct, frozen=True, tag="attempt"):
    """Written before the request is sent. *op* is unique in the journal; *account* owns the mailbox (empty for SMTP).

    The attempts of one account's IMAP operations stand in the order in which they were made: one client owns them.
    """

    op: int
    worker: str
    account: str
    doing: Doing
    mono_ns: int
    real_ns: int


class Outcome(Struct, frozen=True, tag="outcome"):
    """Written when the answer has been read, or will never be. An attempt without outcome counts as unknown.

    *uid_validity* and *uids* are the server's answer to APPEND, COPY and MOVE (APPENDUID, COPYUID: RFC 4315), the uids
    in the order of the attempt's messages; *touched* are the messages (by uid) which the server said it changed, for
    STORE and EXPUNGE; *etag* its answer to a DAV PUT.
    """

    op: int
    result: Result
    mono_ns: int
    real_ns: int
    detail: str = ""
    uid_validity: int = 0
    uids: tuple[int, ...] = ()
    touched: tuple[int, ...] = ()
    etag: str = ""


class Protocol(enum.Enum):
    """What a user would notice missing. ``DELIVERY``: a message accepted by SMTP was seen in the mailbox."""

    IMAP = "imap"
    SMTP = "smtp"
    DELIVERY = "delivery"


class Probe(Struct, frozen=True, tag="probe"):
    """One try of the prober: begun at ``mono_ns``, ended ``seconds`` later. *answered_by* is who greeted."""

    protocol: Protocol
    good: bool
    mono_ns: int
    real_ns: int
    seconds: float
    detail: str = ""
    answered_by: str = ""

    @property
    def end_mono_ns(self) -> int:
        return self.mono_ns + round(self.seconds * 1e9)


class Trouble(Struct, frozen=True, tag="trouble"):
    """A client lost its connection, or could not make one; it goes on trying."""

    worker: str
    what: str
    mono_ns: int
    real_ns: int


class Mark(Struct, frozen=True, tag="mark"):
    """A named moment: ``load over``, or what the drill itself did (``kill``)."""

    name: str
    mono_ns: int
    real_ns: int
    detail: str = ""


class End(Struct, frozen=True, tag="end"):
    """Last line of a journal whose workload ended by itself; a journal without it was cut short."""

    mono_ns: int
    real_ns: int
    counts: dict[str, int]


Record = Begin | Attempt | Outcome | Probe | Trouble | Mark | End

# --- mailboxes: what is there ----------------------------------------------------------------------------------------


def is_keyword(flag: str) -> bool:
    """Whether it is no system flag (RFC 9051, 2.3.2)."""
    return not flag.startswith("\\")


class Message(Struct, frozen=True):
    """One message of a folder. *flags* hold flags and keywords, sorted, without ``\\Recent`` (it belongs to a session).

    *digest* covers the whole message as IMAP gives it (CRLF), *body_digest* what follows its first empty line; both
    are empty when contents were not read. *internal_date* is as the server writes it, with its zone.
    """

    uid: int
    flags: tuple[str, ...]
    internal_date: str
    modseq: int
    size_bytes: int
    digest: str
    body_digest: str
    message_id: str


class Folder(Struct, frozen=True):
    """One folder; *messages* ascend by UID. *highest_modseq* is 0 when the server keeps none."""

    uid_validity: int
    uid_next: int
    highest_modseq: int
    messages: tuple[Message, ...]


class SieveScript(Struct, frozen=True):
    digest: str
    active: bool
    content: str


class DavItem(Struct, frozen=True):
    etag: str
    digest: str
    mark: str


class Account(Struct, frozen=True):
    """All that one user's clients see. Folder names are Unicode; DAV items and collections by their path (href)."""

    folders: dict[str, Folder]
    subscriptions: tuple[str, ...]
    sieve: dict[str, SieveScript]
    collections: dict[str, dict[str, str]]
    """Path of a collection -> its properties (display name, tag)."""
    items: dict[str, DavItem]
    unopenable: tuple[str, ...] = ()
    """Folders which the server lists and does not open: a server's index can survive the folder (seen with Dovecot)."""


class Mailboxes(Struct, frozen=True):
    """What a witness saw, account by account, reading from ``begun`` to ``ended``. *read* says what was asked for."""

    accounts: dict[str, Account]
    begun_mono_ns: int
    ended_mono_ns: int
    begun_real_ns: int
    read: tuple[str, ...] = ("mail", "sieve", "dav")


class Resynced(Struct, frozen=True):
    """What a server told a client that came back with QRESYNC: flags by UID, and the UIDs that vanished."""

    uid_validity: int
    highest_modseq: int
    changed: dict[int, tuple[str, ...]]
    vanished: tuple[int, ...]


# --- what the log and the agents recorded, for the promises about them -----------------------------------------------


class Appended(Struct, frozen=True):
    """One record that the log accepted: who wrote it, in which epoch."""

    sequence: int
    epoch: int
    machine: str
    promotion: bool = False


class TreeEntry(Struct, frozen=True):
    """One path of a tree, as compared between machines. *digest* is of the content, or a symlink's target."""

    kind: str
    mode: int
    owner: str
    group: str
    mtime_ns: int
    size_bytes: int
    digest: str
