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

UNITS_SHOWN_MAX: Final = 12
WORDS_SHOWN_MAX: Final = 20
JOIN_SECONDS_MAX: Final = 600.0


@click.command()
@click.option("--at", default="", metavar="WHEN", help="A snapshot, a time or a position.  [default: the newest]")
@click.option("--ordered", is_flag=True, help="Mail flow first; then accounts one by one, the last active first.")
@click.option("--machine", default="", metavar="NAME", help="Which machine of the site this is.  [default: the same]")
@click.option(
    "--join",
    type=click.Choice(["none", "primary", "standby"]),
    default=None,
    help="Afterwards start the agent, as the one who serves or as the copy.  [default: asked on a terminal]",
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

    from holdfast.console.vault_open import opened
    from holdfast.errors import EnvironmentUnfit, ExitStatus

    if os.geteuid() != 0:
        raise EnvironmentUnfit("rebuilding a machine needs all rights on it", hint="Run it as root.")
    with _identity(choice) as choice, opened(choice) as at, _instant(at, options) as (instant, book):
        plan, wish = _planned(instant, book, options)
        if options["dry_run"] or plan.refusals:
            _show(plan, instant, book, as_json, dry_run=True)
            sys.exit(int(ExitStatus.REFUSED if plan.refusals else ExitStatus.DONE))
        if not as_json:
            _show(plan, instant, book, as_json, dry_run=False)
        _confirm(yes=options["yes"])
        outcome, times = _carried_out(instant, plan, book, choice, join, as_json, wish)
    role = _joined(plan, join, outcome, quiet=as_json)
    status = _status(plan, book, outcome)
    if as_json:
        emit(_facts(plan, book, outcome, times, role))
    else:
        _report(plan, book, outcome, role)
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


# -- the plan shown ---------------------------------------------------------------------------------------------------


def _show(plan: Plan, instant: Instant, book: Book, as_json: bool, *, dry_run: bool) -> None:
    if as_json:
        emit({"dry_run": True, "refusals": list(plan.refusals), **_plan_facts(plan)})
        return
    from holdfast.console.words import ago_text, bytes_text, clock_text, counted, time_text

    taken = instant.snapshot.taken_at_ns
    again = f", going on ({counted(len(book.placed), 'unit')} in place)" if book.begun else ""
    click.echo(f"Rebuild of {plan.machine or 'this machine'} from {plan.source} of {instant.snapshot.machine}{again}")
    click.echo(f"  as it was      {time_text(taken)} ({ago_text(time.time() - taken / 1e9)})")
    if plan.software is not None:
        names = ", ".join(wanted.argument for wanted in plan.software.install)
        install = f"; to install: {names}" if names else ""
        click.echo(f"  packages       {counted(plan.software.present, 'package')} of mail here{install}")
    if plan.users.users or plan.users.groups:
        names = ", ".join(f"{user.name} ({user.uid})" for user in plan.users.users)
        click.echo(f"  users          to make: {names or ', '.join(group.name for group in plan.users.groups)}")
    if plan.own.restore:
        click.echo("  site           configuration and keys of Holdfast come back too")
    if plan.completeness.known:
        present = sum(secret.state == "present" for secret in plan.completeness.secrets)
        click.echo(f"  secrets        {present} of {len(plan.completeness.secrets)} are in the snapshot")
    estimates = plan.estimates()
    total = estimates[-1].usable_after_seconds if estimates else 0.0
    size, files = plan.survey.bytes, sum(unit.files for unit in plan.units)
    click.echo(f"  store          {counted(files, 'file')}, {bytes_text(size)}", nl=False)
    rate = plan.rate.bytes_per_second
    click.echo(f"; read here at {bytes_text(rate)}/s: about {clock_text(total)}" if rate else "")
    if plan.ordered:
        click.echo("  order          mail flow, then:")
        for estimate in estimates[:UNITS_SHOWN_MAX]:
            when = f"after {clock_text(estimate.usable_after_seconds)}"
            active = time_text(estimate.active_ns)[:16]
            click.echo(f"    {estimate.name:40} {bytes_text(estimate.bytes):>9}  last change {active}  back {when}")
        if len(estimates) > UNITS_SHOWN_MAX:
            click.echo(f"    and {len(estimates) - UNITS_SHOWN_MAX} more; --json names all")
    _words(plan.notes, "note")
    _words(plan.differences, "lacks")
    _words(plan.refusals, "refused")
    if dry_run:
        click.echo("Nothing was changed.")


def _words(sentences: tuple[str, ...], mark: str) -> None:
    for words in sentences[:WORDS_SHOWN_MAX]:
        click.echo(f"! {mark}: {words}" if mark != "note" else f"  {words}", err=mark != "note")
    if len(sentences) > WORDS_SHOWN_MAX:
        click.echo(f"  and {len(sentences) - WORDS_SHOWN_MAX} more; --json names all", err=mark != "note")


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
        asked = "Join the site now? As primary (it serves), as standby (it copies), or not"
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

    done = subprocess.run(["systemctl", "enable", "--now", "holdfast"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HoldfastError(f"the agent did not start: {done.stderr.strip()}", hint="See docs/quick-start: the unit.")
    client, ordered, role = Client(seconds=10.0), False, ""
    deadline = time.monotonic() + JOIN_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            role = str(client.get("/status")["role"])
        except Unreachable:
            role = ""
        if role == join:
            return role
        if join == "primary" and role in ("blocked", "returned", "waiting", "standby") and not ordered:
            client.post("/found")
            ordered = True
        time.sleep(1.0)
    raise HoldfastError(f"the agent is {role or 'silent'}, not {join}", hint="`holdfast status` says why.")


def _status(plan: Plan, book: Book, outcome: Outcome) -> int:
    from holdfast.errors import ExitStatus

    assert book.state is not None
    if not outcome.serves:
        return ExitStatus.FAILED
    return ExitStatus.DIFFERENCES if plan.differences or book.state.failures_total else ExitStatus.DONE


def _plan_facts(plan: Plan) -> dict[str, Any]:
    import msgspec

    return {
        "source": plan.source,
        "machine": plan.machine,
        "ordered": plan.ordered,
        "install": [wanted.argument for wanted in plan.software.install] if plan.software else [],
        "users": [user.name for user in plan.users.users],
        "groups": [group.name for group in plan.users.groups],
        "bytes": plan.survey.bytes,
        "files": sum(unit.files for unit in plan.units),
        "bytes_per_second": round(plan.rate.bytes_per_second),
        "units": [msgspec.to_builtins(estimate) for estimate in plan.estimates()],
        "secrets": [{"path": s.need.path, "kind": s.need.kind, "state": s.state} for s in plan.completeness.secrets],
        "lacks": list(plan.differences),
        "notes": list(plan.notes),
    }


def _facts(plan: Plan, book: Book, outcome: Outcome, times: list[dict[str, Any]], role: str) -> dict[str, Any]:
    import msgspec

    state = book.state
    assert state is not None
    return {
        **_plan_facts(plan),
        "steps": [msgspec.to_builtins(step) for step in state.steps.values()],
        "milestones": state.milestones,
        "seconds": round(sum(step.seconds for step in state.steps.values()), 3),
        "accounts": times,
        "probes": [msgspec.to_builtins(probe) for probe in outcome.probes],
        "failures": [msgspec.to_builtins(failed) for failed in state.failures],
        "failures_total": state.failures_total,
        "role": role,
    }


def _report(plan: Plan, book: Book, outcome: Outcome, role: str) -> None:
    from holdfast.console.words import bytes_text, duration_text

    state = book.state
    assert state is not None
    click.echo("")
    for probe in outcome.probes:
        click.echo(f"{'ok ' if probe.ok else 'NOT'} {probe.service:10} {probe.words}")
    click.echo("\nWhere the time went")
    total = sum(step.seconds for step in state.steps.values())
    for step in state.steps.values():
        size = f"  {bytes_text(step.bytes)}, {step.files:,} files" if step.files else ""
        click.echo(f"  {step.name:16} {duration_text(step.seconds):>8}{size}")
    click.echo(f"  {'in all':16} {duration_text(total):>8}")
    for name, seconds in state.milestones.items():
        click.echo(f"  {name + ' after':28} {duration_text(seconds):>8}")
    for failed in state.failures[:WORDS_SHOWN_MAX]:
        click.echo(f"! {failed.path}: {failed.reason}", err=True)
    if state.failures_total > WORDS_SHOWN_MAX:
        click.echo(f"! and {state.failures_total - WORDS_SHOWN_MAX} more in {book.folder}/book.json", err=True)
    _words(plan.differences, "lacks")
    if role:
        click.echo(f"\nThis machine: {role}")
    elif plan.own.settings is not None:
        addresses = ", ".join(plan.own.settings.service.addresses)
        click.echo(
            f"\nClients look for the mail server at {addresses or 'its own address'}. To put it under protection:"
        )
        click.echo("  systemctl enable --now holdfast; holdfast status")
        click.echo("  as primary, if status says blocked or waiting: holdfast found; as standby nothing more")
