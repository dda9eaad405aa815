"""The witness: reads, as a mail client would, everything that an organisation's clients can see.

It changes nothing: folders are opened with EXAMINE, contents read with PEEK. Reading is by whole folders in one FETCH,
several accounts at once. Run it inside a lab's machine:

    python -m holdfast.drill.workload.witness --plan plan.json --out state.json
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.drill.checkers.facts import (
    Account,
    DavItem,
    Folder,
    Mailboxes,
    Message,
    Resynced,
    SieveScript,
)
from holdfast.drill.workload import messages
from holdfast.drill.workload import plan as plans
from holdfast.drill.workload.dav import DavClient
from holdfast.drill.workload.groupware import MARK
from holdfast.drill.workload.imap import ImapClient, bytes_of, flags_of, number_of
from holdfast.drill.workload.net import AnswerLost, Declined, NotSent, Patience
from holdfast.drill.workload.plan import Login, Service
from holdfast.drill.workload.sieve import SieveClient
from holdfast.errors import ExitStatus, HoldfastError
from holdfast.mail.imap_syntax import sequence_set

READERS: Final = 4
"""Accounts read at once: enough to keep a server busy that shares the machine's two cores."""

_ENVELOPE: Final = "(UID FLAGS INTERNALDATE MODSEQ RFC822.SIZE BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])"
_WHOLE: Final = "(UID FLAGS INTERNALDATE MODSEQ RFC822.SIZE BODY.PEEK[])"


class Wanted(Struct, frozen=True):
    """What to read. *folders* empty: all. Without *contents* digests stay empty and messages are not read."""

    mail: bool = True
    contents: bool = True
    sieve: bool = True
    dav: bool = True
    folders: tuple[str, ...] = ()


def observe(
    service: Service,
    accounts: Iterable[Login],
    patience: Patience | None = None,
    wanted: Wanted | None = None,
) -> Mailboxes:
    """Read all *accounts* at *service*. Raises Unreachable (or Declined) if any of it cannot be read."""
    patience = patience or Patience(connect_seconds=2.0, answer_seconds=60.0)
    wanted = wanted or Wanted()
    began_mono_ns, began_real_ns = time.monotonic_ns(), time.time_ns()
    waiting: queue.SimpleQueue[Login] = queue.SimpleQueue()
    for account in accounts:
        waiting.put(account)
    seen: dict[str, Account] = {}
    errors: list[NotSent | AnswerLost | Declined] = []

    def read_some() -> None:
        while not errors:
            try:
                login = waiting.get_nowait()
                seen[login.name] = observe_account(service, login, patience, wanted)
            except queue.Empty:
                return
            except (NotSent, AnswerLost, Declined) as error:
                errors.append(error)

    readers = [threading.Thread(target=read_some, name=f"witness-{index}") for index in range(READERS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if errors:
        raise errors[0]
    read = tuple(name for name, on in (("mail", wanted.mail), ("sieve", wanted.sieve), ("dav", wanted.dav)) if on)
    return Mailboxes(dict(sorted(seen.items())), began_mono_ns, time.monotonic_ns(), began_real_ns, read)


def observe_account(service: Service, login: Login, patience: Patience, wanted: Wanted) -> Account:
    """One account's state. Raises NotSent, AnswerLost, Declined."""
    folders: dict[str, Folder] = {}
    unopenable: list[str] = []
    subscriptions: list[str] = []
    if wanted.mail:
        imap = ImapClient(service.imap, patience, login.name, login.password)
        imap.enable_qresync()
        subscriptions = imap.subscriptions()
        for name in imap.folders():
            if wanted.folders and name not in wanted.folders:
                continue
            try:
                folders[name] = _folder(imap, name, contents=wanted.contents)
            except Declined:
                unopenable.append(name)
        imap.logout()
    scripts = _scripts(service, login, patience) if wanted.sieve and service.sieve.port else {}
    collections: dict[str, dict[str, str]] = {}
    items: dict[str, DavItem] = {}
    if wanted.dav and service.dav.port:
        dav = DavClient(service.dav, patience, login.name, login.password)
        _collect(dav, f"/{login.name}/", collections, items)
        dav.close()
    return Account(folders, tuple(subscriptions), scripts, collections, items, tuple(unopenable))


def resynchronise(
    service: Service, accounts: Iterable[Login], before: Mailboxes, patience: Patience | None = None
) -> dict[str, dict[str, Resynced]]:
    """Come back as a QRESYNC client (RFC 7162 3.2.5) that knows *before*; what it is told, by account and folder.

    A folder that is gone is left out: comparing two states names it.
    """
    patience = patience or Patience(connect_seconds=2.0, answer_seconds=60.0)
    told: dict[str, dict[str, Resynced]] = {}
    for login in accounts:
        if login.name not in before.accounts:
            continue
        imap = ImapClient(service.imap, patience, login.name, login.password)
        imap.enable_qresync()
        present = set(imap.folders())
        told[login.name] = {
            name: _resync(imap, name, folder)
            for name, folder in before.accounts[login.name].folders.items()
            if name in present and folder.highest_modseq
        }
        imap.logout()
    return told


def _resync(imap: ImapClient, name: str, folder: Folder) -> Resynced:
    known = sequence_set([message.uid for message in folder.messages])
    parameters = f"(QRESYNC ({folder.uid_validity} {folder.highest_modseq}{' ' + known if known else ''}))"
    selected = imap.select(name, read_only=True, parameters=parameters)
    changed = {uid: flags_of(items) for uid, items in selected.changed.items()}
    return Resynced(selected.uid_validity, selected.highest_modseq, changed, tuple(selected.vanished))


def _folder(imap: ImapClient, name: str, *, contents: bool) -> Folder:
    selected = imap.select(name, read_only=True, parameters="(CONDSTORE)")
    found: list[Message] = []
    if selected.exists:
        for uid, items in sorted(imap.fetch("1:*", _WHOLE if contents else _ENVELOPE).items()):
            content = bytes_of(items, "BODY[]")
            header = (
                content.partition(b"\r\n\r\n")[0] if contents else bytes_of(items, "BODY[HEADER.FIELDS (MESSAGE-ID)]")
            )
            found.append(
                Message(
                    uid,
                    flags_of(items),
                    bytes_of(items, "INTERNALDATE").decode(),
                    number_of(items, "MODSEQ"),
                    number_of(items, "RFC822.SIZE"),
                    messages.digest(content) if contents else "",
                    messages.body_digest(content) if contents else "",
                    messages.message_id_of(header),
                )
            )
    return Folder(selected.uid_validity, selected.uid_next, selected.highest_modseq, tuple(found))


def _scripts(service: Service, login: Login, patience: Patience) -> dict[str, SieveScript]:
    client = SieveClient(service.sieve, patience, login.name, login.password)
    found: dict[str, SieveScript] = {}
    for name, active in client.scripts().items():
        content = client.get(name)
        found[name] = SieveScript(messages.digest(content.encode()), active, content)
    client.logout()
    return found


def _collect(dav: DavClient, href: str, collections: dict[str, dict[str, str]], items: dict[str, DavItem]) -> None:
    for entry in dav.children(href):
        if entry.kind:
            collections[entry.href] = {"kind": entry.kind, **entry.properties}
            _collect(dav, entry.href, collections, items)
        else:
            content = dav.get(entry.href)
            mark = MARK.search(content)
            items[entry.href] = DavItem(entry.etag, messages.digest(content.encode()), mark[0] if mark else "")


def main(arguments: list[str] | None = None) -> ExitStatus:
    parser = argparse.ArgumentParser(prog="holdfast.drill.workload.witness", description="Write down what is there.")
    parser.add_argument("--plan", type=Path, required=True, help="the workload's plan: service, accounts, probe")
    parser.add_argument("--out", type=Path, required=True, help="where to write the state (JSON)")
    parser.add_argument("--before", type=Path, help="a state seen before: come back as a QRESYNC client")
    parser.add_argument("--resynced", type=Path, help="where to write what that client was told (JSON)")
    parser.add_argument("--account", action="append", default=[], help="only this account (repeatable)")
    parser.add_argument("--folder", action="append", default=[], help="only this folder (repeatable)")
    parser.add_argument("--no-contents", action="store_true", help="do not read messages, only their envelopes")
    options = parser.parse_args(arguments)
    plan = plans.load(options.plan)
    accounts = [*plan.accounts, *([plan.meter.probe] if plan.meter.probe else [])]
    chosen = [login for login in accounts if not options.account or login.name in options.account]
    if options.before is not None and options.resynced is not None:
        before = msgspec.json.decode(options.before.read_bytes(), type=Mailboxes)
        told = resynchronise(plan.service, chosen, before)
        options.resynced.write_bytes(msgspec.json.encode(told))
    wanted = Wanted(contents=not options.no_contents, folders=tuple(options.folder))
    options.out.write_bytes(msgspec.json.encode(observe(plan.service, chosen, wanted=wanted)))
    return ExitStatus.DONE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HoldfastError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_status)
