"""Which directory is protected under which name, and what in it is left out."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.changes.names import TreeName, checked_name
from holdfast.errors import ConfigurationError

RESERVED_NAME: Final = b".holdfast"
"""A directory of ours at the root of each tree (cookies, staging); a thing of this name is never protected."""


class TreeSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One protected directory.

    Patterns are matched against paths relative to ``root``: one without ``/`` matches a name at any depth; one with a
    leading ``/`` is anchored at the root; one with ``/`` inside matches the last components of a path at any depth; a
    trailing ``/`` restricts it to directories. ``*`` and ``?`` do not cross ``/``, ``**`` does. What lies below an
    excluded directory is excluded.
    """

    name: str
    root: str
    include: tuple[str, ...] = ()
    """Root-relative paths that are protected, with all below; empty: everything below the root."""
    exclude: tuple[str, ...] = ()
    append: tuple[str, ...] = ()
    """Files that grow, or are rewritten near their end only; written with write(2), never through a mapping. Those that
    are also ``read_first`` grow by small records, each finished before the next begins: index logs, lists."""
    read_first: tuple[str, ...] = ()
    """Files that refer to other files: read before names and data, so that a copy never refers to what it lacks.
    Written with write(2), never through a mapping."""
    transient: tuple[str, ...] = ()
    """Of what is excluded: what only means something to the processes that made it (locks, caches, temporaries). A seed
    removes it: after a power cut a lock stands there that nobody holds, and its waiter waits for minutes."""
    overrides: tuple[str, ...] = ()
    """Root-relative paths that stay each machine's own: never copied, never compared."""

    def checked(self) -> TreeSpec:
        """Itself. Raises ConfigurationError when the name or the root cannot be used."""
        checked_name(self.name, "tree")
        plain = self.root.startswith("/") and not self.root.startswith("//")  # which POSIX lets normpath keep
        if not plain or os.path.normpath(self.root) != self.root or self.root == "/":
            raise ConfigurationError(
                f"tree {self.name!r}: root {self.root!r} is not usable",
                hint="Give an absolute directory without . or .. and without a trailing slash, other than /.",
            )
        return self


def _component_regex(component: str) -> str:
    out = []
    for character in component:
        if character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        else:
            out.append(re.escape(character))
    return "".join(out)


def _pattern_regex(pattern: str) -> str:
    """A regular expression that matches a whole relative path."""
    anchored = pattern.startswith("/")
    components = pattern.strip("/").split("/")
    parts = ["" if anchored else "(?:.*/)?"]
    for at, component in enumerate(components):
        last = at == len(components) - 1
        if component == "**":
            parts.append(".*" if last else "(?:.*/)?")
        else:
            parts.append(_component_regex(component) + ("" if last else "/"))
    return "".join(parts)


class PatternSet:
    """A set of patterns, compiled: names at any depth apart, because they need no path."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        anything = [p for p in patterns if not p.endswith("/")]
        directories = [p[:-1] for p in patterns if p.endswith("/")]
        self._name = _compiled([_component_regex(p) for p in anything if "/" not in p])
        self._path = _compiled([_pattern_regex(p) for p in anything if "/" in p])
        self._directory_name = _compiled([_component_regex(p) for p in directories if "/" not in p])
        self._directory_only = _compiled([_pattern_regex(p) for p in directories if "/" in p])
        self.needs_path: Final = self._path is not None or self._directory_only is not None

    def matches_name(self, name: bytes, *, directory: bool) -> bool:
        """Whether *name* alone decides that it matches."""
        if self._name is not None and self._name.fullmatch(name):
            return True
        return directory and self._directory_name is not None and self._directory_name.fullmatch(name) is not None

    def matches(self, path: bytes, *, directory: bool) -> bool:
        """Whether the thing at *path* itself matches (not: something above it)."""
        if self.matches_name(path.rpartition(b"/")[2], directory=directory):
            return True
        if not self.needs_path:
            return False
        if self._path is not None and self._path.fullmatch(path):
            return True
        return directory and self._directory_only is not None and self._directory_only.fullmatch(path) is not None


def _compiled(expressions: list[str]) -> re.Pattern[bytes] | None:
    if not expressions:
        return None
    return re.compile(b"|".join(b"(?:" + e.encode() + b")" for e in expressions), re.DOTALL)


class Tree:
    """A :class:`TreeSpec` ready for use: the decisions about one path."""

    def __init__(self, spec: TreeSpec) -> None:
        self.spec = spec.checked()
        self.name = TreeName(spec.name)
        self.root = Path(spec.root)
        self._includes = [os.fsencode(p.strip("/")) for p in spec.include]
        self._overrides = frozenset(os.fsencode(p.strip("/")) for p in spec.overrides)
        self._exclude = PatternSet(spec.exclude)
        self._append = PatternSet(spec.append)
        self._read_first = PatternSet(spec.read_first)
        self._transient = PatternSet(spec.transient)

    @cached_property
    def decides_by_name(self) -> bool:
        """True when names alone decide about exclusion: then :meth:`excluded_name` is the whole answer."""
        return not self._includes and not self._overrides and not self._exclude.needs_path

    def excluded_name(self, name: bytes, *, directory: bool) -> bool:
        """Whether a thing of this *name* is left out wherever it stands."""
        return name == RESERVED_NAME or self._exclude.matches_name(name, directory=directory)

    def excluded(self, path: bytes, *, directory: bool) -> bool:
        """Whether the thing at *path* itself is left out; things below an excluded directory are the caller's care."""
        if self._exclude.matches(path, directory=directory) or path in self._overrides:
            return True
        if path.rpartition(b"/")[2] == RESERVED_NAME:
            return True
        return bool(self._includes) and not self._included(path, directory=directory)

    def _included(self, path: bytes, *, directory: bool) -> bool:
        for include in self._includes:
            if path == include or path.startswith(include + b"/"):
                return True
            if directory and include.startswith(path + b"/"):
                return True  # a directory on the way to something included
        return False

    def appended(self, path: bytes) -> bool:
        return self._append.matches(path, directory=False)

    def transient(self, path: bytes) -> bool:
        return self._transient.matches(path, directory=False)

    def read_first(self, path: bytes) -> bool:
        return self._read_first.matches(path, directory=False)
