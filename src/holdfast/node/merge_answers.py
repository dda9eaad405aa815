"""What a serving primary does when a returned machine asks to merge: in the account's own IMAP session. By its words.

``add_message``  add one, unless the account has it already
``set_flags``    change flags of messages of one folder, where that changes anything
``take_back``    undo: take away what was added, change back what was changed, where it is still as it was left

Each may be asked ``dry``: then it answers what it would do, and does nothing. A message is found by its GUID, which for
Maildir is its file's name without flags (X-GUID, src/imap/imap-fetch.c of Dovecot 2.3).
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any, Final

from holdfast.errors import HoldfastError, Refused
from holdfast.mail.headers import fields, message_id, split_header
from holdfast.mail.imap_exchange import bytes_of, flags_of
from holdfast.mail.imap_session import ImapRefused, ImapSession, session_command
from holdfast.mail.stored import over_the_wire
from holdfast.node.asks import Answers, Verb

ANSWER_SECONDS: Final = 60.0
ADD, FLAGS, BACK = "add_message", "set_flags", "take_back"
THERE, GONE = "there", "it is not in that folder any more"
_ID_ITEM: Final = "BODY[HEADER.FIELDS (MESSAGE-ID)]"
_FLAG: Final = re.compile(r"\\?[A-Za-z0-9$_.+!#&'/:;<=>?@^`|~,-]+")
"""An atom of RFC 9051 9, and a system flag: what may stand in a STORE without quotes."""


def verbs(serves: Any, dovecot_configuration: str) -> dict[str, Verb]:
    """What to register. *serves*: called without arguments; whether this machine serves now."""

    def verb(act: Any) -> Verb:
        async def run(request: Answers) -> Answers:
            if not serves():
                raise Refused("this machine does not serve: it merges nothing")
            argv = session_command(str(request["account"]), dovecot_configuration)
            answer: Answers = await asyncio.to_thread(_in_session, act, argv, request)
            return answer

        return run

    return {ADD: verb(_add), FLAGS: verb(_set_flags), BACK: verb(_take_back)}


def _in_session(act: Any, argv: list[str], request: Answers) -> Answers:
    try:
        with ImapSession(str(request["account"]), argv, answer_seconds=ANSWER_SECONDS) as session:
            found: Answers = act(session, request, bool(request.get("dry")))
            return found
    except ImapRefused as error:
        return {"outcome": f"the server refused it: {error.message}"}
    except HoldfastError as error:
        return {"outcome": f"no session for the account: {error.message}"}


def _add(session: ImapSession, request: Answers, dry: bool) -> Answers:
    content = over_the_wire(base64.b64decode(request["content"]))
    name = message_id_of(content)
    flags = _flags(flag for flag in request["flags"] if flag != "\\Deleted")
    folder = session.namespace().server_name(str(request["folder"]))
    have = session.folders()
    looked = have if name else [each for each in have if each == folder]  # it may have been moved since
    if any(is_there(session, each, name, content) for each in looked):
        return {"outcome": THERE, "message_id": name}
    if dry:
        return {"outcome": "would be added", "message_id": name}
    if folder != "INBOX" and folder not in have:
        session.on_folder("CREATE", folder)
    uids = session.append(folder, [(content, flags, int(request["received"]))])
    return {"outcome": "added", "message_id": name, "uid": uids}


def _set_flags(session: ImapSession, request: Answers, dry: bool) -> Answers:
    """*changes*: [name, flags to set, flags to clear] of each. The answer: an outcome, and what was really changed."""
    folder = session.namespace().server_name(str(request["folder"]))
    changes = request["changes"]
    if folder not in session.folders():
        return {"outcomes": [[GONE, [], []] for _ in changes]}
    session.examine(folder, to_write=not dry)
    by_name = _by_name(session)
    outcomes: list[list[Any]] = []
    for name, to_set, to_clear in changes:
        if name not in by_name:
            outcomes.append([GONE, [], []])
            continue
        uid, has = by_name[name]
        setting, clearing = _flags(set(to_set) - has), _flags(set(to_clear) & has)
        if not setting and not clearing:
            outcomes.append([THERE, [], []])
            continue
        if not dry:
            _store(session, uid, setting, clearing)
        outcomes.append(["would be merged" if dry else "merged", list(setting), list(clearing)])
    return {"outcomes": outcomes}


def _take_back(session: ImapSession, request: Answers, dry: bool) -> Answers:
    """*messages*: [UIDVALIDITY and UID, Message-ID] of those added; *flags*: as they were merged."""
    folder = session.namespace().server_name(str(request["folder"]))
    if folder not in session.folders():
        return {"messages": [GONE for _ in request["messages"]], "flags": [GONE for _ in request["flags"]]}
    session.examine(folder, to_write=not dry)
    messages = [_away(session, str(uid), str(name), dry) for uid, name in request["messages"]]
    by_name = _by_name(session) if request["flags"] else {}
    flags = []
    for name, was_set, was_cleared in request["flags"]:
        if name not in by_name:
            flags.append(GONE)
            continue
        uid, has = by_name[name]
        clearing, setting = _flags(set(was_set) & has), _flags(set(was_cleared) - has)
        if not dry and (setting or clearing):
            _store(session, uid, setting, clearing)
        flags.append("taken back" if setting or clearing else "changed since: left as it is")
    return {"messages": messages, "flags": flags}


def _away(session: ImapSession, uids: str, name: str, dry: bool) -> str:
    """*uids*: UIDVALIDITY and UID, as APPENDUID gave them. It must still be the message that was added."""
    _, _, uid = uids.partition(" ")
    if not uid.isdigit():
        return "its number is not known: delete it by hand"
    overview = session.fetch(uid, f"({_ID_ITEM.replace('BODY[', 'BODY.PEEK[')})")
    if [_id_in(bytes_of(items, _ID_ITEM)) for items in overview.values()] != [name]:
        return GONE
    if not dry:
        session.command(f"UID STORE {uid} +FLAGS.SILENT (\\Deleted)")
        session.command(f"UID EXPUNGE {uid}")
    return "taken back"


def _store(session: ImapSession, uid: int, setting: tuple[str, ...], clearing: tuple[str, ...]) -> None:
    for sign, flags in (("+", setting), ("-", clearing)):
        if flags:
            session.command(f"UID STORE {uid} {sign}FLAGS.SILENT ({' '.join(flags)})")


def _by_name(session: ImapSession) -> dict[str, tuple[int, set[str]]]:
    """UID and flags of each message of the open folder, by GUID."""
    overview = session.fetch("1:*", "(FLAGS X-GUID)")
    return {
        bytes_of(items, "X-GUID").decode("utf-8", "replace"): (uid, set(flags_of(items)))
        for uid, items in overview.items()
        if "FLAGS" in items
    }


def _flags(names: Any) -> tuple[str, ...]:
    return tuple(sorted(str(name) for name in names if _FLAG.fullmatch(str(name))))


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
