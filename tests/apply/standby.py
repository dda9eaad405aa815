"""A standby for tests: a tree, its index and its applier, which can stop in every way."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import apsw

from holdfast.apply.applier import Applier
from holdfast.apply.aside import Aside
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from tests.apply.model import TREE, LogRecord, seeded_index


class Standby:
    """In *folder*; what stands there already is taken up, else the tree is empty and at the beginning of the log."""

    def __init__(
        self, folder: Path, *, state: Path | None = None, exclude: tuple[str, ...] = (), overrides: tuple[str, ...] = ()
    ) -> None:
        self.state = state or folder
        self.root = folder / "root"
        self.tree = Tree(TreeSpec(TREE, str(self.root), exclude=exclude, overrides=overrides))
        self.runs = 0
        self.owners = Owners()
        if not self.root.exists():
            self.root.mkdir()
            seeded_index(self.state / "index", self.root).close()
        self.start()

    def start(self) -> None:
        self.runs += 1
        self.index = Index.open(self.state / "index")
        self.aside = Aside(self.state / "aside" / str(self.runs))
        self.applier = Applier(self.index, [self.tree], self.owners, self.aside)
        self.running = True
        self.report = self.applier.recover()

    def __enter__(self) -> Standby:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.crash()

    def stop(self) -> None:
        self.running = False
        self.applier.close()

    def crash(self) -> None:
        """As if the process had died: what is uncommitted is gone, the tree stays as it is."""
        self.running = False
        with suppress(apsw.Error):  # a disk without power cannot roll back
            self.applier.close(clean=False)

    def follow(self, log: list[LogRecord]) -> None:
        """Apply what is not yet applied."""
        for record in log[self.applier.chain.sequence :]:
            assert self.applier.apply(*record)
