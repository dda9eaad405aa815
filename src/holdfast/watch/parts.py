"""Batches of changes, cut into parts: each the content of one frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from holdfast.changes.change import Change, Link, Patch, Put, Rename
from holdfast.watch.limits import CHANGE_BYTES
from holdfast.watch.scene import Boundary

_WITH_CONTENT: Final = (Put, Patch)
_WITH_TO: Final = (Rename, Link)
"""Tuples: a union would be built anew at each check."""


class Part(NamedTuple):
    """*more*: the batch goes on, the trees do not stand so at any one instant."""

    changes: tuple[Change, ...]
    more: bool


def weight_bytes(change: Change) -> int:
    """What a change weighs in a frame, before compression."""
    if isinstance(change, _WITH_CONTENT):
        weight = CHANGE_BYTES + len(change.path) + len(change.digests)
        for extent in change.extents:
            weight += len(extent.data)
        return weight
    if isinstance(change, _WITH_TO):
        return CHANGE_BYTES + len(change.path) + len(change.to)
    return CHANGE_BYTES + len(change.path)


def in_parts(changes: Iterable[Change | Boundary], *, part_bytes: int, batch_bytes: int) -> Iterator[Part]:
    """Parts of about *part_bytes* (a single change may weigh more). No changes, no part.

    At a boundary a batch of *batch_bytes* or more ends, and another begins.
    """
    waiting: list[Change] = []
    weight = batch = 0
    for change in changes:
        if isinstance(change, Boundary):
            if waiting and batch >= batch_bytes:
                yield Part(tuple(waiting), False)
                waiting, weight, batch = [], 0, 0
            continue
        added = weight_bytes(change)
        if waiting and weight + added > part_bytes:
            yield Part(tuple(waiting), True)
            waiting, weight = [], 0
        waiting.append(change)
        weight += added
        batch += added
    if waiting:
        yield Part(tuple(waiting), False)
