"""``holdfast takeover --alone``: the plan is shown, the order given, and the new log waited for."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click

from holdfast.console import show
from holdfast.console.client import Client
from holdfast.console.emit import emit
from holdfast.errors import ExitStatus, HoldfastError, Unreachable

FOUND_SECONDS_MAX: Final = 180.0
"""Until the agent has started again and the mail software runs; the scan of the trees goes on after that."""
POLL_SECONDS: Final = 0.5
OFFLINE: Final = "The agent does not run here: what may be missing is not known."


def go_on_alone(client: Client, why: str, *, dry_run: bool, force: bool, yes: bool, as_json: bool) -> None:
    """Ends the process with the exit status."""
    if as_json and not (yes or dry_run):
        raise click.UsageError("--json does not ask: give --yes, too")
    try:
        plan = client.post("/plan/alone", why=why, force=force)
    except Unreachable:
        _without_agent(why, dry_run=dry_run, yes=yes, as_json=as_json)
        return
    if not as_json:
        show.plan(plan)
    elif dry_run or plan["refusals"]:
        emit(plan)
    if dry_run or plan["refusals"]:
        sys.exit(ExitStatus.REFUSED if plan["refusals"] else ExitStatus.DONE)
    if not yes:
        click.confirm("The others can only join anew afterwards. Go on alone?", abort=True)
    client.post("/alone", why=why, force=force)
    status = _wait(client)
    if as_json:
        emit({"done": True, "epoch": status["epoch"], "warnings": plan["warnings"]})
    else:
        click.echo(
            f"{status['machine']} is the primary, alone, epoch {status['epoch']}; its trees go into the new log."
        )
    sys.exit(ExitStatus.DONE)


def _wait(client: Client) -> dict[str, Any]:
    deadline = time.monotonic() + FOUND_SECONDS_MAX
    said = "the agent has not started again yet"
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        try:
            status: dict[str, Any] = client.get("/status")
        except HoldfastError:
            continue
        said = f"this machine is {status['role']}: {status['reason']}"
        if status["role"] == "primary" and len(status["machines"]) == 1 and status["serving"]:
            return status
    raise HoldfastError(
        f"not serving after {FOUND_SECONDS_MAX:g} s: {said}",
        hint="The order stands and is carried out when the agent starts: systemctl status holdfast; `holdfast status`.",
    )


def _without_agent(why: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    from holdfast.node.alone import alone_configuration, prepare
    from holdfast.node.enrol import Folder
    from holdfast.node.local import LocalFile
    from holdfast.node.settings import load_settings

    configuration = Folder().configuration
    settings = load_settings(configuration)
    alone_configuration(configuration.read_text(encoding="utf-8"), settings.machine)  # raises Refused
    if not as_json:
        click.echo(f"{OFFLINE} The next start of it begins a new log from the trees of {settings.machine}.")
    if dry_run:
        return
    if not yes:
        click.confirm("The others can only join anew afterwards. Go on alone?", abort=True)
    kept = prepare(configuration, LocalFile(settings.state / "node.json"), why or "by hand, no reason given")
    if as_json:
        emit({"done": False, "ordered": True, "configuration_kept": str(kept)})
    else:
        click.echo(f"Ordered; the configuration as it was is {kept}. Now start the agent: systemctl start holdfast")
