"""Restore: a snapshot, one of its trees, or what stands below a path, into a folder, exactly.

The folder must be empty or not there: nothing is ever replaced. What cannot be put back exactly (an owner this machine
does not know, an attribute the filesystem refuses, a damaged content) is named in the result, and the rest goes on.
When it returns, the folder's filesystem has been synced: the original may be thrown away. While it runs nobody but us
can enter the folder, so nobody can put a link where we are about to write.

The next blocks are fetched and opened in threads while files are written; a second process makes files, too, where that
is quicker (``second``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.changes.change import Meta
from holdfast.changes.exchange import EntryKind
from holdfast.errors import ExitStatus, NoSpace
from holdfast.trees.stat import Owners, read_xattrs
from holdfast.vault.ahead import Ahead
from holdfast.vault.catalog import BlockPlace, Place
from holdfast.vault.faults import TargetInUse, VaultDamaged
from holdfast.vault.record import DEPTH_MAX, Entry, Snapshot, TreeRoot, decode_part, entries_of, lookup, split_ids
from holdfast.vault.repository import Vault
from holdfast.vault.second import SHARED_DIRECTORIES_MIN, Errand, Second, Told, can_share, relink

AHEAD_ENTRIES: Final = 4096
"""How far a directory's list is looked through for the next blocks."""
SHORT_BYTES_MAX: Final = 512
SHORT_CONTENTS_MAX: Final = 8192
"""What stands between and behind attachments in a message, and is the same in every copy of it, in whichever account:
it is kept, because to read it again opens a block of some MiB for a line or two. At most 5 MB."""
SHARED_DEPTH_MAX: Final = 3
"""Below the folder: a tree, a domain or two, then the accounts."""
FAILURES_NAMED_MAX: Final = 10_000
ACCESS_LISTS: Final = frozenset({"system.posix_acl_default", "system.posix_acl_access"})

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


_libc: Final = ctypes.CDLL(None, use_errno=True)


class Failure(NamedTuple):
    """One thing not put back, or not exactly. *path*: relative to the folder."""

    path: bytes
    reason: str


class Restored:
    """What a restore did, so far: *progress* is called after each file."""

    def __init__(self, progress: Callable[[Restored], None] | None = None) -> None:
        self._progress = progress
        self.files = 0
        self.bytes = 0
        self.failures: list[Failure] = []
        self.failures_total = 0

    def fail(self, path: bytes, reason: str) -> None:
        self.failures_total += 1
        if len(self.failures) < FAILURES_NAMED_MAX:
            self.failures.append(Failure(path, reason))

    def wrote(self, size: int) -> None:
        """One more file, of *size* bytes."""
        self.add(1, size)

    def add(self, files: int, size: int) -> None:
        """So many more files, of *size* bytes together."""
        self.files += files
        self.bytes += size
        if self._progress is not None:
            self._progress(self)

    @property
    def exit_status(self) -> ExitStatus:
        return ExitStatus.DIFFERENCES if self.failures_total else ExitStatus.DONE


def restore_snapshot(
    vault: Vault, snapshot: Snapshot, target: Path, *, progress: Callable[[Restored], None] | None = None
) -> Restored:
    """Every tree into ``target/<tree's name>``. Raises as :func:`restore_path`."""
    _prepare(target)
    restored = Restored(progress)
    for tree in snapshot.trees:
        folder = target / tree.name
        folder.mkdir(mode=0o700)
        _restore(vault, lookup(tree, b"", vault.content), folder, restored)
    return restored


def restore_path(
    vault: Vault,
    tree: TreeRoot,
    path: bytes,
    target: Path,
    *,
    progress: Callable[[Restored], None] | None = None,
) -> Restored:
    """What stands at *path* of *tree* (``b""``: all of it). A directory's inside goes into *target*, which gets its
    metadata; a file or link goes into *target* under its own name.

    Raises PathUnknown, TargetInUse, NoSpace, VaultDamaged (the path itself cannot be found for damage), WrongKey,
    OSError (*target* cannot be made), and what the backend raises.
    """
    return restore_entry(vault, lookup(tree, path, vault.content), target, progress=progress)


def restore_entry(
    vault: Vault, entry: Entry, target: Path, *, progress: Callable[[Restored], None] | None = None
) -> Restored:
    """As :func:`restore_path`, of an entry that was looked up before."""
    _prepare(target)
    restored = Restored(progress)
    _restore(vault, entry, target, restored)
    return restored


def _directories(entries: list[Entry]) -> int:
    return sum(entry.kind is EntryKind.DIRECTORY for entry in entries)


def _prepare(target: Path) -> None:
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.scandir(target) as found:
        if any(True for _ in found):
            raise TargetInUse(f"{target} is not empty", hint="Give a new folder: a restore replaces nothing.")


def _restore(vault: Vault, entry: Entry, target: Path, restored: Restored) -> None:
    fd = os.open(target, _DIRECTORY_FLAGS)
    try:
        before = _shut(fd, target)
        with Ahead(vault) as ahead:
            restorer = _Restorer(vault, restored, ahead, fd, may_share=can_share(vault))
            if entry.kind is EntryKind.DIRECTORY:
                restorer.directory(fd, entry, b"", 0)
            else:
                restorer.entry(fd, entry, b"", 0)
                if before is not None:
                    before.put_back(fd)
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the folder could not be synced: {os.strerror(number)}", os.fspath(target))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "Free space there, remove the folder, and repeat."
            raise NoSpace(f"{target}: {os.strerror(error.errno)}", hint=hint) from None
        raise
    finally:
        os.close(fd)


class _Before(NamedTuple):
    """What a folder was like."""

    status: os.stat_result
    acls: dict[str, bytes]

    def put_back(self, fd: int) -> None:
        os.fchown(fd, self.status.st_uid, self.status.st_gid)
        os.fchmod(fd, stat.S_IMODE(self.status.st_mode))
        for name, value in self.acls.items():
            os.setxattr(fd, name, value)


def _shut(fd: int, target: Path) -> _Before | None:
    """Nobody else can enter the folder from here on, and nothing inherits an access list from it (acl(5)). What it was
    like before; None where we may not change it.

    Raises TargetInUse: somebody was in there between our first look and now.
    """
    acls = {os.fsdecode(name): value for name, value in read_xattrs(fd) if os.fsdecode(name) in ACCESS_LISTS}
    before = _Before(os.fstat(fd), acls)
    try:
        for name in acls:
            os.removexattr(fd, name)
        os.fchmod(fd, 0o700)
        os.fchown(fd, os.geteuid(), os.getegid())
    except PermissionError:
        return None
    if os.listdir(fd):
        raise TargetInUse(f"{target} is not empty any more", hint="Give a new folder that only you can write to.")
    return before


def restore_from_the_back(vault: Vault, errand: Errand, restored: Restored) -> tuple[int, dict[bytes, list[bytes]]]:
    """The second process's part: how many directories it took, and the names of files that have several."""
    with Ahead(vault) as ahead:
        restorer = _Restorer(vault, restored, ahead, errand.root_fd)
        return restorer.from_the_back(errand), restorer.links


class _Restorer:
    """Writes entries below one folder."""

    def __init__(
        self, vault: Vault, restored: Restored, ahead: Ahead, root_fd: int, *, may_share: bool = False
    ) -> None:
        self._vault = vault
        self._may_share = may_share
        self._shared_fd = -1
        """The directory whose directories another process makes, too; -1: none."""
        self._second: Second | None = None
        self._taken = 0
        self._met = False
        """The other process has made the next one: it has the rest."""
        self._restored = restored
        self._ahead = ahead
        self._root_fd = root_fd
        self._owners = Owners()
        self.links: dict[bytes, list[bytes]] = {}
        """Of files with several names: the paths made so far, the first of which is linked to."""
        self._may_chown = os.geteuid() == 0
        self._ours = os.geteuid(), os.getegid()
        self._places: dict[bytes, list[Place]] = {}
        """Looked up for the blocks ahead, and not used yet."""
        self._short: OrderedDict[bytes, bytes] = OrderedDict()
        """Short contents of files that have several, by id; the ones used last."""

    def directory(self, fd: int, entry: Entry, path: bytes, depth: int) -> None:
        """The inside of a directory that stands, then its metadata."""
        if depth > DEPTH_MAX:
            self._restored.fail(path, f"directories stand deeper below each other than {DEPTH_MAX}")
            return
        try:
            entries = entries_of(entry.content, self._vault.content)
            chunk = list(islice(entries, AHEAD_ENTRIES))
            if self._may_share and depth <= SHARED_DEPTH_MAX and _directories(chunk) >= SHARED_DIRECTORIES_MIN:
                self._shared(fd, entry, chain(chunk, entries), path, depth)
                chunk = []
            while chunk:
                self._chunk(fd, chunk, path, depth)
                chunk = list(islice(entries, AHEAD_ENTRIES))
        except VaultDamaged as error:
            self._restored.fail(path, f"the directory is incomplete: {error.message}")
        self._set_meta(fd, b"", entry.meta, path)

    def _shared(self, fd: int, entry: Entry, entries: Iterator[Entry], path: bytes, depth: int) -> None:
        """As :meth:`directory`, with the help of a second process."""
        self._may_share, self._shared_fd = False, fd
        self._vault.hold_less()
        directories = 0
        with Second(self._vault, self._root_fd, fd, path, entry.content, depth, self._restored.add) as second:
            self._second = second
            try:
                while chunk := list(islice(entries, AHEAD_ENTRIES)):
                    directories += _directories(chunk)
                    self._chunk(fd, chunk, path, depth)
            except VaultDamaged:
                self._join(second.finish())
                raise
            finally:
                self._shared_fd, self._second = -1, None
            if not self._met:
                return  # all were made here
            told = second.finish()
        self._join(told)
        if self._taken + told.directories < directories:
            self._restored.fail(path, "the directory is incomplete: its list names one directory twice")

    def _join(self, told: Told) -> None:
        known = set(self._restored.failures)
        new = [failure for failure in (Failure(*failure) for failure in told.failures) if failure not in known]
        for failure in new:
            self._restored.fail(*failure)
        self._restored.failures_total += told.failures_total - len(told.failures)
        for link, paths in told.links:
            if link in self.links:
                self._restored.add(0, -relink(self._root_fd, self.links[link][0], paths))  # it was written twice
            self.links.setdefault(link, []).extend(paths)

    def from_the_back(self, errand: Errand) -> int:
        """Directories of the shared one, the last first, until the other process has made the next."""
        self._shared_fd = errand.shared_fd
        for content_id in reversed(split_ids(errand.content)):
            try:
                part = decode_part(self._vault.content(content_id), content_id)
            except VaultDamaged as error:
                self._restored.fail(errand.path, f"the directory is incomplete: {error.message}")
                break
            for entry in reversed(part):
                if entry.kind is EntryKind.DIRECTORY:
                    path = errand.path + b"/" + entry.name if errand.path else entry.name
                    self.entry(errand.shared_fd, entry, path, errand.depth)
                    if self._met:
                        return self._taken
        return self._taken

    def _chunk(self, fd: int, chunk: list[Entry], path: bytes, depth: int) -> None:
        coming = self._blocks(chunk)
        for entry in chunk:
            while not self._ahead.full and (place := next(coming, None)) is not None:
                self._ahead.want(place)
            self.entry(fd, entry, path + b"/" + entry.name if path else entry.name, depth)
        self._places.clear()

    def _blocks(self, chunk: list[Entry]) -> Iterator[BlockPlace]:
        for entry in chunk:
            if entry.kind is EntryKind.FILE:
                for content_id in split_ids(entry.content):
                    if content_id in self._short:
                        continue
                    places = self._places[content_id] = self._vault.catalog.places(content_id)
                    if places:
                        yield places[0].block

    def entry(self, fd: int, entry: Entry, path: bytes, depth: int) -> None:
        path = path or entry.name
        try:
            if entry.link and self._linked(fd, entry, path):
                return
            if entry.kind is EntryKind.DIRECTORY:
                self._subdirectory(fd, entry, path, depth)
            elif entry.kind is EntryKind.SYMLINK:
                os.symlink(entry.content, entry.name, dir_fd=fd)
                self._set_meta(fd, entry.name, entry.meta, path)
            else:
                self._file(fd, entry, path)
        except VaultDamaged as error:
            self._restored.fail(path, error.message)
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._restored.fail(path, os.strerror(error.errno or 0))
            return
        if entry.link:
            self.links[entry.link] = [path]

    def _linked(self, fd: int, entry: Entry, path: bytes) -> bool:
        known = self.links.get(entry.link)
        if known is None:
            return False
        os.link(known[0], entry.name, src_dir_fd=self._root_fd, dst_dir_fd=fd, follow_symlinks=False)
        known.append(path)
        self._restored.files += entry.kind is EntryKind.FILE
        return True

    def _subdirectory(self, fd: int, entry: Entry, path: bytes, depth: int) -> None:
        if fd != self._shared_fd:
            os.mkdir(entry.name, 0o700, dir_fd=fd)
        elif not self._take(fd, entry):
            return
        inside = os.open(entry.name, _DIRECTORY_FLAGS, dir_fd=fd)
        try:
            self.directory(inside, entry, path, depth + 1)
        finally:
            os.close(inside)

    def _take(self, fd: int, entry: Entry) -> bool:
        """Whether the other process has not taken this directory, nor one before it on its way: then it is ours."""
        if self._second is not None:
            self._second.listen()
        if self._met:
            return False
        self._taken += 1
        try:
            os.mkdir(entry.name, 0o700, dir_fd=fd)
        except FileExistsError:
            self._taken -= 1
            self._met = True
        return not self._met

    def _file(self, fd: int, entry: Entry, path: bytes) -> None:
        """A file whose content is damaged is not left behind half written."""
        file = os.open(entry.name, _FILE_FLAGS, 0o600, dir_fd=fd)
        try:
            at = 0
            ids = split_ids(entry.content)
            for content_id in ids:
                at += self._write(file, at, self._content(content_id, one_of_several=len(ids) > 1))
            if at != entry.size:
                raise VaultDamaged(f"its contents have {at} bytes instead of {entry.size}")
            self._set_meta(file, b"", entry.meta, path)
        except VaultDamaged:
            os.unlink(entry.name, dir_fd=fd)
            raise
        finally:
            os.close(file)
        self._restored.wrote(entry.size)

    def _content(self, content_id: bytes, *, one_of_several: bool) -> bytes:
        short = self._short.get(content_id)
        if short is not None:
            self._short.move_to_end(content_id)
            return short
        places = self._places.pop(content_id, None) or self._vault.catalog.places(content_id)
        if places:
            self._ahead.take(places[0].block)
        content = self._vault.content_in(places, content_id)
        if one_of_several and len(content) <= SHORT_BYTES_MAX:
            self._short[content_id] = content
            if len(self._short) > SHORT_CONTENTS_MAX:
                self._short.popitem(last=False)
        return content

    def _write(self, file: int, at: int, content: bytes) -> int:
        if content[0] == 0 and content.count(0) == len(content):
            os.ftruncate(file, at + len(content))  # a hole
            return len(content)
        rest = memoryview(content)
        while rest:
            written = os.pwrite(file, rest, at + len(content) - len(rest))
            rest = rest[written:]
        return len(content)

    def _set_meta(self, fd: int, name: bytes, meta: Meta, path: bytes) -> None:
        """Of *name* in the directory *fd* (a link), or of what *fd* is. Owner first: it clears bits, capabilities."""
        uid, gid = self._owner(meta, path)
        if path and (uid, gid) == self._ours:
            pass  # made by us, in a directory that is ours until its inside is complete: it has them
        elif self._may_chown:
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False) if name else os.fchown(fd, uid, gid)
        else:
            self._restored.fail(path, f"it belongs to {meta.owner}:{meta.group}; only root can give it to them")
        for key, value in meta.xattrs:
            try:
                if name:
                    os.setxattr(b"/proc/self/fd/%d/" % fd + name, key, value, follow_symlinks=False)
                else:
                    os.setxattr(fd, key, value)
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                self._restored.fail(path, f"attribute {os.fsdecode(key)} was not taken: {reason}")
        if name:
            os.utime(name, ns=(meta.mtime_ns, meta.mtime_ns), dir_fd=fd, follow_symlinks=False)
        else:
            os.fchmod(fd, meta.mode)
            os.utime(fd, ns=(meta.mtime_ns, meta.mtime_ns))

    def _owner(self, meta: Meta, path: bytes) -> tuple[int, int]:
        uid, gid = self._owners.uid(meta.owner), self._owners.gid(meta.group)
        if self._owners.unknown:
            unknown = {f"user {meta.owner}", f"group {meta.group}"} & self._owners.unknown
            if unknown:
                self._restored.fail(path, f"this machine has no {' and no '.join(sorted(unknown))}: root has it now")
        return uid, gid
