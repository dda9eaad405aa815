"""Dovecot's index, read: what it says is what Dovecot's own IMAP says; damaged or foreign bytes never get further."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.mail.dovecot_index import (
    MAP_EXTENSION,
    MDBOX_EXTENSION,
    REFERENCE_EXTENSION,
    Index,
    IndexUnreadable,
    read_index,
)
from holdfast.mail.imap_exchange import flags_of
from holdfast.mail.imap_session import ImapSession, session_command
from holdfast.mail.stored import DboxMessage, dbox_message
from tests.mail.boxes import USER, DovecotBox

FLAGS = ("\\Seen", "\\Answered", "\\Flagged", "\\Draft", "\\Deleted", "$Forwarded", "todo", "Projekt-7", "a-b.c")
ROUNDS = 150
"""Enough that Dovecot writes dovecot.index anew, and a log after it."""


def index_in(folder: Path, name: str = "dovecot.index") -> Index:
    files = [folder / (name + suffix) for suffix in ("", ".log", ".log.2")]
    return read_index(*(file.read_bytes() if file.exists() else None for file in files))


def states(session: ImapSession, folder: str) -> dict[int, tuple[str, ...]]:
    if not session.examine(folder):
        return {}
    return {uid: flags_of(items) for uid, items in session.fetch("1:*", "(FLAGS)").items()}


def work(session: ImapSession, chance: random.Random) -> None:
    """Appends, flags, copies and expunges in INBOX, into A."""
    session.command("SELECT INBOX")
    for _ in range(ROUNDS):
        uids = sorted(session.fetch("1:*", "(FLAGS)"))
        what = chance.random()
        if what < 0.35 or len(uids) < 5:
            flags = tuple(chance.sample(FLAGS, chance.randint(0, 4)))
            text = f"Subject: {chance.random()}\r\n\r\n{'x' * chance.randint(0, 3000)}\r\n".encode()
            session.append("INBOX", [(text, flags, 1_600_000_000 + number) for number in range(chance.randint(1, 4))])
            session.command("NOOP")
            continue
        some = ",".join(map(str, chance.sample(uids, min(len(uids), chance.randint(1, 6)))))
        if what < 0.75:
            sign = chance.choice(("+", "-", ""))
            session.command(f"UID STORE {some} {sign}FLAGS ({' '.join(chance.sample(FLAGS, 2))})")
        elif what < 0.9:
            session.command(f"UID {chance.choice(('COPY', 'MOVE'))} {some} A")
        else:
            session.command("EXPUNGE")


@pytest.mark.system
@pytest.mark.parametrize("driver", ["sdbox", "mdbox"])
async def test_it_says_what_dovecot_says(driver: str) -> None:
    with tempfile.TemporaryDirectory(prefix="hf-index-") as name:
        await compare(Path(name), driver)


async def compare(folder: Path, driver: str) -> None:
    box = DovecotBox(folder, driver)
    await box.service.start()
    try:
        with ImapSession(USER, session_command(USER, str(box.config))) as session:
            session.on_folder("CREATE", "A")
            work(session, random.Random(driver))
            told = {folder: states(session, folder) for folder in ("INBOX", "A")}
        root = box.store / "example.org/alice" / driver
        for mailbox, messages in told.items():
            path = root / "mailboxes" / mailbox / "dbox-Mails"
            index = index_in(path)
            assert {uid: tuple(sorted(index.imap_flags(uid))) for uid in index.flags} == messages
            assert messages
            if driver == "sdbox":
                assert {file.name for file in path.glob("u.*")} == {f"u.{uid}" for uid in messages}
            else:
                assert set(index.values(MDBOX_EXTENSION)) == set(messages)
        assert (root / "mailboxes/INBOX/dbox-Mails/dovecot.index").exists()
        if driver == "mdbox":
            check_map(root, told)
    finally:
        await box.service.stop()


def check_map(root: Path, told: dict[str, dict[int, tuple[str, ...]]]) -> None:
    """Every message of a folder leads through the map to a whole dbox message; references are counted."""
    found = index_in(root / "storage", "dovecot.map.index")
    places = found.values(MAP_EXTENSION)
    counts = found.values(REFERENCE_EXTENSION)
    used: dict[int, int] = {}
    for folder in told:
        for value in index_in(root / "mailboxes" / folder / "dbox-Mails").values(MDBOX_EXTENSION).values():
            number = int.from_bytes(value[:4], "little")
            used[number] = used.get(number, 0) + 1
            file, at, size = (int.from_bytes(places[number][i : i + 4], "little") for i in (0, 4, 8))
            data = (root / "storage" / f"m.{file}").read_bytes()
            message = dbox_message(data, at)
            assert isinstance(message, DboxMessage)
            assert (message.end, message.stored[:9]) == (at + size, b"Subject: ")
    assert used == {uid: n for uid, v in counts.items() if (n := int.from_bytes(v, "little"))}


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_bytes_are_an_index_or_refused(index: bytes, log: bytes) -> None:
    for begin in (b"", b"\x07\x03\x78\x00"):
        try:
            read_index(begin + index if index else None, b"\x01\x03\x28\x00" + log if log else None)
        except IndexUnreadable:
            continue
