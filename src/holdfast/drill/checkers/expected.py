"""What must be there: each account's mailbox as the journal's acknowledged operations make it.

Read in order, an acknowledged operation changes the expectation; a refused one, or one that could not be asked, does
not; an unknown one leaves both worlds possible: a copy is then *not required*, a message may be in one of several
*places*, a flag is *unsure*. What was acknowledged after that on the same thing makes it certain again.

A keyword needs two files of a Maildir: its letter stands in the message's file name, and which keyword the letter means
in ``dovecot-keywords``, which Dovecot writes after it has named the file. An operation that a death cut in between (so
that it was never answered) leaves a letter *unnamed*: Dovecot calls it ``unknown-2``, or gives the letter to the next
new keyword, with or without a second machine. Messages of unanswered operations may therefore bear any keyword.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from holdfast.drill.checkers import facts
from holdfast.drill.checkers.facts import Attempt, Outcome, Record, Ref, Result
from holdfast.drill.checkers.findings import Difference, What


@dataclass(frozen=True)
class Acknowledged:
    """Which operation promised it, and when its answer was read, or (not *answered*) no longer waited for."""

    operation: str
    mono_ns: int
    real_ns: int
    answered: bool = True


@dataclass
class Copy:
    """One copy of a message that is (or, not *required*, may be) in one of *places*.

    *uid* with *uid_validity* when the server told it, else 0. Flags in neither set are free (a Sieve script or the
    server's defaults may have set them); *unsure* ones too.
    """

    message_id: str
    places: set[str]
    required: bool
    by: Acknowledged
    last: Acknowledged
    """The latest acknowledged operation on this copy."""
    body_digest: str = ""
    uid: int = 0
    uid_validity: int = 0
    internal_date_s: int | None = None
    wants: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    unnamed: bool = False
    """It may bear a keyword's letter without a name, and so any keyword."""
    retried: bool = False
    """Possible only because an attempt went unanswered and was sent again."""
    rests_on: tuple[int, ...] = ()
    """When each acknowledged operation on it was (monotonic ns)."""

    def __post_init__(self) -> None:
        self.rests_on = self.rests_on or (self.by.mono_ns, self.last.mono_ns)

    def unanswered(self) -> None:
        """It came (if it did) by an operation without an answer: its keywords' letters may lack their names."""
        self.unsure |= keywords(self.wants)
        self.unnamed = True

    def touched(self, by: Acknowledged) -> None:
        self.last = by
        self.rests_on += (by.mono_ns,)

    def is_at(self, folder: str, uid: int) -> bool:
        """Whether a message with that UID there is this very copy, as far as its own UID is known."""
        return folder in self.places and self.uid in (0, uid)


@dataclass
class ExpectedAccount:
    name: str
    copies: list[Copy] = field(default_factory=list)
    folders: dict[str, Acknowledged | None] = field(default_factory=dict)
    """Folder that must exist -> by what; None: it may exist or not."""
    no_folders: dict[str, Acknowledged] = field(default_factory=dict)
    subscriptions: dict[str, tuple[bool, Acknowledged] | None] = field(default_factory=dict)
    sieve: dict[str, list[tuple[str, Acknowledged]]] = field(default_factory=dict)
    """Script -> digests it may have (one, unless an upload went unanswered)."""
    items: dict[str, list[tuple[str, str, Acknowledged]]] = field(default_factory=dict)
    """DAV path -> (mark, ETag) it may have; mark empty: absent."""
    collections: dict[str, Acknowledged] = field(default_factory=dict)
    removed: dict[str, list[Copy]] = field(default_factory=dict)
    """Message-ID -> copies acknowledged as expunged, or gone with their folder."""
    contradictions: list[Difference] = field(default_factory=list)
    """An acknowledged operation met what, by earlier acknowledgements, could not be there."""


@dataclass
class Expected:
    accounts: dict[str, ExpectedAccount]
    accepted: dict[str, int]
    """Kind (``smtp``, ``probe``, ``append``) -> messages acknowledged, one per recipient."""
    acknowledged_operations: int
    unknown_operations: int
    digests: dict[str, str]
    """Message-ID -> digest of its body."""


def expected(records: Iterable[Record]) -> Expected:
    """The expectation that a whole journal makes.

    Deliveries come first: they are acknowledged by other clients than the one that reads the mailbox, so that a message
    may be moved (and the move be written down) before its sender has read the answer.
    """
    attempts: list[Attempt] = []
    outcomes: dict[int, Outcome] = {}
    for record in records:
        if isinstance(record, Attempt):
            attempts.append(record)
        elif isinstance(record, Outcome):
            outcomes[record.op] = record
    made = Expected({}, {}, 0, 0, {})
    for delivering in (True, False):
        for attempt in attempts:
            if isinstance(attempt.doing, facts.Deliver) is delivering:
                outcome = outcomes.get(attempt.op) or Outcome(
                    attempt.op, Result.UNKNOWN, attempt.mono_ns, attempt.real_ns, "the workload was cut"
                )
                _apply(made, attempt, outcome)
    return made


def _apply(made: Expected, attempt: Attempt, outcome: Outcome) -> None:
    doing = attempt.doing
    if isinstance(doing, facts.Deliver | facts.Append):
        made.digests[doing.message_id] = doing.body_digest
    if outcome.result in (Result.REFUSED, Result.NOT_DONE):
        return
    certain = outcome.result is Result.ACKNOWLEDGED
    if certain:
        made.acknowledged_operations += 1
    else:
        made.unknown_operations += 1
    by = Acknowledged(type(doing).__name__, outcome.mono_ns, outcome.real_ns, certain)
    if isinstance(doing, facts.Deliver):
        for recipient in doing.recipients:
            copy = Copy(doing.message_id, {"INBOX"}, certain, by, by, doing.body_digest, retried=not certain)
            _account(made, recipient).copies.append(copy)
        if certain:
            kind = "smtp" if doing.purpose == "load" else doing.purpose
            made.accepted[kind] = made.accepted.get(kind, 0) + len(doing.recipients)
        return
    if isinstance(doing, facts.Append) and certain:
        made.accepted["append"] = made.accepted.get("append", 0) + 1
    Owner(_account(made, attempt.account), by, outcome, certain).apply(doing)


def _account(made: Expected, name: str) -> ExpectedAccount:
    return made.accounts.setdefault(name, ExpectedAccount(name))


def keywords(flags: Iterable[str]) -> set[str]:
    """Those of *flags*."""
    return {flag for flag in flags if facts.is_keyword(flag)}


class Owner:
    """Applies one operation of an account's owner to what is expected of the account."""

    def __init__(self, account: ExpectedAccount, by: Acknowledged, outcome: Outcome, certain: bool) -> None:
        self._account = account
        self._by = by
        self._outcome = outcome
        self._certain = certain

    def apply(self, doing: facts.Doing) -> None:
        match doing:
            case facts.Append():
                self._append(doing)
            case facts.Store():
                self._store(doing)
            case facts.Copy():
                self._copy(doing)
            case facts.Move():
                self._move(doing)
            case facts.Expunge():
                self._expunge(doing)
            case facts.CreateFolder():
                self._create(doing.folder)
            case facts.RenameFolder():
                self._rename(doing)
            case facts.DeleteFolder():
                self._delete(doing.folder)
            case facts.Subscribe():
                self._account.subscriptions[doing.folder] = (doing.wanted, self._by) if self._certain else None
            case facts.PutSieve():
                known = [] if self._certain else self._account.sieve.get(doing.name, [("", self._by)])
                self._account.sieve[doing.name] = [*known, (doing.digest, self._by)]
            case facts.MakeCollection():
                if self._certain:
                    self._account.collections[doing.href] = self._by
            case facts.DavPut():
                self._item(doing.href, doing.mark)
            case facts.DavDelete():
                self._item(doing.href, "")
            case facts.Deliver():
                raise AssertionError("deliveries have no owner")

    def _append(self, doing: facts.Append) -> None:
        copy = Copy(
            doing.message_id,
            {doing.folder},
            self._certain,
            self._by,
            self._by,
            doing.body_digest,
            uid=self._outcome.uids[0] if self._outcome.uids else 0,
            uid_validity=self._outcome.uid_validity,
            internal_date_s=doing.internal_date_s,
            wants=set(doing.flags),
        )
        if not self._certain:
            copy.unanswered()
        self._account.copies.append(copy)

    def _store(self, doing: facts.Store) -> None:
        for copy in self._copies(doing.folder, doing.messages):
            if not self._certain:
                copy.unsure |= {*doing.add, *doing.remove}
                copy.unnamed = copy.unnamed or bool(keywords(doing.add))
                continue
            copy.unsure -= {*doing.add, *doing.remove}
            copy.wants = (copy.wants | set(doing.add)) - set(doing.remove)
            copy.refuses = (copy.refuses | set(doing.remove)) - set(doing.add)

    def _copy(self, doing: facts.Copy) -> None:
        for copy in self._copies(doing.folder, doing.messages):
            self._account.copies.append(self._arrived(copy, doing.messages, doing.target, by=self._by))

    def _move(self, doing: facts.Move) -> None:
        for copy in self._copies(doing.folder, doing.messages):
            if self._certain:
                self._account.copies.append(self._arrived(copy, doing.messages, doing.target, by=copy.by))
                self._account.copies.remove(copy)
            else:
                # A move cut in the middle may leave the message here, there, or in both places: never in none.
                copy.places |= {doing.target}
                copy.uid = 0
                copy.unanswered()
                self._account.copies.append(replace(copy, places=set(copy.places), required=False))

    def _expunge(self, doing: facts.Expunge) -> None:
        for copy in self._copies(doing.folder, doing.messages):
            self._remove(copy)

    def _remove(self, copy: Copy) -> None:
        if self._certain:
            self._account.copies.remove(copy)
            self._account.removed.setdefault(copy.message_id, []).append(copy)
        else:
            copy.required = False

    def _create(self, folder: str) -> None:
        self._account.folders[folder] = self._by if self._certain else None
        self._account.no_folders.pop(folder, None)

    def _rename(self, doing: facts.RenameFolder) -> None:
        account = self._account
        moved = {
            name: doing.target + name.removeprefix(doing.folder)
            for name in (*account.folders, doing.folder)
            if name == doing.folder or name.startswith(doing.folder + doing.separator)
        }
        for copy in (*account.copies, *(copy for copies in account.removed.values() for copy in copies)):
            here = copy.places & moved.keys()
            if here and self._certain:
                copy.places = {moved.get(place, place) for place in copy.places}
                copy.touched(self._by)
            elif here:
                copy.places |= {moved[place] for place in here}
        for name, target in moved.items():
            doubtful = name != doing.folder and account.folders.pop(name, None) is None
            account.folders.pop(name, None)
            if self._certain:
                account.folders[target] = None if doubtful else self._by
                account.no_folders[name] = self._by
            else:
                account.folders[name] = account.folders[target] = None
            account.no_folders.pop(target, None)

    def _delete(self, folder: str) -> None:
        for copy in [copy for copy in self._account.copies if copy.places == {folder}]:
            if self._certain:
                copy.touched(self._by)
            self._remove(copy)
        if self._certain:
            self._account.folders.pop(folder, None)
            self._account.no_folders[folder] = self._by
        else:
            self._account.folders[folder] = None

    def _item(self, href: str, mark: str) -> None:
        known = [] if self._certain else self._account.items.get(href, [("", "", self._by)])
        self._account.items[href] = [*known, (mark, self._outcome.etag, self._by)]

    def _arrived(self, copy: Copy, messages: tuple[Ref, ...], target: str, *, by: Acknowledged) -> Copy:
        """*copy* as it stands in *target* afterwards: same flags and INTERNALDATE, another UID."""
        there = {ref.uid: uid for ref, uid in zip(messages, self._outcome.uids, strict=False)}
        arrived = replace(
            copy,
            places={target},
            required=self._certain,
            by=by,
            last=self._by,
            rests_on=(*copy.rests_on, self._by.mono_ns),
            uid=there.get(copy.uid, 0),
            uid_validity=self._outcome.uid_validity,
            wants=set(copy.wants),
            refuses=set(copy.refuses),
            unsure=set(copy.unsure),
        )
        if not self._certain:
            arrived.unanswered()
        return arrived

    def _copies(self, folder: str, messages: tuple[Ref, ...]) -> list[Copy]:
        """The expected copies that the server said it touched (all, when nobody knows).

        An acknowledged touch proves that the copy was there; if none was expected there, that is a contradiction, and
        the copy is expected from now on.
        """
        found: list[Copy] = []
        for ref in messages:
            if self._certain and ref.uid not in self._outcome.touched:
                continue
            copy = self._one(folder, ref)
            if copy is None:
                if not self._certain:
                    continue
                copy = self._unexpected(folder, ref)
            if self._certain:
                copy.required, copy.retried, copy.places = True, False, {folder}
                copy.touched(self._by)
            copy.uid = ref.uid
            found.append(copy)
        return found

    def _one(self, folder: str, ref: Ref) -> Copy | None:
        here = [copy for copy in self._account.copies if copy.message_id == ref.message_id and folder in copy.places]
        here.sort(key=lambda copy: (copy.uid != ref.uid, copy.uid != 0, not copy.required))
        return here[0] if here and here[0].uid in (ref.uid, 0) else None

    def _unexpected(self, folder: str, ref: Ref) -> Copy:
        gone = [copy for copy in self._account.removed.get(ref.message_id, []) if copy.is_at(folder, ref.uid)]
        elsewhere = [copy for copy in self._account.copies if copy.message_id == ref.message_id]
        rests_on = tuple(moment for copy in gone or elsewhere for moment in copy.rests_on)
        what = What.EXPUNGED_BACK if gone else What.MESSAGE_MISPLACED
        note = f"met by {self._by.operation}"
        self._account.contradictions.append(
            Difference(self._account.name, folder, ref.uid, what, "not there", ref.message_id, note, rests_on)
        )
        for copy in self._account.copies:  # an undone move: it is not where it was moved to
            if copy.message_id == ref.message_id and copy.required and folder not in copy.places:
                copy.required = False
                break
        copy = Copy(ref.message_id, {folder}, True, self._by, self._by, uid=ref.uid)
        self._account.copies.append(copy)
        return copy
