"""IMAP's syntax (RFC 9051 section 9), pure: responses to nested Python values, folder names to and from the wire."""

from __future__ import annotations

import base64
import re
from typing import Final

from holdfast.errors import HoldfastError

Value = bytes | None | list["Value"]
"""An atom, number, quoted string or literal as bytes; NIL as None; a parenthesised list as a list.

A bracketed part stays glued to its atom: ``BODY[]``, ``[UIDVALIDITY``, ``1]``.
"""

_TOKEN: Final = re.compile(rb'[ ]*(?:([()])|"((?:[^"\\]|\\.)*)"|\x00(\d+)\x00|((?:[^ ()"\[\x00]|\[[^\]\x00]*\]?)+))')
_LITERAL_AT_END: Final = re.compile(rb"\{(\d+)\+?\}$")
_ESCAPED: Final = re.compile(rb"\\(.)")


class BadResponse(HoldfastError):
    """The server's line is not IMAP as this client knows it."""


def literal_size(line: bytes) -> int | None:
    """The byte count when *line* announces a literal at its end (``{123}``)."""
    if not line.endswith(b"}"):
        return None
    found = _LITERAL_AT_END.search(line)
    return int(found[1]) if found else None


def parse(parts: list[bytes]) -> list[Value]:
    """One response as values. *parts* alternate: text, literal, text, literal, ..., text. Raises BadResponse."""
    text = bytearray()
    for index in range(0, len(parts), 2):
        piece = parts[index]
        if index + 1 < len(parts):
            piece = _LITERAL_AT_END.sub(b"", piece)
            piece += b"\x00%d\x00" % (index + 1)
        text += piece
    stack: list[list[Value]] = [[]]
    position = 0
    line = bytes(text).rstrip(b" ")
    while position < len(line):
        found = _TOKEN.match(line, position)
        if found is None:
            raise BadResponse(f"not an IMAP response: {line[position : position + 60]!r}")
        position = found.end()
        bracket, quoted, literal, atom = found.groups()
        if bracket == b"(":
            stack.append([])
        elif bracket == b")":
            if len(stack) == 1:
                raise BadResponse(f"unbalanced parenthesis: {line[:60]!r}")
            done = stack.pop()
            stack[-1].append(done)
        elif quoted is not None:
            stack[-1].append(_ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted)
        elif literal is not None:
            stack[-1].append(parts[int(literal)])
        else:
            stack[-1].append(None if atom.upper() == b"NIL" else atom)
    if len(stack) != 1:
        raise BadResponse(f"unbalanced parenthesis: {line[:60]!r}")
    return stack[0]


def numbers(sequence_set: bytes) -> list[int]:
    """``1,3:5`` as [1, 3, 4, 5], in the order written (COPYUID's order matters)."""
    found: list[int] = []
    for part in sequence_set.split(b","):
        first, _, last = part.partition(b":")
        start, stop = int(first), int(last or first)
        found.extend(range(start, stop + 1) if start <= stop else range(start, stop - 1, -1))
    return found


def sequence_set(uids: list[int] | tuple[int, ...]) -> str:
    """Ascending UIDs in the short form: [1, 2, 3, 7] is ``1:3,7``."""
    runs: list[list[int]] = []
    for uid in uids:
        if runs and uid == runs[-1][1] + 1:
            runs[-1][1] = uid
        else:
            runs.append([uid, uid])
    return ",".join(str(first) if first == last else f"{first}:{last}" for first, last in runs)


def quoted(text: str) -> str:
    """*text* as a quoted string (ASCII, no line ends)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def folder_to_wire(name: str) -> str:
    """A folder name in modified UTF-7 (RFC 3501 5.1.3), quoted."""
    out: list[str] = []
    pending = ""

    def flush() -> None:
        nonlocal pending
        if pending:
            coded = base64.b64encode(pending.encode("utf-16-be"), altchars=b"+,").decode().rstrip("=")
            out.append(f"&{coded}-")
            pending = ""

    for char in name:
        if " " <= char <= "~":
            flush()
            out.append("&-" if char == "&" else char)
        else:
            pending += char
    flush()
    return quoted("".join(out))


def folder_from_wire(name: bytes) -> str:
    """The Unicode name; bytes that are not modified UTF-7 are kept readable (``\\xNN``) and never raise."""

    def decoded(found: re.Match[str]) -> str:
        coded = found[1]
        if not coded:
            return "&"
        padded = coded.replace(",", "/") + "=" * (-len(coded) % 4)
        try:
            return base64.b64decode(padded).decode("utf-16-be")
        except ValueError:
            return found[0]

    return re.sub(r"&([^-]*)-", decoded, name.decode("ascii", "backslashreplace"))
