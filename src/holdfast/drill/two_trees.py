"""The same part of two machines' trees, listed by reading the disks: for promise 3, apart from the product's verify."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from holdfast.drill.checkers import prefix
from holdfast.drill.checkers.facts import TreeEntry
from holdfast.drill.checkers.findings import Difference
from holdfast.drill.lab.lab import Machine
from holdfast.mail.dovecot_files import store_tree
from holdfast.mail.radicale import EXCLUDE
from holdfast.trees.spec import Tree, TreeSpec

STORE: Final = Tree(store_tree("store", "/var/vmail", drivers=frozenset({"maildir"})))
GROUPWARE: Final = Tree(TreeSpec(name="groupware", root="/var/lib/radicale/collections", exclude=EXCLUDE))
LOOKS_MAX: Final = 3
"""A server may still be finishing something in the background when nobody asks it anything."""
LOOK_AGAIN_SECONDS: Final = 1.0
KINDS: Final = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}


def listed(root: Path, tree: Tree, below: Iterable[str]) -> prefix.Tree:
    """Of what *tree* protects in *root*, that which lies at or below the relative paths *below*.

    Raises FileNotFoundError when something vanished meanwhile.
    """
    found: dict[bytes, TreeEntry] = {}
    for name in below:
        if (root / name).exists():
            _list(root, root / name, tree, found)
    return found


def _list(root: Path, path: Path, tree: Tree, found: dict[bytes, TreeEntry]) -> None:
    relative = bytes(path.relative_to(root))
    status = path.lstat()
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "other")
    if tree.excluded(relative, directory=kind == "directory"):
        return
    content = bytes(path.readlink()) if kind == "symlink" else path.read_bytes() if kind == "file" else b""
    found[relative] = TreeEntry(
        kind,
        stat.S_IMODE(status.st_mode),
        str(status.st_uid),
        str(status.st_gid),
        status.st_mtime_ns,
        status.st_size,
        hashlib.blake2b(content, digest_size=16).hexdigest(),
    )
    if kind == "directory":
        for child in sorted(path.iterdir()):
            _list(root, child, tree, found)


def differences(
    primary: Machine, standby: Machine, parts: Iterable[tuple[Tree, list[str]]], settle: Callable[[], None]
) -> list[Difference]:
    """*settle*: everything done so far on the primary has been applied by the standby."""
    wrong: list[Difference] = []
    for _ in range(LOOKS_MAX):
        settle()
        try:
            wrong = [each for tree, below in parts for each in _compared(primary, standby, tree, below)]
        except FileNotFoundError:
            continue
        if not wrong:
            return []
        time.sleep(LOOK_AGAIN_SECONDS)
    return wrong


def _compared(primary: Machine, standby: Machine, tree: Tree, below: list[str]) -> list[Difference]:
    sides = [listed(machine.path(tree.root), tree, below) for machine in (primary, standby)]
    return prefix.prefix(str(tree.name), *sides)
