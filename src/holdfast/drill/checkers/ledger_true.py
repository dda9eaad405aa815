"""Promise 7, of the ledger: what it says of each message is so. Pure.

Held against the clients' journal (what was acknowledged), the mailboxes (what is there) and the ledger's own report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from holdfast.drill.checkers.facts import Attempt, Deliver, Outcome, Record, Result

HAVE: Final = frozenset({"durable", "delivered"})
Key = tuple[str, str]
"""Message-ID and recipient."""


def acknowledged(records: Iterable[Record]) -> set[Key]:
    """What a server took by SMTP, for whom."""
    attempts: dict[int, Deliver] = {}
    taken: set[Key] = set()
    for record in records:
        if isinstance(record, Attempt) and isinstance(record.doing, Deliver):
            attempts[record.op] = record.doing
        elif isinstance(record, Outcome) and record.result is Result.ACKNOWLEDGED and record.op in attempts:
            doing = attempts[record.op]
            taken.update((doing.message_id, recipient) for recipient in doing.recipients)
    return taken


def false_rows(
    taken: Collection[Key], rows: Iterable[Mapping[str, Any]], missing: Collection[Key], queued: Collection[str]
) -> Iterator[str]:
    """*rows* of ``ledger export``; *missing* from the mailboxes; *queued*: Message-IDs found in the queue."""
    states: dict[Key, set[str]] = {}
    for row in rows:
        states.setdefault((row["message_id"], row["recipient"]), set()).add(row["state"])
    for key in sorted(taken):
        said = states.get(key, set()) - {"refused"}
        where = f"{key[0]} for {key[1]}"
        if not said:
            yield f"{where}: acknowledged, and the ledger does not know it"
        elif key in missing and said & HAVE:
            yield f"{where}: is in no mailbox, and the ledger says {', '.join(sorted(said))}"
        elif key not in missing and not said & HAVE and key[0] not in queued:
            yield f"{where}: is in the mailbox, and the ledger says {', '.join(sorted(said))}"


def false_report(report: Mapping[str, Any], missing: Collection[Key], queued: Collection[str]) -> Iterator[str]:
    """*report* as ``ledger report --json`` gives it."""
    if sum(report["sums"].values()) != report["accepted"]:
        yield f"the report's sums do not add up: {report['sums']} of {report['accepted']}"
    for entry in report["named"]:
        key = (entry["message_id"], entry["recipient"])
        if entry["kind"] == "lost" and key not in missing:
            yield f"{key[0]} for {key[1]}: the report says lost, and it is there"
        elif entry["kind"] == "waiting" and key[0] not in queued:
            yield f"{key[0]} for {key[1]}: the report says waiting, and no queue has it"
        elif entry["kind"] == "unknown":
            yield f"{key[0]} for {key[1]}: the report does not know ({entry['reason']})"
