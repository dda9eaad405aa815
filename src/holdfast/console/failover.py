"""``holdfast pause``, ``resume``: what people say to automatic failover."""

from __future__ import annotations

import json
import sys

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
