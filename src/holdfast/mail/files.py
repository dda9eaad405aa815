"""Writing a file once: temporary beside it, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

PARTIAL_SUFFIX: Final = ".holdfast-partial"
"""Of temporaries; the trees that hold such files leave them out by this name."""


def write_whole(path: Path, content: bytes, *, mode: int = 0o644, dated_back_seconds: float = 0.0) -> bool:
    """Replace *path* by *content*, or leave it untouched when it holds that already. Returns whether it was written.

    Mode and owner of an existing file are kept. *dated_back_seconds*: for readers that wait until a file is older.
    """
    if read_or_none(path) == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        try:
            status = path.stat()
        except FileNotFoundError:
            os.fchmod(descriptor, mode)
        else:
            os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, status.st_mode & 0o7777)
        if dated_back_seconds:
            written = time.time() - dated_back_seconds
            os.utime(descriptor, (written, written))
        os.fsync(descriptor)
    put_in_place(temporary, path)
    return True


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename, and make the rename last."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
