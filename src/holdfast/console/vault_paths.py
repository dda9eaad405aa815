"""Paths on command lines: of trees to back up, and inside snapshots."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from holdfast.errors import ConfigurationError, Refused
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.vault.faults import PathUnknown
from holdfast.vault.record import Snapshot, TreeRoot


class PathIn(NamedTuple):
    """A path in a tree; ``b""``: the tree itself."""

    tree: TreeRoot
    path: bytes


def path_in(snapshot: Snapshot, text: str, tree: str = "") -> PathIn:
    """What *text* means in *snapshot*: ``TREE/PATH``; an absolute path, as it stood on its machine; with *tree*, or
    when the snapshot has one tree only, a path in that. Raises PathUnknown."""
    path = os.fsencode(text)
    if path.startswith(b"/"):
        return _absolute(snapshot, os.path.normpath(path), tree)
    path = os.path.normpath(path) if path else b""
    path = b"" if path == b"." else path
    if tree:
        return PathIn(snapshot.tree(tree), path)
    first, _, rest = path.partition(b"/")
    for root in snapshot.trees:
        if root.name.encode() == first:
            return PathIn(root, rest)
    if len(snapshot.trees) == 1:
        return PathIn(snapshot.trees[0], path)
    names = ", ".join(root.name for root in snapshot.trees)
    hint = f"Write TREE/PATH, or a path from / on. The snapshot's trees: {names}."
    raise PathUnknown(f"{text!r} begins with no tree of the snapshot", hint=hint)


def _absolute(snapshot: Snapshot, path: bytes, tree: str) -> PathIn:
    roots = [root for root in snapshot.trees if not tree or root.name == tree]
    for root in sorted(roots, key=lambda root: -len(root.root)):
        if path == root.root or path.startswith(root.root.rstrip(b"/") + b"/"):
            return PathIn(root, path[len(root.root) :].strip(b"/"))
    stood = "; ".join(f"{root.name} at {os.fsdecode(root.root)}" for root in roots)
    raise PathUnknown(f"{os.fsdecode(path)} is in no tree of the snapshot", hint=f"They stood: {stood}.")


def folder_trees(arguments: Sequence[str], exclude: tuple[str, ...], location: str) -> list[Tree]:
    """Trees for ``PATH`` and ``NAME=PATH`` of a command line. Raises ConfigurationError; Refused: the vault at
    *location* stands in one of them and would back itself up."""
    specs: list[TreeSpec] = []
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator or "/" in name:
            name, path = "", argument
        root = os.path.abspath(path)
        if not os.path.lexists(root):
            raise ConfigurationError(f"{root} is not there", hint="Look whether it is mounted, or mend the path.")
        if not os.path.isdir(root):
            raise ConfigurationError(f"{root} is no directory", hint="Give the directory it stands in.")
        root = os.path.realpath(root)
        if any(spec.root == root for spec in specs):
            continue
        name = name or _tree_name(root, [spec.name for spec in specs])
        if any(spec.name == name for spec in specs):
            raise ConfigurationError(f"two trees are called {name}", hint="Name them: NAME=PATH.")
        specs.append(TreeSpec(name, root, exclude=exclude).checked())
    trees = [Tree(spec) for spec in specs]
    for tree in trees:
        _refuse_vault_inside(tree, location)
    return trees


def _tree_name(root: str, taken: list[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", os.path.basename(root).lower()).strip("-")[:28].strip("-") or "tree"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


def _refuse_vault_inside(tree: Tree, location: str) -> None:
    if "://" in location:
        return
    vault = Path(os.path.realpath(location))
    if tree.root not in (vault, *vault.parents):
        return
    inside = vault.relative_to(tree.root)
    steps = [inside, *inside.parents][:-1]
    if any(tree.excluded(os.fsencode(step), directory=True) for step in steps):
        return
    hint = f"Put the vault elsewhere (on another disk, best on another machine), or --exclude '/{inside}/'."
    raise Refused(f"the vault {vault} stands in {tree.root}: each backup would hold those before", hint=hint)
