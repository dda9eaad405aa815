"""The vocabulary: one fact about one path each.

A change names its place by tree and path. A path is ``bytes``: relative to the tree's root, components separated by one
``/``, each any name Linux allows (1 to 255 bytes, no NUL, not ``.`` or ``..``); the root itself is ``b""``.

Changes are facts in order. Applied one after another to the tree they were made for, they reproduce it; what a change
means is fixed here and not by the code that applies it:

========  ==============================================================================================================
kind      meaning
========  ==============================================================================================================
put       a new regular file stands at ``path`` (replacing what other file stood there, which lives on under its other
          names, if any). ``extents`` hold its bytes; what they leave out is a hole (zeros). With ``more`` the content
          continues: patches of the same path follow at once, and nothing is visible at ``path`` until the one without
          ``more`` has come. Parts with ``more`` carry no digests, and a size that may still grow; the last part has
          the digests of the whole (``first_block`` 0). Any other change, or a frame without changes (a promotion, a
          writer that begins anew), ends it unfinished: then it never came to be.
patch     the regular file at ``path`` keeps its identity (all its names see it) and gets these bytes, then this size
rename    what stands at ``path`` (file, symlink, or directory with all below) stands at ``to``; a file standing at
          ``to`` is replaced in the same instant
link      the file at ``path`` has the further name ``to``; a file standing at ``to`` is replaced
remove    the file or symlink at ``path`` has this name no more
mkdir     a new, empty directory
rmdir     the empty directory is gone
meta      mode, owner, group, mtime and xattrs of what stands at ``path`` are these
symlink   a symbolic link to ``target`` (any bytes) stands at ``path``; a file standing there is replaced
========  ==============================================================================================================

Owners travel by name, because two machines may number them differently; an owner without a name on the sending machine
travels as ``#`` and its number.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from msgspec import Struct

from holdfast.changes.digest import BLOCK_BYTES, DIGEST_BYTES, block_count
from holdfast.errors import HoldfastError

NAME_BYTES_MAX: Final = 255
"""NAME_MAX of Linux filesystems, limits.h."""
PATH_BYTES_MAX: Final = 4095
"""PATH_MAX less its NUL, limits.h: the kernel takes no longer path in one call."""


_NAME: Final = rb"(?!\.{1,2}(?:/|\Z))[^/\0]{1,%d}" % NAME_BYTES_MAX
_PATH: Final = re.compile(_NAME + b"(?:/" + _NAME + b")*")


class ChangeInvalid(HoldfastError):
    """A change breaks the rules above: it comes from a newer format, a bug, or somebody who should not write."""


class Meta(Struct, frozen=True, array_like=True):
    """What ``stat`` and ``listxattr`` tell besides the content: ``mode`` holds the permission bits only (07777)."""

    mode: int
    owner: str
    group: str
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Extent(Struct, frozen=True, array_like=True):
    """*data* stands at *offset* (bytes from the start of the file)."""

    offset: int
    data: bytes


class Put(Struct, frozen=True, array_like=True, tag=1):
    tree: str
    path: bytes
    size: int
    meta: Meta
    digests: bytes
    extents: tuple[Extent, ...]
    more: bool = False


class Patch(Struct, frozen=True, array_like=True, tag=2):
    """``digests`` are those of the blocks from ``first_block`` on, as they are after the patch; earlier ones stay."""

    tree: str
    path: bytes
    size: int
    meta: Meta
    digests: bytes
    extents: tuple[Extent, ...]
    first_block: int = 0
    more: bool = False


class Rename(Struct, frozen=True, array_like=True, tag=3):
    tree: str
    path: bytes
    to: bytes


class Link(Struct, frozen=True, array_like=True, tag=4):
    tree: str
    path: bytes
    to: bytes


class Remove(Struct, frozen=True, array_like=True, tag=5):
    tree: str
    path: bytes


class Mkdir(Struct, frozen=True, array_like=True, tag=6):
    tree: str
    path: bytes
    meta: Meta


class Rmdir(Struct, frozen=True, array_like=True, tag=7):
    tree: str
    path: bytes


class SetMeta(Struct, frozen=True, array_like=True, tag=8):
    tree: str
    path: bytes
    meta: Meta


class Symlink(Struct, frozen=True, array_like=True, tag=9):
    tree: str
    path: bytes
    target: bytes
    meta: Meta


Change: TypeAlias = Put | Patch | Rename | Link | Remove | Mkdir | Rmdir | SetMeta | Symlink

_WITH_TO: Final = (Rename, Link)
_WITH_CONTENT: Final = (Put, Patch)
"""Tuples: a union would be built anew at each check."""
KIND_NAMES: Final[dict[type, str]] = {
    Put: "put",
    Patch: "patch",
    Rename: "rename",
    Link: "link",
    Remove: "remove",
    Mkdir: "mkdir",
    Rmdir: "rmdir",
    SetMeta: "meta",
    Symlink: "symlink",
}


def check_path(path: bytes, *, root_allowed: bool = False) -> None:
    """Raises ChangeInvalid unless *path* is a path in the sense of this module."""
    if not path:
        if root_allowed:
            return
        raise ChangeInvalid("a change has an empty path")
    if len(path) > PATH_BYTES_MAX or not _PATH.fullmatch(path):
        raise ChangeInvalid(f"a change has an impossible path: {path[:80]!r}")


def check_change(change: Change) -> None:
    """Raises ChangeInvalid when *change* could not have come from a sound sender."""
    check_path(change.path, root_allowed=isinstance(change, SetMeta))
    if isinstance(change, _WITH_TO):
        check_path(change.to)
    elif isinstance(change, _WITH_CONTENT):
        first = change.first_block if isinstance(change, Patch) else 0
        blocks = block_count(max(change.size, 0)) - first
        sound = change.size >= 0 and first >= 0 and len(change.digests) == DIGEST_BYTES * max(blocks, 0)
        if not sound and not (change.more and not change.digests):
            raise ChangeInvalid(f"digests and size of {change.path!r} disagree")
        for extent in change.extents:
            if extent.offset < 0 or extent.offset + len(extent.data) > change.size:
                raise ChangeInvalid(f"bytes outside {change.path!r}: block size {BLOCK_BYTES}, offset {extent.offset}")
