"""Two whole nodes in one process: real trees, watcher, applier, seed; log and bus in memory; no mail software.

One process has one root directory, so the standby's tree stands elsewhere than the primary's: :class:`ElsewherePeer`
says where, and nothing else differs from what an agent builds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import Incarnation
from holdfast.gate.read_only import ReadOnlyMark
from holdfast.log.memory import MemoryBusNetwork, MemoryLogStore
from holdfast.log.port import NOBODY_KNOWN, Leaders, Log
from holdfast.mail.commands import SystemCommands
from holdfast.mail.settings import MailSettings
from holdfast.mail.site import MailSite
from holdfast.node.address import Addresses
from holdfast.node.history import History
from holdfast.node.local import LocalFile
from holdfast.node.node import Node
from holdfast.node.operations import Operations
from holdfast.node.peer import Peer
from holdfast.node.roles import Role
from holdfast.node.serving import Serving
from holdfast.node.settings import CopySettings, FailoverSettings, LogSettings, MachineSettings, Settings
from holdfast.node.status import SiteStatus, site_status
from holdfast.node.tending import Tending
from holdfast.node.world import Clocks, World
from holdfast.trees.spec import TreeSpec
from holdfast.trees.stat import Owners
from holdfast.vault.settings import VaultSettings

SCENARIO_SECONDS_MAX = 180.0
"""Far above what any takes: a scenario that hangs is a failure with a name, not a run that never ends."""
DEADLINE_SECONDS: Final = 30.0
NAMES: Final = ("main", "backup")


class Clock:
    """A wall clock that can be set; the monotonic one runs on whatever happens to it."""

    def __init__(self) -> None:
        self.wrong_by_seconds = 0.0

    def seconds(self) -> float:
        return time.time() + self.wrong_by_seconds

    def ns(self) -> int:
        return time.time_ns() + int(self.wrong_by_seconds * 1e9)

    def clocks(self) -> Clocks:
        return Clocks(self.seconds, self.ns, time.monotonic)


class Door:
    def __init__(self, store: MemoryLogStore) -> None:
        self._store = store

    async def open(self) -> Log | None:
        return self._store.open()

    async def found(self, expected: Incarnation | None, *, ordered: bool) -> Log:
        return self._store.open() if expected is None else self._store.replace(expected)

    async def pin_leader(self) -> Leaders:
        return NOBODY_KNOWN


class ElsewherePeer(Peer):
    """The primary's trees are here in another directory."""

    def __init__(self, world: World, node: Node, root: Path) -> None:
        super().__init__(world, node)
        self._root = root

    async def trees_of(self, machine: str) -> tuple[TreeSpec, ...]:
        return tuple(
            msgspec.structs.replace(spec, root=str(self._root / spec.name)) for spec in await super().trees_of(machine)
        )


class ElsewhereTending(Tending):
    """Does not compare where the trees stand with the primary: it is elsewhere, and that is not another set."""

    def look_at_trees(self) -> None:
        pass


class Machine:
    """A node with its disk; :meth:`start` and :meth:`stop` are the agent's."""

    def __init__(self, site: TwoNodes, name: str, base: Path) -> None:
        self.site = site
        self.name = name
        self.clock = Clock()
        self.base = base
        self.tree = base / "trees" / "store"
        self.tree.mkdir(parents=True)
        (base / "state").mkdir()
        self.bus = site.network.open()
        self.node = self._node()
        self._running: asyncio.Task[None] | None = None

    def _node(self) -> Node:
        base, site = self.base, self.site
        mail = MailSettings(services=(), state_directory=str(base / "mail"))
        settings = Settings(
            site="test",
            machine=self.name,
            machines=site.machines,
            failover=site.failover,
            log=site.log_settings,
            copy=site.copy,
            mail=mail,
            state_directory=str(base / "state"),
            vaults=site.vaults,
        )
        spec = TreeSpec("store", str(self.tree))

        async def find_trees() -> tuple[TreeSpec, ...]:
            return (spec,)

        world = World(
            settings=settings,
            door=Door(site.store),
            bus=self.bus,
            key=None if settings.me.role == "relay" else site.key,
            owners=Owners(),
            history=History(settings.state / "history.jsonl", self.clock.seconds),
            local=LocalFile(settings.state / "node.json"),
            serving=Serving(
                lambda: MailSite(mail, SystemCommands()), Addresses("lo", ()), None, None, ReadOnlyMark(base)
            ),
            clocks=self.clock.clocks(),
            find_trees=find_trees,
            certificate_warning=lambda: None,
            version="test",
        )
        node = Node(world)
        node.tending = ElsewhereTending(node)
        node.peer = ElsewherePeer(world, node, base / "trees")
        return node

    def start(self) -> None:
        """A fresh node on the same disk."""
        if self._running is not None:
            self.node = self._node()
        self._running = asyncio.create_task(self.node.run())

    async def stop(self) -> None:
        if self._running is not None and not self._running.done():
            await self.node.stop()
            await self._running

    @property
    def operations(self) -> Operations:
        return Operations(self.node)

    async def status(self) -> SiteStatus:
        return await site_status(self.node)

    async def warnings(self) -> str:
        return "\n".join(f"{warned.what} ({warned.advice})" for warned in (await self.status()).warnings)

    def events(self) -> list[str]:
        """What the history says, and why."""
        return [f"{event.what}: {event.why}" for event in self.node.world.history.events(500)]

    async def wait_role(self, role: Role) -> None:
        await wait_until(lambda: self.node.role is role, lambda: f"{self.name} is {self.node.role}: {self.node.reason}")

    def write(self, name: str, content: str = "") -> None:
        """A file, put whole into the tree as Dovecot does."""
        target = self.tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        temporary.write_text(content or f"{name} of {self.name}\n")
        temporary.rename(target)

    def contents(self) -> dict[str, bytes]:
        """Every file of the tree by path."""
        found = {}
        for folder, folders, names in os.walk(self.tree):
            folders[:] = [name for name in folders if name != ".holdfast"]
            for name in names:
                path = Path(folder, name)
                found[str(path.relative_to(self.tree))] = path.read_bytes()
        return found


class TwoNodes:
    """``main``, which starts the log, and ``backup``."""

    machines: tuple[MachineSettings, ...] = tuple(
        MachineSettings(name=name, role="mail", address=f"192.0.2.{number}") for number, name in enumerate(NAMES, 11)
    )
    failover = FailoverSettings()
    store_type = MemoryLogStore
    copy = CopySettings(batch_milliseconds=1.0, durable_seconds=0.2, scrub_hours=0)

    def __init__(
        self, base: Path, log_settings: LogSettings | None = None, vaults: tuple[VaultSettings, ...] = ()
    ) -> None:
        self.log_settings = log_settings or LogSettings()
        self.vaults = vaults
        self.store = self.store_type()
        self.network = MemoryBusNetwork()
        self.key = SegmentKey.generate()
        self.main, self.backup = (Machine(self, name, base / name) for name in NAMES)

    async def up(self) -> None:
        """Main is primary, backup its standby."""
        self.main.start()
        self.backup.start()
        await self.main.wait_role(Role.PRIMARY)
        await self.backup.wait_role(Role.STANDBY)

    async def down(self) -> None:
        for machine in (self.main, self.backup):
            await machine.stop()

    async def settle(self, primary: Machine | None = None, standby: Machine | None = None) -> None:
        """What was done on *primary* is applied on *standby*, whatever it had to do to get there."""
        primary, standby = primary or self.main, standby or self.backup
        assert primary.node.primary is not None
        position = await primary.node.primary.barrier(DEADLINE_SECONDS)

        def reached() -> bool:
            following = standby.node.standby
            return following is not None and following.follow.chain.sequence >= position.sequence

        await wait_until(reached, lambda: f"{standby.name} is {standby.node.role}: {standby.node.reason}")

    async def verify(self) -> dict[str, Any]:
        """``holdfast verify --full`` on backup: its report."""
        assert self.backup.node.peer is not None
        report: dict[str, Any] = {}
        async for line in self.backup.node.peer.verify(full=True, heal=False):
            if "report" in line:
                report = msgspec.to_builtins(line["report"])
        return report

    async def assert_equal(self) -> None:
        """Both trees are the same, by their bytes and by verify."""
        await self.settle()
        assert self.backup.contents() == self.main.contents()
        report = await self.verify()
        assert report["remaining"] == 0, report
        assert report["found"] == 0, report


async def wait_until(fact: Callable[[], bool], said: Callable[[], str], seconds_max: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds_max
    while not fact():
        assert time.monotonic() < deadline, said()
        await asyncio.sleep(0.01)


def run(
    base: Path,
    scenario: Callable[[TwoNodes], Awaitable[None]],
    log_settings: LogSettings | None = None,
    vaults: tuple[VaultSettings, ...] = (),
    nodes_type: type[TwoNodes] | None = None,
) -> None:
    """Run *scenario* with both nodes up, and stop them whatever happens."""

    async def whole() -> None:
        nodes = (nodes_type or TwoNodes)(base, log_settings, vaults)
        try:
            await nodes.up()
            await scenario(nodes)
        finally:
            await nodes.down()

    asyncio.run(asyncio.wait_for(whole(), SCENARIO_SECONDS_MAX))
