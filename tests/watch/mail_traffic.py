"""What Dovecot does to files, as fast as a thread can: Maildir and mdbox, folders renamed and deleted under way."""

from __future__ import annotations

import os
import random
import shutil
import threading
from pathlib import Path

FOLDERS_MAX = 6
MESSAGES_MAX = 150


class Traffic:
    """Runs until stopped. A message is named in ``doomed`` before its file goes."""

    def __init__(self, root: Path, seed: int, *, restless: bool = False) -> None:
        """*restless*: mostly folders are made and renamed, again and again, with messages moved among them."""
        self.root = root
        self.restless = restless
        self.random = random.Random(seed)
        self.doomed: set[str] = set()
        self.done = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.failure: OSError | None = None
        self._number = 0
        self._folders: dict[str, dict[str, str]] = {}
        """Folder: message, and where it stands below the folder."""
        self._make_folder()
        (root / "mdbox").mkdir()

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._step()
                self.done += 1
        except OSError as error:
            self.failure = error

    def _step(self) -> None:
        if self.restless and self.random.random() < 0.8:
            self.random.choice((self._rename_folder, self._make_folder, self._move_message, self._renew_folder))()
            return
        what = self.random.random()
        if what < 0.45:
            self._deliver()
        elif what < 0.65:
            self._flag()
        elif what < 0.75:
            self._expunge()
        elif what < 0.80:
            self._copy()
        elif what < 0.92:
            self._append_mdbox()
        elif what < 0.94:
            self._rename_folder()
        elif what < 0.97:
            self._make_folder()
        elif what < 0.98:
            self._delete_folder()
        else:
            self._move_message()

    def _folder(self) -> str:
        return self.random.choice(list(self._folders))

    def _make_folder(self) -> None:
        if len(self._folders) >= FOLDERS_MAX:
            return
        self._number += 1
        name = f".folder-{self._number}"
        for part in ("tmp", "new", "cur"):
            (self.root / name / part).mkdir(parents=True)
        self._folders[name] = {}

    def _log(self, folder: str, text: str) -> None:
        """Append a transaction; its size field is written last."""
        data = text.encode()
        with (self.root / folder / "dovecot.index.log").open("ab") as file:
            at = file.tell()
            file.write(b"\0\0\0\0" + data)
        with (self.root / folder / "dovecot.index.log").open("r+b") as again:
            again.seek(at)
            again.write(len(data).to_bytes(4, "big"))
            again.seek(0, os.SEEK_END)
            if again.tell() > 20_000:
                os.rename(self.root / folder / "dovecot.index.log", self.root / folder / "dovecot.index.log.2")

    def _deliver(self) -> None:
        self._number += 1
        folder, name = self._folder(), f"{self._number}.M.host"
        base = self.root / folder
        (base / "tmp" / name).write_bytes(name.encode() * self.random.randrange(1, 400))
        (base / "dovecot-uidlist.lock").write_text("")
        os.rename(base / "tmp" / name, base / "new" / name)
        with (base / "dovecot-uidlist").open("a") as file:
            file.write(f"{self._number} :{name}\n")
        (base / "dovecot-uidlist.lock").unlink()
        self._folders[folder][name] = f"new/{name}"
        self._log(folder, f"append {name}")
        if len(self._folders[folder]) > MESSAGES_MAX:
            self._expunge()

    def _message(self) -> tuple[str, str] | None:
        folder = self._folder()
        messages = self._folders[folder]
        return (folder, self.random.choice(list(messages))) if messages else None

    def _flag(self) -> None:
        picked = self._message()
        if picked is None:
            return
        folder, name = picked
        messages = self._folders[folder]
        for _ in range(self.random.randrange(1, 4)):
            to = f"cur/{name}:2," + "".join(sorted(self.random.sample("DFRST", self.random.randrange(0, 5))))
            os.rename(self.root / folder / messages[name], self.root / folder / to)
            messages[name] = to
        self._log(folder, f"flags {name}")

    def _expunge(self) -> None:
        picked = self._message()
        if picked is not None:
            folder, name = picked
            self.doomed.add(name)
            (self.root / folder / self._folders[folder].pop(name)).unlink()
            self._log(folder, f"expunge {name}")

    def _copy(self) -> None:
        picked = self._message()
        if picked is not None:
            folder, name = picked
            self._number += 1
            to, copy = self._folder(), f"{self._number}.C.host"
            os.link(self.root / folder / self._folders[folder][name], self.root / to / "cur" / copy)
            self._folders[to][copy] = f"cur/{copy}"

    def _move_message(self, to: str = "") -> None:
        picked = self._message()
        if picked is not None:
            folder, name = picked
            to = to or self._folder()
            target = f"cur/{name}:2,M"
            os.rename(self.root / folder / self._folders[folder].pop(name), self.root / to / target)
            self._folders[to][name] = target

    def _append_mdbox(self) -> None:
        """A record is appended, then the header of the one before is rewritten."""
        with (self.root / "mdbox" / f"m.{self.random.randrange(3)}").open("ab") as file:
            end = file.tell()
            file.write(os.urandom(self.random.randrange(100, 30_000)))
        with open(file.name, "r+b") as again:
            again.seek(max(0, end - 5000))
            again.write(os.urandom(30))
        if end > 3_000_000:
            os.unlink(file.name)
        (self.root / "mdbox/dovecot.map.index.tmp").write_bytes(os.urandom(200))
        os.rename(self.root / "mdbox/dovecot.map.index.tmp", self.root / "mdbox/dovecot.map.index")

    def _rename_folder(self) -> None:
        self._number += 1
        folder, to = self._folder(), f".renamed-{self._number}"
        os.rename(self.root / folder, self.root / to)
        self._folders[to] = self._folders.pop(folder)
        if self.random.random() < 0.5:  # the name is used again at once
            for part in ("tmp", "new", "cur"):
                (self.root / folder / part).mkdir(parents=True)
            self._folders[folder] = {}

    def _renew_folder(self) -> None:
        """A new folder that is renamed at once, twice, and gets a message meanwhile."""
        self._number += 1
        first = f".young-{self._number}"
        for part in ("tmp", "new", "cur"):
            (self.root / first / part).mkdir(parents=True)
        os.rename(self.root / first, self.root / f"{first}-b")
        self._folders[f"{first}-b"] = {}
        self._move_message(f"{first}-b")
        os.rename(self.root / f"{first}-b", self.root / f"{first}-c")
        self._folders[f"{first}-c"] = self._folders.pop(f"{first}-b")
        if len(self._folders) > 2 * FOLDERS_MAX:
            self._delete_folder()

    def _delete_folder(self) -> None:
        if len(self._folders) < 3:
            return
        folder = self._folder()
        self.doomed.update(self._folders.pop(folder))
        os.rename(self.root / folder, self.root / "..DOVECOT-TRASHED")
        shutil.rmtree(self.root / "..DOVECOT-TRASHED")
