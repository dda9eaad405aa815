"""``holdfast restore`` of accounts, folders and messages: into a folder, or into the running server."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from holdfast.console.emit import emit
from holdfast.console.progress import Progress
from holdfast.console.restore_items import restore_items
from holdfast.console.restore_options import MailWish
from holdfast.console.vault_at import instant_at
from holdfast.console.vault_find import printable
from holdfast.console.vault_moments import accounts, mail_settings, moment_of_instant
from holdfast.console.vault_open import opened
from holdfast.console.vault_options import VaultChoice
from holdfast.console.words import ago_text, counted, iso_text, path_text, time_text
from holdfast.errors import ExitStatus, HoldfastError
from holdfast.mail.commands import SystemCommands
from holdfast.mail.imap_session import ImapSession, session_command
from holdfast.recover import folder as folders
from holdfast.recover import running, scripts
from holdfast.recover.boxes import Box, Moment
from holdfast.recover.folder import Written
from holdfast.recover.running import AccountPlan, Step, Target, Verdict
from holdfast.recover.scripts import ScriptPlan, Scripts
from holdfast.recover.wanted import Chosen, folders_of, messages_of
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.instant import Instant
from holdfast.vault.restore import Restored, restore_path

STEPS_SHOWN_MAX: Final = 40


class How(NamedTuple):
    """Of the command line, what all kinds of restore need."""

    at: str
    target: Path | None
    dry_run: bool
    quiet: bool
    as_json: bool
    limit: int
    """Bytes a second from the store; 0: what is configured."""


def restore_mail(wish: MailWish, how: How, choice: VaultChoice) -> None:
    """Ends the program with the exit status."""
    _check(wish, how)
    with opened(choice, limit=how.limit) as at, ExitStack() as stack:
        instants: dict[str, Instant] = {}

        def moment_of(when: str) -> Moment:
            if when not in instants:
                instants[when] = stack.enter_context(instant_at(at.vault, when))
            return moment_of_instant(instants[when])

        if wish.items or wish.collection:
            status = restore_items(at.vault, wish, how, moment_of)
        elif wish.messages:
            chosen = messages_of(wish.messages, moment_of, accounts())
            status = _restored(chosen, {}, wish, how, instants)
        else:
            moment = moment_of(how.at)
            chosen = folders_of(moment, wish.account, wish.folder, accounts())
            status = _restored(chosen, dict.fromkeys(chosen.boxes, moment), wish, how, instants)
    sys.exit(int(status))


def _restored(
    chosen: Chosen, moments: dict[str, Moment], wish: MailWish, how: How, instants: dict[str, Instant]
) -> ExitStatus:
    """*moments*: by account, where whole folders are wanted."""
    if not how.as_json:
        _announce(chosen, moments, wish)
    if wish.into_server:
        return _into_server(chosen, moments, wish, how)
    return _into_folder(chosen, wish, how, instants)


def _check(wish: MailWish, how: How) -> None:
    kinds = [bool(wish.messages), bool(wish.items), bool(wish.account)]
    if sum(kinds) != 1:
        raise click.UsageError("say one of: --account (with --folder or --collection), --message, --item")
    if (wish.folder or wish.collection) and not wish.account:
        raise click.UsageError("--folder and --collection need --account")
    if wish.into_server == (how.target is not None):
        raise click.UsageError("say where to: --into-server, or --to FOLDER (new or empty)")
    if (wish.into_folder or wish.into_account or wish.copies) and not wish.into_server:
        raise click.UsageError("--into-folder, --into-account and --copies need --into-server")
    if wish.into_account and wish.account and any(letter in wish.account for letter in "*?"):
        raise click.UsageError("--into-account takes the mail of one account, not of a pattern")


# -- into a folder ----------------------------------------------------------------------------------------------------


def _into_folder(chosen: Chosen, wish: MailWish, how: How, instants: dict[str, Instant]) -> ExitStatus:
    assert how.target is not None
    shape = wish.shape or ("messages" if wish.messages else "maildir" if wish.folder else "files")
    if shape == "files" and wish.messages:
        raise click.UsageError("--as files is for accounts and folders; messages come as messages, or as a maildir")
    if how.dry_run:
        _tell_folder(chosen, how, shape, None)
        return ExitStatus.DIFFERENCES if chosen.problems else ExitStatus.DONE
    size = sum(one.stored.length or one.stored.size for ones in chosen.wanted.values() for one in ones)
    with Progress("restoring", size, quiet=how.quiet or how.as_json) as progress:

        def show(written: Written) -> None:
            progress.at(written.bytes, written.files)

        if shape == "files":
            written = _exact(chosen, instants[how.at], how.target, wish, progress)
        elif shape == "maildir":
            written = folders.as_maildir(chosen, how.target, show)
        else:
            written = folders.as_messages(chosen, how.target, show)
    _tell_folder(chosen, how, shape, written)
    return ExitStatus.DIFFERENCES if written.failed else ExitStatus.DONE


def _exact(chosen: Chosen, instant: Instant, target: Path, wish: MailWish, progress: Progress) -> Written:
    """Files as they were: whole accounts, or folders' directories."""
    folders.prepare(target)
    written = Written(failed=dict(chosen.problems))

    def show(so_far: Restored) -> None:
        progress.at(written.bytes + so_far.bytes, written.files + so_far.files)

    for account, boxes in chosen.boxes.items():
        places = {
            (box.tree, box.mailbox.path if wish.folder else folders.home_of(box)): _label(box, wish) for box in boxes
        }
        for number, ((tree, path), label) in enumerate(places.items(), start=1):
            place = target / folders.safe(account)
            if label or len(places) > 1:
                place /= label or f"{number}-{folders.safe(path.decode('utf-8', 'replace'))}"
            restored = restore_path(instant.vault, instant.snapshot.tree(tree), path, place, progress=show)
            written.files += restored.files
            written.bytes += restored.bytes
            for failure in restored.failures:
                written.failed[f"{place}/{path_text(failure.path)}"] = failure.reason
    return written


def _label(box: Box, wish: MailWish) -> str:
    return folders.safe(box.mailbox.folder) if wish.folder else ""


def _tell_folder(chosen: Chosen, how: How, shape: str, written: Written | None) -> None:
    failed = written.failed if written is not None else chosen.problems
    if how.as_json:
        emit(
            {
                "dry_run": written is None,
                "to": str(how.target),
                "as": shape,
                "accounts": {name: len(ones) for name, ones in chosen.wanted.items()},
                "restored_files": written.files if written is not None else 0,
                "failures": failed,
            }
        )
        return
    if written is None:
        click.echo(f"would restore {counted(chosen.total, 'message')} into {how.target} (as {shape})")
        click.echo("Nothing was written (--dry-run).")
    else:
        click.echo(f"{counted(written.files, 'file')} in {how.target} (as {shape})")
    tell_problems(failed)


def tell_problems(failed: dict[str, str]) -> None:
    if failed:
        click.echo(f"! {counted(len(failed), 'thing is', 'things are')} not back, or not whole:", err=True)
    for place, reason in list(failed.items())[:STEPS_SHOWN_MAX]:
        click.echo(f"    {printable(place)}: {reason}", err=True)
    if len(failed) > STEPS_SHOWN_MAX:
        click.echo(f"    and {len(failed) - STEPS_SHOWN_MAX:,} more (--json names them)", err=True)


def _announce(chosen: Chosen, moments: dict[str, Moment], wish: MailWish) -> None:
    what = f"{counted(chosen.total, 'message')} of {', '.join(list(chosen.boxes)[:5])}"
    if len(chosen.boxes) > 5:
        what += f" and {len(chosen.boxes) - 5} more accounts"
    for moment in list(moments.values())[:1]:
        age = ago_text(time.time() - moment.at_ns / 1e9)
        what = f"as of {time_text(moment.at_ns)} ({age}; {moment.label}): {what}"
    click.echo(what)


# -- into the server --------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """Of one account: a plan (carried out or not), or why there is none."""

    account: str
    made: AccountPlan | None
    script_plan: ScriptPlan | None
    error: HoldfastError | None

    @property
    def clean(self) -> bool:
        made = self.made
        return (
            self.error is None
            and made is not None
            and not made.notes
            and not made.count(Verdict.UNREADABLE)
            and not made.count(Verdict.REFUSED)
        )


def _into_server(chosen: Chosen, moments: dict[str, Moment], wish: MailWish, how: How) -> ExitStatus:
    config = mail_settings().dovecot.config
    outcomes = [_account(account, chosen, moments.get(account), wish, how, config) for account in chosen.boxes]
    if how.as_json:
        emit(_server_facts(outcomes, chosen, how))
    else:
        for outcome in outcomes:
            _tell_outcome(outcome, how)
        tell_problems(chosen.problems)
        if how.dry_run:
            click.echo("Nothing was changed (--dry-run).")
    if outcomes and all(outcome.error is not None for outcome in outcomes):
        return outcomes[0].error.exit_status if outcomes[0].error else ExitStatus.FAILED
    clean = not chosen.problems and all(outcome.clean for outcome in outcomes)
    return ExitStatus.DONE if clean else ExitStatus.DIFFERENCES


def _account(
    account: str,
    chosen: Chosen,
    moment: Moment | None,
    wish: MailWish,
    how: How,
    config: str,
) -> Outcome:
    """One account, whatever becomes of the others."""
    user = wish.into_account or account
    boxes, whole = chosen.boxes[account], bool(wish.account and not wish.folder)
    flat = bool(wish.messages) or len({box.mailbox.folder for box in boxes}) == 1
    target = Target(wish.into_folder, flat, wish.copies, only_filled=bool(wish.messages or wish.into_folder))
    made: AccountPlan | None = None
    script_plan: ScriptPlan | None = None
    quiet = how.quiet or how.as_json
    try:
        had = _subscriptions(moment, boxes) if moment is not None else ()
        with ImapSession(user, session_command(user, config)) as session:
            wanted = chosen.wanted.get(account, [])
            size = sum(one.stored.length or one.stored.size for one in wanted)
            with Progress(f"comparing {account}", size, quiet=quiet) as progress:
                made = running.plan(session, account, wanted, boxes, target, had, progress.at)
            size = sum(step.size for step in made.steps if step.verdict is Verdict.ADD)
            if not how.dry_run:
                with Progress(f"adding to {user}", size, quiet=quiet) as progress:
                    running.execute(session, made, progress.at)
        if moment is not None and whole and not wish.into_folder and user == account:
            script_plan = asyncio.run(_scripts(moment, boxes, config, user, made, how))
    except HoldfastError as error:
        return Outcome(account, made, script_plan, error)
    return Outcome(account, made, script_plan, None)


def _subscriptions(moment: Moment, boxes: list[Box]) -> tuple[str, ...]:
    try:
        roots = {(box.tree, box.mailbox.root): box for box in boxes}
        return tuple(name for box in roots.values() for name in scripts.subscriptions(moment, box))
    except VaultDamaged:
        return ()


async def _scripts(
    moment: Moment, boxes: list[Box], config: str, user: str, made: AccountPlan, how: How
) -> ScriptPlan | None:
    wanted = Scripts({})
    try:
        for box in {(box.tree, folders.home_of(box)): box for box in boxes}.values():
            found = scripts.scripts(moment, box)
            wanted.scripts.update(found.scripts)
            wanted.active = wanted.active or found.active
    except VaultDamaged as error:
        made.notes.append(f"Sieve scripts are left out: {error.message}")
        return None
    if not wanted.scripts:
        return None
    commands = SystemCommands()
    planned = await scripts.plan_scripts(commands, config, user, wanted)
    if planned.problem:
        made.notes.append(planned.problem)
    elif not how.dry_run:
        made.notes += await scripts.execute_scripts(commands, config, user, wanted, planned)
    return planned


def _tell_outcome(outcome: Outcome, how: How) -> None:
    made = outcome.made
    if made is not None:
        verb = "would add" if how.dry_run else "added"
        added = made.count(Verdict.ADD if how.dry_run else Verdict.ADDED)
        there = made.count(Verdict.THERE)
        into = f" into {made.user}" if made.user != outcome.account else ""
        click.echo(f"{outcome.account}{into}: {verb} {counted(added, 'message')}; {there:,} already there")
        for name in made.create:
            click.echo(f"    folder {printable(name)} {'would be made' if how.dry_run else 'was not there: made'}")
        if made.subscribe:
            click.echo(f"    subscriptions: {', '.join(map(printable, made.subscribe))}")
        if outcome.script_plan is not None and outcome.script_plan.put:
            active = f", active: {outcome.script_plan.activate}" if outcome.script_plan.activate else ""
            click.echo(f"    Sieve scripts: {', '.join(map(printable, outcome.script_plan.put))}{active}")
        shown = [step for step in made.steps if step.verdict in _NOT_DONE]
        shown += [step for step in made.steps if how.dry_run and step.verdict is Verdict.THERE]
        for step in shown[:STEPS_SHOWN_MAX]:
            click.echo(f"    {step.verdict:10}  {_words(step)}")
        if len(shown) > STEPS_SHOWN_MAX:
            click.echo(f"    and {len(shown) - STEPS_SHOWN_MAX:,} more (--json names them)")
        for note in made.notes:
            click.echo(f"! {printable(note)}", err=True)
    if outcome.error is not None:
        more = " What was added is added; run the same command again for the rest." if made is not None else ""
        click.echo(f"! {outcome.account}: {outcome.error}{more}", err=True)


_NOT_DONE: Final = (Verdict.UNREADABLE, Verdict.REFUSED, Verdict.ADD)


def _words(step: Step) -> str:
    when = time_text(step.received_s * 10**9)[:16] if step.received_s else "-"
    return f"{printable(step.folder)}  {when}  <{printable(step.message_id)}>  {step.reason}".rstrip()


def _server_facts(outcomes: list[Outcome], chosen: Chosen, how: How) -> dict[str, Any]:
    return {
        "dry_run": how.dry_run,
        "problems": chosen.problems,
        "accounts": [
            {
                "account": outcome.account,
                "user": outcome.made.user if outcome.made else None,
                "error": outcome.error.message if outcome.error else None,
                "counts": {str(v): n for v in Verdict if outcome.made and (n := outcome.made.count(v))},
                "create": outcome.made.create if outcome.made else [],
                "subscribe": outcome.made.subscribe if outcome.made else [],
                "sieve": outcome.script_plan.put if outcome.script_plan else [],
                "notes": outcome.made.notes if outcome.made else [],
                "messages": [_step_facts(step) for step in outcome.made.steps] if outcome.made else [],
            }
            for outcome in outcomes
        ],
    }


def _step_facts(step: Step) -> dict[str, Any]:
    return {
        "from_folder": step.wanted.box.mailbox.folder,
        "folder": step.folder,
        "verdict": str(step.verdict),
        "reason": step.reason,
        "message_id": step.message_id,
        "received_at": iso_text(step.received_s * 10**9) if step.received_s else None,
        "flags": list(step.flags),
        "bytes": step.size,
    }
