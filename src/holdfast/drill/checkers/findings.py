"""What a checker says: findings with a name, an address and both sides, so that a person can go and look."""

from __future__ import annotations

import enum

from msgspec import Struct


class Promise(enum.Enum):
    """The promises of the design page, by number."""

    NOTHING_LOST = 1
    ONE_WRITER = 2
    PREFIX = 3
    EXACT = 4
    IN_TIME = 5
    EXACTLY_ONCE = 6
    TRUTHFUL = 7


class What(enum.Enum):
    """Every difference that can be found, by name. Reports print these words; tests count them."""

    ACCOUNT_MISSING = "account missing"
    FOLDER_MISSING = "folder missing"
    FOLDER_UNOPENABLE = "folder is listed and cannot be opened"
    FOLDER_EXTRA = "folder that should not be there"
    UID_VALIDITY = "UIDVALIDITY differs"
    UID_NEXT_LOWER = "UIDNEXT lower"
    UID_NEXT_HIGHER = "UIDNEXT higher"
    HIGHEST_MODSEQ_LOWER = "HIGHESTMODSEQ lower"
    MODSEQ_LOWER = "MODSEQ lower"
    MODSEQ_HIGHER = "MODSEQ higher"
    MODSEQ_AHEAD = "MODSEQ above HIGHESTMODSEQ"
    UID_AHEAD = "UID not below UIDNEXT"
    UID_CHANGED = "message has another UID"
    MESSAGE_MISSING = "message missing"
    MESSAGE_EXTRA = "message that should not be there"
    MESSAGE_MISPLACED = "message in another folder"
    EXPUNGED_BACK = "expunged message is there again"
    CONTENT = "content differs"
    MESSAGE_ID = "Message-ID differs"
    SIZE = "RFC822.SIZE differs"
    FLAGS = "flags differ"
    KEYWORDS = "keywords differ"
    INTERNAL_DATE = "INTERNALDATE differs"
    SUBSCRIPTION = "subscription differs"
    SIEVE = "Sieve script differs"
    COLLECTION = "DAV collection differs"
    ITEM_MISSING = "DAV item missing"
    ITEM_EXTRA = "DAV item that should not be there"
    ITEM = "DAV item differs"
    QRESYNC = "QRESYNC tells of a change that was none"
    TREE = "tree entry differs"
    WRITER = "written by a machine that was not primary"
    LATE = "not in time"
    NOT_NAMED = "lost without being named"


class Difference(Struct, frozen=True, order=True):
    """One difference: where (account, folder, uid; what does not apply is empty or 0), what, and both sides.

    *rests_on* are the moments (monotonic ns) at which the operations that *before* is known from were acknowledged;
    empty: not known from operations.
    """

    account: str
    folder: str
    uid: int
    what: What
    before: str
    after: str
    note: str = ""
    rests_on: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = "/".join(part for part in (self.account, self.folder) if part)
        uid = f" UID {self.uid}" if self.uid else ""
        note = f" ({self.note})" if self.note else ""
        return f"{where}{uid}: {self.what.value}: {self.before or '-'} -> {self.after or '-'}{note}"


class LostMessage(Struct, frozen=True):
    """An acknowledged message that is nowhere in its account.

    *reason* is why it may be gone (`nothing_lost.explain`), *excused* whether the promise did not cover it. *copies* of
    it are there elsewhere in the account; *rests_on* as in :class:`Difference`.
    """

    account: str
    message_id: str
    operation: str
    acknowledged_mono_ns: int
    acknowledged_real_ns: int
    expected_in: str
    reason: str = ""
    excused: bool = False
    copies: int = 0
    rests_on: tuple[int, ...] = ()


class Duplicate(Struct, frozen=True):
    """More copies of a message than its account should have. *explained*: an unanswered attempt was sent again."""

    account: str
    message_id: str
    folders: tuple[str, ...]
    copies: int
    expected: int
    explained: bool
