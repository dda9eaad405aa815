"""Where in a store's tree mailboxes stand, and whose they are: from names alone. Pure.

Three formats of Dovecot are known by what stands in a directory
(https://doc.dovecot.org/2.3/configuration_manual/mail_location/):

Maildir   a directory with ``cur`` and ``new``. Below the first one found (the INBOX) ``.A.B`` is the folder A.B
          (Maildir++) and called A/B here, ``A/B`` the folder A/B (``LAYOUT=fs``).
sdbox     ``mailboxes/A/B/dbox-Mails`` with ``u.<uid>``: the folder A/B.
mdbox     the same without ``u.*``; the messages are in ``storage/m.*`` beside ``mailboxes``.

A folder's name here has ``/`` between its levels, whatever the format and the server put there.

Folder names on disk are in modified UTF-7 (RFC 3501 5.1.3), or in UTF-8 where the server is set so.
Not known: ``LAYOUT=index`` (folders are then called by their GUIDs), ``DIRNAME``, dbox with ``INDEX`` elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from enum import StrEnum
from typing import Final, NamedTuple

from holdfast.mail.dovecot_layout import Layout
from holdfast.mail.imap_syntax import folder_from_wire, folder_to_wire

DBOX_MAILS: Final = b"dbox-Mails"
MAILBOXES: Final = b"mailboxes"
STORAGE: Final = b"storage"
MAIL_FOLDERS: Final = frozenset({"maildir", ".maildir", "mail", "mdbox", ".mdbox", "sdbox", ".sdbox", "dbox", "mails"})
"""Names by which the place of the mail in a home is called; an account of one of these names is told by its domain."""
_DOMAIN: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.[a-z][a-z0-9-]+", re.IGNORECASE)
_LETTERS: Final = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}
"""Of a Maildir's file names (https://cr.yp.to/proto/maildir.html); P (passed) is not an IMAP flag."""
_VARIABLE: Final = re.compile(r"%%|%[LU]?(?:\{([^}]*)\}|([a-z]))|%[0-9.]+[A-Za-z]?([a-z])")


class Format(StrEnum):
    MAILDIR = "maildir"
    SDBOX = "sdbox"
    MDBOX = "mdbox"


class Mailbox(NamedTuple):
    """One folder. *path*: its directory in the tree (Maildir: with cur and new in it; dbox: ``dbox-Mails``). *root*:
    the account's mail directory in the tree."""

    format: Format
    root: bytes
    path: bytes
    folder: str


def maildir(path: bytes, root: bytes | None) -> Mailbox:
    """The Maildir at *path*; *root*: the Maildir above it that is its account's, None when it is the first."""
    if root is None:
        name = path.rpartition(b"/")[2]
        if name.startswith(b".") and name.lower() not in (b".maildir", b".mail"):  # the INBOX itself is elsewhere
            return Mailbox(Format.MAILDIR, path.rpartition(b"/")[0], path, _plus_plus(name))
        return Mailbox(Format.MAILDIR, path, path, "INBOX")
    below = path[len(root) + 1 :] if root else path
    folder = _plus_plus(below) if below.startswith(b".") else folder_name(below)
    return Mailbox(Format.MAILDIR, root, path, folder)


def _plus_plus(name: bytes) -> str:
    """``.A.B`` is A/B."""
    return folder_name(name[1:]).replace(".", "/")


def dbox(path: bytes, *, multi: bool) -> Mailbox | None:
    """The dbox folder whose ``dbox-Mails`` stands at *path*; None when it stands below no ``mailboxes``."""
    parts = path.split(b"/")
    if MAILBOXES not in parts[:-2]:
        return None
    at = parts.index(MAILBOXES)
    name = folder_name(b"/".join(parts[at + 1 : -1]))
    return Mailbox(Format.MDBOX if multi else Format.SDBOX, b"/".join(parts[:at]), path, name)


def is_maildir(directories: Collection[bytes]) -> bool:
    """By the names of the directories in it; ``tmp`` may have been left out of a copy."""
    return b"cur" in directories and b"new" in directories


def folder_name(on_disk: bytes) -> str:
    """The folder's name as its user sees it."""
    try:
        on_disk.decode("ascii")
    except UnicodeDecodeError:
        return on_disk.decode("utf-8", "backslashreplace")
    return folder_from_wire(on_disk)


def folder_on_disk(name: str) -> str:
    """A folder's name in modified UTF-7."""
    return re.sub(r"\\(.)", r"\1", folder_to_wire(name)[1:-1])


def base_name(file: bytes) -> bytes:
    """What of a Maildir's file name stays the same when flags change."""
    return file.partition(b":2,")[0]


def maildir_flags(file: bytes, keywords: dict[str, str]) -> tuple[str, ...]:
    """System flags, then keywords, of a message's file name. *keywords*: as :func:`maildir_keywords` gives them."""
    letters = file.partition(b":2,")[2].partition(b",")[0].decode("ascii", "replace")
    system = tuple(_LETTERS[letter] for letter in letters if letter in _LETTERS)
    return system + tuple(sorted(keywords[letter] for letter in letters if letter in keywords))


def maildir_keywords(file: bytes) -> dict[str, str]:
    """The file ``dovecot-keywords``: the letter in file names for each keyword."""
    found: dict[str, str] = {}
    for line in file.splitlines():
        number, _, name = line.partition(b" ")
        if number.isdigit() and len(number) < 3 and int(number) < 26 and name:
            found[chr(ord("a") + int(number))] = name.decode("utf-8", "replace")
    return found


def subscribed(file: bytes, separator: str = "/") -> tuple[str, ...]:
    """The file ``subscriptions``, in both its forms (src/lib-storage/list/subscription-file.c): in the second, which
    begins with ``V\\t2``, tabs part a name's levels; in the first the server's *separator* does."""
    lines = file.split(b"\n")
    if lines and lines[0] == b"V\t2":
        return tuple(_untabbed(line) for line in lines[1:] if line)
    return tuple(folder_name(line).replace(separator, "/") for line in lines if line)


def _untabbed(line: bytes) -> str:
    escapes = {b"0": b"\0", b"1": b"\x01", b"t": b"\t", b"r": b"\r", b"n": b"\n"}
    parts = [re.sub(rb"\x01(.)", lambda found: escapes.get(found[1], found[1]), part) for part in line.split(b"\t")]
    return "/".join(folder_name(part) for part in parts)


class Accounts:
    """Tells whose a mail directory is: by the server's own templates where they are known, else by looking at it."""

    def __init__(self, layout: Layout | None = None) -> None:
        self._patterns = [p for p in map(account_pattern, _templates(layout)) if p is not None] if layout else []

    def account(self, directory: bytes) -> str:
        """*directory*: absolute, the account's mail directory or its home."""
        path = os.path.normpath(os.fsdecode(directory)).replace("//", "/")
        for pattern in self._patterns:
            if found := pattern.match(path):
                user, local, domain = (found.groupdict().get(key) or "" for key in ("user", "local", "domain"))
                if user or local:
                    return (user or (f"{local}@{domain}" if domain else local)).lower()
        return guessed_account(path)


def guessed_account(path: str) -> str:
    """``/srv/mail/example.org/a/alice/Maildir`` is alice@example.org, ``/home/alice/mail`` is alice."""
    parts = [part for part in path.split("/") if part]
    while len(parts) > 1 and parts[-1].lower() in MAIL_FOLDERS and not _is_account(parts):
        parts.pop()
    if not parts:
        return path
    name = parts.pop()
    if "@" in name:
        return name
    domain = next((part for part in reversed(parts) if _DOMAIN.fullmatch(part)), "")
    return f"{name}@{domain}" if domain else name


def _is_account(parts: list[str]) -> bool:
    """Of a path that ends like a mail folder: whether that is an account, right below its domain."""
    return bool(_DOMAIN.fullmatch(parts[-2])) and not any(_DOMAIN.fullmatch(part) for part in parts[:-2])


def account_pattern(template: str) -> re.Pattern[str] | None:
    """A home or location with variables (2.3: ``/srv/%d/%n``; 2.4: ``/srv/%{user | domain}``) turned round: what it
    matches names the account. None for a template without a user in it."""
    out, at, named = "", 0, set[str]()
    for found in _VARIABLE.finditer(template):
        out += re.escape(template[at : found.start()])
        at = found.end()
        if found[0] == "%%":
            out += "%"
            continue
        group = "" if found[3] else _variable(found[1] if found[1] is not None else found[2])
        if group in named:
            out += f"(?P={group})"
        elif group:
            named.add(group)
            out += f"(?P<{group}>[^/]+)"
        else:
            out += "[^/]+"
    if not named & {"user", "local"}:
        return None
    return re.compile(out + re.escape(template[at:]) + r"(?=/|\Z)")


def _variable(text: str) -> str:
    words = [word.strip() for word in text.split("|")]
    name = {"u": "user", "n": "local", "d": "domain", "user": "user", "username": "local", "domain": "domain"}.get(
        words[0], ""
    )
    for word in words[1:]:
        if name == "user" and word in ("domain", "username"):
            name = "domain" if word == "domain" else "local"
        elif word not in ("lower", "upper"):
            return ""
    return name


def _templates(layout: Layout) -> list[str]:
    found = [path for location in layout.locations for path in location.paths() if path.startswith("/")]
    return [*found, *(home for home in layout.homes if home.startswith("/"))]
