"""A primary that answers and a joiner that asks, without a network: what seed, verify and heal are tested with."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

from holdfast.apply.aside import Aside
from holdfast.apply.peer import Peer
from holdfast.apply.seed import SeedProgress, SeedReport, seed
from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import MachineName
from holdfast.trees.index import Index, IndexReader
from holdfast.trees.rate import TokenBucket
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from holdfast.watch.source import Source
from tests.trees.small_scan import scan_into, scanned

KEY = SegmentKey(b"k" * 32)
MAIN, BACKUP = MachineName("main"), MachineName("backup")
P = ParamSpec("P")
Hook = Callable[[int], Awaitable[None]]


def run_async(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that is a coroutine, run to its end."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def no_pause(seconds: float) -> None:
    """Nothing to wait for: the other side is in this process."""


async def no_hook(number: int) -> None:
    """Nothing happens between the questions."""


def tree_at(root: Path, **spec: tuple[str, ...]) -> Tree:
    root.mkdir(parents=True, exist_ok=True)
    return Tree(TreeSpec("store", str(root), **spec))


@dataclass
class Primary:
    """Trees, an index of them, and a source."""

    folder: Path
    trees: tuple[Tree, ...]
    index: Index
    rate: float = 0
    barriers: int = 0
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        self.source = Source(
            machine=MAIN,
            key=KEY,
            trees=self.trees,
            owners=Owners(),
            snapshot=self.snapshot,
            barrier=self.barrier,
            rate=TokenBucket(self.rate, time.monotonic),
            audit_rate=TokenBucket(0, time.monotonic),
            clock=time.monotonic,
            pause=no_pause,
            pause_thread=time.sleep,
        )

    @classmethod
    def made(cls, folder: Path, **spec: tuple[str, ...]) -> Primary:
        trees = (tree_at(folder / "main" / "store", **spec),)
        return cls(folder, trees, scanned(folder / "main.index", trees))

    @property
    def root(self) -> Path:
        return self.trees[0].root

    async def snapshot(self) -> IndexReader:
        return self.index.reader()

    async def barrier(self) -> None:
        self.barriers += 1

    def rescan(self, sequence: int) -> None:
        scan_into(self.index, self.trees, sequence)

    def peer(self, hook: Hook = no_hook) -> Peer:
        """*hook* runs before each question is answered."""
        asked = 0

        async def call(message: bytes) -> bytes:
            nonlocal asked
            asked += 1
            await hook(asked)
            return await self.source.handle("exchange", message)

        return Peer(call, key=KEY, requester=BACKUP, answerer=MAIN, pause=no_pause)


@dataclass
class Joiner:
    """Trees to be made equal, and their index."""

    folder: Path
    tree: Tree
    index: Index
    aside: Aside
    told: list[SeedProgress] = field(default_factory=list)

    @classmethod
    def made(cls, folder: Path, **spec: tuple[str, ...]) -> Joiner:
        tree = tree_at(folder / "backup" / "store", **spec)
        return cls(folder, tree, Index.open(folder / "backup.index"), Aside(folder / "aside" / "today"))

    @property
    def root(self) -> Path:
        return self.tree.root

    async def seed(
        self, peer: Peer, *, checksum: bool = False, doubt_since_ns: int | None = None, keep_replaced: bool = True
    ) -> SeedReport:
        return await seed(
            peer,
            self.index,
            {"store": self.tree},
            Owners(),
            self.aside,
            progress=self.told.append,
            clock=time.monotonic,
            checksum=checksum,
            doubt_since_ns=doubt_since_ns,
            keep_replaced=keep_replaced,
        )


def write(path: Path, content: bytes, mtime_ns: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def fill(root: Path, chance: random.Random, files: int = 60) -> None:
    """Files of many sizes, odd names, hard links, symlinks, holes, attributes, empty directories."""
    odd = [b"new\nline", b"\xff\xfe", b"n" * 255, b" ", b"-rf", "\u00fcber".encode(), b"a'b\"c"]
    directories = [root]
    for number in range(8):
        name = odd[number] if number < len(odd) else b"d%d" % number
        directory = Path(os.fsdecode(os.fsencode(chance.choice(directories)) + b"/" + name))
        directory.mkdir(mode=chance.choice((0o700, 0o750, 0o2770)))
        directories.append(directory)
    made: list[Path] = []
    for number in range(files):
        size = chance.choice((0, 1, 200, 4096, 65536, 65537, 300_000, 700_000))
        made.append(write(chance.choice(directories) / f"f{number}", chance.randbytes(size), chance.randrange(10**18)))
        os.chmod(made[-1], chance.choice((0o600, 0o644, 0o4755)))
        os.chown(made[-1], chance.choice((0, 1234)), chance.choice((0, 4321)))
        os.utime(made[-1], ns=(0, chance.randrange(10**18)))
    os.setxattr(made[0], "user.colour", b"green")
    os.link(made[1], chance.choice(directories) / "linked one")
    os.link(made[1], chance.choice(directories) / "linked two")
    os.link(made[6], directories[-1] / "linked large")
    os.symlink("/nowhere", root / "dangling")
    os.symlink(b"..", os.fsencode(directories[1]) + b"/loop \xff")
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(5_000_000)
        sparse.write(b"end")
    (root / "empty").mkdir()
