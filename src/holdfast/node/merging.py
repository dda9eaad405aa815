"""Messages that only a returned machine holds are added to the running server, each once. Maildir.

*Which*: a rejoin lists what this machine did and the log never got (``rejoin-<when>.json``, see ``returned``); of that,
new message files that the seed then moved aside. Not flag changes, deletions, Sieve or configuration: those stay aside
and listed, for a person, because what users did since on the new primary may say otherwise.

*How*: by a person's order. Each message travels sealed to the primary, which adds it by IMAP in the account's own
session (so quotas, indexes and other clients are right), unless the account has a message with its Message-ID in any
folder (it was sent again, and filed), or, where it has none, that folder has these bytes. So it may be repeated. What
was done with each is written to ``merged-<when>.json``: that is the list to undo it by. Nothing is deleted here.

*Not*: by itself. A power cut can leave a delivered message in Postfix's queue, too: it would come a second time when
that machine serves again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError, Refused
from holdfast.files import PRIVATE, write_once
from holdfast.mail.headers import fields, message_id, split_header
from holdfast.mail.imap_exchange import bytes_of
from holdfast.mail.imap_session import ImapRefused, ImapSession, session_command
from holdfast.mail.mailboxes import Accounts, maildir, maildir_flags
from holdfast.mail.stored import Unreadable, over_the_wire, plain
from holdfast.node.asks import Answers, Asks
from holdfast.trees.spec import TreeSpec

STORED_BYTES_MAX: Final = 5 * 1024 * 1024
"""In one sealed question, as base64, below the log servers' 8 MB. A larger message stays aside, and is named."""
ANSWER_SECONDS: Final = 60.0
LISTED_MAX: Final = 20
VERB: Final = "add_message"
_ID_ITEM: Final = "BODY[HEADER.FIELDS (MESSAGE-ID)]"


class Lone(Struct, frozen=True):
    """A message that only this machine has. *file*: where its bytes are kept; *path*: where they were."""

    account: str
    folder: str
    path: str
    file: str
    flags: tuple[str, ...]


class Merged(Struct, frozen=True):
    """What became of one. *outcome*: ``added``, ``there`` (the primary has it), or why it could not be."""

    account: str
    folder: str
    message_id: str
    path: str
    outcome: str


def reports(state: Path) -> list[Path]:
    """The lists of rejoins whose messages have not all been dealt with."""
    return [path for path in sorted(state.glob("rejoin-*.json")) if not _done_file(path).exists()]


def _done_file(report: Path) -> Path:
    return report.with_name(report.name.replace("rejoin-", "merged-", 1))


def lone_messages(report: Path, state: Path, trees: Iterable[TreeSpec]) -> list[Lone]:
    """Those of one *report*. Raises OSError, ValueError (damaged)."""
    unlogged = json.loads(report.read_bytes())["unlogged"]
    new = {(change["tree"], change["to"] or change["path"]) for change in unlogged if change["kind"] in ("put",)}
    roots = {str(tree.name): tree.root for tree in trees}
    accounts = Accounts()
    found: dict[tuple[str, str], Lone] = {}
    for tree, path, kept in _kept(state):
        printable = os.fsencode(path).decode("utf-8", "backslashreplace")
        if (tree, printable) not in new or tree not in roots:
            continue
        raw = os.fsencode(path)
        directory, _, name = raw.rpartition(b"/")
        above, _, kind = directory.rpartition(b"/")
        if kind not in (b"cur", b"new"):
            continue
        box = maildir(above, None)
        account = accounts.account(os.fsencode(roots[tree]) + b"/" + box.root)
        file = os.path.join(roots[tree], kept)
        found[tree, printable] = Lone(account, box.folder, path, file, maildir_flags(name, {}))
    return [lone for lone in found.values() if Path(lone.file).is_file()]


def _kept(state: Path) -> Iterator[tuple[str, str, str]]:
    """(tree, path, where it is kept) of everything that stands aside."""
    for manifest in sorted(state.glob("aside/*/manifest")):
        for line in manifest.read_text(encoding="ascii").splitlines():
            with contextlib.suppress(ValueError, KeyError):  # a line cut short by a power cut, or a dropped thing
                value = json.loads(line)
                yield value["tree"], value["path"], value["kept"]


def plan(state: Path, trees: Iterable[TreeSpec]) -> list[Merged]:
    """What :func:`send_all` would send. Raises OSError, ValueError."""
    specs = list(trees)
    found = [lone for report in reports(state) for lone in lone_messages(report, state, specs)]
    return [Merged(lone.account, lone.folder, "", lone.path, "would be sent") for lone in found]


async def send_all(state: Path, trees: Iterable[TreeSpec], asks: Asks, primary: str) -> tuple[list[Merged], list[str]]:
    """Every lone message of every open report to *primary*: what became of them, and what went wrong.

    A report all of whose messages have an answer is closed.
    """
    done: list[Merged] = []
    wrong: list[str] = []
    specs = list(trees)
    for report in reports(state):
        try:
            lone = lone_messages(report, state, specs)
        except (OSError, ValueError, KeyError) as error:
            wrong.append(f"{report.name} cannot be read: {error}")
            continue
        answers = []
        try:
            for message in lone:
                answers.append(await _send(message, asks, primary))
        except HoldfastError as error:  # the primary does not answer: all of it again, later
            wrong.append(f"{report.name}: {error.message}")
            continue
        write_once(_done_file(report), msgspec.json.format(msgspec.json.encode({"messages": answers})), PRIVATE)
        done += answers
    return done, wrong


async def _send(lone: Lone, asks: Asks, primary: str) -> Merged:
    """Raises HoldfastError when there was no answer."""

    def of(outcome: str, name: str = "") -> Merged:
        return Merged(lone.account, lone.folder, name, lone.path, outcome)

    try:
        stored = await asyncio.to_thread(Path(lone.file).read_bytes)
        received = int(Path(lone.file).stat().st_mtime)
    except OSError as error:
        return of(f"it cannot be read: {error.strerror}")
    content = plain(stored)
    if isinstance(content, Unreadable):
        return of(content.reason)
    if len(content) > STORED_BYTES_MAX:
        return of(f"it is larger than {STORED_BYTES_MAX} bytes: add it by hand (doveadm save)")
    reply = await asks.order(
        primary,
        VERB,
        seconds=ANSWER_SECONDS,
        account=lone.account,
        folder=lone.folder,
        flags=list(lone.flags),
        received=received,
        content=base64.b64encode(content).decode(),
    )
    return of(str(reply["outcome"]), str(reply["message_id"]))


# -- on the primary ----------------------------------------------------------------------------------------------------


async def answer(serves: bool, dovecot_configuration: str, request: Answers) -> Answers:
    """The answer to ``add_message``. Raises Refused."""
    if not serves:
        raise Refused("this machine does not serve: it adds no messages")
    content = over_the_wire(base64.b64decode(request["content"]))
    name = message_id_of(content)
    argv = session_command(str(request["account"]), dovecot_configuration)
    outcome = await asyncio.to_thread(_add, argv, request, content, name)
    return {"outcome": outcome, "message_id": name}


def _add(argv: list[str], request: dict[str, Any], content: bytes, name: str) -> str:
    flags = tuple(str(flag) for flag in request["flags"] if flag != "\\Deleted")
    try:
        with ImapSession(str(request["account"]), argv, answer_seconds=ANSWER_SECONDS) as session:
            folder = session.namespace().server_name(str(request["folder"]))
            have = session.folders()
            looked = have if name else [each for each in have if each == folder]  # it may have been moved since
            if any(is_there(session, each, name, content) for each in looked):
                return "there"
            if folder != "INBOX" and folder not in have:
                session.on_folder("CREATE", folder)
            session.append(folder, [(content, flags, int(request["received"]))])
    except ImapRefused as error:
        return f"the server refused it: {error.message}"
    except HoldfastError as error:
        return f"no session for the account: {error.message}"
    return "added"


def is_there(session: ImapSession, folder: str, name: str, content: bytes) -> bool:
    """Whether *folder* has a message with this Message-ID; without one, with these bytes."""
    if not session.examine(folder):
        return False
    if name:
        overview = session.fetch("1:*", f"({_ID_ITEM.replace('BODY[', 'BODY.PEEK[')})")
        return any(_id_in(bytes_of(items, _ID_ITEM)) == name for items in overview.values())
    sizes = session.fetch("1:*", "(RFC822.SIZE)")
    same = [str(uid) for uid, items in sizes.items() if str(items.get("RFC822.SIZE")) == str(len(content))]
    bodies = session.fetch(",".join(same), "(BODY.PEEK[])") if same else {}
    return any(bytes_of(items, "BODY[]") == content for items in bodies.values())


def message_id_of(content: bytes) -> str:
    """Of a message; empty where it has none."""
    return _id_in(split_header(content))


def _id_in(header: bytes) -> str:
    return next((message_id(value) for name, value in fields(header) if name == b"message-id"), "")
