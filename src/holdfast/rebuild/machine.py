"""The steps of a rebuild, in order. Each may be repeated; the book knows what is done."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from holdfast.errors import HoldfastError, Refused
from holdfast.mail.account_places import account_places, all_homes
from holdfast.mail.dovecot import Dovecot
from holdfast.mail.files import read_or_none
from holdfast.mail.port import Commands, ProbeResult
from holdfast.mail.settings import MailSettings, ProbeSettings
from holdfast.mail.site import MailSite
from holdfast.mail.supervise import SYSTEMD
from holdfast.node.address import Addresses
from holdfast.node.enrol import CONFIGURATION_FOLDER
from holdfast.node.gates import GATE_TREES, Gate
from holdfast.rebuild import software, users
from holdfast.rebuild.book import Book, StepTime
from holdfast.rebuild.doors import Doors, requeue
from holdfast.rebuild.own import restore_own
from holdfast.rebuild.place import Ground, build_walls, move_aside, place, sync_filesystem
from holdfast.rebuild.plan import Plan
from holdfast.rebuild.settle import settle
from holdfast.rebuild.survey import GROUPWARE_TREE, Unit
from holdfast.trees.stat import Owners
from holdfast.vault.record import TreeRoot, lookup
from holdfast.vault.repository import Vault
from holdfast.vault.restore import Restored, restore_entry

HELPERS: Final = (
    *("opendkim.service", "opendmarc.service", "rspamd.service", "redis-server.service", "unbound.service"),
    *("spamd.service", "spamassassin.service", "clamav-daemon.service", "postgrey.service", "postsrsd.service"),
)
"""Started before the mail software where they were enabled: mail passes through them."""
REQUEUE_SECONDS: Final = 1.0
"""How often the queue is looked through for accounts that have just come back, at most."""
ANSWER_SECONDS: Final = 0.5
"""A service address that accepts a connection within it is another machine's."""
_HERE: Final = "127.0.0.1"


class Tell(Protocol):
    """Who shows what happens."""

    def step(self, words: str) -> None:
        """Something begins."""

    def writing(self, done_bytes: int, files: int) -> None:
        """Of the store, in this run; called often."""

    def usable(self, unit: Unit, after_seconds: float, left_seconds: float) -> None:
        """A unit is in place. *left_seconds*: until the last one, by the rate measured."""

    def note(self, words: str) -> None: ...


class Outcome(NamedTuple):
    probes: tuple[ProbeResult, ...]

    @property
    def serves(self) -> bool:
        return all(probe.ok for probe in self.probes)


class Rebuild:
    """One run. *folder*: Holdfast's configuration; *systemd*: see ``supervise``."""

    def __init__(
        self,
        vault: Vault,
        plan: Plan,
        book: Book,
        commands: Commands,
        tell: Tell,
        *,
        take_addresses: bool,
        folder: Path = CONFIGURATION_FOLDER,
        systemd: Path = SYSTEMD,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vault = vault
        self._plan = plan
        self._book = book
        self._commands = commands
        self._tell = tell
        self._take_addresses = take_addresses
        self._folder = folder
        self._systemd = systemd
        self._monotonic = monotonic
        self._ground = Ground(plan.survey.scaffold, Owners())
        self._pending: dict[str, set[str]] = {}
        """Places still missing, by account."""
        self._opened: set[str] = set()
        """Accounts whose waiting mail has not been asked for yet."""
        self._asked_at = 0.0

    def run(self) -> Outcome:
        """Everything that is not done yet. Raises the first failure; repeated, it goes on there."""
        with asyncio.Runner() as runner:
            self._runner = runner
            self._system()
            self._configuration()
            if self._plan.ordered:
                self._mail_flow()
            self._store()
            return self._service()

    # -- the system ----------------------------------------------------------------------------------------------------

    def _system(self) -> None:
        plan, run = self._plan, self._runner.run
        if plan.software is not None:
            install = plan.software.install
            words = f"installing {len(install)} packages" if install else "every package is installed"
            with self._step("packages", words):
                run(software.install(plan.software, self._commands))
        with self._step("users", "users and groups"):
            found = users.here()  # anew: packages bring users of their own
            if plan.inventory is not None:
                wanted = users.plan_users(plan.inventory, plan.survey.owners, plan.survey.groups, found)
                run(users.make_users(wanted, self._commands, found))

    def _configuration(self) -> None:
        """Once: later runs find it with this machine's own values and our doors in it, and must leave those."""
        if self._book.done("configuration"):
            return
        with self._step("configuration", "configuration and keys") as step:
            self._runner.run(self._site().stop())
            if self._plan.own.restore and self._plan.survey.own is not None:
                restored = self._restore_tree(self._plan.survey.own, step)
                for words in restore_own(self._plan.own, restored, self._folder):
                    self._tell.note(words)
            inventory = self._plan.inventory
            known = {tree.name: tree for tree in inventory.trees} if inventory else {}
            for tree in self._plan.survey.config:
                restored = self._restore_tree(tree, step)
                root = Path(os.fsdecode(tree.root))
                root.mkdir(parents=True, exist_ok=True)
                settled = settle(restored, root, known.get(tree.name), self._book.folder / "aside")
                if settled.aside:
                    self._tell.note(
                        f"{len(settled.aside)} files of {root} were replaced; as they were: {self._book.folder}/aside"
                    )
                sync_filesystem(root)

    def _restore_tree(self, tree: TreeRoot, step: StepTime) -> Path:
        """Into a folder of ours, which only root can read."""
        target = self._book.folder / "trees" / tree.name
        if target.exists():
            shutil.rmtree(target)
        restored = restore_entry(self._vault, lookup(tree, b"", self._vault.content), target)
        self._note_failures(os.fsdecode(tree.root), restored)
        step.bytes += restored.bytes
        step.files += restored.files
        return target

    # -- mail flow first -----------------------------------------------------------------------------------------------

    def _mail_flow(self) -> None:
        with self._step("mail flow", "mail flow: what comes in is accepted, and waits for accounts that are not back"):
            self._make_ground()
            self._gate_trees()
            missing = self._missing()
            build_walls(missing)
            site = self._site()
            dovecot = site.services.get("dovecot")
            self._pending = self._runner.run(self._accounts(dovecot, missing))
            doors = self._doors(dovecot)
            if doors is not None and self._pending:
                doors.close(self._pending)
                if self._runner.run(site.services["dovecot"].running()):
                    self._runner.run(site.services["dovecot"].reload())
            self._prepare(site)
            self._gates()
            for name in ("dovecot", "postfix"):
                if name in site.services:
                    self._runner.run(site.services[name].start())
            self._addresses()
            if "postfix" in site.services:
                self._must_answer(self._runner.run(site.services["postfix"].probe(_HERE)))
            self._book.milestone("mail is accepted")

    def _gate_trees(self) -> None:
        """What the gates know of deliveries, shadows and the ledger: before the gates begin, and write there."""
        for unit in self._missing():
            if unit.tree in GATE_TREES:
                self._note_failures(unit.target, place(self._vault, unit, self._ground.staging_for(unit)))
                self._book.note_placed(unit.target)

    def _gates(self) -> None:
        """Those of the configuration, until the agent starts: Postfix and Dovecot hand everything to them."""
        settings = self._plan.own.settings
        if settings is not None and settings.gate.used and settings.me.role == "mail":
            Gate(settings).stand_in(self._book.folder / "gates.log")
            self._tell.note(
                "the gates run without a log: until the agent starts, what is accepted is on this disk only"
            )

    async def _accounts(self, dovecot: object, missing: list[Unit]) -> dict[str, set[str]]:
        """Accounts and their places that are missing: as archived, and as the restored configuration has them."""
        found: dict[str, set[str]] = {}
        for unit in missing:
            for account in unit.accounts:
                found.setdefault(account, set()).add(unit.target)
        if not isinstance(dovecot, Dovecot):
            return found
        layout = await dovecot.layout()
        texts = {path: (read_or_none(Path(path)) or b"").decode("utf-8", "replace") for path in layout.passwd_files}
        targets = {unit.target for unit in missing}
        if texts:
            homes = all_homes(texts)
            for account in await dovecot.accounts():
                for there in account_places(layout, account, homes):
                    if there in targets:
                        found.setdefault(account, set()).add(there)
        return found

    def _doors(self, dovecot: object) -> Doors | None:
        """None where Dovecot's configuration has another syntax."""
        if not isinstance(dovecot, Dovecot):
            return None
        layout = self._runner.run(dovecot.layout(fresh=False))
        if layout.syntax != "2.3":
            self._tell.note("Dovecot 2.4: accounts that are not back are closed for delivery; a login shows them empty")
            return None
        return Doors(Path(self._settings().dovecot.config), Path(layout.state_directory))

    # -- the store -----------------------------------------------------------------------------------------------------

    def _make_ground(self) -> None:
        when = time.strftime("%Y-%m-%dT%H-%M-%S")
        for path in move_aside(self._missing(), when):
            self._tell.note(f"{path} was in the way: it is in .holdfast/aside-{when} beside it")
        self._ground.make()

    def _missing(self) -> list[Unit]:
        return [unit for unit in self._plan.units if unit.target not in self._book.placed]

    def _store(self) -> None:
        missing = self._missing()
        words = f"{len(missing)} of {len(self._plan.units)} units of the store"
        with self._step("store", words) as step:
            if not self._plan.ordered:
                self._make_ground()
            began, left = self._monotonic(), sum(unit.bytes for unit in missing)
            dovecot = self._site().services.get("dovecot") if self._plan.ordered else None
            doors = self._doors(dovecot)
            sofar = 0
            groupware = {unit.target for unit in missing if unit.tree == GROUPWARE_TREE}
            for unit in missing:
                base_bytes, base_files = step.bytes, step.files

                def show(restored: Restored, base: tuple[int, int] = (base_bytes, base_files)) -> None:
                    self._tell.writing(base[0] + restored.bytes, base[1] + restored.files)

                restored = place(self._vault, unit, self._ground.staging_for(unit), progress=show)
                self._book.note_placed(unit.target)
                self._note_failures(unit.target, restored)
                step.bytes, step.files = base_bytes + restored.bytes, base_files + restored.files
                sofar += unit.bytes
                self._came_back(unit, doors)
                if groupware and unit.target in groupware:
                    groupware.discard(unit.target)
                    self._start_groupware(when_done=not groupware)
                passed = self._monotonic() - began
                rest = (left - sofar) * passed / sofar if sofar else 0.0
                self._tell.usable(unit, passed, rest)
            self._ground.finish()
        self._book.milestone("every account is back")

    def _came_back(self, unit: Unit, doors: Doors | None) -> None:
        if not self._plan.ordered:
            return
        for account, places in list(self._pending.items()):
            places.discard(unit.target)
            if not places:
                del self._pending[account]
                if doors is not None:
                    doors.open(account)
                self._opened.add(account)
                self._book.milestone("the first account is back")
        if self._opened and self._monotonic() - self._asked_at > REQUEUE_SECONDS:
            self._runner.run(requeue(self._commands, frozenset(self._opened)))
            self._opened.clear()
            self._asked_at = self._monotonic()

    def _start_groupware(self, *, when_done: bool) -> None:
        """Never before its storage is whole: a client that meets an empty one deletes what it holds."""
        if self._plan.ordered and when_done and (radicale := self._site().services.get("radicale")) is not None:
            self._runner.run(radicale.start())

    # -- service -------------------------------------------------------------------------------------------------------

    def _service(self) -> Outcome:
        with self._step("service", "all services, and a real transaction with each"):
            site = self._site()
            dovecot = site.services.get("dovecot")
            doors = self._doors(dovecot)
            taken_out = doors.take_out() if doors is not None else False
            self._prepare(site)
            self._gates()
            if taken_out and dovecot is not None:
                # Not a reload: Dovecot 2.3.19 dies at one that changes anvil's listeners (seen). Clients connect again.
                self._runner.run(dovecot.stop())
            self._runner.run(site.start())
            self._addresses()
            probes = self._runner.run(site.probe(_HERE))
            if "postfix" in site.services:
                self._runner.run(self._commands.run(["postqueue", "-f"], timeout_seconds=60.0))
        for probe in probes:
            if not probe.ok:
                self._book.fail(probe.service, probe.words)
        outcome = Outcome(probes)
        if outcome.serves:
            self._book.milestone("every service answers")
            self._book.finish()
        return outcome

    def _prepare(self, site: MailSite) -> None:
        if (self._systemd).is_dir():
            helpers = [unit for unit in HELPERS if unit in self._plan.system_units]
            for unit in helpers:
                started = self._runner.run(
                    self._commands.run(["systemctl", "enable", "--now", unit], timeout_seconds=60.0)
                )
                if not started.ok:
                    self._tell.note(started.words)
        for words in self._runner.run(site.prepare()):
            self._tell.note(words)

    def _addresses(self) -> None:
        settings = self._plan.own.settings
        if not self._take_addresses or settings is None or not settings.service.addresses:
            return
        addresses = Addresses(settings.service.interface, settings.service.addresses)
        held = addresses.held()
        wanted = [str(address.ip) for address in addresses.addresses if address not in held]
        if answering := _answering(wanted):
            raise Refused(
                f"something answers at the service address {answering[0]}: another machine serves",
                hint="Stop it, or repeat with --join standby (or none): then the address is left alone.",
            )
        addresses.take()

    def _must_answer(self, probe: ProbeResult) -> None:
        if not probe.ok:
            raise HoldfastError(f"{probe.service}: {probe.words}", hint="See the mail log; repeat the command after.")

    def _settings(self) -> MailSettings:
        settings = self._plan.own.settings
        mail = settings.mail if settings is not None else MailSettings()
        if mail.probe.user and not os.path.exists(mail.probe.password_file):
            mail = replace(mail, probe=ProbeSettings(recipient=mail.probe.smtp_recipient))
        return mail

    def _site(self) -> MailSite:
        return MailSite(self._settings(), self._commands, systemd=self._systemd)

    def _step(self, name: str, words: str) -> AbstractContextManager[StepTime]:
        self._tell.step(words)
        return self._book.step(name)

    def _note_failures(self, place: str, restored: Restored) -> None:
        for failure in restored.failures:
            self._book.fail(os.path.join(place, os.fsdecode(failure.path)), failure.reason)


def _answering(addresses: list[str]) -> list[str]:
    """Those at which a mail service accepts a connection; all are tried at once, for nobody answers usually."""

    def accepts(place: tuple[str, int]) -> bool:
        try:
            with socket.create_connection(place, ANSWER_SECONDS):
                return True
        except OSError:
            return False

    places = [(address, port) for address in addresses for port in (25, 143, 993)]
    with ThreadPoolExecutor(max(len(places), 1)) as pool:
        return [place[0] for place, answers in zip(places, pool.map(accepts, places), strict=True) if answers]
