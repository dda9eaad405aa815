"""``holdfast``: the commands."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import click

from holdfast import __version__
from holdfast.console.late import Late, LateGroup
from holdfast.errors import ExitStatus, HoldfastError, Refused

INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""


class _Group(LateGroup):
    """Commands in the order of a first day."""

    late: ClassVar = {
        "vault": Late("holdfast.console.vault_commands", "vault", "Backups: init, backup, list, show, find, prune ..."),
        "restore": Late(
            "holdfast.console.restore", "restore", "A site, a tree or a path from a backup, into a folder."
        ),
        "pause": Late("holdfast.console.failover", "pause", "Hold off automatic takeover: for maintenance."),
        "resume": Late("holdfast.console.failover", "resume", "Let automatic takeover happen again."),
        "why": Late("holdfast.console.failover", "why", "Why the site did what it did: the story of a past event."),
        "decide": Late("holdfast.console.failover", "decide", "Take over now, or wait? What each would cost."),
        "ledger": Late("holdfast.console.ledger", "ledger", "What became of each message: show, find, report, export."),
        "rehearse": Late("holdfast.console.rehearse", "rehearse", "On a standby: show now that its copy can serve."),
        "relay": Late("holdfast.console.relay", "relay", "On a relay that takes mail: status, hold, drain, export."),
        "merge": Late("holdfast.console.failover", "merge", "Bring what only a returned machine has to the server."),
        "alarm": Late("holdfast.console.failover", "alarm", "Send a test to whom the alarms go."),
        "rebuild": Late("holdfast.console.rebuild", "rebuild", "From a bare machine to running mail, from a backup."),
        "lab": Late(
            "holdfast.drill.lab.commands", "lab", "Make a lab of machines on this one: up, down, kill, cut ..."
        ),
    }
    _order = (
        "init", "join", "check", "agent", "status", "verify", "switchover", "takeover", "decide", "pause", "resume",
        "rehearse", "vault", "restore", "rebuild", "barrier", "log", "history", "why", "ledger", "relay", "merge",
        "alarm", "trust", "found", "release", "lab", "version",
    )  # fmt: skip

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._order)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HoldfastError as error:
            click.echo(f"holdfast: {error}", err=True)
            ctx.exit(int(getattr(error, "status", error.exit_status)))
        except PermissionError as error:
            click.echo(f"holdfast: {error.filename}: {error.strerror}\n  Run the command as root.", err=True)
            ctx.exit(int(ExitStatus.ENVIRONMENT))
        except KeyboardInterrupt:
            click.echo("\nholdfast: interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"holdfast: {where}{error.strerror or error}", err=True)
            statuses = {
                errno.ENOSPC: ExitStatus.NO_SPACE,
                errno.EDQUOT: ExitStatus.NO_SPACE,
                errno.EROFS: ExitStatus.ENVIRONMENT,
            }
            ctx.exit(int(statuses.get(error.errno or 0, ExitStatus.FAILED)))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Holdfast keeps mail running when a machine dies.

    On the machine that has the mail: `holdfast init`. On the others: `holdfast join`. Then `holdfast status`.

    Backups, with or without a site: `holdfast vault init`, then `holdfast vault backup`.

    \b
    Exit status: 0 done, 1 failed, 2 usage, 3 done with differences named,
                 4 refused as unsafe, 5 unreachable, 6 configuration,
                 7 environment, 8 no space, 9 locked, 10 wrong key,
                 11 newer format, 12 damaged.
    """


def _emit(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _parse_machine(text: str) -> tuple[str, str, str]:
    name, separator, rest = text.partition("=")
    address, _, role = rest.partition(",")
    if not separator or not address or role not in ("", "mail", "relay"):
        raise click.BadParameter(f"{text!r}: write NAME=ADDRESS or NAME=ADDRESS,relay")
    return name, address, role or "mail"


@main.command()
@click.option("--site", required=True, help="A short name for the whole installation.")
@click.option(
    "--machine",
    "machines",
    multiple=True,
    required=True,
    metavar="NAME=ADDRESS[,relay]",
    help="One machine and its own address; give this machine first, then the standby, then the relay.",
)
@click.option(
    "--service-address",
    "addresses",
    multiple=True,
    metavar="ADDRESS/PREFIX",
    help="Where clients find the mail server; it moves between machines. With its network's prefix length. "
    "May be given for IPv4 and IPv6.",
)
@click.option("--interface", default="eth0", show_default=True, help="The interface that carries it.")
@click.option(
    "--mail",
    "mail_lines",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Lines for the [mail] table: the account of the probes, or where discovery needs help.",
)
@click.option(
    "--failover",
    type=click.Choice(["automatic", "manual"]),
    help="Whether a standby takes over by itself; automatic, where there are three machines.",
)
@_json
def init(
    site: str,
    machines: tuple[str, ...],
    addresses: tuple[str, ...],
    interface: str,
    mail_lines: str | None,
    failover: str | None,
    as_json: bool,
) -> None:
    """Make this machine the first of a site.

    Writes /etc/holdfast, and for each other machine a sealed bundle and the code that opens it. Starts nothing.

    \b
    Example:
      holdfast init --site example --machine main=192.0.2.11 --machine backup=192.0.2.12 \\
        --machine relay=192.0.2.13,relay --service-address 192.0.2.10/24 --interface eth0
    """
    from holdfast.node.enrol import Folder, create_site, initial_configuration
    from holdfast.node.settings import parse_settings

    parsed = [_parse_machine(text) for text in machines]
    configuration = initial_configuration(
        site=site,
        machine=parsed[0][0],
        machines={name: (role, address) for name, address, role in parsed},
        service_addresses=addresses,
        interface=interface,
        mail_lines=Path(mail_lines).read_text() if mail_lines else "",
        failover=failover or "",
    )
    warning = parse_settings(configuration, "what you gave").without_majority
    folder = Folder()
    codes = create_site(configuration, folder)
    bundles = {name: {"bundle": str(folder.bundles / f"{name}.join"), "code": code} for name, code in codes.items()}
    if as_json:
        warnings = [warning] if warning else []
        _emit({"configuration": str(folder.configuration), "bundles": bundles, "warnings": warnings})
        return
    click.echo(f"Wrote {folder.configuration}: read it, it is short.")
    if warning:
        click.echo(f"\n! {warning}")
        click.echo("  A small third one (1 vCPU, 1 GB, no mail on it) changes that. To have it from the beginning:")
        click.echo(f"  rm -r {folder.base}, and init again with --machine NAME=ADDRESS,relay")
        click.echo("  Otherwise read beforehand what to do then: docs/operations/log-trouble.md")
    for name, bundle in bundles.items():
        click.echo(f"\nOn {name}: copy {bundle['bundle']} there, then")
        click.echo(f"  holdfast join {name}.join --code {bundle['code']}")
    if bundles:
        click.echo(
            "\nThe bundles hold private keys, sealed with their codes: "
            "send file and code by different ways, delete both."
        )
    click.echo(
        f"Keep a copy of {folder.authority} and {folder.segment_key} in a safe."
        "\nThen start the agents: systemctl enable --now holdfast"
    )


@main.command()
@click.argument("bundle", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--code", default="", help="The join code; asked for when not given.")
@click.option("--rejoin", is_flag=True, help="This machine was primary: come back as standby, keep aside what differs.")
@_json
def join(bundle: str | None, code: str, rejoin: bool, as_json: bool) -> None:
    """Make this machine part of a site, or bring a returned one back.

    \b
    Example:
      holdfast join backup.join --code abcde-...     (then start the agent: it seeds itself from the primary)
      holdfast join --rejoin                         (on a machine that served when another was promoted)
    """
    if rejoin:
        _client().post("/rejoin")
        message = "Rejoining: what only this machine has is kept aside. `holdfast status` shows the progress."
        if as_json:
            _emit({"ordered": True})
        else:
            click.echo(message)
        return
    if bundle is None:
        raise click.UsageError("give the bundle that `holdfast init` wrote for this machine, or --rejoin")
    from holdfast.node.enrol import Folder, join_site, open_bundle

    if not code:
        code = click.prompt("Join code", hide_input=False)
    settings = join_site(open_bundle(Path(bundle).read_bytes(), code), Folder())
    if as_json:
        _emit({"site": settings.site, "machine": settings.machine, "role": settings.me.role})
    else:
        click.echo(f"This machine is {settings.machine} ({settings.me.role}) of site {settings.site}.")
        if settings.me.role == "relay" and settings.relay.takes_mail:
            click.echo("It takes mail: `holdfast relay configure --hostname NAME` writes its Postfix's configuration.")
        click.echo("Now start the agent: systemctl enable --now holdfast")


@main.command()
@click.option("--config", default="/etc/holdfast/holdfast.toml", show_default=True, type=click.Path(dir_okay=False))
@_json
def check(config: str, as_json: bool) -> None:
    """Check the configuration: would an agent start with it? Starts and changes nothing.

    What is wrong is named by file, key and what was expected: exit status 6. What an agent starts with and a person
    should know is a warning, and the exit status is 0.

    \b
    Example (after every change, before the agent is restarted):
      holdfast check && systemctl restart holdfast
    """
    from datetime import UTC, datetime

    from holdfast.node.check import check as check_configuration

    checked = check_configuration(Path(config), datetime.now(UTC))
    if as_json:
        _emit({name: getattr(checked, name) for name in checked.__struct_fields__})
        return
    click.echo(f"{checked.file}: site {checked.site}, {checked.machines} machines; this is {checked.machine}", nl=False)
    click.echo(f" ({checked.role}). An agent starts with it.")
    for warning in checked.warnings:
        click.echo(f"! {warning}")


@main.command()
@click.option("--config", default="/etc/holdfast/holdfast.toml", show_default=True, type=click.Path(dir_okay=False))
def agent(config: str) -> None:
    """Run the agent in the foreground (what the systemd unit does).

    \b
    Example:
      holdfast agent
    """
    # The agent stands above the command line and is not imported by it: this process becomes it.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "holdfast.agent", config])


def _client() -> Any:
    from holdfast.console.client import Client

    return Client()


@main.command()
@_json
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """The site on one screen: roles, positions, lag, what would be lost, what to do.

    Exit status 3 when there are warnings.

    \b
    Example:
      holdfast status
      holdfast status --json | jq .lost_if_primary_died_bytes
    """
    from holdfast.console import show

    client = _client()
    if watch:
        show.watch_status(client)
        return
    facts = client.get("/status")
    if as_json:
        _emit(facts)
    else:
        show.status(facts)
    sys.exit(ExitStatus.DIFFERENCES if facts["warnings"] else ExitStatus.DONE)


@main.command()
@click.option("--full", is_flag=True, help="Read every byte on both machines; without: names, sizes, times, owners.")
@click.option("--heal", is_flag=True, help="Fetch from the primary what is damaged or missing here.")
@_json
def verify(full: bool, heal: bool, as_json: bool) -> None:
    """Compare this standby with the primary, file by file, at one log position.

    Exit status 3 when differences were found (and not healed).

    \b
    Example:
      holdfast verify --full
    """
    from holdfast.console import show

    lines = _client().lines("/verify", full=full, heal=heal)
    report = show.follow_verify(lines, quiet=as_json)
    if as_json:
        _emit(report)
    else:
        show.verify_report(report)
    sys.exit(ExitStatus.DIFFERENCES if report["remaining"] else ExitStatus.DONE)


def _ordered(action: str, why: str, dry_run: bool, as_json: bool, force: bool) -> None:
    from holdfast.console import show

    client = _client()
    if dry_run:
        plan = client.post(f"/plan/{action}", why=why, force=force)
        if as_json:
            _emit(plan)
        else:
            show.plan(plan)
        sys.exit(ExitStatus.REFUSED if plan["refusals"] else ExitStatus.DONE)
    from holdfast.console.client import person

    outcome = client.post(f"/{action}", why=why, force=force, by=person())
    if as_json:
        _emit(outcome)
    else:
        show.outcome(outcome)
    if not outcome["done"]:
        sys.exit(ExitStatus.FAILED)
    sys.exit(ExitStatus.DIFFERENCES if outcome["warnings"] else ExitStatus.DONE)


_why = click.option("--why", default="", help="For the event history.")
_dry = click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")


@main.command()
@_why
@_dry
@click.option("--at", default="", metavar="TIME", help="Not now, but at 03:30, or at '2026-12-01 03:30'.")
@click.option("--cancel", is_flag=True, help="Take back what was ordered with --at.")
@_json
def switchover(why: str, dry_run: bool, at: str, cancel: bool, as_json: bool) -> None:
    """Make this standby the primary while the other still runs (planned; nothing is lost).

    To go back, give the same command on the other machine.

    \b
    Example, on the standby:
      holdfast switchover --why "kernel update on main"
      holdfast switchover --at 03:30 --why "kernel update on main"
    """
    if (at or cancel) and not dry_run:
        from holdfast.console.failover import order_switchover

        order_switchover(_client(), "" if cancel else at, why, as_json=as_json)
        return
    _ordered("switchover", why, dry_run, as_json, False)


@main.command()
@_why
@_dry
@click.option("--force", is_flag=True, help="Although the primary is still heard: it is fenced by the promotion.")
@click.option("--alone", is_flag=True, help="All other machines are gone for good: begin a new log from what is here.")
@click.option("--yes", is_flag=True, help="With --alone: do not ask.")
@_json
def takeover(why: str, dry_run: bool, force: bool, alone: bool, yes: bool, as_json: bool) -> None:
    """Make this standby the primary because the other is gone.

    Applies the log to its end, promotes this machine, takes the service address, starts the mail software, probes it.
    May be given again: on the primary it makes sure that it serves.

    \b
    Example, on the standby:
      holdfast takeover --why "main does not answer"
      holdfast takeover --alone --why "fire in rack 2"    (it and the relay: docs/operations/alone.md)
    """
    if alone:
        from holdfast.console.alone import go_on_alone

        go_on_alone(_client(), why, dry_run=dry_run, force=force, yes=yes, as_json=as_json)
        return
    _ordered("takeover", why, dry_run, as_json, force)


@main.command()
@_json
def barrier(as_json: bool) -> None:
    """Wait until everything done in the trees so far is in the log. On the primary.

    \b
    Example (before a snapshot, a test, a planned power-off):
      holdfast barrier
    """
    position = _client().post("/barrier")
    if as_json:
        _emit(position)
    else:
        click.echo(f"in the log up to record {position['sequence']}")


@main.command()
@click.option("--last", default=20, show_default=True, help="How many records.")
@_json
def log(last: int, as_json: bool) -> None:
    """The last records of the log: number, time, writer, epoch, kind, size.

    \b
    Example:
      holdfast log --last 5
    """
    from holdfast.console import show

    records = _client().get(f"/log?last={last}")
    if as_json:
        _emit(records)
    else:
        show.records(records)


@main.command()
@click.option("--last", default=40, show_default=True, help="How many events.")
@_json
def history(last: int, as_json: bool) -> None:
    """What this machine did, when and why.

    \b
    Example:
      holdfast history --last 10
    """
    from holdfast.console import show

    events = _client().get(f"/history?last={last}")
    if as_json:
        _emit(events)
    else:
        show.history(events)


@main.group()
def trust() -> None:
    """Certificates between the machines: show, renew, change the authority."""


@trust.command("show")
@_json
def trust_show(as_json: bool) -> None:
    """This machine's certificate: names, validity.

    \b
    Example:
      holdfast trust show
    """
    from holdfast.log.trust import describe
    from holdfast.node.enrol import Folder

    facts = describe(Folder().tls_files().certificate)
    value = {
        "machine": facts.machine,
        "roles": list(facts.roles),
        "addresses": list(facts.addresses),
        "valid_from": facts.valid_from.isoformat(),
        "valid_until": facts.valid_until.isoformat(),
    }
    if as_json:
        _emit(value)
    else:
        for key, text in value.items():
            click.echo(f"{key:12} {text if isinstance(text, str) else ', '.join(text)}")


@trust.command("renew")
@_json
def trust_renew(as_json: bool) -> None:
    """On the machine with the authority: a fresh certificate here, and new bundles for the others.

    \b
    Example:
      holdfast trust renew      then on each other machine: holdfast join NAME.join; systemctl restart holdfast
                                (the one that serves last, after a switchover: a restart interrupts mail)
    """
    from holdfast.node.enrol import Folder, renew_site

    codes = renew_site(Folder())
    bundles = {name: {"bundle": str(Folder().bundles / f"{name}.join"), "code": code} for name, code in codes.items()}
    if as_json:
        _emit({"bundles": bundles})
        return
    click.echo("This machine has a fresh certificate: restart its agent. If it serves, switch over first.")
    for name, bundle in bundles.items():
        click.echo(f"On {name}: copy {bundle['bundle']} there, then  holdfast join {name}.join --code {bundle['code']}")


@trust.command("rotate")
@click.argument("step", type=click.Choice(["begin", "switch", "finish"]))
def trust_rotate(step: str) -> None:
    """Replace the authority itself, in three steps; after each: `holdfast trust renew`, joins, agents restarted.

    On the machine where `holdfast init` ran.

    \b
    begin    make a new authority; both are trusted, the old one signs
    switch   the new one signs, both are trusted
    finish   the old one is trusted no more

    \b
    Example:
      holdfast trust rotate begin
    """
    from holdfast.log.trust import Authority
    from holdfast.node.enrol import Folder

    folder = Folder().authority
    if not (folder / "ca.key").exists():
        raise Refused(
            f"{folder} is not on this machine",
            hint="Run this on the machine where `holdfast init` ran, or bring that folder here from your safe.",
        )
    authority = Authority(folder)
    {"begin": authority.rotate, "switch": authority.sign_with_new, "finish": authority.retire}[step]()
    if step == "finish":
        click.echo("Now `holdfast trust renew` once more, so that every machine forgets the old authority.")
    else:
        click.echo("Now `holdfast trust renew`, and bring the bundles to every machine, before the next step.")


@main.command()
@click.confirmation_option(prompt="The log starts anew from what this machine holds. Go?")
@click.option("--force", is_flag=True, help="Although another machine knows of a later primary: what is here is older.")
def found(force: bool) -> None:
    """Start the log anew from this machine: when its trees are the truth and the log cannot be continued.

    Refused (exit status 4) on a primary whose log goes on, and where another machine knows of a later primary.

    \b
    Example:
      holdfast found --yes
    """
    _client().post("/found", force=force)
    click.echo("Ordered. `holdfast status` shows the progress.")


@main.command()
@click.option("--config", default="/etc/holdfast/holdfast.toml", show_default=True, type=click.Path(dir_okay=False))
def release(config: str) -> None:
    """Stop serving from this machine: give the addresses back, stop the mail software. For ExecStopPost.

    Needs no agent and no log: it is what the supervisor calls when the agent has died. Needs no configuration that can
    be read either, where an agent has written down what it serves with. The addresses go first. Everything is tried;
    exit status 0 only when nothing is served from here any more.

    By hand, beside a running agent: `holdfast takeover` on this machine makes it serve again.

    \b
    Example (in the systemd unit):
      ExecStopPost=/opt/holdfast/bin/holdfast release
    """
    from holdfast.node.release import release as stop_serving

    released = stop_serving(Path(config))
    click.echo(f"released: {'; '.join(released.done) or 'nothing was served from here'}")
    for remark in released.remarks:
        click.echo(f"! {remark}", err=True)
    for error in released.failed:
        click.echo(f"holdfast: {error}", err=True)
    if released.failed:
        sys.exit(int(released.failed[0].exit_status))


@main.command()
@_json
def version(as_json: bool) -> None:
    """The version of Holdfast."""
    if as_json:
        _emit({"holdfast": __version__, "python": sys.version.split()[0]})
    else:
        click.echo(f"holdfast {__version__}")


if __name__ == "__main__":
    main()
