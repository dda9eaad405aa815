"""``holdfast lab``: the lab by hand. Everything heavy is imported when a command runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from holdfast.drill.lab.lab import Lab, Machine
    from holdfast.drill.lab.mail_files import MailFormat

F = TypeVar("F", bound=Callable[..., Any])


def lab_option(function: F) -> F:
    """Which lab; several may be up."""
    return click.option(
        "--lab", "lab_name", default="lab", show_default=True, envvar="HOLDFAST_LAB", metavar="NAME", help="Which lab."
    )(function)


@click.group()
def lab() -> None:
    """Machines made of namespaces, to break things on."""


@lab.command()
@lab_option
@click.option(
    "--machine",
    "machines",
    multiple=True,
    metavar="NAME:ROLE",
    help="One more machine, beside the usual four. Repeatable.",
)
@click.option("--only", is_flag=True, help="Only the machines given by --machine, not the usual four.")
@click.option("--disk-mb", type=int, default=2048, show_default=True, help="Size of each machine's disk (sparse).")
@click.option(
    "--disks",
    metavar="FOLDER",
    help="Where the disk images go.  [default: in memory if there is plenty, else /var/tmp]",
)
@click.option("--domain", default="example.test", show_default=True)
@click.option("--accounts", type=click.IntRange(0, 100_000), default=50, show_default=True)
@click.option("--seed", default="holdfast", show_default=True, help="Passwords follow from it.")
@click.option(
    "--mail", type=click.Choice(["maildir", "sdbox", "mdbox"]), help="Set mail software up on main and start it."
)
@click.option("--backend", type=click.Choice(["namespaces", "processes"]), help="[default: namespaces where permitted]")
@click.option("--json", "as_json", is_flag=True)
def up(
    lab_name: str,
    machines: tuple[str, ...],
    only: bool,
    disk_mb: int,
    disks: str | None,
    domain: str,
    accounts: int,
    seed: str,
    mail: MailFormat | None,
    backend: Any,
    as_json: bool,
) -> None:
    """Make a lab and switch its machines on."""
    from holdfast.drill.lab.lab import Lab
    from holdfast.drill.lab.spec import USUAL_MACHINES, LabSpec, MachineSpec

    wanted = [*(() if only else USUAL_MACHINES), *machines]
    made = Lab.up(
        LabSpec(
            name=lab_name,
            machines=tuple(MachineSpec.parse(text) for text in wanted),
            domain=domain,
            accounts=accounts,
            seed=seed,
            disk_bytes=disk_mb << 20,
            disks=disks,
            backend=backend,
        )
    )
    if mail is not None:
        _with_mail(made, mail)
    _show(made, as_json)


@lab.command()
@lab_option
@click.option("--all", "every", is_flag=True, help="All labs that are up.")
def down(lab_name: str, every: bool) -> None:
    """End a lab and remove every trace of it, however it was left."""
    from holdfast.drill.lab.lab import Lab

    for name in Lab.names() if every else [lab_name]:
        click.echo(f"lab {name}: removed" if Lab.down(name) else f"lab {name}: there was none")


@lab.command()
@lab_option
@click.option("--json", "as_json", is_flag=True, help="With accounts and passwords.")
def status(lab_name: str, as_json: bool) -> None:
    """Machines, addresses, cuts."""
    from holdfast.drill.lab.lab import Lab

    _show(Lab.open(lab_name), as_json)


@lab.command("list")
def list_labs() -> None:
    """Names of the labs that are up."""
    from holdfast.drill.lab.lab import Lab

    for name in Lab.names():
        click.echo(name)


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@lab_option
@click.option("--user", metavar="NAME", help="Run as this user of the machine.")
@click.argument("machine")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def exec_in(lab_name: str, user: str | None, machine: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on MACHINE, here attached; its exit status is passed on (128 + number when a signal ended it)."""
    from holdfast.drill.lab.terminal import run_attached

    argv = command[1:] if command[0] == "--" else command
    sys.exit(run_attached(_machine(lab_name, machine), argv, user=user))


@lab.command()
@lab_option
@click.option("--soft", is_flag=True, help="Only the processes die; the page cache survives.")
@click.argument("machines", nargs=-1, required=True)
def kill(lab_name: str, soft: bool, machines: tuple[str, ...]) -> None:
    """Cut the power of MACHINES: processes die at once, and what was not synced is gone."""
    for name in machines:
        _machine(lab_name, name).kill(soft=soft)


@lab.command()
@lab_option
@click.argument("machines", nargs=-1, required=True)
def stop(lab_name: str, machines: tuple[str, ...]) -> None:
    """Shut MACHINES down in order."""
    for name in machines:
        _machine(lab_name, name).shut_down()


@lab.command()
@lab_option
@click.argument("machines", nargs=-1, required=True)
def start(lab_name: str, machines: tuple[str, ...]) -> None:
    """Switch MACHINES on again."""
    for name in machines:
        _machine(lab_name, name).start()


@lab.command()
@lab_option
@click.argument("machines", nargs=-1, required=True)
def wipe(lab_name: str, machines: tuple[str, ...]) -> None:
    """Destroy the disks of MACHINES and put fresh ones in: bare machines, switched off. /media/shared stays."""
    for name in machines:
        _machine(lab_name, name).wipe()


@lab.command()
@lab_option
@click.argument("machine")
def freeze(lab_name: str, machine: str) -> None:
    """Stop every process of MACHINE where it is."""
    _machine(lab_name, machine).freeze()


@lab.command()
@lab_option
@click.argument("machine")
def thaw(lab_name: str, machine: str) -> None:
    """Let MACHINE go on as if no time had passed."""
    _machine(lab_name, machine).thaw()


@lab.command()
@lab_option
@click.option("--one-way", is_flag=True, help="Drop only what A sends to B.")
@click.argument("a")
@click.argument("b", required=False)
def cut(lab_name: str, one_way: bool, a: str, b: str | None) -> None:
    """Partition machine A from B, or from all."""
    from holdfast.drill.lab.lab import Lab

    Lab.open(lab_name).cut(a, b, one_way=one_way)


@lab.command()
@lab_option
@click.option("--one-way", is_flag=True, help="Only the direction from A to B.")
@click.argument("a", required=False)
@click.argument("b", required=False)
def heal(lab_name: str, one_way: bool, a: str | None, b: str | None) -> None:
    """Undo cuts: between A and B, of A with all, or all of them."""
    from holdfast.drill.lab.lab import Lab

    Lab.open(lab_name).heal(a, b, one_way=one_way)


def _machine(lab_name: str, name: str) -> Machine:
    from holdfast.drill.lab.lab import Lab

    return Lab.open(lab_name).machine(name)


def _with_mail(made: Lab, mail: MailFormat) -> None:
    from holdfast.drill.lab import mailhost

    main = made.machine("main")
    mailhost.configure(main, mailhost.MailSettings(format=mail))
    mailhost.hold_service_address(main)
    mailhost.start(main)


def _show(made: Lab, as_json: bool) -> None:
    from holdfast.drill.lab import report

    view = report.view(made)
    click.echo(report.as_json(view) if as_json else report.as_text(view))


def main() -> None:
    """``python -m holdfast.drill.lab``: what the console does for every command, for this group alone."""
    from holdfast.errors import HoldfastError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a half-made lab is removed
    try:
        lab(prog_name="holdfast lab")
    except HoldfastError as error:
        click.echo(f"holdfast lab: {error}", err=True)
        sys.exit(error.exit_status)
