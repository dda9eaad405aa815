"""Sizes, ages, times and names as people read them. Standard library only, no escape sequences in what comes out."""

from __future__ import annotations

import os
from datetime import datetime, tzinfo
from typing import Final


def bytes_text(count: float) -> str:
    """``1.2 GB``, in powers of 1000."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min``, ``5 h``, ``12 days``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"


def ago_text(seconds: float) -> str:
    return f"{duration_text(seconds)} ago" if seconds >= 0 else f"in {duration_text(-seconds)}"


def clock_text(seconds: float) -> str:
    """``1:02:03`` or ``2:03``: what is left of something."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def time_text(ns: int, zone: tzinfo | None = None) -> str:
    """A moment with its zone: ``2026-11-21 14:00:05 CET``. *zone* None: this machine's."""
    return datetime.fromtimestamp(ns // 10**9, zone or None).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def iso_text(ns: int) -> str:
    """A moment for programs: ISO 8601 with offset."""
    return datetime.fromtimestamp(ns // 10**9).astimezone().isoformat()


def path_text(path: bytes) -> str:
    """A path for a terminal: who sends mail can choose bytes of names, and must not write on an administrator's screen.

    What is not printable stands as ``\\x1b``, as does what is no UTF-8.
    """
    text = path.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def argument_bytes(text: str) -> bytes:
    """A path from the command line, any bytes."""
    return os.fsencode(text)


def counted(count: int, singular: str, plural: str = "") -> str:
    """``1 file``, ``1,234 files``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


INVENTORY: Final = "inventory"
"""In place of a tree's name: what a backup lacks that stands in no tree, told in a sentence."""


def gap_text(tree: str, path: bytes, reason: str) -> str:
    """One gap of a snapshot."""
    return reason if tree == INVENTORY else f"{tree}/{path_text(path)}: {reason}"
