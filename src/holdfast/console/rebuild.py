"""``holdfast rebuild``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.console.emit import emit, json_option
from holdfast.console.vault_options import vault_options

if TYPE_CHECKING:
    from holdfast.console.vault_open import OpenedVault
    from holdfast.console.vault_options import VaultChoice
    from holdfast.rebuild.book import Book
    from holdfast.rebuild.machine import Outcome
    from holdfast.rebuild.plan import Plan, Wish
    from holdfast.rebuild.survey import Unit
    from holdfast.vault.instant import Instant

JOIN_SECONDS_MAX: Final = 600.0


@click.command()
@click.option("--at", default="", metavar="WHEN", help="A snapshot, a time or a position.  [default: the newest]")
@click.option("--ordered", is_flag=True, help="Mail flow first; then accounts one by one, the last active first.")
@click.option("--machine", default="", metavar="NAME", help="Which machine of the site this is.  [default: the same]")
@click.option(
    "--join",
    type=click.Choice(["none", "primary", "standby"]),
    default=None,
    help="Afterwards start the agent, as the one who serves (a log that cannot go on starts anew from here) or as the "
    "copy.  [default: asked on a terminal]",
)
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@click.option("--yes", is_flag=True, help="Carry the plan out without asking.")
@click.option("--move-aside", is_flag=True, help="What stands where mail is to go is kept beside it.")
@click.option("--skip-packages", is_flag=True, help="The programs are installed already.")
@click.option("--offline", is_flag=True, help="Do not fetch package lists anew.")
@click.option("--anew", is_flag=True, help="Forget an unfinished rebuild of this machine.")
@vault_options
@json_option
def rebuild(choice: VaultChoice, join: str | None, as_json: bool, **options: Any) -> None:
    """From a bare machine to running mail: packages, users, configuration, keys, store, services, from the vault.

    Shows a plan first and asks. Needs where the vault is and an identity that opens it: a file, or the page from the
    safe, typed when nothing is given. Interrupted, the same command goes on where it stopped. Nothing that stands on
    the machine is thrown away.

    With --ordered incoming mail is accepted within seconds and waits; each account is usable the moment it is back,
    and until then a login says "temporarily unavailable" and nothing is delivered to it.

    \b
    Example (on the new machine, as root):
      holdfast rebuild --vault sftp://backup@vault.example.org/mail --identity /root/identity.txt --dry-run
      holdfast rebuild --vault sftp://backup@vault.example.org/mail --identity /root/identity.txt --ordered

    Exit status 3 when it serves and something is missing or other than before: each is named.
    """
    import os

    from holdfast.console.rebuild_show import facts, report, show_plan
    from holdfast.console.vault_open import opened
    from holdfast.errors import EnvironmentUnfit, ExitStatus

    if os.geteuid() != 0:
        raise EnvironmentUnfit("rebuilding a machine needs all rights on it", hint="Run it as root.")
    with _identity(choice) as choice, opened(choice) as at, _instant(at, options) as (instant, book):
        plan, wish = _planned(instant, book, options)
        if options["dry_run"] or plan.refusals:
            show_plan(plan, instant, book, as_json, dry_run=True)
            sys.exit(int(ExitStatus.REFUSED if plan.refusals else ExitStatus.DONE))
        if not as_json:
            show_plan(plan, instant, book, as_json, dry_run=False)
        _confirm(yes=options["yes"])
        outcome, times = _carried_out(instant, plan, book, choice, join, as_json, wish)
    role = _joined(plan, join, outcome, quiet=as_json)
    status = _status(plan, book, outcome)
    if as_json:
        emit(facts(plan, book, outcome, times, role))
    else:
        report(plan, book, outcome, role)
    sys.exit(int(status))


# -- before -----------------------------------------------------------------------------------------------------------


@contextmanager
def _identity(choice: VaultChoice) -> Iterator[VaultChoice]:
    """With an identity file: the one given or known, or typed from the page and kept in memory while this runs."""
    import os
    import tempfile

    from holdfast.console.vault_choice import vault_place
    from holdfast.console.vault_paper import typed_identity

    place = vault_place(choice)
    if place.identity is not None or not sys.stdin.isatty():
        yield choice
        return
    click.echo("No identity file was given: type the page from the safe.", err=True)
    text = typed_identity(None)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.NamedTemporaryFile("w", prefix="holdfast-identity-", dir=memory) as file:
        file.write(text + "\n")
        file.flush()
        yield choice._replace(identity=file.name)


@contextmanager
def _instant(at: OpenedVault, options: dict[str, Any]) -> Iterator[tuple[Instant, Book]]:
    """What is to be restored; an unfinished rebuild goes on with what it began from."""
    from holdfast.console.vault_at import instant_at
    from holdfast.rebuild.book import FOLDER, Book

    if options["anew"] and FOLDER.exists():
        FOLDER.rename(FOLDER.with_name(f"rebuild.{time.strftime('%Y-%m-%dT%H-%M-%S')}"))
    book = Book(FOLDER)
    wanted = options["at"]
    if not wanted and book.begun and book.state is not None:
        wanted = book.state.source
    with instant_at(at.vault, wanted or "latest") as instant:
        yield instant, book


def _source(instant: Instant) -> str:
    """Such that ``--at`` means the same again."""
    return str(instant.position) if instant.target.frames else instant.target.base.short


def _planned(instant: Instant, book: Book, options: dict[str, Any]) -> tuple[Plan, Wish]:
    import asyncio

    from holdfast.errors import Refused
    from holdfast.mail.commands import SystemCommands
    from holdfast.rebuild.plan import Wish, make_plan

    if _agent_runs():
        hint = "Stop it first: systemctl stop holdfast. Is this the machine you mean?"
        raise Refused("the agent runs on this machine: it protects what stands here", hint=hint)
    if book.state is not None and book.state.finished and book.state.source == _source(instant):
        raise Refused("this machine was rebuilt from it already", hint="--anew begins again.")
    wish = Wish(
        ordered=options["ordered"] or bool(book.begun and book.state and book.state.ordered),
        machine=options["machine"],
        packages=not options["skip_packages"],
        offline=options["offline"],
        move_aside=options["move_aside"],
    )
    placed = frozenset(book.placed) if book.begun else frozenset[str]()
    trees = instant.snapshot.trees
    made = asyncio.run(make_plan(instant.vault, trees, _source(instant), wish, placed, SystemCommands()))
    return made, wish


def _agent_runs() -> bool:
    from holdfast.console.client import Client
    from holdfast.errors import HoldfastError

    try:
        Client(seconds=5.0).get("/status")
    except HoldfastError:
        return False
    return True


def _confirm(*, yes: bool) -> None:
    from holdfast.errors import Refused

    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused("nothing was changed: nobody is there to ask", hint="--yes carries the plan out.")
    click.confirm("Carry it out on this machine?", abort=True)


# -- carried out ------------------------------------------------------------------------------------------------------


class _Screen:
    """Shows what happens; remembers when each account came back."""

    def __init__(self, *, quiet: bool, units: int) -> None:
        from holdfast.console.progress import Progress

        self._quiet = quiet
        self._each = units <= 200
        self._progress = Progress("restoring", quiet=quiet)
        self.times: list[dict[str, Any]] = []

    def step(self, words: str) -> None:
        if not self._quiet:
            click.echo(f"- {words}")

    def writing(self, done_bytes: int, files: int) -> None:
        self._progress.at(done_bytes, files)

    def usable(self, unit: Unit, after_seconds: float, left_seconds: float) -> None:
        from holdfast.console.words import bytes_text, clock_text, duration_text

        self.times.append({"name": unit.name, "bytes": unit.bytes, "usable_after_seconds": round(after_seconds, 3)})
        if not self._quiet and self._each:
            left = f"  ({clock_text(left_seconds)} left)" if left_seconds >= 1 else ""
            click.echo(f"  {unit.name:40} {bytes_text(unit.bytes):>9}  after {duration_text(after_seconds)}{left}")

    def note(self, words: str) -> None:
        if not self._quiet:
            click.echo(f"  {words}")


def _carried_out(
    instant: Instant, plan: Plan, book: Book, choice: VaultChoice, join: str | None, quiet: bool, wish: Wish
) -> tuple[Outcome, list[dict[str, Any]]]:
    from holdfast.mail.commands import SystemCommands
    from holdfast.rebuild.machine import Rebuild

    vault = instant.vault
    book.begin(vault.codec.secrets.vault.hex(), plan.source, ordered=wish.ordered, now_ns=time.time_ns())
    screen = _Screen(quiet=quiet, units=len(plan.units))
    run = Rebuild(vault, plan, book, SystemCommands(), screen, take_addresses=join == "primary")
    try:
        return run.run(), screen.times
    except KeyboardInterrupt:
        click.echo("\nInterrupted. The same command goes on where it stopped.", err=True)
        raise


# -- afterwards -------------------------------------------------------------------------------------------------------


def _joined(plan: Plan, join: str | None, outcome: Outcome, *, quiet: bool) -> str:
    """Start the agent in the role asked for; the role it has then, or empty. Raises what the agent answers."""
    settings = plan.own.settings
    if settings is None or (not plan.own.restore and join is None):
        return ""
    if join is None and sys.stdin.isatty() and not quiet and outcome.serves:
        asked = "Join the site now? As primary (a log that cannot go on starts anew from here), as standby, or not"
        join = click.prompt(asked, type=click.Choice(["primary", "standby", "none"]), default="none")
    if join in (None, "none"):
        return ""
    from holdfast.rebuild.software import is_systemd

    if not is_systemd():
        return "agent not started: start it, then `holdfast found` if it is to be primary and says it is blocked"
    return _start_agent(str(join))


def _start_agent(join: str) -> str:
    import subprocess

    from holdfast.console.client import Client
    from holdfast.errors import HoldfastError, Unreachable
    from holdfast.rebuild.joining import Seen, Step, next_step, seen_in

    done = subprocess.run(["systemctl", "enable", "--now", "holdfast"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HoldfastError(f"the agent did not start: {done.stderr.strip()}", hint="See docs/quick-start: the unit.")
    client, ordered, seen, since = Client(seconds=10.0), False, Seen(), time.monotonic()
    deadline = since + JOIN_SECONDS_MAX
    while time.monotonic() < deadline:
        before = seen.role
        try:
            seen = seen_in(client.get("/status"))
        except Unreachable:
            seen = Seen()
        if seen.role != before:
            since = time.monotonic()
        step = next_step(join, seen, time.monotonic() - since, ordered=ordered)
        if step is Step.DONE:
            return join
        if step is Step.FOUND:
            client.post("/found")
            ordered = True
        time.sleep(1.0)
    why = f": {seen.reason}" if seen.reason else ""
    raise HoldfastError(
        f"the agent is {seen.role or 'silent'}, not {join}{why}", hint=seen.advice or "`holdfast status` says why."
    )


def _status(plan: Plan, book: Book, outcome: Outcome) -> int:
    from holdfast.errors import ExitStatus

    assert book.state is not None
    if not outcome.serves:
        return ExitStatus.FAILED
    return ExitStatus.DIFFERENCES if plan.differences or book.state.failures_total else ExitStatus.DONE
