"""Files written once: whoever opens the path sees the old content or the new, whole, even after a power cut.

The order is temporary file, fsync, rename, fsync of the folder (see fsync(2): "Calling fsync() does not necessarily
ensure that the entry in the directory containing the file has also reached disk").
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Final

from holdfast.errors import EnvironmentUnfit, HoldfastError, NoSpace

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def write_once(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Put *data* at *path* with permission bits *mode*, replacing what was there; on return it is on disk.

    The folder must exist. The bits hold from the first moment: a private key is never readable by others, and the
    umask does not change them. Raises NoSpace, EnvironmentUnfit (no right to write there), HoldfastError (the rest);
    after an error *path* is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        _write_synced(temporary, data, mode)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _named(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make creations, renames and removals in *folder* survive a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(path: Path, error: OSError) -> HoldfastError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"cannot write {path}: {reason}", hint="Free space on that filesystem, then repeat.", retry=True)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = f"Give the agent the right to write {path.parent}."
        return EnvironmentUnfit(f"cannot write {path}: {reason}", hint=hint)
    return HoldfastError(f"cannot write {path}: {reason}", hint=f"Look at {path.parent}.")
