"""Dovecot's files by name: what to leave out, what only grows, what refers to other files.

Every name here was seen being made by Dovecot 2.3.19 under LMTP deliveries, IMAP commands and ManageSieve uploads
(docs/systems/dovecot-files.md has the table and how it was found). The names are spelled out instead of ``*.lock`` or
``.temp.*``: a user may have a folder called ``tmp``, ``notes.lock`` or (Maildir++) ``temp.work``, and in a copy that
left it out a takeover would lose it.
"""

from __future__ import annotations

from typing import Final

from holdfast.trees.spec import TreeSpec

_HEX16: Final = "?" * 16

LOCKS_AND_TEMPORARIES: Final[tuple[str, ...]] = (
    "mailboxes.lock",
    f"mailboxes.lock{_HEX16}",
    "subscriptions.lock",
    "dovecot-uidlist.lock",
    "dovecot-uidlist.tmp",
    "dovecot-keywords.lock",
    "dovecot.index*.newlock",
    "dovecot.index*.tmp",
    "dovecot.index*.lock",
    "dovecot.list.index*.newlock",
    "dovecot.list.index*.tmp",
    "dovecot.map.index*.newlock",
    "dovecot.map.index*.tmp",
    "dovecot.autoexpunge.lock",
    ".dovecot.lda-dupes.lock",
    f"*.svbin.*.*.{_HEX16}",
    "*_*.M*P*.*.sieve",
)
"""Names that live for milliseconds: held while another file is written, or renamed to the file they are for."""

MAILDIR_TEMPORARIES: Final = ("tmp/*.M*P*.*", "tmp/*.P*.*")
"""Messages being written to a Maildir: Dovecot's names and Postfix's. The ``tmp`` directories themselves are needed."""

DBOX_TEMPORARIES: Final = (".temp.*.P*Q*M*.*",)

CACHE: Final = ("dovecot.index.cache",)

APPEND: Final = (
    "dovecot.index.log",
    "dovecot.list.index.log",
    "dovecot.map.index.log",
    "dovecot.mailbox.log",
    "dovecot-uidlist",
    "storage/m.*",
)
"""The cache is not among them: each delivery writes at its end and again in its first 32 bytes."""

READ_FIRST: Final = (
    "dovecot.list.index",
    "dovecot.list.index.log*",
    "dovecot.index",
    "dovecot.index.log*",
    "dovecot.map.index",
    "dovecot.map.index.log*",
    "dovecot-uidlist",
)
"""In this order each refers to the ones after it: an index to the log it was made from, a log to UIDs, the map to the
places in ``m.*``, the uidlist to message files. Dovecot writes them in the opposite order."""


def store_tree(
    name: str,
    root: str,
    *,
    drivers: frozenset[str],
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    copy_cache: bool = False,
) -> TreeSpec:
    """The tree of a mail store. *drivers*: the mailbox formats in it; *exclude* adds to what is left out anyway."""
    left_out = LOCKS_AND_TEMPORARIES
    if not drivers or "maildir" in drivers:
        left_out += MAILDIR_TEMPORARIES
    if not drivers or drivers & {"sdbox", "mdbox", "dbox"}:
        left_out += DBOX_TEMPORARIES
    if not copy_cache:
        left_out += CACHE
    return TreeSpec(
        name=name,
        root=root,
        include=include,
        exclude=left_out + exclude,
        append=APPEND,
        read_first=READ_FIRST,
        transient=left_out,
    ).checked()
