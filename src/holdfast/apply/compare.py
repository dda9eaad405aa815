"""How a thing in a tree differs from its node in the index."""

from __future__ import annotations

import os

from holdfast.apply.place import Place
from holdfast.changes.digest import BLOCK_BYTES, block_digest
from holdfast.trees.index import Node, NodeKind
from holdfast.trees.stat import observed, pack_xattrs, read_xattrs


def difference(place: Place, path: bytes, node: Node) -> str:
    """How what stands at *path* differs from *node*; empty when it does not. Reads the whole content of a file."""
    status = place.status(path)
    seen = None if status is None else observed(status)
    if seen is None:
        return "missing"
    if seen.kind != node.kind:
        return "another kind of thing"
    if (seen.mode, seen.uid, seen.gid) != (node.mode, node.uid, node.gid) and seen.kind != NodeKind.SYMLINK:
        return "mode or owner"
    if seen.kind == NodeKind.DIRECTORY:
        return ""
    if seen.size != node.size:
        return "size"
    if content_of(place, path, seen.kind)[1] != node.content:
        return "content"
    directory, name = place.parent(path)
    if pack_xattrs(read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name))) != node.xattrs:
        return "extended attributes"
    return "" if seen.mtime_ns == node.mtime_ns else "modification time"


def content_of(place: Place, path: bytes, kind: NodeKind) -> tuple[int, bytes]:
    """Size and content of something, as a node has them."""
    if kind == NodeKind.DIRECTORY:
        return 0, b""
    if kind == NodeKind.SYMLINK:
        directory, name = place.parent(path)
        return 0, os.readlink(name, dir_fd=directory)
    fd = place.open(path, os.O_RDONLY)
    try:
        size, digests = 0, []
        while block := os.pread(fd, BLOCK_BYTES, size):
            digests.append(block_digest(block))
            size += len(block)
        return size, b"".join(digests)
    finally:
        os.close(fd)
