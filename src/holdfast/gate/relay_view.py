"""A relay in a line, for the site's status: a file that its gates' process leaves, which its agent's beats carry."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.files import PRIVATE, write_once
from holdfast.gate.held import Waiting

NAME: Final = "view.json"
WRITE_SECONDS: Final = 15.0
"""Listing a queue of 20,000 messages takes postqueue(1) half a second."""
OLD_SECONDS: Final = 90.0


class RelayView(Struct, frozen=True):
    """*at*: seconds since 1970."""

    at: float = 0.0
    words: str = ""
    warnings: tuple[str, ...] = ()


def view_of(at: float, waiting: Waiting, *, taking: str, held_why: str, warnings: tuple[str, ...]) -> RelayView:
    """*taking*: why it takes no mail; empty when it does."""
    words = f"{waiting.messages:,} messages wait" if waiting.messages else "nothing waits"
    if waiting.on_hold:
        words += f", {waiting.on_hold:,} of them on hold"
    if held_why:
        words += f"; nothing is handed on, by order: {held_why}"
    return RelayView(at, words + (f"; takes no mail: {taking}" if taking else ""), warnings)


def write_view(folder: Path, view: RelayView) -> None:
    """Raises HoldfastError."""
    write_once(folder / NAME, msgspec.json.encode(view), PRIVATE)


def read_view(folder: Path, now: float) -> RelayView:
    """The last one; one that is old, or none, says so."""
    try:
        view = msgspec.json.decode((folder / NAME).read_bytes(), type=RelayView)
    except (OSError, msgspec.DecodeError):
        view = RelayView()
    if now - view.at <= OLD_SECONDS:
        return view
    return RelayView(view.at, "", ("its gates say nothing: `holdfast relay status` there",))
