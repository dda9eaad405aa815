"""``holdfast vault find``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_options import VaultChoice
    from holdfast.recover.groupware import ItemQuery, ItemsFound, Version
    from holdfast.recover.search import Found, Presence, Seen
    from holdfast.recover.traces import Departure, Traces

SHOWN_MAX = 100
PROBLEMS_SHOWN_MAX = 20


@click.command()
@click.argument("text", default="")
@click.option("--account", default="", help="Whose: alice@example.org, or a pattern: '*@example.org'.")
@click.option("--folder", default="", help="In which folder: INBOX, 'Projects/*'.")
@click.option("--from", "sender", default="", help="Part of the sender.")
@click.option("--to", "recipient", default="", help="Part of a recipient (To, Cc, Bcc).")
@click.option("--subject", default="", help="Part of the subject.")
@click.option("--message-id", default="", help="The Message-ID, whole.")
@click.option("--received-after", default="", metavar="WHEN", help="A day or a time.")
@click.option("--received-before", default="", metavar="WHEN")
@click.option(
    "--deleted-between", nargs=2, default=None, metavar="WHEN WHEN", help="Only what was there and went in this time."
)
@click.option("--deleted", is_flag=True, help="Only what is no longer where it was.")
@click.option(
    "--at", "at", multiple=True, metavar="WHEN", help="Not in the snapshots: as things stood then. Repeatable."
)
@click.option("--items", is_flag=True, help="Events, tasks and contacts instead of mail; TEXT: title, UID or address.")
@click.option("--collection", default="", help="With --items: the calendar's or address book's name.")
@click.option("--limit", default=SHOWN_MAX, show_default=True, help="Show so many, the newest; --json: 0 is all.")
@vault_options
@json_option
def find(
    text: str,
    account: str,
    folder: str,
    sender: str,
    recipient: str,
    subject: str,
    message_id: str,
    received_after: str,
    received_before: str,
    deleted_between: tuple[str, str] | None,
    deleted: bool,
    at: tuple[str, ...],
    items: bool,
    collection: str,
    limit: int,
    choice: VaultChoice,
    as_json: bool,
) -> None:
    """Mail in all snapshots: which messages answer, when each was first and last seen, and the id to restore it by.

    TEXT is looked for in sender, recipients and subject. A deletion is known to the second where the log is archived;
    else as finely as snapshots were taken: "gone between" names the last one that has the message and the first one
    without it. The first search reads every header once; the next ones read only what is new.

    \b
    Example:
      holdfast vault find budget --account alice@example.org
      holdfast vault find --account alice@example.org --deleted
      holdfast vault find --items 'board meeting'
      holdfast restore --message 3f2a91c0-5d0e77a1c2 --into-server --dry-run
    """
    import time

    from holdfast.console.vault_moments import accounts, day_or_time, headers_of, moments, moments_at
    from holdfast.console.vault_open import opened
    from holdfast.recover.groupware import ItemQuery, find_items
    from holdfast.recover.search import Query, search
    from holdfast.recover.traces import Traces, ground_of, traces

    now_ns = time.time_ns()
    gone_from = day_or_time(deleted_between[0], now_ns) if deleted_between else 0 if deleted else None
    gone_until = day_or_time(deleted_between[1], now_ns, end=True) if deleted_between else None
    if deleted_between and (gone_until or 0) < (gone_from or 0):
        raise click.UsageError("--deleted-between: the second time is before the first")
    with (
        opened(choice) as vault_at,
        headers_of(vault_at.vault) as headers,
        moments_at(vault_at.vault, at) as instants,
        _Line(quiet=as_json) as line,
    ):
        there = instants if at else moments(vault_at.vault)
        if items:
            asked = ItemQuery(
                account=account,
                collection=collection or folder,
                text=text or subject,
                deleted_from_ns=gone_from,
                deleted_until_ns=gone_until,
            )
            _items_out(find_items(there, asked, headers), asked, limit, as_json)
            return
        query = Query(
            text=text,
            account=account,
            folder=folder,
            sender=sender,
            recipient=recipient,
            subject=subject,
            message_id=message_id,
            received_from_ns=day_or_time(received_after, now_ns) if received_after else None,
            received_until_ns=day_or_time(received_before, now_ns) if received_before else None,
            deleted_from_ns=gone_from,
            deleted_until_ns=gone_until,
        )
        whose = accounts()
        found = search(there, query, headers, whose, line.show)
        if not at and found.moments:
            newest = vault_at.vault.snapshot(vault_at.vault.find_snapshot("latest"))
            asked_for = found.presences if query.only_deleted else found.presences[-limit:]
            seen = traces(vault_at.vault, asked_for, query, ground_of(newest, whose))
            found = _with_short(found, seen)
        else:
            seen = Traces({}, [], 0)
        line.wipe()
        shown = found.presences[-limit:] if limit > 0 else found.presences
        _out(found, shown, seen.departures, as_json)


class _Line:
    """One line of progress on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._on = sys.stderr.isatty() and not quiet

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def show(self, seen: Seen, messages: int) -> None:
        if self._on:
            from holdfast.console.words import time_text

            sys.stderr.write(f"\r\x1b[K{time_text(seen.at_ns)}: {messages:,} messages")
            sys.stderr.flush()

    def wipe(self) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _with_short(found: Found, seen: Traces) -> Found:
    """With the messages that no snapshot has."""
    if seen.left_out:
        words = f"{seen.left_out:,} archived records were not looked through: --deleted-between makes them fewer"
        found.problems["between the snapshots"] = words
    together = sorted([*found.presences, *seen.short], key=lambda presence: presence.received_s)
    return found._replace(presences=together) if seen.short else found


def _out(found: Found, shown: list[Presence], left: dict[int, Departure], as_json: bool) -> None:
    from holdfast.console.words import counted

    if as_json:
        emit(
            {
                "moments": found.moments,
                "messages_total": found.messages,
                "found_total": len(found.presences),
                "found": [_row(presence, left.get(id(presence))) for presence in shown],
                "problems": found.problems,
            }
        )
    else:
        if len(shown) < len(found.presences):
            click.echo(f"({len(found.presences) - len(shown):,} older ones are not shown: --limit)")
        for presence in shown:
            _show(presence, left.get(id(presence)))
        where = f"{counted(found.moments, 'snapshot')}, {counted(found.messages, 'message')}"
        click.echo(f"{counted(len(found.presences), 'message')} found in {where}.")
    _end(found.problems, as_json)


def _end(problems: dict[str, str], as_json: bool) -> None:
    from holdfast.errors import ExitStatus

    if not problems:
        return
    if not as_json:
        click.echo(f"! {len(problems):,} things could not be read, so more may be there:", err=True)
        for where, what in list(problems.items())[:PROBLEMS_SHOWN_MAX]:
            click.echo(f"    {printable(where)}: {what}", err=True)
    sys.exit(int(ExitStatus.DIFFERENCES))


def printable(text: str) -> str:
    """What others wrote, for a terminal."""
    from holdfast.console.words import path_text

    return path_text(text.encode("utf-8", "surrogateescape"))


def _show(presence: Presence, left: Departure | None) -> None:
    from holdfast.console.words import time_text

    envelope = presence.header.envelope
    received = time_text(presence.received_s * 10**9)[:16]
    click.echo(f"{presence.id}  {received}  {presence.box.account}  {printable(presence.box.mailbox.folder)}")
    problem = f"({presence.header.problem})" if presence.header.problem else ""
    click.echo(
        f"    {printable(envelope.sender)[:60]}: {printable(envelope.subject)[:100] or problem or '(no subject)'}"
    )
    if left is None:
        when = _when(presence.first, presence.last, presence.gone)
    else:
        what = f"moved to {printable(left.moved_to)}" if left.moved_to else "deleted"
        when = f"first seen {time_text(presence.first.at_ns)}; {what} {time_text(left.at_ns)}"
    click.echo(f"    {when}{_also(presence.elsewhere)}")


def _when(first: Seen, last: Seen, gone: Seen | None, *, replaced: bool = False) -> str:
    from holdfast.console.words import time_text

    since = f"first seen {time_text(first.at_ns)}"
    if gone is None:
        return f"{since}, still there"
    verb = "changed" if replaced else "gone"
    return f"{since}; {verb} between {time_text(last.at_ns)} and {time_text(gone.at_ns)}"


def _also(folders: tuple[str, ...]) -> str:
    return f"; also in {', '.join(printable(folder) for folder in folders)}" if folders else ""


def _row(presence: Presence, left: Departure | None) -> dict[str, Any]:
    from holdfast.console.words import iso_text, path_text

    envelope = presence.header.envelope
    return {
        "id": presence.id,
        "account": presence.box.account,
        "folder": presence.box.mailbox.folder,
        "received_at": iso_text(presence.received_s * 10**9),
        "from": envelope.sender,
        "to": envelope.recipients,
        "subject": envelope.subject,
        "message_id": envelope.message_id,
        "date": None if envelope.date_s is None else iso_text(envelope.date_s * 10**9),
        "flags": list(presence.stored.flags),
        "tree": presence.box.tree,
        "path": path_text(presence.stored.path),
        "also_in": list(presence.elsewhere),
        "problem": presence.header.problem or None,
        "left_at": None if left is None else iso_text(left.at_ns),
        "moved_to": left.moved_to or None if left is not None else None,
        **_seen(presence.first, presence.last, presence.gone),
    }


def _seen(first: Seen, last: Seen, gone: Seen | None) -> dict[str, Any]:
    from holdfast.console.words import iso_text

    return {
        "first_seen": {"snapshot": first.label, "at": iso_text(first.at_ns)},
        "last_seen": {"snapshot": last.label, "at": iso_text(last.at_ns)},
        "gone_by": None if gone is None else {"snapshot": gone.label or None, "at": iso_text(gone.at_ns)},
    }


def _items_out(found: ItemsFound, query: ItemQuery, limit: int, as_json: bool) -> None:
    from holdfast.console.words import counted

    shown = found.versions[-limit:] if limit > 0 else found.versions
    if as_json:
        emit(
            {
                "found_total": len(found.versions),
                "found": [_item_row(version) for version in shown],
                "problems": found.problems,
            }
        )
    else:
        for version in shown:
            item, shelf = version.item, version.shelf
            click.echo(f"{version.id}  {item.kind}  {shelf.account}  {printable(shelf.collection.name)}")
            click.echo(
                f"    {printable(item.title)[:100]}{f'  {item.when}' if item.when else ''}  UID {printable(item.uid)}"
            )
            click.echo(f"    {_when(version.first, version.last, version.gone, replaced=version.replaced)}")
        click.echo(f"{counted(len(found.versions), 'version')} found.")
    _end(found.problems, as_json)


def _item_row(version: Version) -> dict[str, Any]:
    from holdfast.console.words import path_text

    item, shelf = version.item, version.shelf
    return {
        "id": version.id,
        "kind": item.kind,
        "account": shelf.account,
        "collection": shelf.collection.name,
        "title": item.title,
        "uid": item.uid,
        "when": item.when,
        "tree": shelf.tree,
        "path": path_text(shelf.path + b"/" + version.entry.name),
        "replaced": version.replaced,
        **_seen(version.first, version.last, version.gone),
    }
