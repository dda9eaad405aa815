"""The output of ``doveconf``, parsed: a tree of settings, for the syntax of Dovecot 2.3 and of 2.4 alike.

The form (doveconf(1)): ``key = value``, ``section [name] {``, ``}``, comment lines. In 2.4 the name of a setting inside
a filter may be given without the filter's prefix: ``passdb sql { query = x }`` is ``passdb_sql_query``
(https://doc.dovecot.org/2.4.0/core/summaries/settings.html); :meth:`Section.value` finds both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from holdfast.errors import ConfigurationError

DEPTH_MAX: Final = 32
"""Real configurations nest four deep; a file that nests further is not doveconf's output."""
_OPEN: Final = re.compile(r"^(?P<kind>[A-Za-z0-9_@/:.-]+)(?:\s+(?P<name>.+?))?\s*\{$")
_ASSIGN: Final = re.compile(r"^(?P<key>[^\s=]+)\s*=\s?(?P<value>.*)$")


class Section:
    """One ``kind name { ... }``; the root has neither kind nor name. Later values of a key replace earlier ones."""

    def __init__(self, kind: str = "", name: str = "") -> None:
        self.kind = kind
        self.name = name
        self.settings: dict[str, str] = {}
        self.sections: list[Section] = []

    def value(self, key: str, default: str = "") -> str:
        """The setting *key*; also when written in full with this section's prefixes, or without the kind's."""
        names = [key]
        if self.kind:
            names += [f"{self.kind}_{key}"]
            if self.name:
                names += [f"{self.kind}_{self.name.replace('-', '_')}_{key}", f"{self.name.replace('-', '_')}_{key}"]
        for name in names:
            if name in self.settings:
                return self.settings[name]
        return default

    def of(self, kind: str) -> Iterator[Section]:
        """The sections of one kind directly below."""
        return (s for s in self.sections if s.kind == kind)

    def all(self) -> Iterator[Section]:
        """This section and every one below it."""
        yield self
        for section in self.sections:
            yield from section.all()


def parse(text: str) -> Section:
    """Raises ConfigurationError for text that is not of the form above."""
    root = Section()
    stack = [root]
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line == "}":
            stack.pop()
            if not stack:
                raise _unreadable(number, "closes a section that was not opened")
        elif (opened := _OPEN.match(line)) is not None and "=" not in opened["kind"]:
            section = Section(opened["kind"], unquoted(opened["name"] or ""))
            stack[-1].sections.append(section)
            stack.append(section)
            if len(stack) > DEPTH_MAX:
                raise _unreadable(number, f"nests deeper than {DEPTH_MAX} sections")
        elif (assigned := _ASSIGN.match(line)) is not None:
            stack[-1].settings[assigned["key"]] = unquoted(assigned["value"])
        else:
            raise _unreadable(number, f"is neither a setting nor a section: {line[:80]!r}")
    if len(stack) != 1:
        raise _unreadable(len(text.splitlines()), f"ends inside the section {stack[-1].kind!r}")
    return root


def _unreadable(number: int, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"doveconf output, line {number} {what}",
        hint="Run doveconf -n by hand; if it is in order, this version of Dovecot prints a form that is not known yet.",
    )


def unquoted(value: str) -> str:
    """A value without its quotes: 2.4 quotes every value with special characters, 2.3 only some."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def truth(value: str) -> bool:
    return value.lower() in ("yes", "y", "true", "1")
