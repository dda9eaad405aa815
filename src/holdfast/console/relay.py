"""``holdfast relay``: what waits on a relay, and what is to be done about it."""

from __future__ import annotations

import base64
import difflib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.console.client import Client
from holdfast.console.emit import emit, json_option, warn
from holdfast.errors import ConfigurationError, ExitStatus, HoldfastError, Refused

if TYPE_CHECKING:
    from holdfast.node.settings import Settings

Json = dict[str, Any]
INDEX: Final = "index.jsonl"


@click.group()
def relay() -> None:
    """A relay that takes mail: what waits there; hold it, hand it on, bring it elsewhere. On the relay.

    \b
    Example:
      holdfast relay status
      holdfast relay hold --why "the primary is being repaired"
      holdfast relay drain --first boss@example.org
      holdfast relay export /root/waiting

    \b
    Exit status: 0 done, 3 with warnings, 4 refused, 5 no agent here, 6 this
                 machine is no relay that takes mail
    """


def _settings() -> Settings:
    """Raises ConfigurationError."""
    from holdfast.node.settings import load_settings

    settings = load_settings()
    if settings.me.role != "relay" or not settings.relay.takes_mail:
        raise ConfigurationError(
            f"{settings.machine} is no relay that takes mail",
            hint='Run this on a machine with role = "relay"; [relay] mode = "front" or "backup-mx" makes it take mail.',
        )
    return settings


def _client() -> Client:
    from holdfast.node.relaying import CONTROL

    return Client(_settings().run / CONTROL)


@relay.command()
@json_option
def status(as_json: bool) -> None:
    """How much waits, since when, what would go back to its senders when; the list of recipients.

    Exit status 3 when there are warnings.

    \b
    Example:
      holdfast relay status --json | jq .waiting.messages
    """
    facts = _client().get("/relay/status")
    if as_json:
        emit(facts)
    else:
        for line in _status_lines(facts):
            click.echo(line)
        for warning in facts["warnings"]:
            warn(warning)
    sys.exit(ExitStatus.DIFFERENCES if facts["warnings"] else ExitStatus.DONE)


def _status_lines(facts: Json) -> list[str]:
    from holdfast.console.words import ago_text, bytes_text

    now, waiting, found = facts["at"], facts["waiting"], facts["list"]
    takes = "takes mail" if facts["taking"] else "takes no mail now"
    primary = f"{facts['primary'] or 'nobody'}, {'which serves' if facts['primary_served'] else 'and nobody serves'}"
    lines = [
        f"{facts['machine']} ({facts['mode']}) {takes}: {facts['taking_reason']}",
        f"primary    {primary}",
        f"waiting    {waiting['messages']} messages, {bytes_text(waiting['bytes'])}; {waiting['on_hold']} on hold; "
        f"{facts['shadows']} copies in the log",
    ]
    if waiting["messages"]:
        lines.append(f"oldest     {ago_text(now - waiting['oldest_at'])}")
        first = time.strftime("%Y-%m-%d %H:%M", time.localtime(waiting["first_bounce_at"]))
        soon = "; ".join(f"{due['messages']} within {due['days']} d" for due in waiting["bounces"])
        lines.append(f"goes back  from {first} on (after {facts['hold_days']} days){': ' + soon if soon else ''}")
        lines += [f"           {count:6} {address}" for address, count in waiting["accounts"].items()]
        lines += [f"put off    {count:6} {reason[:100]}" for reason, count in waiting["reasons"].items()]
    if facts["held_since"]:
        lines.append(
            f"held       since {ago_text(now - facts['held_since'])}: {facts['held_why'] or 'no reason given'}"
        )
    if facts["draining"]:
        lines.append(f"draining   {_progress(facts['draining'])}")
    if found["at"]:
        many = f"{found['recipients']} recipients in {found['domains']} domains"
        unlisted = f"; not listed: {', '.join(found['unlisted'])}" if found["unlisted"] else ""
        lines.append(f"list       {many}, by {found['machine']}, {ago_text(now - found['at'])}{unlisted}")
    return lines


@relay.command()
@click.option("--why", default="", help="For `holdfast relay status`.")
@json_option
def hold(why: str, as_json: bool) -> None:
    """Hand nothing on until `holdfast relay drain`. Mail is accepted as before, and goes on hold.

    \b
    Example:
      holdfast relay hold --why "the primary's disk is being replaced"
    """
    facts = _client().post("/relay/hold", why=why)
    if as_json:
        emit(facts)
    else:
        click.echo(f"{facts['waiting']['on_hold']} messages are on hold; `holdfast relay drain` hands them on.")


def _progress(value: Json) -> str:
    from holdfast.console.words import clock_text

    left = "" if value["seconds_left"] is None else f", {clock_text(value['seconds_left'])} left"
    rest = "; the primary takes nothing at the moment" if value["stalled"] else ""
    return f"{value['handed_on']} of {value['messages']} handed on, {value['rate']:.0f}/s{left}{rest}"


@relay.command()
@click.option("--first", multiple=True, metavar="ADDRESS", help="Whose mail goes first; @DOMAIN for all there. Repeat.")
@json_option
def drain(first: tuple[str, ...], as_json: bool) -> None:
    """Hand on what waits, at the primary's pace: first whom you name, then the oldest.

    Ends when all is handed on. Interrupted, the drain goes on; `holdfast relay hold` stops it.

    \b
    Example:
      holdfast relay drain --first boss@example.org --first @urgent.example.org
    """
    last: Json = {}
    for value in _client().lines("/relay/drain", first=list(first)):
        last = value
        if as_json:
            click.echo(json.dumps(value))
        elif sys.stderr.isatty():
            click.echo(f"\r{_progress(value):79}", nl=False, err=True)
    if not as_json:
        click.echo(f"{last.get('handed_on', 0)} messages were handed on.")


@relay.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def export(folder: Path, as_json: bool) -> None:
    """Write every message that any relay has accepted and nobody has yet into FOLDER, out of the log.

    NAME.eml for each, as it came; index.jsonl says sender and recipients. Nothing is taken out of any queue: for a
    person who must have the mail although no machine of the site can deliver it. Works for a relay that is gone, on
    another one.

    \b
    Example:
      holdfast relay export /root/waiting
    """
    if folder.exists() and any(folder.iterdir()):
        raise Refused(f"{folder} is not empty", hint="Name a new folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    count = size = 0
    problems: list[str] = []
    with (folder / INDEX).open("x", encoding="utf-8") as index:
        for message in _client().lines("/relay/export"):
            if "problem" in message:
                problems.append(f"{message['machine']} {message['queue_id']}: {message['problem']}")
                index.write(json.dumps(message, ensure_ascii=False) + "\n")
                continue
            content = base64.b64decode(message.pop("content"))
            message["file"] = f"{message['machine']}.{message['delivery']}.eml"
            (folder / message["file"]).write_bytes(content)
            index.write(json.dumps(message, ensure_ascii=False) + "\n")
            count, size = count + 1, size + len(content)
    if as_json:
        emit({"messages": count, "bytes": size, "folder": str(folder), "problems": problems})
    else:
        click.echo(f"{count} messages are in {folder}.")
        for problem in problems:
            warn(problem)
    sys.exit(ExitStatus.DIFFERENCES if problems else ExitStatus.DONE)


@relay.command()
@click.option("--hostname", metavar="NAME", help="What the relay calls itself: its name in the MX record.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and do nothing.")
@json_option
def configure(hostname: str | None, dry_run: bool, as_json: bool) -> None:
    """Write main.cf and master.cf of this relay's Postfix, whole; what was there stays beside them (*.before-holdfast).

    Lines in /etc/holdfast/overrides/postfix.cf are this machine's own and go in, too. The agent starts Postfix.

    \b
    Example:
      holdfast relay configure --hostname mx1.example.org --dry-run
      holdfast relay configure --hostname mx1.example.org && systemctl disable --now postfix
    """
    from holdfast.node.relay_install import Change, planned

    settings = _settings()
    changes: list[Change] = planned(settings, hostname)
    if as_json:
        emit({"changed": [str(change.path) for change in changes], "done": not dry_run})
    elif dry_run or not changes:
        for change in changes:
            click.echo(_difference(change.path, change.before, change.after))
        if not changes:
            click.echo("Nothing to change.")
    if dry_run or not changes:
        return
    for change in changes:
        change.carry_out()
    checked = subprocess.run(["postfix", "check"], capture_output=True, text=True, check=False)
    if checked.returncode:
        raise HoldfastError(f"postfix check: {(checked.stderr or checked.stdout).strip()}", hint="Look at those lines.")
    if not as_json:
        for change in changes:
            click.echo(f"wrote {change.path}")
        click.echo("The agent starts Postfix: systemctl disable --now postfix; systemctl restart holdfast")


def _difference(path: Path, before: str, after: str) -> str:
    return "".join(
        difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), str(path), str(path))
    ).rstrip("\n")
