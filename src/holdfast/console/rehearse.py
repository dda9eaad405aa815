"""``holdfast rehearse``: the standby shows now that its copy can serve."""

from __future__ import annotations

import json
import sys

import click

from holdfast.console.client import Client
from holdfast.errors import ExitStatus


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rehearse(as_json: bool) -> None:
    """On a standby: start the mail software on a sample of its copy, in a network of its own, and ask it as clients do.

    Some accounts log in, their messages are fetched and compared with the files, a probe message is delivered. Nothing
    leaves that network, and nothing of the copy is written. It takes some seconds. Exit status 3 when something was not
    as it must be, 1 when it cannot be rehearsed on this machine.

    \b
    Example:
      holdfast rehearse
    """
    found = Client().post("/rehearse")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for part in found["parts"]:
            mark = "!" if part["problem"] else " "
            click.echo(f"{mark} {part['name']:9} {part['seconds']:6.2f} s  {part['problem'] or part['words']}")
        for problem in found["problems"]:
            if problem.startswith(("copy:", "sample:", "stage:")):
                click.echo(f"! {problem}")
        for note in found["notes"]:
            click.echo(f"  note: {note}")
        if found["impossible"]:
            click.echo(f"! It cannot be rehearsed on this machine: {found['impossible']}")
        elif not found["problems"]:
            click.echo(f"This standby can serve, as far as {found['seconds']:.1f} s of rehearsal show.")
    failed = ExitStatus.FAILED if found["impossible"] else ExitStatus.DIFFERENCES
    sys.exit(failed if found["problems"] or found["impossible"] else ExitStatus.DONE)
