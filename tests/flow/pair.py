"""A primary that watches, a standby that applies, and the log between them: sealed frames in a list.

Appending to the log succeeds at once; everything else can stop anywhere. No network, no log server: what is shown is
that watch and apply agree about every change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from holdfast.changes.change import Change
from holdfast.changes.frame import Chain, chain_start
from holdfast.changes.names import Epoch
from holdfast.changes.names import Sequence as LogSequence
from holdfast.trees.index import Index
from holdfast.trees.replay import Replay
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from holdfast.watch.limits import Limits
from holdfast.watch.watcher import Part, Watcher
from tests.apply.model import INCARNATION, TREE, LogRecord, LogWriter
from tests.apply.standby import Standby
from tests.watch.ground import APPEND, COLLECTS_MAX, EXCLUDE, READ_FIRST, assert_equal_pictures, picture


class Pair:
    """Primary and standby. Has what :class:`tests.watch.ground.Ground` has, so that its rules drive it, too."""

    def __init__(self, base: Path, *, sources: Sequence[str], limits: Limits) -> None:
        self.root, self.outside, away = base / "tree", base / "outside", base / "standby"
        for folder in (self.root, self.outside, away):
            folder.mkdir()
        spec = TreeSpec(TREE, str(self.root), exclude=EXCLUDE, append=APPEND, read_first=READ_FIRST)
        self.tree = Tree(spec)
        self.sources, self.limits = sources, limits
        self.writer = LogWriter()
        self.log: list[LogRecord] = []
        self.index = Index.open(base / "index.db")
        self.index.commit(chain_start(INCARNATION), Epoch(1))
        self.standby = Standby(away)
        self._start()

    # -- the primary ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.watcher = Watcher(
            self.index,
            [self.tree],
            Owners(),
            batch_seconds=0.0,
            limits=self.limits,
            pause=lambda seconds: None,
            sources=self.sources,
        )
        self.watcher.start()
        self.take(self.watcher.scan(lambda progress: None))

    def _append(self, changes: Iterable[Change], *, more: bool) -> None:
        self.log.append(self.writer.changes(changes, more=more))

    def take(self, parts: Iterable[Part], parts_max: int = 1 << 30) -> None:
        """Append parts to the log, as the pump does."""
        for number, part in enumerate(parts):
            self._append(part.changes, more=part.more)
            if number + 1 >= parts_max:
                break

    def _in_a_batch(self) -> bool:
        return bool(self.log) and self.log[-1].frame.header.more

    def collect(self) -> None:
        """Everything that happened until now is in the log afterwards."""
        cookie = self.watcher.barrier()
        for _ in range(COLLECTS_MAX):
            self.take(self.watcher.collect(wait_seconds=0.01))
            if cookie in self.watcher.passed_cookies():
                return
        raise AssertionError("a barrier does not pass")

    def _end(self) -> Chain:
        return self.log[-1].chain if self.log else chain_start(INCARNATION)

    def commit(self) -> None:
        """The watcher's index is made durable, at whole instants only."""
        if not self._in_a_batch():
            self.index.commit(self._end(), Epoch(1))

    def crash(self) -> None:
        """The primary's agent dies and starts again: it reads its own records since the commit, then scans."""
        self.watcher.stop()
        self.index.rollback()
        replay = Replay(self.index, Owners())
        for frame, _ in self.log[self.index.chain.sequence :]:
            if not frame.changes:
                replay.abandon()
            for change in frame.changes:
                replay.apply(change)
        if self._in_a_batch():
            replay.abandon()
            self._append((), more=True)  # readers are told that the batch they know the beginning of ends here
        self.index.commit(self._end(), Epoch(1))
        self._start()

    # -- the standby ---------------------------------------------------------------------------------------------------

    def apply(self, frames: int) -> None:
        """The standby follows for a while."""
        at = self.standby.applier.chain.sequence
        self.standby.follow(self.log[: at + frames])

    def crash_standby(self, part: int) -> None:
        """It dies after *part* changes of the next frame, and recovers."""
        for frame, chain in self.log[self.standby.applier.chain.sequence :][:1]:
            self.standby.applier.apply(frame._replace(changes=frame.changes[:part]), chain)
        self.standby.crash()
        self.standby.start()

    def check(self) -> None:
        """All that is in the log is applied: both trees are equal, and the standby had nothing to wonder about."""
        self.standby.follow(self.log)
        assert_equal_pictures(
            picture(self.root, self.tree, directory_times=False), picture(self.standby.root, directory_times=False)
        )
        assert self.standby.applier.settle().differing == ()
        assert list(self.standby.applier.steps.oddities) == []
        assert self.standby.applier.chain.sequence == LogSequence(len(self.log))
        ours, theirs = (_walked(index) for index in (self.index, self.standby.index))
        assert ours == theirs

    def close(self) -> None:
        self.watcher.stop()
        self.index.close()
        self.standby.__exit__()


def _walked(index: Index) -> dict[bytes, tuple[object, ...]]:
    """What an index says that travels. Times of directories follow later than the rest."""
    root = index.directory(TREE, b"")
    assert root is not None
    return {
        path: (node.kind, node.mode, node.uid, node.gid, node.size, node.content, node.xattrs)
        for path, node in index.walk(root)
    }
