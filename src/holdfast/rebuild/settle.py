"""Configuration put where programs read it: file by file, each replaced whole; what stood there is kept aside.

The trees were restored into a folder of ours before (:func:`~holdfast.vault.restore.restore_path`); from there each
file is copied beside its target and renamed over it. A directory that the tree protects whole is made equal: a file
that the packages brought and the old machine did not have goes aside too (``conf.d/*.conf`` is read by pattern).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.files import sync_folder
from holdfast.mail.files import PARTIAL_SUFFIX
from holdfast.mail.inventory import ProtectedTree

COMPILED_ENDINGS: Final = (".db", ".lmdb", ".cdb", ".pag", ".dir")
"""Compiled tables are never copied: what stands here belongs to a source that is replaced, and is made anew."""


class Settled(NamedTuple):
    """What was done. *aside*: absolute paths that were replaced or taken away."""

    written: int
    equal: int
    aside: tuple[str, ...]


def settle(restored: Path, root: Path, tree: ProtectedTree | None, aside: Path) -> Settled:
    """Bring *restored* (a tree as restored) to *root*. *tree*: what it protected; None: nothing is taken away.

    May be repeated. Raises OSError.
    """
    written = equal = 0
    moved: list[str] = []
    overrides = {os.path.normpath(path) for path in tree.overrides} if tree else set()
    for source, relative in _walk(restored):
        target = root / relative
        if str(relative) in overrides:
            continue
        status = source.lstat()
        if stat.S_ISDIR(status.st_mode):
            _directory(target, aside, moved)
        elif _same(source, target):
            equal += 1
        else:
            if os.path.lexists(target):
                _keep(target, aside, moved)
            _copy(source, target)
            written += 1
    for relative in _whole(tree, restored):
        for path in _extra(restored / relative, root / relative, overrides, root):
            _keep(path, aside, moved)
    for source, relative in reversed(list(_walk(restored))):
        if source.is_dir() and not source.is_symlink() and (str(relative) != "." or (tree and not tree.include)):
            _copy_meta(source, root / relative)
            sync_folder(root / relative)
    return Settled(written, equal, tuple(moved))


def _walk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Everything below, a directory before what is in it."""
    yield folder, Path(".")
    for above, directories, files in os.walk(folder):
        directories.sort()
        for name in [*directories, *sorted(files)]:
            path = Path(above, name)
            yield path, path.relative_to(folder)


def _whole(tree: ProtectedTree | None, restored: Path) -> list[Path]:
    """Directories that the tree protects with everything in them."""
    if tree is None:
        return []
    names = tree.include or (".",)
    return [Path(name) for name in names if (restored / name).is_dir() and not (restored / name).is_symlink()]


def _extra(restored: Path, target: Path, overrides: set[str], root: Path) -> list[Path]:
    """What stands below *target* and not below *restored*; not below what is extra itself."""
    found = []
    for above, directories, files in os.walk(target):
        beside = restored / Path(above).relative_to(target)
        for name in [*directories, *files]:
            path = Path(above, name)
            own = str(path.relative_to(root)) in overrides or name.endswith(COMPILED_ENDINGS)
            if not own and not os.path.lexists(beside / name):
                found.append(path)
        directories[:] = [name for name in directories if os.path.lexists(beside / name)]
    return found


def _directory(target: Path, aside: Path, moved: list[str]) -> None:
    if os.path.lexists(target) and not target.is_dir():
        _keep(target, aside, moved)
    target.mkdir(parents=True, exist_ok=True)


def _keep(path: Path, aside: Path, moved: list[str]) -> None:
    """Move *path* under *aside* at its own path; a second time the first one counts."""
    kept = aside / path.relative_to("/")
    moved.append(str(path))
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.path.lexists(kept):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    else:
        shutil.move(path, kept)


def _same(source: Path, target: Path) -> bool:
    """Equal in kind, content, owner and permissions; times do not matter to programs that read configuration."""
    try:
        one, other = source.lstat(), target.lstat()
    except OSError:
        return False
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(other.st_mode):
        return False
    if stat.S_ISLNK(one.st_mode):
        return os.readlink(source) == os.readlink(target)
    facts = ("st_mode", "st_uid", "st_gid", "st_size")
    return all(getattr(one, fact) == getattr(other, fact) for fact in facts) and (
        source.read_bytes() == target.read_bytes()
    )


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(target.name + PARTIAL_SUFFIX)
    temporary.unlink(missing_ok=True)
    if source.is_symlink():
        os.symlink(os.readlink(source), temporary)
        status = source.lstat()
        os.chown(temporary, status.st_uid, status.st_gid, follow_symlinks=False)
    else:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(descriptor)
        _copy_meta(source, temporary)
    os.replace(temporary, target)


def _copy_meta(source: Path, target: Path) -> None:
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)
