"""Every limit of the watcher, with its reason."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

FILE_BYTES_MAX: Final = 24 * 1024**3
"""The digests of the last part of a file travel in one frame: 6 MiB for this much, of FRAME_BYTES_MAX."""
READ_BYTES: Final = 1024 * 1024
"""Contents are read in pieces of 16 blocks: a piece is what a part of a batch holds, too."""
CHANGE_BYTES: Final = 120
"""What a change weighs in a frame besides contents, digests and path, roughly."""
CONTENT_CHEAP_BYTES: Final = 1024 * 1024
"""Comparing so much is done again at once."""
CONTENT_BYTES_PER_SECOND: Final = 50_000_000
"""A larger file that is still being written is compared no faster than this on average (unless a barrier waits):
capturing a file that is written in place for an hour costs a few percent of a processor, not all of it."""


class Limits(Struct, frozen=True):
    """What may be set, and what it bounds."""

    dirty_entries_max: int = 500_000
    """Events waiting to be looked at, about 250 bytes each. More: everything is compared instead."""
    directories_cached_max: int = 50_000
    """Directories whose path and tree are remembered: about 20 MB."""
    directory_fds_max: int = 256
    """Open directories: the usual limit of open files is 1024."""
    file_fds_max: int = 200
    """Open files: of those that change with every message, such as a mailbox's index log."""
    tails_bytes_max: int = 64 * 1024 * 1024
    """Last blocks of files that are patched often, so that a patch carries only what differs."""
    settled_max: int = 100_000
    """Grown files of which we know how much of them cannot change any more."""
    append_reach_bytes: int = 256 * 1024
    """How far before its settled end a file that grows may still be rewritten (mdbox rewrites the record before the
    one it appends: 4 KiB were too few)."""
    limbo_seconds: float = 0.05
    """A rename is seen in the filesystem a moment before its event is queued. Normally that is a microsecond, but the
    process may lose its processor just there; longer than this it does not wait for one unless the machine stands
    still. Nothing is taken for gone from the trees sooner."""
    settle_seconds: float = 2.0
    """A directory's modification time is logged once nothing happened in it for so long."""
    settling_max: int = 100_000
    """Directories waiting for that; more: the time is left to the next scan."""
    problems_max: int = 1000
    """Files that cannot be read, named in status; more are counted only."""
    retry_seconds: float = 30.0
    """What could not be read is tried again after this long."""
    scan_batch_bytes: int = 8 * 1024 * 1024
    """A scan that logs more than this is not one instant any more: positions between its directories count as whole,
    so that the index can be committed."""
    events_between_seconds: float = 0.2
    """While a scan runs, events are looked at this often, so that what is alive stays near."""
    piece_bytes: int = READ_BYTES
    """A file larger than this travels in parts."""
    frame_content_bytes: int = READ_BYTES
    """A part of a batch is closed when it weighs this much: FRAME_CONTENT_BYTES."""

    @classmethod
    def of_process(cls, open_files_max: int) -> Limits:
        """For a process that may have so many files open: a directory or index log that is open need not be found
        again with each message. With more mailboxes in use at a time than fit, a delivery costs a third more."""
        usual = cls()
        return cls(
            directory_fds_max=max(usual.directory_fds_max, open_files_max // 4),
            file_fds_max=max(usual.file_fds_max, open_files_max // 8),
        )
