"""A machine's own values in a copied ``main.cf``, put in and taken out again exactly.

``main.cf`` is copied as it is, but a few values may have to differ between machines (``inet_interfaces``,
``smtp_bind_address``). Postfix has no include file, and of two settings of one parameter it takes the last and warns.
So :func:`render` comments out the shared setting under a mark and adds the machine's own in a block at the end;
:func:`canonical` undoes both. From this follows what callers rely on:

* ``canonical(render(shared, values)) == canonical(shared)`` for any bytes: rendering hides nothing, loses nothing.
* Rendering anew replaces what another machine rendered: if a rendered file is copied (after a promotion), the
  receiver's ``prepare`` takes the sender's block out and puts its own in. Edits outside the block survive that.
* Two files are the same configuration if their canonical forms are equal: so ``verify`` compares those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from holdfast.errors import ConfigurationError

_MARK: Final = b"#holdfast-shared#"
_BEGIN: Final = b"#holdfast-begin# This machine's own values, from its overrides file; written anew at every start.\n"
_BEGIN_JOINED: Final = b"#holdfast-begin-joined#\n"
"""The shared file did not end in a newline; one was put in before the block."""
_END: Final = b"#holdfast-end#\n"
_PARAMETER: Final = re.compile(rb"^([A-Za-z0-9_]+)[ \t]*=")
_NAME: Final = re.compile(r"^[A-Za-z0-9_]+$")
OVERRIDES_MAX: Final = 1000
"""main.cf knows about a thousand parameters."""


def parse_overrides(text: str, source: str) -> dict[str, str]:
    """``key = value`` lines, ``#`` comments; a line that begins with space continues the one before, as in postconf(5).

    Raises ConfigurationError naming *source* and the line.
    """
    values: dict[str, str] = {}
    last = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace() and last:
            values[last] += " " + line.strip()
            continue
        key, equals, value = line.partition("=")
        last = key.strip()
        if not equals or not _NAME.match(last) or len(values) >= OVERRIDES_MAX:
            raise ConfigurationError(
                f"{source}, line {number}: expected key = value, found {line.strip()[:80]!r}",
                hint="One main.cf parameter a line, for example: inet_interfaces = 192.0.2.2",
            )
        values[last] = value.strip()
    return values


def canonical(content: bytes) -> bytes:
    """The shared file in *content*: without the blocks and marks of :func:`render`. Anything else stays as it is."""
    while (stripped := _stripped(content)) != content:
        content = stripped  # a second round only for a file in which blocks were nested by hand
    return content


def _stripped(content: bytes) -> bytes:
    out: list[bytes] = []
    block: list[bytes] | None = None
    joined = False
    for line in _lines(content):
        if line.startswith((_BEGIN, _BEGIN_JOINED)):
            out += block or []  # one without an end is not ours
            block = [line]
        elif block is not None and line.rstrip(b"\n") == _END.rstrip(b"\n"):
            joined = block[0] == _BEGIN_JOINED
            block = None
        elif block is not None:
            block.append(line)
        else:
            out.append(line)
            joined = False
    out += block or []
    shared = b"".join(_unmarked(line) for line in out)
    return shared[:-1] if joined and block is None and shared.endswith(b"\n") else shared


def _unmarked(line: bytes) -> bytes:
    while line.startswith(_MARK):
        line = line[len(_MARK) :]
    return line


def _lines(content: bytes) -> list[bytes]:
    """Lines by ``\\n`` alone, endings kept."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def render(shared: bytes, overrides: Mapping[str, str]) -> bytes:
    """The file for one machine. Without overrides it is the canonical file itself."""
    content = canonical(shared)
    if not overrides:
        return content
    out: list[bytes] = []
    replaced = False
    for line in _lines(content):
        if line[:1] not in (b" ", b"\t", b"#", b"\n", b"\r"):
            match = _PARAMETER.match(line)
            replaced = match is not None and match[1].decode() in overrides
        comment = line.lstrip()[:1] in (b"#", b"")
        out.append(_MARK + line if replaced and not comment else line)
    joined = bool(content) and not content.endswith(b"\n")
    block = [f"{key} = {_one_line(key, value)}\n".encode() for key, value in sorted(overrides.items())]
    return b"".join([*out, b"\n" if joined else b"", _BEGIN_JOINED if joined else _BEGIN, *block, _END])


def _one_line(key: str, value: str) -> str:
    if not _NAME.match(key) or "\n" in value or "\r" in value:
        raise ConfigurationError(f"override {key!r} cannot be put into main.cf", hint="One line a value.")
    return value
