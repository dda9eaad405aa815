"""Messages and items into a folder: one Maildir for each account, or one file for each message.

A Maildir holds what the additive restore would add: contents, flags, keywords, times of receipt. (Exactly as files,
indexes included, an account is restored by :func:`holdfast.vault.restore.restore_path`; :func:`home_of` says where.)
Nothing is replaced: the folder must be new or empty.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.errors import NoSpace
from holdfast.mail import mailboxes
from holdfast.mail.headers import envelope
from holdfast.mail.stored import Unreadable
from holdfast.recover.boxes import Box
from holdfast.recover.groupware import Version
from holdfast.recover.messages import Message, message
from holdfast.recover.search import message_digest
from holdfast.recover.wanted import Chosen, Wanted
from holdfast.vault.faults import TargetInUse, VaultDamaged

KEYWORDS_MAX: Final = 26
"""Letters a Maildir has for them."""
NAME_CHARS_MAX: Final = 60
_LETTERS: Final = {"\\Draft": "D", "\\Flagged": "F", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}
_PLAIN: Final = re.compile(r"[^\w@.+=-]+")


class Written(Struct):
    """What was done. *failed*: what is not there, or not whole, and why."""

    files: int = 0
    bytes: int = 0
    failed: dict[str, str] = {}


def prepare(target: Path) -> None:
    """Raises TargetInUse, OSError."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise TargetInUse(f"{target} is not empty", hint="Give a new folder: a restore replaces nothing.")


def home_of(box: Box) -> bytes:
    """The account's directory in the tree: its home, where the mail is in a folder of that, with its Sieve scripts;
    else the mail directory."""
    root = box.mailbox.root
    above, _, name = root.rpartition(b"/")
    known = name.lower() in {folder.encode() for folder in mailboxes.MAIL_FOLDERS}
    return above if known and above else root


def as_maildir(chosen: Chosen, target: Path, progress: Callable[[Written], None] = lambda _: None) -> Written:
    """``target/<account>`` is a Maildir++ with the account's folders.

    Raises TargetInUse, NoSpace, OSError, WrongKey."""
    prepare(target)
    written = Written(failed=dict(chosen.problems))
    for account, boxes in chosen.boxes.items():
        for box in boxes:
            _maildir(target / safe(account), box.mailbox.folder)
        keywords: dict[Path, dict[str, str]] = {}
        for one in chosen.wanted.get(account, ()):
            found = _read(one, written)
            if found is not None:
                folder = _maildir(target / safe(account), one.box.mailbox.folder)
                name = _maildir_name(one, found, keywords.setdefault(folder, {}))
                _write(folder / "cur" / name, found.content, found.received_s, written)
                progress(written)
        for folder, letters in keywords.items():
            lines = "".join(f"{ord(letter) - ord('a')} {word}\n" for word, letter in letters.items())
            if lines:
                (folder / "dovecot-keywords").write_text(lines)
    return written


def as_messages(chosen: Chosen, target: Path, progress: Callable[[Written], None] = lambda _: None) -> Written:
    """``target/<account>/<folder>/<time> <subject> <digest>.eml``. Raises as :func:`as_maildir`."""
    prepare(target)
    written = Written(failed=dict(chosen.problems))
    for account, messages in chosen.wanted.items():
        for one in messages:
            found = _read(one, written)
            if found is None:
                continue
            folder = target / safe(account) / Path(*(safe(level) for level in one.box.mailbox.folder.split("/")))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            subject = safe(envelope(found.content).subject)[:NAME_CHARS_MAX]
            name = f"{found.received_s}-{subject}-{message_digest(one.box, one.stored)}.eml"
            _write(folder / name, found.content, found.received_s, written)
            progress(written)
    return written


def as_items(versions: list[Version], read: Callable[[Version], bytes], target: Path) -> Written:
    """``target/<account>/<collection>/<file>``. Raises as :func:`as_maildir`."""
    prepare(target)
    written = Written(failed={})
    for version in versions:
        folder = target / safe(version.shelf.account or "items") / safe(version.shelf.collection.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = safe(version.entry.name.decode("utf-8", "replace"))
        try:
            content = read(version)
        except VaultDamaged as error:
            written.failed[name] = error.message
            continue
        while (folder / name).exists():  # two versions of one event
            name = f"{version.last.label}-{name}"
        _write(folder / name, content, version.entry.meta.mtime_ns // 10**9, written)
    return written


def _read(one: Wanted, written: Written) -> Message | None:
    place = f"{one.box.account}, {one.box.mailbox.folder}, {os.fsdecode(one.stored.path)}"
    try:
        found = message(one.box.mailbox.format, one.stored, one.read)
    except VaultDamaged as error:
        written.failed[place] = error.message
        return None
    if isinstance(found, Unreadable):
        written.failed[place] = found.reason
        return None
    return found


def _maildir(account: Path, folder: str) -> Path:
    """The folder's Maildir, made when it is not there."""
    levels = [] if folder.upper() == "INBOX" else [level.replace(".", "_") for level in folder.split("/")]
    on_disk = mailboxes.folder_on_disk(".".join(levels))
    path = account / f".{on_disk}" if levels else account
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _maildir_name(one: Wanted, found: Message, letters: dict[str, str]) -> str:
    """Time of receipt, digest, flags. *letters*: of the folder's keywords so far."""
    flags = {_LETTERS[flag] for flag in one.stored.flags if flag in _LETTERS}
    for flag in one.stored.flags:
        if not flag.startswith("\\") and (flag in letters or len(letters) < KEYWORDS_MAX):
            flags.add(letters.setdefault(flag, chr(ord("a") + len(letters))))
    name = f"{found.received_s}.H{message_digest(one.box, one.stored)}.restored,S={len(found.content)}"
    return f"{name}:2,{''.join(sorted(flags))}"


def safe(text: str) -> str:
    """A name for a file: no separators, nothing a shell or a terminal would take amiss."""
    return _PLAIN.sub("_", text).strip("._") or "_"


def _write(path: Path, content: bytes, seconds: int, written: Written) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "Free space there, remove the folder, and repeat."
            raise NoSpace(f"{path}: {error.strerror}", hint=hint) from None
        raise
    os.utime(path, (seconds, seconds))
    written.files += 1
    written.bytes += len(content)
