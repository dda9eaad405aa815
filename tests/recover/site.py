"""A store of Maildirs whose mail comes and goes, snapshot by snapshot."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.recover.boxes import Moment
from holdfast.vault import backup
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.repository import Vault
from tests.vault import site

ACCOUNT = "alice@example.org"


class Store:
    """A store below *folder*, its vault, and the moments taken of it."""

    def __init__(self, folder: Path, account: str = ACCOUNT) -> None:
        local, _, domain = account.partition("@")
        self.root = folder / "store"
        self.mail = self.root / domain / local / "Maildir"
        self.groupware = folder / "collections"
        self.groupware.mkdir(parents=True)
        self.vault: Vault = site.new_vault(MemoryBackend(), folder / "cache.sqlite")
        self.clocks = site.clocks()
        self.reads: list[bytes] = []
        self.folder("INBOX")

    def folder(self, name: str) -> Path:
        path = self.mail if name == "INBOX" else self.mail / f".{name.replace('/', '.')}"
        for part in ("cur", "new", "tmp"):
            (path / part).mkdir(parents=True, exist_ok=True)
        return path

    def message(self, number: int, folder: str = "INBOX", *, flags: str = "", **fields: str) -> Path:
        """A message received *number* seconds into the year 2026."""
        received = 1767225600 + number
        header = {"From": "Bob <bob@example.net>", "To": ACCOUNT, "Subject": f"number {number}", **fields}
        header.setdefault("Message-ID", f"<{number}@example.net>")
        text = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in header.items())
        path = self.folder(folder) / "cur" / f"{received}.M{number}.host:2,{flags}"
        path.write_text(f"{text}\nbody of {number}\n")
        os.utime(path, (received, received))
        return path

    def item(self, collection: str, name: str, text: str) -> Path:
        folder = self.groupware / "collection-root" / ACCOUNT / collection
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".Radicale.props").write_text(f'{{"tag": "VCALENDAR", "D:displayname": "{collection.title()}"}}')
        (folder / name).write_text(text)
        return folder / name

    def snapshot(self) -> Moment:
        trees = [site.tree(self.root), site.tree(self.groupware, "groupware")]
        made = backup.backup_trees(self.vault, trees, "main", clocks=self.clocks)
        return self.moment(made.name.short[:8], made.snapshot.taken_at_ns)

    def moment(self, label: str, at_ns: int) -> Moment:
        snapshot = self.vault.snapshot(self.vault.find_snapshot(label))

        def read(content_id: bytes) -> bytes:
            self.reads.append(content_id)
            return self.vault.content(content_id)

        return Moment(label, at_ns, snapshot.trees, read)


def event(uid: str, title: str) -> str:
    lines = ["BEGIN:VCALENDAR", "BEGIN:VEVENT", f"UID:{uid}", f"SUMMARY:{title}", "DTSTART:20261117T090000Z"]
    return "\r\n".join([*lines, "END:VEVENT", "END:VCALENDAR", ""])
