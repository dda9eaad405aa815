"""Builders of facts for checkers' tests: small journals and mailboxes, written as one would tell them."""

from __future__ import annotations

from holdfast.drill.checkers.facts import (
    Account,
    Attempt,
    DavItem,
    Deliver,
    Doing,
    Folder,
    Mailboxes,
    Message,
    Outcome,
    Probe,
    Protocol,
    Record,
    Result,
    SieveScript,
)

SECOND = 1_000_000_000
ANN = "ann@example.org"


def digest_of(message_id: str) -> str:
    return f"digest of {message_id}"


class Story:
    """A journal, one second an operation."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._op = 0

    def did(
        self,
        doing: Doing,
        result: Result | None = Result.ACKNOWLEDGED,
        *,
        account: str = ANN,
        uids: tuple[int, ...] = (),
        touched: tuple[int, ...] = (),
        etag: str = "",
    ) -> Story:
        """*result* None: the workload was cut before the outcome."""
        self._op += 1
        begin = self._op * SECOND
        self.records.append(Attempt(self._op, "w", account, doing, begin, begin))
        if result is not None:
            end = begin + SECOND // 2
            self.records.append(
                Outcome(self._op, result, end, end, uid_validity=7, uids=uids, touched=touched, etag=etag)
            )
        return self

    def delivered(self, message_id: str, result: Result | None = Result.ACKNOWLEDGED, attempt: int = 1) -> Story:
        doing = Deliver(message_id, (ANN,), digest_of(message_id), 100, "plain", attempt)
        return self.did(doing, result, account="")


def message(uid: int, message_id: str, *flags: str, date: str = "01-Jan-2026 10:00:00 +0000") -> Message:
    digest = digest_of(message_id)
    return Message(uid, tuple(sorted(flags)), date, uid, 100, f"whole {digest}", digest, message_id)


def folder(*messages: Message, uid_validity: int = 7) -> Folder:
    highest = max((one.uid for one in messages), default=0)
    modseq = max((one.modseq for one in messages), default=1)
    return Folder(uid_validity, highest + 1, modseq, tuple(sorted(messages, key=lambda one: one.uid)))


def account(
    folders: dict[str, Folder],
    *,
    subscriptions: tuple[str, ...] = (),
    sieve: dict[str, SieveScript] | None = None,
    collections: dict[str, dict[str, str]] | None = None,
    items: dict[str, DavItem] | None = None,
) -> Account:
    return Account(folders, subscriptions, sieve or {}, collections or {}, items or {})


def mailboxes(ann: Account, **others: Account) -> Mailboxes:
    return Mailboxes({ANN: ann, **{f"{name}@example.org": other for name, other in others.items()}}, 0, 0, 0)


def probe(at_seconds: float, *, good: bool = True, by: str = "main", protocol: Protocol = Protocol.IMAP) -> Probe:
    """A try that took 10 ms."""
    begin = round(at_seconds * SECOND)
    return Probe(protocol, good, begin, begin, 0.01, answered_by=by if good else "")
