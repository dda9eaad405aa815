"""From absolute paths to trees: which directories can share one tree."""

from __future__ import annotations

import os

from msgspec import Struct


class Group(Struct, frozen=True):
    """Directories of one tree: all of *root*, or what *include* names below it."""

    root: str
    include: tuple[str, ...] = ()


def by_device(paths: tuple[str, ...]) -> list[Group]:
    """Paths on one filesystem with a common directory (other than ``/``) become one group, in the order given.

    Changes of one tree are captured in one order, changes of two are not: mail and its indexes belong in one tree.
    Paths that are not there yet count with the nearest directory above them.
    """
    groups: list[tuple[tuple[int, str], list[str]]] = []
    for path in paths:
        real = os.path.realpath(path)
        key = (_device(real), real.split("/")[1])
        for known, members in groups:
            if known == key:
                members.append(real)
                break
        else:
            groups.append((key, [real]))
    return [_group(members) for _, members in groups]


def folder_of(config: str) -> str:
    """The folder of a configuration file, with the files it includes; the file alone where it stands in ``/etc``."""
    folder = os.path.dirname(config)
    return config if folder in ("/", "/etc", "/usr/local/etc") else folder


def _group(members: list[str]) -> Group:
    common = os.path.commonpath(members)
    if common in members:
        return Group(common)
    return Group(common, tuple(os.path.relpath(member, common) for member in members))


def _device(path: str) -> int:
    while True:
        try:
            return os.stat(path).st_dev
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)
