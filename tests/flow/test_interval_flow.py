"""Copies at intervals, any operations between and during them, cut anywhere, and a takeover from what was whole.

Three machines without a network: the primary copies, ``first`` takes over when a copy was cut short, ``second`` reads
the log to its end afterwards. What ``first`` holds never changes by that, and ``second`` ends equal to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from holdfast.changes.frame import chain_start
from holdfast.changes.names import Epoch
from holdfast.log.memory import MemoryLogStore
from holdfast.node.primary import pass_over
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from holdfast.watch.watcher import Part, Watcher
from tests.apply.model import INCARNATION, KEY, TREE, LogRecord, LogWriter
from tests.apply.standby import Standby
from tests.watch.conftest import own_tmpfs
from tests.watch.ground import APPEND, COLLECTS_MAX, EXCLUDE, READ_FIRST, assert_equal_pictures, picture
from tests.watch.test_anything import EXAMPLES, SMALL, Operations, paths


class Copier:
    """Copies one tree into the log, as ``capture`` does at intervals."""

    def __init__(self, root: Path, index: Index, log: list[LogRecord], writer: LogWriter, source: str) -> None:
        self.tree = Tree(TreeSpec(TREE, str(root), exclude=EXCLUDE, append=APPEND, read_first=READ_FIRST))
        self.index, self.log, self.writer = index, log, writer
        self.watcher = Watcher(
            index, [self.tree], Owners(), batch_seconds=0.0, limits=SMALL, pause=lambda _: None, sources=(source,)
        )
        self.open = False

    def begin(self, parts_max: int = 1 << 30) -> bool:
        """Scan, up to so many parts. Whether that was all."""
        if not self.open:
            self.watcher.forget()
            self.watcher.start()
            self.open = True
        return self.take(self.watcher.scan(lambda progress: None), parts_max)

    def close(self) -> None:
        cookie = self.watcher.barrier()
        for _ in range(COLLECTS_MAX):
            self.take(self.watcher.collect(wait_seconds=0.01))
            if cookie in self.watcher.passed_cookies():
                break
        else:
            raise AssertionError("a barrier does not pass")
        self.watcher.stop()
        self.open = False
        self.log.append(self.writer.changes((), more=False))
        self.index.commit(self.log[-1].chain, Epoch(1))

    def take(self, parts: Iterable[Part], parts_max: int = 1 << 30) -> bool:
        for number, part in enumerate(parts):
            if number == parts_max:
                return False
            self.log.append(self.writer.changes(part.changes, more=True))
        return True


class Intervals(Operations):
    source = "inotify"
    primary: Copier | None = None

    @initialize()
    def begin(self) -> None:
        base = self.place()
        self.root, self.outside = base / "tree", base / "outside"
        for folder in (self.root, self.outside, base / "first", base / "second"):
            folder.mkdir()
        self.log: list[LogRecord] = []
        self.writer = LogWriter()
        index = Index.open(base / "index.db")
        index.commit(chain_start(INCARNATION), Epoch(1))
        self.primary = Copier(self.root, index, self.log, self.writer, self.source)
        self.first, self.second = Standby(base / "first"), Standby(base / "second")
        self.copy(path="a", seed=1)

    @rule(path=paths, seed=st.integers(0, 1000))
    def copy(self, path: str, seed: int) -> None:
        """A whole one; something happens between its scan and its close."""
        assert self.primary is not None
        self.primary.begin()
        self.write(path, 3000, seed)
        self.primary.close()
        self.first.follow(self.log)
        self.whole = picture(self.first.root, directory_times=False)
        assert_equal_pictures(picture(self.root, self.primary.tree, directory_times=False), self.whole)

    @rule()
    def second_applies(self) -> None:
        """It holds back, too: what it has is a whole copy."""
        self.second.follow(self.log)

    def teardown(self) -> None:
        try:
            if self.primary is not None:
                self._take_over(self.primary, cut_after=len(self.log) % 7)
        finally:
            if self.primary is not None:
                self.primary.watcher.stop()
                self.primary.index.close()
                self.second.__exit__()
            self.stack.close()

    def _take_over(self, primary: Copier, cut_after: int) -> None:
        if primary.begin(cut_after):
            self.write("b", 5000, 7)
            primary.take(primary.watcher.collect(wait_seconds=0))
        store = MemoryLogStore()
        store.incarnation = INCARNATION
        for raw in self.writer.raw:
            store.put(raw)
        self.first.stop()
        index = Index.open(self.first.state / "index")
        chain, _ = asyncio.run(pass_over(index, store.open(), Owners(), KEY))
        assert chain == self.writer.chain
        promoted = Copier(self.first.root, index, self.log, self.writer, self.source)
        promoted.watcher.start()
        promoted.open = True
        self.log.append(self.writer.promotion("first", 2, more=True))
        promoted.begin()
        promoted.close()
        assert_equal_pictures(self.whole, picture(self.first.root, promoted.tree, directory_times=False))
        self.second.follow(self.log)
        assert_equal_pictures(self.whole, picture(self.second.root, directory_times=False))
        index.close()


class IntervalsFanotify(Intervals):
    source = "fanotify"

    def place(self) -> Path:
        return self.stack.enter_context(own_tmpfs())


EFFORT = settings(
    max_examples=max(1, EXAMPLES // 2),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_a_takeover_from_a_copy_cut_anywhere_keeps_the_last_whole_one_with_inotify() -> None:
    run_state_machine_as_test(Intervals, settings=EFFORT)


@pytest.mark.system
def test_a_takeover_from_a_copy_cut_anywhere_keeps_the_last_whole_one_with_fanotify() -> None:
    run_state_machine_as_test(IntervalsFanotify, settings=EFFORT)
