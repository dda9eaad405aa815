"""The source changes while it is copied; the log from the seed's position on makes everything equal."""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.apply.applier import Applier
from holdfast.apply.aside import Aside
from holdfast.apply.seed import SeedReport
from holdfast.changes.change import Change, Extent, Patch, Put, Remove, Rename
from holdfast.changes.digest import content_digests
from holdfast.trees.stat import Owners
from tests.apply.model import TREE, LogRecord, LogWriter, Model, Op, index_agrees, meta, picture_of, seeded_index
from tests.apply.two_machines import Joiner, Primary, run_async, tree_at

numbers = st.integers(0, 10_000)
operations = st.builds(Op, numbers, numbers, numbers, numbers)


@dataclass
class Moving:
    """A primary whose trees are made by a model's operations, with the log of them."""

    folder: Path
    model: Model = field(default_factory=Model)
    writer: LogWriter = field(default_factory=LogWriter)
    records: list[LogRecord] = field(default_factory=list)
    applier: Applier = field(init=False)
    primary: Primary = field(init=False)

    def __post_init__(self) -> None:
        tree = tree_at(self.folder / "main" / "store")
        index = seeded_index(self.folder / "main.index", tree.root)
        self.applier = Applier(index, (tree,), Owners(), Aside(self.folder / "main-aside"))
        self.applier.recover()
        self.primary = Primary(self.folder, (tree,), index)

    def do(self, *ops: Op) -> None:
        for op in ops:
            self.log(self.model.do(op))
        self.applier.make_durable()

    def log(self, changes: list[Change]) -> None:
        if changes:
            record = self.writer.changes(changes)
            self.records.append(record)
            self.applier.apply(*record)

    async def seed(self, joiner: Joiner, during: list[Op], *, checksum: bool = False) -> SeedReport:
        """Some of the operations before each answer."""
        left = list(during)
        step = max(1, len(left) // 4)

        async def hook(number: int) -> None:
            self.do(*left[:step])
            del left[:step]

        report = await joiner.seed(self.primary.peer(hook), checksum=checksum)
        self.do(*left)
        return report

    async def close(self) -> None:
        await self.primary.source.close()
        self.applier.close()


def follow(joiner: Joiner, moving: Moving) -> None:
    """Apply the log from the seed's position on; everything must then be as at the source."""
    applier = Applier(joiner.index, (joiner.tree,), Owners(), joiner.aside)
    try:
        applier.recover()
        for record in moving.records:
            applier.apply(*record)
        settlement = applier.settle()
        assert settlement.differing == ()
        assert settlement.kept == ()
        assert picture_of(joiner.root) == picture_of(moving.primary.root)
        index_agrees(joiner.index, joiner.root)
    finally:
        applier.close()


@settings(deadline=None, max_examples=60)
@given(st.lists(operations, max_size=25), st.lists(operations, max_size=25), st.lists(operations, max_size=8))
def test_whatever_happens_meanwhile(before: list[Op], during: list[Op], after: list[Op]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(seed_and_follow(Path(folder), before, during, after))


async def seed_and_follow(folder: Path, before: list[Op], during: list[Op], after: list[Op]) -> None:
    moving, joiner = Moving(folder), Joiner.made(folder)
    moving.do(*before)
    await moving.seed(joiner, during)
    moving.do(*after)
    follow(joiner, moving)
    await moving.close()


@settings(deadline=None, max_examples=30)
@given(st.lists(operations, max_size=20), st.lists(operations, max_size=20), st.lists(operations, max_size=20))
def test_a_second_seed_over_an_older_copy(first: list[Op], between: list[Op], during: list[Op]) -> None:
    """What the first one copied is an older state, with other names: reused where equal, else kept aside."""

    async def run(folder: Path) -> None:
        moving, joiner = Moving(folder), Joiner.made(folder)
        moving.do(*first)
        await moving.seed(joiner, between)
        await moving.seed(joiner, during, checksum=True)  # the model's times are few: equal ones mean nothing
        follow(joiner, moving)
        await moving.close()

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run(Path(name)))


@run_async
async def test_a_large_file_changes_between_its_parts(tmp_path: Path) -> None:
    """Overwritten, appended, truncated and grown again, moved while it is fetched: the log mends the torn copy."""
    moving, joiner = Moving(tmp_path), Joiner.made(tmp_path)
    content = bytearray(random.Random(1).randbytes(6_000_000))
    path = b"m.1"
    moving.log([Put(TREE, path, len(content), meta(0), content_digests(bytes(content)), (Extent(0, bytes(content)),))])
    moving.do()
    chance = random.Random(2)

    def patch(at: int, data: bytes, size: int) -> None:
        content[at : at + len(data)] = data
        del content[size:]
        content.extend(bytes(size - len(content)))
        extents = (Extent(at, data),) if data else ()
        moving.log([Patch(TREE, path, size, meta(size), content_digests(bytes(content)), extents)])

    async def hook(number: int) -> None:
        nonlocal path
        for _ in range(5):
            patch(chance.randrange(len(content) - 1000), chance.randbytes(1000), len(content))
        patch(len(content), chance.randbytes(500), len(content) + 500)
        if number % 3 == 2:
            size = len(content) - 700_000
            patch(0, b"", size)
            patch(size, chance.randbytes(10), size + 300_000)
        if number % 4 == 3:
            moving.log([Rename(TREE, path, b"m.%d" % number)])
            path = b"m.%d" % number
        moving.do()

    report = await joiner.seed(moving.primary.peer(hook))
    assert report.counts.newer == 1
    follow(joiner, moving)
    await moving.close()


@run_async
async def test_what_is_deleted_meanwhile_is_an_empty_placeholder_until_the_log_removes_it(tmp_path: Path) -> None:
    moving, joiner = Moving(tmp_path), Joiner.made(tmp_path)
    for name in (b"small", b"large"):
        content = random.Random(1).randbytes(100 if name == b"small" else 3_000_000)
        moving.log([Put(TREE, name, len(content), meta(0), content_digests(content), (Extent(0, content),))])
    moving.do()

    async def hook(number: int) -> None:
        if number == 4:  # the listing is closed
            moving.log([Remove(TREE, b"small"), Remove(TREE, b"large")])
            moving.do()

    report = await joiner.seed(moving.primary.peer(hook))
    assert report.counts.gone == 2
    assert (joiner.root / "small").stat().st_size == 0
    follow(joiner, moving)
    assert picture_of(joiner.root) == {}
    await moving.close()
