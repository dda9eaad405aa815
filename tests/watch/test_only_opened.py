"""Files that are opened for writing and closed again: read where a close may hide a change, else not."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.watch.ground import Ground

_opened: list[bytes] = []
_listening = [False]


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _listening[0] and event == "open" and isinstance(arguments[0], bytes):
        _opened.append(arguments[0])


sys.addaudithook(_hear)


@contextmanager
def opens() -> Iterator[list[bytes]]:
    """The names opened meanwhile (an audit hook cannot be taken away: it is told to listen)."""
    _opened.clear()
    _listening[0] = True
    try:
        yield _opened
    finally:
        _listening[0] = False


def _open_and_close(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))


@pytest.mark.parametrize(("name", "read"), [("a.log", False), ("dovecot.index", False), ("data.mdb", True)])
def test_files_known_to_be_written_plainly_are_not_read_when_only_closed(ground: Ground, name: str, read: bool) -> None:
    (ground.root / name).write_text("content")
    ground.collect()
    _open_and_close(ground.root / name)
    with opens() as opened:
        assert not ground.collect()
    assert (name.encode() in opened) == read


@pytest.mark.parametrize("name", ["a.log", "dovecot.index"])
def test_a_write_and_its_close_in_different_batches(ground: Ground, name: str) -> None:
    file = ground.root / name
    file.write_text("content")
    ground.collect()
    fd = os.open(file, os.O_RDWR | os.O_APPEND)
    for text in (b" and", b" more"):
        os.write(fd, text)
        ground.collect()
        ground.check()
    os.close(fd)
    ground.collect()
    ground.check()
    with file.open("r+") as again:  # the same size, in the time a clock tick takes
        again.write("CONTENT")
    ground.collect()
    ground.check()


def test_a_close_after_the_file_was_replaced(ground: Ground) -> None:
    file, other = ground.root / "a.log", ground.root / "b"
    file.write_text("content")
    ground.collect()
    fd = os.open(file, os.O_RDWR)
    other.write_text("CONTENT")
    other.rename(file)
    os.close(fd)
    ground.collect()
    ground.check()


def test_what_is_written_through_a_mapping_is_seen_at_the_close(ground: Ground) -> None:
    file = ground.root / "data.mdb"
    file.write_bytes(bytes(4096))
    ground.collect()
    times = os.stat(file)
    fd = os.open(file, os.O_RDWR)
    with mmap.mmap(fd, 4096) as mapped:
        mapped[0:4] = b"page"
    os.utime(fd, ns=(times.st_atime_ns, times.st_mtime_ns))
    ground.collect()
    os.close(fd)
    ground.collect()
    ground.check()
