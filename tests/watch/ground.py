"""A protected tree, a watcher on it, and a mirror made of nothing but the changes that came out."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from holdfast.changes.change import (
    Change,
    Link,
    Mkdir,
    Patch,
    Put,
    Remove,
    Rename,
    Rmdir,
    SetMeta,
    Symlink,
    check_change,
)
from holdfast.changes.digest import DIGEST_BYTES, content_digests
from holdfast.changes.frame import Chain
from holdfast.changes.names import Epoch, Incarnation
from holdfast.changes.names import Sequence as LogSequence
from holdfast.trees.index import Index, NodeKind
from holdfast.trees.replay import Replay
from holdfast.trees.spec import RESERVED_NAME, Tree, TreeSpec
from holdfast.trees.stat import Owners, read_xattrs, unpack_xattrs
from holdfast.watch.limits import Limits
from holdfast.watch.watcher import Part, Watcher

COLLECTS_MAX: Final = 200
EXCLUDE: Final = ("tmp/", "*.lock")
APPEND: Final = ("*.log", "dovecot-uidlist", "m.*")
READ_FIRST: Final = ("dovecot.index*", "dovecot.map.index*")
INCARNATION: Final = Incarnation("ab" * 16)


class Mirror:
    """A reader's tree: changes applied in order, each of which must fit. Checks digests as a reader would."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        os.mkdir(self.root)
        self.digests: dict[int, bytes] = {}
        self._parts: dict[bytes, bytes] = {}

    def _at(self, path: bytes) -> bytes:
        return self.root + b"/" + path if path else self.root

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            check_change(change)
            self._apply(change)

    def _apply(self, change: Change) -> None:
        at = self._at(change.path)
        match change:
            case Put():
                with open(self.root + b".part", "wb") as file:
                    _write(file.fileno(), change)
                assert os.path.islink(at) or not os.path.isdir(at), f"put over a directory: {change.path!r}"
                if change.more:
                    self._parts[change.path] = self.root + b".part"
                else:
                    self._finish(change, self.root + b".part")
            case Patch() if change.path in self._parts:
                with open(self.root + b".part", "r+b") as file:
                    _write(file.fileno(), change)
                if not change.more:
                    del self._parts[change.path]
                    self._finish(change, self.root + b".part")
            case Patch():
                assert stat.S_ISREG(os.lstat(at).st_mode)
                with open(at, "r+b") as file:
                    _write(file.fileno(), change)
                if not change.more:
                    _describe(at, change)
                    self._check_digests(at, change)
            case Rename():
                to = self._at(change.to)
                if os.path.isdir(at) and not os.path.islink(at):
                    assert not os.path.lexists(to), f"rename of a directory onto {change.to!r}"
                else:
                    assert not os.path.isdir(to) or os.path.islink(to)
                os.rename(at, to)
            case Link():
                to = self._at(change.to)
                os.link(at, self.root + b".link", follow_symlinks=False)
                os.rename(self.root + b".link", to)
                if os.path.lexists(self.root + b".link"):
                    os.unlink(self.root + b".link")
            case Remove():
                os.unlink(at)
            case Mkdir():
                os.mkdir(at)
                _describe(at, change)
            case Rmdir():
                os.rmdir(at)
            case SetMeta():
                _describe(at, change)
            case Symlink():
                os.symlink(change.target, self.root + b".link")
                _describe(self.root + b".link", change)
                os.rename(self.root + b".link", at)

    def _finish(self, change: Put | Patch, staged: bytes) -> None:
        _describe(staged, change)
        at = self._at(change.path)
        os.rename(staged, at)
        self._check_digests(at, change)

    def _check_digests(self, at: bytes, change: Put | Patch) -> None:
        with open(at, "rb") as file:
            content = file.read()
        first = change.first_block if isinstance(change, Patch) else 0
        assert len(content) == change.size
        assert content_digests(content)[first * DIGEST_BYTES :] == change.digests, f"digests of {change.path!r}"
        _describe(at, change)


def _write(fd: int, change: Put | Patch) -> None:
    for extent in change.extents:
        os.pwrite(fd, extent.data, extent.offset)
    os.ftruncate(fd, change.size)


def _describe(at: bytes, change: Put | Patch | Mkdir | SetMeta | Symlink) -> None:
    meta = change.meta
    owners = Owners()
    os.chown(at, owners.uid(meta.owner), owners.gid(meta.group), follow_symlinks=False)
    if not os.path.islink(at):
        os.chmod(at, meta.mode)
    known = dict(read_xattrs(at))
    for name, value in meta.xattrs:
        if known.pop(name, None) != value:
            os.setxattr(at, name, value, follow_symlinks=False)
    for name in known:
        os.removexattr(at, name, follow_symlinks=False)
    os.utime(at, ns=(meta.mtime_ns, meta.mtime_ns), follow_symlinks=False)


Entry = tuple[object, ...]


def picture(root: Path | bytes, tree: Tree | None = None, *, directory_times: bool = True) -> dict[bytes, Entry]:
    """All that must be equal of everything in a tree: kind, mode, owner, time, xattrs, bytes, and which names are one
    file. What is excluded or of no protected kind is left out."""
    base = os.fsencode(root)
    pictured: dict[bytes, Entry] = {}
    inodes: dict[int, bytes] = {}
    pending = [b""]
    while pending:
        above = pending.pop()
        for name in sorted(os.listdir(base + b"/" + above if above else base)):
            path = above + b"/" + name if above else name
            at = base + b"/" + path
            status = os.lstat(at)
            is_directory = stat.S_ISDIR(status.st_mode)
            if name == RESERVED_NAME or (tree is not None and tree.excluded(path, directory=is_directory)):
                continue
            common = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, read_xattrs(at))
            if is_directory:
                pictured[path] = ("directory", *common, status.st_mtime_ns if directory_times else 0)
                pending.append(path)
            elif stat.S_ISLNK(status.st_mode):
                pictured[path] = ("symlink", *common, status.st_mtime_ns, os.readlink(at))
            elif stat.S_ISREG(status.st_mode):
                first = inodes.setdefault(status.st_ino, path)
                with open(at, "rb") as file:
                    content = file.read() if status.st_size < 1 << 26 else b""
                pictured[path] = ("file", *common, status.st_mtime_ns, status.st_size, content, first)
    return pictured


def assert_equal_pictures(expected: dict[bytes, Entry], found: dict[bytes, Entry]) -> None:
    def short(entry: Entry | None) -> str:
        return str(entry)[:300]

    differing = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
    assert not differing, "\n".join(
        f"{path!r}:\n   tree   {short(expected.get(path))}\n   mirror {short(found.get(path))}" for path in differing
    )


class Ground:
    """Tree, watcher, mirror; and the log between them as a list of changes since the last commit."""

    def __init__(
        self,
        base: Path,
        *,
        sources: Sequence[str] = ("inotify",),
        limits: Limits | None = None,
        spec: TreeSpec | None = None,
        start: bool = True,
    ) -> None:
        self.base = base
        self.root = base / "tree"
        self.outside = base / "outside"
        self.root.mkdir()
        self.outside.mkdir()
        self.spec = spec or TreeSpec("store", str(self.root), exclude=EXCLUDE, append=APPEND, read_first=READ_FIRST)
        self.tree = Tree(self.spec)
        self.sources = sources
        self.limits = limits or Limits(settle_seconds=0.0, retry_seconds=0.0, limbo_seconds=0.005)
        self.mirror = Mirror(base / "mirror")
        self.index = Index.open(base / "index.db")
        self.sequence = 0
        self.since_commit: list[Change] = []
        self.log: list[Change] = []
        self.watcher = self._watcher()
        if start:
            self.watcher.start()
            self.scan()

    def _watcher(self) -> Watcher:
        return Watcher(
            self.index,
            [self.tree],
            Owners(),
            batch_seconds=0.0,
            limits=self.limits,
            pause=lambda seconds: None,
            sources=self.sources,
        )

    def take(self, parts: Iterable[Part], parts_max: int = 1 << 30) -> list[Change]:
        """Hand parts to the log and the mirror, as the pump does."""
        taken: list[Change] = []
        for number, part in enumerate(parts):
            assert part.changes
            self.mirror.apply(part.changes)
            self.since_commit += part.changes
            self.log += part.changes
            taken += part.changes
            if number + 1 >= parts_max:
                break
        return taken

    def scan(self) -> list[Change]:
        return self.take(self.watcher.scan(lambda progress: None))

    def collect(self) -> list[Change]:
        """Everything that happened until now is in the mirror afterwards."""
        cookie = self.watcher.barrier()
        taken: list[Change] = []
        for _ in range(COLLECTS_MAX):
            taken += self.take(self.watcher.collect(wait_seconds=0.01))
            if cookie in self.watcher.passed_cookies():
                return taken
        raise AssertionError(f"a barrier does not pass: {self.watcher._reconciler.scene.__dict__}")

    def settle(self) -> None:
        """Collect until the times of directories have been logged, too."""
        self.collect()
        for _ in range(COLLECTS_MAX):
            if self.watcher._reconciler.due_seconds() is None:
                return
            self.take(self.watcher.collect(wait_seconds=0.05))
        raise AssertionError("directories do not settle")

    def commit(self) -> None:
        self.sequence += 1
        self.index.commit(Chain(INCARNATION, LogSequence(self.sequence), bytes(32)), Epoch(1))
        self.since_commit.clear()

    def crash(self) -> None:
        """The agent dies and starts again: what was not committed of the index is read back from the log."""
        self.watcher.stop()
        self.index.rollback()
        replay = Replay(self.index, Owners())
        for change in self.since_commit:
            replay.apply(change)
        self.commit()
        self.watcher = self._watcher()
        self.watcher.start()
        self.scan()

    def check(self) -> None:
        """Tree and mirror are equal, and the index says the same."""
        assert_equal_pictures(picture(self.root, self.tree), picture(self.mirror.root))
        self.check_index()

    def check_index(self) -> None:
        root = self.index.directory("store", b"")
        assert root is not None
        owners = Owners()
        found = {}
        for path, node in self.index.walk(root):
            assert node.kind != NodeKind.FILE or len(node.content) == DIGEST_BYTES * -(-node.size // 65536)
            found[path] = (node.kind, node.mode, owners.user(node.uid), node.size, unpack_xattrs(node.xattrs))
        kinds = {"directory": 1, "file": 2, "symlink": 3}
        expected = {
            path: (kinds[str(e[0])], e[1], owners.user(int(str(e[2]))), e[6] if e[0] == "file" else 0, e[4])
            for path, e in picture(self.mirror.root).items()
        }
        assert found == expected
        totals = self.index.totals()
        assert totals.directories == 1 + sum(e[0] == "directory" for e in picture(self.mirror.root).values())

    def close(self) -> None:
        self.watcher.stop()
        self.index.close()


def kinds(changes: Iterable[Change]) -> list[str]:
    """The kinds of changes, without metadata of directories that settled."""
    return [type(change).__name__ for change in changes if not isinstance(change, SetMeta)]


def in_ground(base: Path, **options: object) -> Iterator[Ground]:
    ground = Ground(base, **options)  # type: ignore[arg-type]
    try:
        yield ground
    finally:
        ground.close()


def empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path
