"""IMAP clients: people at work in their mailboxes while mail arrives.

One client owns an account's folders and messages for the whole workload, so that the order of its operations is the
order of the journal. After an operation whose outcome is unknown, what it touched is *retired*: never used again, so
that what may be true of it stays one fact, not a tree of possibilities.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Final

from holdfast.drill.checkers import facts
from holdfast.drill.checkers.facts import Ref
from holdfast.drill.workload import messages
from holdfast.drill.workload.imap import ImapClient, bytes_of
from holdfast.drill.workload.journal import Answered, Journal
from holdfast.drill.workload.net import AnswerLost, Declined, NotSent
from holdfast.drill.workload.plan import Login, Plan
from holdfast.drill.workload.sieve import SieveClient

SESSION_OPERATIONS: Final = (5, 15)
"""A client logs in, does so many things, and goes on to its next account: logins are part of the load."""

FOLDERS_MAX: Final = 10
"""Of one account; more would make the mailboxes thin."""

BATCH_MAX: Final = 5
"""Messages in one STORE, COPY or MOVE."""

FLAGS: Final = ("\\Seen", "\\Flagged", "\\Answered", "\\Draft")
KEYWORDS: Final = ("$Forwarded", "$Junk", "NonJunk", "$MDNSent", "Projekt-7", "todo", "x_later")
"""Few: a Maildir has 26 letters for keywords."""

FOLDER_NAMES: Final = (
    ("Projekte",),
    ("Projekte", "Köln & Bonn"),
    ("Projekte", "Köln & Bonn", "Verträge"),
    ("日本語",),
    ("日本語", "会議"),
    ("Архив",),
    ("Архив", "2026"),
    ("Entwürfe (alt)",),
    ("a b  c",),
    ("[brackets] 100%",),
    ("🙂 Privat",),
    ("Łódź", "č", "deep", "deeper"),
)

SCRIPT: Final = '# {mark}\r\nrequire ["fileinto"];\r\nif header :contains "X-Drill" "{mark}" {{ discard; }}\r\n'


class View:
    """What the owner of an account knows of it."""

    def __init__(self, login: Login, stream: str) -> None:
        self.login = login
        self.stream = stream
        self.separator = ""
        self.folders: list[str] = []
        self.retired_folders: set[str] = set()
        self.retired_messages: set[str] = set()
        self.appended = 0
        self.scripts = 0

    def usable(self) -> list[str]:
        return ["INBOX", *self.folders]

    def is_retired(self, folder: str) -> bool:
        return any(folder == gone or folder.startswith(gone + self.separator) for gone in self.retired_folders)

    def retire_folder(self, folder: str) -> None:
        """Nothing at or below *folder* is used again."""
        if folder != "INBOX":
            self.retired_folders.add(folder)
            self.folders = [name for name in self.folders if not self.is_retired(name)]

    def below(self, folder: str) -> list[str]:
        return [name for name in self.folders if name.startswith(folder + self.separator)]


class MailboxClient:
    """One thread's work on its accounts."""

    def __init__(
        self, plan: Plan, journal: Journal, stop: threading.Event, worker: str, views: list[View], operations: int
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._stop = stop
        self._worker = worker
        self._views = views
        self._chance = random.Random(f"{plan.seed}/{worker}")
        self._left = operations
        self._view = views[0]
        self._imap: ImapClient | None = None
        self._actions: dict[Callable[[ImapClient], bool], int] = {
            self._append: 22,
            self._store: 26,
            self._copy: 9,
            self._move: 13,
            self._expunge: 9,
            self._create: 9,
            self._rename: 4,
            self._delete: 3,
            self._subscribe: 4,
            self._sieve: 1 if plan.service.sieve.port else 0,
        }

    def run(self, enough: threading.Event) -> None:
        """Work until the operations are done and *enough* is set (the deliveries are over), or the stop."""
        while not self._stop.is_set() and (self._left > 0 or not enough.is_set()):
            self._view = self._chance.choice(self._views)
            try:
                self._session()
            except (NotSent, AnswerLost, Declined) as error:
                self._journal.trouble(self._worker, error.message)
                if self._imap is not None:
                    self._imap.close()
                self._stop.wait(self._plan.backoff_seconds)
            self._imap = None

    def _session(self) -> None:
        login = self._view.login
        imap = ImapClient(self._plan.service.imap, self._plan.patience, login.name, login.password)
        self._imap = imap
        imap.enable_qresync()
        self._view.separator = self._view.separator or imap.separator()
        for _ in range(self._chance.randint(*SESSION_OPERATIONS)):
            if self._stop.is_set():
                break
            action = self._chance.choices(list(self._actions), list(self._actions.values()))[0]
            if action(imap):
                self._left -= 1
            self._stop.wait(self._plan.mailboxes.pause_seconds)
        imap.logout()

    # --- actions: each says whether there was anything to do ---------------------------------------------------------

    def _append(self, imap: ImapClient) -> bool:
        view = self._view
        folder = self._chance.choice(view.usable())
        mail = messages.make(
            self._plan.seed, view.appended, stream=view.stream, sender=view.login.name, recipient=view.login.name
        )
        view.appended += 1
        flags = tuple(sorted(self._some_flags()))
        when = 1_500_000_000 + self._chance.randrange(200_000_000)
        doing = facts.Append(folder, mail.message_id, mail.body_digest, len(mail.content), flags, when)
        with self._journal.operation(self._worker, view.login.name, doing) as answered:
            try:
                answered.uid_validity, uid = imap.append(folder, mail.content, flags, when)
            except Declined:
                view.retire_folder(folder)
                raise
            except AnswerLost:
                view.retired_messages.add(mail.message_id)
                raise
            answered.uids = (uid,)
        return True

    def _store(self, imap: ImapClient) -> bool:
        folder, chosen = self._choose(imap)
        if not chosen:
            return False
        flags = tuple(sorted(self._some_flags() or {"\\Seen"}))
        adding = self._chance.random() < 0.7
        doing = facts.Store(folder, chosen, add=flags if adding else (), remove=() if adding else flags)
        self._store_now(imap, doing)
        return True

    def _copy(self, imap: ImapClient) -> bool:
        folder, chosen = self._choose(imap)
        target = self._chance.choice(self._view.usable())
        if not chosen or target == folder:
            return False
        self._transfer(imap, "COPY", facts.Copy(folder, chosen, target))
        return True

    def _move(self, imap: ImapClient) -> bool:
        folder, chosen = self._choose(imap)
        target = self._chance.choice(self._view.usable())
        if not chosen or target == folder:
            return False
        self._transfer(imap, "MOVE", facts.Move(folder, chosen, target))
        return True

    def _expunge(self, imap: ImapClient) -> bool:
        folder, chosen = self._choose(imap)
        chosen = chosen[:2]
        if not chosen:
            return False
        self._store_now(imap, facts.Store(folder, chosen, add=("\\Deleted",)))
        with self._touching(chosen, facts.Expunge(folder, chosen)) as answered:
            answered.touched = imap.expunge(tuple(ref.uid for ref in chosen))
        return True

    def _create(self, imap: ImapClient) -> bool:
        view = self._view
        if len(view.folders) >= FOLDERS_MAX:
            return False
        folder = self._new_name()
        self._on_folders(imap, facts.CreateFolder(folder), "CREATE", folder)
        view.folders.append(folder)
        return True

    def _rename(self, imap: ImapClient) -> bool:
        view = self._view
        if not view.folders:
            return False
        folder = self._chance.choice(view.folders)
        target = self._new_name()
        if view.below(target) or target.startswith(folder + view.separator):
            return False
        self._on_folders(imap, facts.RenameFolder(folder, target, view.separator), "RENAME", folder, target)
        moved = {name: target + name.removeprefix(folder) for name in [folder, *view.below(folder)]}
        view.folders = [moved.get(name, name) for name in view.folders]
        return True

    def _delete(self, imap: ImapClient) -> bool:
        leaves = [name for name in self._view.folders if not self._view.below(name)]
        if len(leaves) < 2:
            return False
        folder = self._chance.choice(leaves)
        self._on_folders(imap, facts.DeleteFolder(folder), "DELETE", folder)
        self._view.folders.remove(folder)
        return True

    def _subscribe(self, imap: ImapClient) -> bool:
        if not self._view.folders:
            return False
        folder = self._chance.choice(self._view.folders)
        wanted = self._chance.random() < 0.75
        self._on_folders(imap, facts.Subscribe(folder, wanted), "SUBSCRIBE" if wanted else "UNSUBSCRIBE", folder)
        return True

    def _sieve(self, imap: ImapClient) -> bool:
        view = self._view
        view.scripts += 1
        script = SCRIPT.format(mark=f"{view.stream}.{view.scripts}")
        name = self._chance.choice(("drill", "holiday"))
        active = self._chance.random() < 0.7
        try:
            client = SieveClient(self._plan.service.sieve, self._plan.patience, view.login.name, view.login.password)
        except (NotSent, Declined) as error:
            self._journal.trouble(self._worker, error.message)
            return False
        doing = facts.PutSieve(name, messages.digest(script.encode()), active)
        with self._journal.operation(self._worker, view.login.name, doing):
            client.put(name, script)
            if active:
                client.activate(name)
        client.logout()
        return True

    # --- what the actions share --------------------------------------------------------------------------------------

    def _choose(self, imap: ImapClient) -> tuple[str, tuple[Ref, ...]]:
        """Select a folder and a few of its messages, as a client that has just looked at it."""
        view = self._view
        folder = "INBOX" if self._chance.random() < 0.5 else self._chance.choice(view.usable())
        try:
            selected = imap.select(folder)
        except Declined:
            view.retire_folder(folder)
            raise
        if selected.exists == 0:
            return folder, ()
        listed = imap.fetch("1:*", "(UID BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])")
        known: list[Ref] = []
        for uid, items in sorted(listed.items()):
            message_id = messages.message_id_of(bytes_of(items, "BODY[HEADER.FIELDS (MESSAGE-ID)]"))
            if message_id.endswith("@" + messages.DOMAIN) and message_id not in view.retired_messages:
                known.append(Ref(uid, message_id))
        if not known:
            return folder, ()
        chosen = self._chance.sample(known, min(len(known), self._chance.choice((1, 1, 1, 2, BATCH_MAX))))
        return folder, tuple(sorted(chosen, key=lambda ref: ref.uid))

    def _some_flags(self) -> set[str]:
        return {
            *self._chance.sample(FLAGS, self._chance.randint(0, 2)),
            *self._chance.sample(KEYWORDS, self._chance.randint(0, 2)),
        }

    def _new_name(self) -> str:
        """A name that is not in use; names of deleted and renamed folders come again."""
        view = self._view
        while True:
            name = view.separator.join(self._chance.choice(FOLDER_NAMES))
            if self._chance.random() < 0.3:
                name += f" {self._chance.randint(2, 9)}"
            if name not in view.folders and not view.is_retired(name):
                return name

    def _store_now(self, imap: ImapClient, doing: facts.Store) -> None:
        uids = tuple(ref.uid for ref in doing.messages)
        with self._touching(doing.messages, doing) as answered:
            done = imap.store(uids, "+FLAGS" if doing.add else "-FLAGS", doing.add or doing.remove)
            answered.touched = tuple(uid for uid in uids if uid in done)

    def _transfer(self, imap: ImapClient, verb: str, doing: facts.Copy | facts.Move) -> None:
        with self._touching(doing.messages, doing) as answered:
            uids = tuple(ref.uid for ref in doing.messages)
            answered.uid_validity, there = imap.transfer(verb, uids, doing.target)
            answered.uids = tuple(there.get(uid, 0) for uid in uids)
            answered.touched = tuple(uid for uid in uids if uid in there)

    def _on_folders(self, imap: ImapClient, doing: facts.Doing, verb: str, *folders: str) -> None:
        """A folder command; if it does not succeed, whatever stands under those names is left alone from then on."""
        imap.unselect()  # Dovecot ends the session of a client whose selected folder is deleted
        try:
            with self._journal.operation(self._worker, self._view.login.name, doing):
                imap.on_folder(verb, *folders)
        except (NotSent, AnswerLost, Declined):
            for folder in folders:
                self._view.retire_folder(folder)
            raise

    @contextlib.contextmanager
    def _touching(
        self, chosen: tuple[Ref, ...], doing: facts.Store | facts.Copy | facts.Move | facts.Expunge
    ) -> Iterator[Answered]:
        """A journaled operation on messages; they are retired when nobody knows what became of it."""
        try:
            with self._journal.operation(self._worker, self._view.login.name, doing) as answered:
                yield answered
        except AnswerLost:
            self._view.retired_messages.update(ref.message_id for ref in chosen)
            raise
        except Declined:
            self._view.retire_folder(doing.target if isinstance(doing, facts.Copy | facts.Move) else doing.folder)
            raise
