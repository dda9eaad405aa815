"""What only a returned machine has is brought to the running server: messages, flags, keywords. Maildir.

*Which*: a rejoin lists what this machine did and the log never got (``rejoin-<when>.json``, see ``returned``), and
``unseen`` says what of it can be merged and what is left to people. Messages are new files that the seed then moved
aside.

*How*: by a person's order, after a plan that asks the primary what it would do. Everything travels sealed to the
primary, which does it by IMAP in the account's own session (``merge_answers``), so quotas, indexes and other clients
are right. A message is added unless the account has its Message-ID in any folder (it was sent again, and filed), or,
where it has none, that folder has these bytes; a flag is set unless it is. So all of it may be repeated. What was done
with each is written to ``merged-<when>.json``: by that it is undone, which makes of it ``undone-<when>.json``, and the
report can be merged again.

*Not*: by itself. A power cut can leave a delivered message in Postfix's queue, too: it would come a second time when
that machine serves again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from holdfast.errors import HoldfastError, Refused
from holdfast.files import PRIVATE, write_once
from holdfast.mail.mailboxes import Accounts, maildir, maildir_flags
from holdfast.mail.stored import Unreadable, plain
from holdfast.node import unseen
from holdfast.node.asks import Asks
from holdfast.node.merge_answers import ADD, ANSWER_SECONDS, BACK, FLAGS, THERE
from holdfast.node.unseen import FlagChange, Left, Report
from holdfast.trees.spec import TreeSpec

STORED_BYTES_MAX: Final = 5 * 1024 * 1024
"""In one sealed question, as base64, below the log servers' 8 MB. A larger message stays aside, and is named."""
CHANGES_MAX: Final = 500
"""In one question: some 50 KB."""
LISTED_MAX: Final = 20
CHANGED: Final = ("added", "merged")
FINE: Final = (*CHANGED, THERE, "would be added", "would be merged")


class Lone(Struct, frozen=True):
    """A message that only this machine has. *file*: where its bytes are kept; *path*: where they were."""

    account: str
    folder: str
    tree: str
    path: str
    file: str
    flags: tuple[str, ...]


class Merged(Struct, frozen=True, omit_defaults=True):
    """What became of one. *outcome*: one of ``FINE``, or why it could not be. *uid*: UIDVALIDITY and UID of what was
    added; *was_set*, *was_cleared*: what was really changed. By these it is undone."""

    account: str
    folder: str
    message_id: str
    path: str
    outcome: str
    kind: str = "message"
    uid: str = ""
    was_set: tuple[str, ...] = ()
    was_cleared: tuple[str, ...] = ()


class Found(Struct, frozen=True):
    """Of all open reports. *left*: what is kept aside for people; *wrong*: what went wrong, in sentences."""

    messages: tuple[Merged, ...]
    left: tuple[Left, ...]
    wrong: tuple[str, ...]


class Work(NamedTuple):
    """Of one report."""

    lone: list[Lone]
    flags: list[FlagChange]
    left: list[Left]


def reports(state: Path) -> list[Path]:
    """The lists of rejoins that have not all been dealt with."""
    return [path for path in sorted(state.glob("rejoin-*.json")) if not _named(path, "merged").exists()]


def _named(report: Path, word: str) -> Path:
    return report.with_name(f"{word}-{report.name.partition('-')[2]}")


def work_of(path: Path, state: Path, trees: Iterable[TreeSpec]) -> Work:
    """What of one report is to be done. Raises OSError, ValueError (damaged)."""
    report = msgspec.json.decode(path.read_bytes(), type=Report)
    lone = _lone_messages(report, state, trees)
    flags = [change for each in report.flags if (change := unseen.mergeable(each)) is not None]
    return Work(lone, flags, unseen.left(report, [(each.tree, each.path) for each in lone]))


def _lone_messages(report: Report, state: Path, trees: Iterable[TreeSpec]) -> list[Lone]:
    known = unseen.flagged_paths(report)  # seen as come and gone, when only its flags are others
    puts = [(change.tree, change.path) for change in report.unlogged if change.kind == "put"]
    new = {(tree, path) for tree, path in puts if (tree, path.partition(":2,")[0]) not in known}
    roots = {str(tree.name): tree.root for tree in trees}
    found: dict[tuple[str, str], Lone] = {}
    for tree, path, kept in _kept(state):
        raw = os.fsencode(path)
        printable = raw.decode("utf-8", "backslashreplace")
        if (tree, printable) not in new or tree not in roots or (place := unseen.in_maildir(raw)) is None:
            continue
        account, folder = _whose(roots[tree], place[0])
        file = os.path.join(roots[tree], kept)
        found[tree, printable] = Lone(account, folder, tree, printable, file, maildir_flags(place[1], {}))
    return [lone for lone in found.values() if Path(lone.file).is_file()]


def _whose(root: str, directory: bytes) -> tuple[str, str]:
    """Account and folder of a Maildir folder."""
    box = maildir(directory, None)
    return Accounts().account(os.fsencode(root) + b"/" + box.root), box.folder


def _kept(state: Path) -> Iterator[tuple[str, str, str]]:
    """(tree, path, where it is kept) of everything that stands aside."""
    for manifest in sorted(state.glob("aside/*/manifest")):
        for line in manifest.read_text(encoding="ascii").splitlines():
            with contextlib.suppress(ValueError, KeyError):  # a line cut short by a power cut, or a dropped thing
                value = json.loads(line)
                yield value["tree"], value["path"], value["kept"]


async def merge(state: Path, trees: Iterable[TreeSpec], asks: Asks, primary: str, *, dry: bool = False) -> Found:
    """Everything of every open report, by *primary*: what became of it, and what is left to people.

    A report of which everything has an answer is closed. *dry*: what *primary* would do; nothing is done or written.
    """
    done: list[Merged] = []
    left: list[Left] = []
    wrong: list[str] = []
    specs = list(trees)
    for report in reports(state):
        try:
            work = await asyncio.to_thread(work_of, report, state, specs)
        except (OSError, ValueError) as error:
            wrong.append(f"{report.name} cannot be read: {error}")
            continue
        left += work.left
        try:
            answers = [await _send(message, asks, primary, dry) for message in work.lone]
            answers += await _send_flags(work.flags, {spec.name: spec.root for spec in specs}, asks, primary, dry)
        except HoldfastError as error:  # the primary does not answer: all of it again, later
            wrong.append(f"{report.name}: {error.message}")
            continue
        if not dry:
            whole = msgspec.json.format(msgspec.json.encode({"messages": answers, "left": work.left}))
            write_once(_named(report, "merged"), whole, PRIVATE)
        done += answers
    return Found(tuple(done), tuple(left), tuple(wrong))


async def _send(lone: Lone, asks: Asks, primary: str, dry: bool) -> Merged:
    """Raises HoldfastError when there was no answer."""

    def of(outcome: str, name: str = "", uid: str = "") -> Merged:
        return Merged(lone.account, lone.folder, name, lone.path, outcome, uid=uid)

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
        ADD,
        seconds=ANSWER_SECONDS,
        account=lone.account,
        folder=lone.folder,
        flags=list(lone.flags),
        received=received,
        content=base64.b64encode(content).decode(),
        dry=dry,
    )
    return of(str(reply["outcome"]), str(reply.get("message_id", "")), str(reply.get("uid", "")))


async def _send_flags(
    changes: list[FlagChange], roots: dict[str, str], asks: Asks, primary: str, dry: bool
) -> list[Merged]:
    """Raises HoldfastError when there was no answer."""
    folders: defaultdict[tuple[str, str], list[FlagChange]] = defaultdict(list)
    for each in changes:
        if each.tree in roots:
            folders[_whose(roots[each.tree], each.folder.encode())].append(each)
    done = []
    for (account, folder), all_changes in folders.items():
        for at in range(0, len(all_changes), CHANGES_MAX):
            some = all_changes[at : at + CHANGES_MAX]
            asked = [[each.name, each.added, each.removed] for each in some]
            reply = await asks.order(
                primary, FLAGS, seconds=ANSWER_SECONDS, account=account, folder=folder, changes=asked, dry=dry
            )
            outcomes = reply.get("outcomes") or [[reply["outcome"], [], []] for _ in some]
            for each, (outcome, was_set, was_cleared) in zip(some, outcomes, strict=True):
                path = f"{each.folder}/{each.name}"
                changed = (tuple(was_set), tuple(was_cleared))
                done.append(Merged(account, folder, "", path, str(outcome), "flags", "", *changed))
    return done


async def undo(state: Path, asks: Asks, primary: str, *, dry: bool = False) -> list[Merged]:
    """Take the last merge back, as far as it is still as it was left. Raises Refused, HoldfastError (no answer)."""
    done = sorted(state.glob("merged-*.json"))
    if not done:
        raise Refused("nothing was merged on this machine, or it was undone")
    raw = json.loads(done[-1].read_bytes())["messages"]
    changed = [each for each in msgspec.convert(raw, list[Merged]) if each.outcome in CHANGED]
    folders: defaultdict[tuple[str, str], list[Merged]] = defaultdict(list)
    for each in changed:
        folders[each.account, each.folder].append(each)
    answers: list[Merged] = []
    for (account, folder), some in folders.items():
        messages = [each for each in some if each.kind == "message"]
        flags = [each for each in some if each.kind == "flags"]
        reply = await asks.order(
            primary,
            BACK,
            seconds=ANSWER_SECONDS,
            account=account,
            folder=folder,
            messages=[[each.uid, each.message_id] for each in messages],
            flags=[[each.path.rpartition("/")[2], each.was_set, each.was_cleared] for each in flags],
            dry=dry,
        )
        refused = [reply["outcome"]] * len(some) if "outcome" in reply else []
        outcomes = refused or [*reply["messages"], *reply["flags"]]
        answers += [
            msgspec.structs.replace(each, outcome=str(outcome))
            for each, outcome in zip([*messages, *flags], outcomes, strict=True)
        ]
    if not dry:
        write_once(_named(done[-1], "undone"), msgspec.json.format(msgspec.json.encode({"messages": answers})), PRIVATE)
        done[-1].unlink()
    return answers
