"""Promise 6: a message accepted once is in the mailbox once, whatever failed on its way."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.drill.checkers.findings import Difference, Duplicate, What


def exactly_once(duplicates: Iterable[Duplicate], *, allow_explained: bool) -> list[Difference]:
    """The doubles that break the promise.

    *allow_explained*: a sender that got no answer sent again, and the first try had been accepted after all. Plain SMTP
    cannot avoid it (RFC 1047); a gate that knows what it has accepted can, and is held to it.
    """
    return [
        Difference(
            double.account,
            ", ".join(double.folders),
            0,
            What.MESSAGE_EXTRA,
            f"{double.expected} of {double.message_id}",
            str(double.copies),
            "sent again after no answer" if double.explained else "",
        )
        for double in duplicates
        if not (double.explained and allow_explained)
    ]
