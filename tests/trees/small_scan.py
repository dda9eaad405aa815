"""Builds an index from trees as they stand: the least a scan does, for tests of what reads an index."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.changes.digest import content_digests
from holdfast.changes.frame import Chain
from holdfast.changes.names import Epoch, Incarnation, Sequence
from holdfast.trees.index import SUPER_ROOT, Index, Node, NodeKind
from holdfast.trees.spec import Tree
from holdfast.trees.stat import handle_at, observed, pack_xattrs, read_xattrs

INCARNATION = Incarnation("ab" * 16)


def chain_at(sequence: int) -> Chain:
    return Chain(INCARNATION, Sequence(sequence), bytes(31) + bytes((sequence % 256,)))


def scan_into(index: Index, trees: tuple[Tree, ...], sequence: int) -> None:
    """The index says exactly what stands in *trees*, committed at *sequence*."""
    index.clear()
    for tree in trees:
        inodes: dict[int, int] = {}
        root = os.fsencode(tree.root)
        node_id = index.add(_row(root))
        index.bind(SUPER_ROOT, tree.name.encode(), node_id)
        pending = [(b"", node_id)]
        while pending:
            above, directory = pending.pop()
            for name in sorted(os.listdir(root + b"/" + above)):
                path = above + b"/" + name if above else name
                status = os.lstat(root + b"/" + path)
                seen = observed(status)
                if seen is None or tree.excluded(path, directory=seen.kind is NodeKind.DIRECTORY):
                    continue
                known = inodes.get(status.st_ino) if seen.kind is not NodeKind.DIRECTORY else None
                node_id = index.add(_row(root + b"/" + path)) if known is None else known
                inodes[status.st_ino] = node_id
                index.bind(directory, name, node_id)
                if seen.kind is NodeKind.DIRECTORY:
                    pending.append((path, node_id))
    index.commit(chain_at(sequence), Epoch(1))


def scanned(file: Path, trees: tuple[Tree, ...], sequence: int = 1) -> Index:
    index = Index.open(file)
    scan_into(index, trees, sequence)
    return index


def _row(path: bytes) -> Node:
    seen = observed(os.lstat(path))
    assert seen is not None
    content = b""
    if seen.kind is NodeKind.FILE:
        content = content_digests(Path(os.fsdecode(path)).read_bytes())
    elif seen.kind is NodeKind.SYMLINK:
        content = os.readlink(path)
    above, _, name = path.rpartition(b"/")
    directory = os.open(above, os.O_PATH)
    handle = handle_at(directory, name)
    os.close(directory)
    return Node(
        0,
        seen.kind,
        handle,
        seen.ino,
        seen.mode,
        seen.uid,
        seen.gid,
        seen.size,
        seen.mtime_ns,
        seen.ctime_ns,
        content,
        pack_xattrs(read_xattrs(path)),
    )
