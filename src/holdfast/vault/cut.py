"""Where a file is cut into contents: every MiB, and around attachments, so that each is stored once.

The same attachment comes in many messages, each with headers of its own: sent to several people here, answered,
forwarded. In base64 (RFC 2045, 6.8) it is the same bytes in all of them, so a message is cut where such a body begins
and where it ends. Cut differently, nothing is wrong but that it is stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from holdfast.vault.objects import CONTENT_BYTES_MAX

ATTACHMENT_BYTES_MIN: Final = 4096
"""A smaller one is not worth the 20 bytes that a content costs in lists."""
LINE_BYTES_MIN: Final = 60
"""Of base64 in its first line: RFC 2045 permits 76, some write 60 or 64."""
LOOKED_AT_BYTES: Final = 256
HEADERS_BYTES_MAX: Final = 4096
"""Between the encoding's name and the end of the part's headers."""
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

ReadAt = Callable[[int, int], bytes]
"""(offset, length): that many bytes, fewer only at the end of the file."""


def pieces(read: ReadAt) -> Iterator[bytes]:
    """The contents of a file, in order; none is empty."""
    at = 0
    inside = False
    while data := read(at, CONTENT_BYTES_MAX):
        cut = _end(data) if inside else _beginning(data)
        yield data[:cut] if cut else data
        at += cut or len(data)
        if cut:
            inside = not inside
        elif len(data) < CONTENT_BYTES_MAX:
            return


def is_base64(content: bytes) -> bool:
    """Whether it is long enough to matter and begins like one: six bits of chance a byte, in which nothing returns."""
    if len(content) < ATTACHMENT_BYTES_MIN:
        return False
    return not content[:LOOKED_AT_BYTES].translate(None, _ALPHABET + b"\r\n=")


def _beginning(data: bytes) -> int:
    """Where the first attachment in *data* begins; 0 when there is none (or it begins there)."""
    at = data.find(b"ase64")
    while at >= 0:
        start = _after_headers(data, at)
        line = data[start : start + LINE_BYTES_MIN] if start else b""
        if len(line) == LINE_BYTES_MIN and not line.translate(None, _ALPHABET):
            end = data.find(b"\n-", start)
            if (end if end >= 0 else len(data)) - start >= ATTACHMENT_BYTES_MIN:
                return start
        at = data.find(b"ase64", max(start, at + 5))
    return 0


def _after_headers(data: bytes, at: int) -> int:
    """Behind the empty line that ends the headers *at* stands in; 0 when none comes."""
    found = [(data.find(empty, at, at + HEADERS_BYTES_MAX), len(empty)) for empty in (b"\n\n", b"\n\r\n")]
    return min((start + length for start, length in found if start >= 0), default=0)


def _end(data: bytes) -> int:
    """Where the attachment *data* begins with ends; 0: not in here."""
    return data.find(b"\n-") + 1
