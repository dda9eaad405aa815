"""``holdfast ledger``: what became of each message. Reads the ledger's files on this machine; needs no agent."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.console.emit import emit, json_option, warn

if TYPE_CHECKING:
    from holdfast.ledger.report import Report
    from holdfast.ledger.states import Ledger
    from holdfast.ledger.views import Row
    from holdfast.node.settings import Settings

SHOWN: Final = 40
NAMED_SHOWN: Final = 40
HOURS: Final = 24.0


@click.group()
def ledger() -> None:
    """What became of each message: accepted, queued, delivered, durable, re-sent, lost, unknown.

    It is kept where the gates are on (docs/concepts/ledger.md), on both mail machines alike.

    \b
    Example:
      holdfast ledger show                          the last messages
      holdfast ledger find alice@example.org
      holdfast ledger report                        of the last day: is all of it there?
      holdfast ledger export --format csv --since '7 days ago' > mail.csv

    \b
    Exit status: 0 done, 1 nothing found, 3 messages lost or unknown, named,
                 6 no ledger here
    """


_where = click.option(
    "--ledger",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of a ledger: one out of a backup, or of a disk. Default: this machine's.",
)
_since = click.option("--since", metavar="TIME", help="As in '2 hours ago', 'yesterday 14:00'.  [default: all]")


def _settings() -> Settings:
    from holdfast.node.settings import load_settings

    return load_settings()


def _found(directory: Path | None) -> Path:
    """Raises ConfigurationError."""
    from holdfast.errors import ConfigurationError
    from holdfast.node.gates import LEDGER

    found = directory or _settings().state / LEDGER
    if not found.is_dir():
        raise ConfigurationError(
            f"there is no ledger at {found}",
            hint="It begins when the gates are on (docs/concepts/gates.md). Another folder: --ledger DIRECTORY.",
        )
    return found


def _moment(text: str | None) -> int:
    """Milliseconds since 1970; 0: since ever."""
    from holdfast.console.times import parse_time

    return parse_time(text, time.time_ns()) // 1_000_000 if text else 0


def _read(directory: Path, since: int, holding: Iterable[str] = ()) -> Ledger:
    from holdfast.ledger.book import read
    from holdfast.ledger.states import Ledger

    needles = frozenset(text.encode() for text in holding)
    if needles:
        needles |= {b'"type":"safe"'}
    return Ledger(read(directory, since / 1000, needles))


@ledger.command()
@click.argument("message", required=False)
@click.option("--last", type=click.IntRange(1), default=SHOWN, show_default=True, help="So many messages.")
@_since
@_where
@json_option
def show(message: str | None, last: int, since: str | None, directory: Path | None, as_json: bool) -> None:
    """The last messages and their states; or the whole story of one MESSAGE (its delivery id, Message-ID or queue id).

    \b
    Example:
      holdfast ledger show
      holdfast ledger show 20261122.4711@example.org
    """
    from holdfast.ledger.views import rows

    place = _found(directory)
    if message:
        _show_one(place, message, as_json)
        return
    read = _read(place, _moment(since))
    told = sorted(read.messages.values(), key=lambda told: told.at)[-last:]
    _print_rows([row for each in told for row in rows(read, each)], as_json)


@ledger.command()
@click.argument("text")
@_since
@_where
@json_option
def find(text: str, since: str | None, directory: Path | None, as_json: bool) -> None:
    """Messages from or to an address, or with this Message-ID, delivery id, queue id or client address.

    Exit status 1 when there is none.

    \b
    Example:
      holdfast ledger find alice@example.org --since 'yesterday 08:00'
      holdfast ledger find 203.0.113.9 --json | jq -r '.[].state'
    """
    from holdfast.ledger.views import rows

    read = _about(_found(directory), text, _moment(since))
    told = sorted(read.messages.values(), key=lambda told: told.at)
    _print_rows([row for each in told for row in rows(read, each)], as_json)
    if not told:
        raise SystemExit(1)


def _about(place: Path, text: str, since: int) -> Ledger:
    """All that is told of messages of which one line names *text*."""
    wanted = text.strip("<>")
    named = _read(place, since, [wanted]).messages
    deliveries = [name for name, told in named.items() if _names(told, wanted)]
    if not deliveries:
        return _read(place, since, ["\0"])
    read = _read(place, since, deliveries)
    read.messages = {name: told for name, told in read.messages.items() if name in named}
    return read


def _names(told: Any, wanted: str) -> bool:
    """Whether one of the fields is *wanted*, not only a part of a line."""
    low = wanted.lower()
    values = {told.delivery, *told.delivered, *told.rejected, *(event.queue for event in told.settled)}
    for event in told.accepted:
        values |= {event.queue, event.client, event.login, event.message_id, event.sender, *event.to}
        values |= {event.after_queue}
    return low in {value.lower() for value in values}


def _show_one(place: Path, message: str, as_json: bool) -> None:
    from holdfast.console.words import time_text
    from holdfast.ledger.views import rows, story

    read = _about(place, message, 0)
    if not read.messages:
        if as_json:
            emit([])
        else:
            click.echo(f"the ledger has no message {message}")
        raise SystemExit(1)
    applied = _applied()
    if as_json:
        emit(
            [
                {"recipients": _builtins(rows(read, told)), "story": _builtins(story(read, told)), "applied": applied}
                for told in read.messages.values()
            ]
        )
        return
    for told in read.messages.values():
        first = told.first
        if first is not None:
            click.echo(f"message    {first.message_id or '(no Message-ID)'}  ({first.bytes:,} bytes, {first.digest})")
            click.echo(f"from       {first.sender or '<>'}")
        click.echo(f"delivery   {told.delivery}")
        for row in rows(read, told):
            click.echo(f"to         {row.recipient}: {row.state} ({row.reason})")
        for step in story(read, told):
            click.echo(
                f"  {time_text(step.at * 1_000_000)}  {step.machine:10} {step.what}{_where_in_log(step, applied)}"
            )


def _where_in_log(step: Any, applied: dict[str, tuple[str, int]]) -> str:
    if not step.record:
        return ""
    have = [name for name, (log, record) in applied.items() if log == step.log and record >= step.record]
    return f" [record {step.record}{', applied on ' + ', '.join(have) if have else ''}]"


def _applied() -> dict[str, tuple[str, int]]:
    """Which records the standbys have applied, as the agent hears; empty where none answers."""
    from holdfast.console.client import Client
    from holdfast.errors import HoldfastError

    try:
        facts = Client(seconds=3.0).get("/status")
    except HoldfastError:
        return {}
    log = facts["log"]["incarnation"]
    return {
        view["name"]: (log, view["applied"])
        for view in facts["machines"]
        if view["role"] == "standby" and view["applied"] > 0
    }


@ledger.command()
@click.option("--hours", type=float, default=HOURS, show_default=True, help="Of what was accepted in so many hours.")
@click.option("--last", is_flag=True, help="The last report that was made by itself, after a takeover or a restore.")
@click.option("--restored-to", metavar="TIME", help="The store was restored to this moment: what came later is lost.")
@click.option("--keep", is_flag=True, help="Keep the report beside the ledger, as those after a takeover.")
@_where
@json_option
def report(
    hours: float, last: bool, restored_to: str | None, keep: bool, directory: Path | None, as_json: bool
) -> None:
    """Compare the ledger with what is really there: mailboxes, queue, shadows. The sums add up, or it is an error.

    On the machine that serves. It reads the delivery ids of every mailbox that got mail in that time. Exit status 3
    when messages are lost, or unknown.

    \b
    Example:
      holdfast ledger report --hours 48
      holdfast ledger report --last
      holdfast ledger report --ledger /mnt/old/var/lib/holdfast/ledger --restored-to 'today 09:15'
    """
    from holdfast.errors import ExitStatus

    place = _found(directory)
    made = _last_report(place) if last else _report_now(place, hours, _moment(restored_to), own=directory is None)
    if keep and not last:
        from holdfast.ledger.kept import keep_report

        keep_report(place, made)
    if as_json:
        emit(_builtins(made))
    else:
        _print_report(made)
    if made.sums.get("lost") or made.sums.get("unknown"):
        raise SystemExit(int(ExitStatus.DIFFERENCES))


def _last_report(place: Path) -> Report:
    from holdfast.errors import HoldfastError
    from holdfast.ledger.kept import kept_reports, read_report

    kept = kept_reports(place)
    if not kept:
        raise HoldfastError(
            "no report was made yet", hint="They are made after a takeover. Now: `holdfast ledger report`."
        )
    return read_report(kept[-1])


def _report_now(place: Path, hours: float, store_at: int, *, own: bool) -> Report:
    import asyncio

    from holdfast.gate.reporting import made_report
    from holdfast.gate.survey import Survey
    from holdfast.mail.commands import SystemCommands
    from holdfast.node.enrol import CONFIGURATION_FOLDER
    from holdfast.node.gates import SHADOWS
    from holdfast.node.relaying import log_options

    settings = _settings()
    shadows = settings.state / SHADOWS if settings.gate.milter else None
    log = log_options(settings, CONFIGURATION_FOLDER)
    survey = Survey(SystemCommands(), settings.machine, shadows, log=log)
    why = "asked for" if own else f"asked for, of {place}"
    return asyncio.run(made_report(place, survey, int(time.time() * 1000), hours, why, store_at))


@ledger.command()
@click.option("--format", "kind", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
@_since
@_where
def export(kind: str, since: str | None, directory: Path | None) -> None:
    """All messages, one row for each recipient, on standard output.

    \b
    Example:
      holdfast ledger export --since '30 days ago' > mail.csv
      holdfast ledger export --format json | jq '.[] | select(.state == "queued")'
    """
    from holdfast.ledger.views import all_rows, as_csv

    moment = _moment(since)
    read = _read(_found(directory), moment)
    if kind == "json":
        emit(_builtins(all_rows(read, moment)))
        return
    for line in as_csv(all_rows(read, moment)):
        click.echo(line, nl=False)


@ledger.command()
@click.argument("account")
@click.option("--yes", is_flag=True, help="Do it; without, it is only counted.")
@_where
@json_option
def erase(account: str, yes: bool, directory: Path | None, as_json: bool) -> None:
    """Take a person out of the ledger: every line that names ACCOUNT loses the address, the client and the Message-ID.

    The messages stay as numbers, so that sums add up. On the primary; the log carries it to the standby. Snapshots in
    vaults keep what they have until they are pruned. The journal of deliveries names recipients for eight days.

    \b
    Example:
      holdfast ledger erase alice@example.org --yes
    """
    from holdfast.ledger import book, kept

    place = _found(directory)
    lines = book.erase(place, account) if yes else book.naming(place, account)
    if yes:
        kept.erase(place, account)
    if as_json:
        emit({"account": account, "lines": lines, "erased": yes})
    elif yes:
        click.echo(f"{lines:,} lines no longer name {account}")
    else:
        click.echo(f"{lines:,} lines name {account}; erase them: --yes")


def _builtins(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value if isinstance(value, msgspec.Struct) else list(value))


def _print_rows(found: list[Row], as_json: bool) -> None:
    from holdfast.console.words import time_text

    if as_json:
        emit(_builtins(found))
        return
    for row in found:
        at = time_text((row.accepted_at or row.delivered_at) * 1_000_000)
        by = f"{row.login or row.client or '-'}"
        click.echo(f"{at}  {row.state:9}  {row.sender or '<>'} -> {row.recipient}  {row.message_id or row.delivery}")
        if row.state not in ("durable", "left"):
            click.echo(f"{'':25}{row.reason} (handed in by {by} on {row.machine or 'an unknown machine'})")
    if not found:
        click.echo("nothing found")


def _print_report(made: Report) -> None:
    from holdfast.console.words import time_text
    from holdfast.ledger.report import sums_words

    click.echo(
        f"report of {time_text(made.at * 1_000_000)} ({made.why}), of mail since {time_text(made.since * 1_000_000)}"
    )
    click.echo(f"accepted   {made.accepted:,} for recipients, in {made.messages:,} messages")
    click.echo(f"these are  {sums_words(made.sums)}")
    if made.refused:
        click.echo(f"besides    {made.refused:,} answered 451: their senders keep them")
    for entry in made.named[:NAMED_SHOWN]:
        where = f"{time_text(entry.accepted_at * 1_000_000)}  {entry.recipient}  {entry.message_id or entry.delivery}"
        click.echo(f"  {entry.kind:8} {where}: {entry.reason}")
    if len(made.named) > NAMED_SHOWN:
        warn(f"{len(made.named) - NAMED_SHOWN:,} more are named: --json")
