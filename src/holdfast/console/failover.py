"""``holdfast pause``, ``resume``, ``why``, ``alarm``: what people say to automatic failover, and it to them."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from holdfast.console.client import Client, person
from holdfast.errors import ExitStatus

LEFT_SHOWN_MAX = 20
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
@click.option("--dry-run", is_flag=True, help="Ask the primary what it would do, and do nothing.")
@click.option("--undo", is_flag=True, help="Take the last merge back, where it is still as it was left.")
@_json
def merge(dry_run: bool, undo: bool, as_json: bool) -> None:
    """On a returned machine that is a standby again: bring what only it has to the running server.

    Messages are added, but not where the account has one with its Message-ID; flags and keywords are set and cleared as
    they were here. What else only this machine has (deletions, Sieve, calendars, configuration) is listed and stays
    aside. What was done is in /var/lib/holdfast/merged-*.json. Maildir only; exit status 3 when something could not be
    merged.

    \b
    Example:
      holdfast merge --dry-run
      holdfast merge
      holdfast merge --undo
    """
    answer = Client().post("/merge", dry_run=dry_run, undo=undo)
    fine = ("added", "merged", "there", "would be added", "would be merged", "taken back")
    failed = [each for each in answer["messages"] if each["outcome"] not in fine]
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _show_merge(answer)
    sys.exit(ExitStatus.DIFFERENCES if failed or answer["wrong"] else ExitStatus.DONE)


def _show_merge(answer: dict[str, Any]) -> None:
    for each in answer["messages"]:
        flags = [f"+{flag}" for flag in each.get("was_set", ())] + [f"-{flag}" for flag in each.get("was_cleared", ())]
        what = each["message_id"] or each["path"]
        click.echo(f"{each['outcome']:15} {each['account']}/{each['folder']} {what} {' '.join(flags)}".rstrip())
    for wrong in answer["wrong"]:
        click.echo(f"! {wrong}")
    if answer["left"]:
        click.echo("Kept aside, for a person to look at:")
    for each in answer["left"][:LEFT_SHOWN_MAX]:
        click.echo(f"  {each['what']:15} {each['tree']}/{each['path']}  ({each['why']})")
    if len(answer["left"]) > LEFT_SHOWN_MAX:
        click.echo(f"  and {len(answer['left']) - LEFT_SHOWN_MAX} more (--json has them)")
    if not answer["messages"]:
        click.echo("This machine has no messages and no flags that are to be merged.")


@click.command()
@click.option("--wait", is_flag=True, help="Write down that you decided to wait, and why. Nothing is done.")
@click.option("--why", default="", help="Shown in `holdfast history` and `holdfast why`.")
@_json
def decide(wait: bool, why: str, as_json: bool) -> None:
    """Take over now, or wait? What each would cost, for the person who has to decide. On the standby.

    What is decided stands in the history, with who decided it: `holdfast takeover --why ...` does, and
    `holdfast decide --wait --why ...`.

    \b
    Example:
      holdfast decide
      holdfast decide --wait --why "the host of main reboots, back at 03:20"
    """
    if wait:
        told = Client().post("/decide", why=why, by=person())
        click.echo(json.dumps(told) if as_json else "Written down: you wait. `holdfast takeover` at any time.")
        return
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
        for each in choice["waiting"][:LEFT_SHOWN_MAX]:
            click.echo(f"  queued {each['message_id']} for {', '.join(each['recipients'])}: delivered from here")
        if len(choice["waiting"]) > LEFT_SHOWN_MAX:
            click.echo(f"  and {len(choice['waiting']) - LEFT_SHOWN_MAX} more (--json has them)")
        click.echo(f"  how    {choice['how']}")


def order_switchover(client: Client, at: str, why: str, *, as_json: bool) -> None:
    """For a moment to come; an empty *at* takes such an order back."""
    answer = client.post("/switchover", at=at, why=why)
    if as_json:
        click.echo(json.dumps(answer))
    elif answer["at"]:
        moment = f"{datetime.fromtimestamp(answer['at']):%Y-%m-%d %H:%M}"
        click.echo(f"Ordered: this machine becomes the primary at {moment}, if it can take over then.")
        click.echo("`holdfast status` shows the order; `holdfast switchover --cancel` takes it back.")
    else:
        click.echo("Taken back.")
