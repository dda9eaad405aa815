"""``holdfast pause``, ``resume``, ``why``, ``alarm``: what people say to automatic failover, and it to them."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from holdfast.console.client import Client
from holdfast.errors import ExitStatus

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _told(action: str, machines: dict[str, str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"machines": machines}, indent=2))
    else:
        click.echo(action)
        for name, wrong in machines.items():
            click.echo(f"! {name}: {wrong}" if wrong else f"  {name} knows")
        if any(machines.values()):
            click.echo("  Give the order again when they answer, or there.")
    sys.exit(ExitStatus.DIFFERENCES if any(machines.values()) else ExitStatus.DONE)


@click.command()
@click.option("--why", default="", help="Shown in `holdfast status` until it is resumed.")
@_json
def pause(why: str, as_json: bool) -> None:
    """Hold off automatic takeover, on every machine: for maintenance of the network or of the machines.

    While it is paused a primary that is cut off serves on, and `holdfast takeover` by hand is possible. Exit status 3
    when a machine could not be told.

    \b
    Example:
      holdfast pause --why "new switch in rack 2"
    """
    _told("Automatic takeover is paused.", Client().post("/pause", why=why)["machines"], as_json)


@click.command()
@_json
def resume(as_json: bool) -> None:
    """Let automatic takeover happen again.

    Refused (exit status 4) where the primary is not heard: it may be serving on because it was told of the pause.

    \b
    Example:
      holdfast resume
    """
    _told("Automatic takeover is possible again.", Client().post("/resume")["machines"], as_json)


def _moment(text: str) -> float:
    """Seconds since 1970. Raises BadParameter."""
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%H:%M:%S", "%H:%M"):
        try:
            found = datetime.strptime(text, form)
        except ValueError:
            continue
        today = datetime.now()
        if form.startswith("%H"):
            found = found.replace(year=today.year, month=today.month, day=today.day)
        return found.timestamp()
    raise click.BadParameter(f"{text!r}: write 2026-11-22 03:14, or 03:14 for today")


@click.command()
@click.option("--at", default="", metavar="TIME", help="Of the event nearest to this local time; else of the last one.")
@_json
def why(at: str, as_json: bool) -> None:
    """Why the site did what it did: the last takeover, or any past event, line by line, its cause first.

    Asks every machine that holds the mail for its part of the story, and says which could not be asked.

    \b
    Example:
      holdfast why
      holdfast why --at "2026-11-22 03:14"
    """
    story = Client().get(f"/why?at={_moment(at)}" if at else "/why")
    if as_json:
        click.echo(json.dumps(story, indent=2, ensure_ascii=False))
        return
    click.echo(story["headline"])
    if story["cause"]:
        click.echo(f"Cause: {story['cause']}")
    for name, wrong in story["missing"].items():
        click.echo(f"! {name} could not be asked: {wrong.splitlines()[0]}")
    click.echo()
    width = max((len(line["machine"]) for line in story["lines"]), default=0)
    for line in story["lines"]:
        clock = datetime.fromtimestamp(line["at"]).strftime("%H:%M:%S.%f")[:-3]
        reason = f": {line['why']}" if line["why"] else ""
        click.echo(f"{clock}  {line['machine']:{width}}  {line['what']}{reason}{_details(line['details'])}")


def _details(details: dict[str, Any]) -> str:
    said = [f"{name} {value}" for name, value in details.items() if isinstance(value, int | float | str)]
    silent = details.get("silent")
    if isinstance(silent, dict):
        said += [f"{name} not heard for {seconds:.1f} s" for name, seconds in silent.items()]
    return f"  ({', '.join(said)})" if said else ""


@click.command()
@_json
def alarm(as_json: bool) -> None:
    """Send a test message by every way under [alarms]: does it reach you?

    Exit status 3 when a way failed.

    \b
    Example:
      holdfast alarm
    """
    ways = Client().post("/alarm")["ways"]
    if as_json:
        click.echo(json.dumps({"ways": ways}, indent=2))
    else:
        for way, wrong in ways.items():
            click.echo(f"! {way}: {wrong}" if wrong else f"{way}: sent")
    sys.exit(ExitStatus.DIFFERENCES if any(ways.values()) else ExitStatus.DONE)


@click.command()
@click.option("--dry-run", is_flag=True, help="List the messages and add nothing.")
@_json
def merge(dry_run: bool, as_json: bool) -> None:
    """On a returned machine that is a standby again: add the messages that only it has to the running server.

    Not where the account has a message with its Message-ID. What was done is listed in
    /var/lib/holdfast/merged-*.json. Maildir only; exit status 3 when a message could not be added.

    \b
    Example:
      holdfast merge --dry-run
    """
    answer = Client().post("/merge", dry_run=dry_run)
    left = [each for each in answer["messages"] if each["outcome"] not in ("added", "there", "would be sent")]
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        for each in answer["messages"]:
            click.echo(f"{each['outcome']:8} {each['account']}/{each['folder']} {each['message_id'] or each['path']}")
        for wrong in answer["wrong"]:
            click.echo(f"! {wrong}")
        if not answer["messages"]:
            click.echo("This machine has no messages that are to be added.")
    sys.exit(ExitStatus.DIFFERENCES if left or answer["wrong"] else ExitStatus.DONE)


@click.command()
@_json
def decide(as_json: bool) -> None:
    """Take over now, or wait? What each would cost, for the person who has to decide. On the standby.

    \b
    Example:
      holdfast decide
    """
    found = Client().get("/decide")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    click.echo(found["situation"])
    click.echo(f"By itself, {found['machine']} does: {found['by_itself']}")
    for choice in found["choices"]:
        click.echo(f"\n{choice['name'].upper()}")
        for name in ("lost", "users", "time"):
            click.echo(f"  {name:6} {choice[name]}")
        for risk in choice["risks"]:
            click.echo(f"  risk   {risk}")
        click.echo(f"  how    {choice['how']}")
