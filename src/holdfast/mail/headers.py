"""What a message's header says, of any message there is: broken ones too. Pure.

Python's own parsers raise on mail that real people get (unknown charsets, half an encoded word, a date of the year
0). Here every header gives *something*: what cannot be decoded is shown as it stands.

RFC 5322 (fields, folding), RFC 2047 (encoded words), RFC 6532 (raw UTF-8); raw bytes that are not UTF-8 are taken as
Windows-1252, which is what they mostly are.
"""

from __future__ import annotations

import binascii
import re
from email.utils import mktime_tz, parsedate_tz
from typing import Final

from msgspec import Struct

HEADER_BYTES_MAX: Final = 256 * 1024
"""Of a message, looked at: Postfix's header_size_limit is 100 KB for one field's line."""
VALUE_CHARS_MAX: Final = 2_000
"""Of one field, kept: an index of mail, not the mail."""
_WANTED: Final = frozenset({b"message-id", b"from", b"to", b"cc", b"bcc", b"subject", b"date"})
_WORD: Final = re.compile(r"=\?([^?\s*]{1,60})(?:\*[^?\s]*)?\?([bBqQ])\?([^?\r\n]*)\?=")
_BETWEEN: Final = re.compile(r"(\?=)[ \t]+(?==\?[^?\s]{1,80}\?[bBqQ]\?)")
_FIELD: Final = re.compile(rb"([!-9;-~]{1,200})[ \t]*:(.*)", re.DOTALL)
_Q: Final = re.compile(rb"=([0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class Envelope(Struct, frozen=True, array_like=True):
    """What people look for a message by. *date_s*: of the field Date, seconds since 1970; None without a usable one."""

    message_id: str = ""
    sender: str = ""
    recipients: str = ""
    """To, Cc and Bcc, with commas between."""
    subject: str = ""
    date_s: int | None = None


def split_header(message: bytes) -> bytes:
    """The header: everything before the first empty line, or all of it. At most HEADER_BYTES_MAX."""
    head = message[:HEADER_BYTES_MAX]
    if head.startswith((b"\n", b"\r\n")):
        return b""
    ends = [at for at in (head.find(b"\n\n"), head.find(b"\n\r\n")) if at >= 0]
    return head[: min(ends)] if ends else head


def fields(header: bytes) -> list[tuple[bytes, bytes]]:
    """(name in small letters, value unfolded) in order; lines that are no field are passed over."""
    unfolded = re.sub(rb"\r?\n(?=[ \t])", b"", header)
    found = []
    for line in re.split(rb"\r?\n", unfolded):
        if match := _FIELD.fullmatch(line):
            found.append((match[1].lower(), match[2].strip(b" \t\r")))
    return found


def envelope(message: bytes) -> Envelope:
    """Of a message, or of its beginning. Never raises."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields(split_header(message)):
        if name in _WANTED:
            values.setdefault(name, []).append(value)

    def first(name: bytes) -> str:
        return decoded(values[name][0]) if name in values else ""

    recipients = [decoded(value) for name in (b"to", b"cc", b"bcc") for value in values.get(name, ())]
    return Envelope(
        message_id=message_id(values.get(b"message-id", [b""])[0]),
        sender=first(b"from"),
        recipients=", ".join(recipients)[:VALUE_CHARS_MAX],
        subject=first(b"subject"),
        date_s=date_seconds(first(b"date")),
    )


def message_id(value: bytes) -> str:
    """What stands between the angle brackets (RFC 5322 3.6.4), or all of it where there are none."""
    text = _text(value).strip()
    inside = re.search(r"<([^<>]*)>", text)
    return _CONTROL.sub("", inside[1] if inside else text).strip()[:VALUE_CHARS_MAX]


def decoded(value: bytes) -> str:
    """A field's value for people: encoded words decoded, control characters made blanks. Never raises."""
    text = _BETWEEN.sub(r"\1", _text(value))
    out: list[str] = []
    at = 0
    held: tuple[str, bytes, int] | None = None
    """Charset, bytes and end of the word before: a character may be cut in two by the end of a word."""
    for word in _WORD.finditer(text):
        plain = _word_bytes(word[2], word[3])
        charset = word[1].lower()
        if held is not None and held[2] == word.start() and held[0] == charset:
            held = charset, held[1] + plain, word.end()
        else:
            if held is not None:
                out.append(_charset(held[0], held[1]))
            out.append(text[at : word.start()])
            held = charset, plain, word.end()
        at = word.end()
    if held is not None:
        out.append(_charset(held[0], held[1]))
    out.append(text[at:])
    return _CONTROL.sub(" ", "".join(out)).strip()[:VALUE_CHARS_MAX]


def date_seconds(text: str) -> int | None:
    """A date of RFC 5322 3.3 (and much that is not) in seconds since 1970; None for what is none."""
    try:
        parsed = parsedate_tz(text)
        return None if parsed is None else int(mktime_tz(parsed))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("cp1252", "replace")


def _word_bytes(encoding: str, text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    if encoding in "bB":
        clean = re.sub(rb"[^A-Za-z0-9+/]", b"", raw)
        if len(clean) % 4 == 1:
            clean = clean[:-1]
        try:
            return binascii.a2b_base64(clean + b"=" * (-len(clean) % 4))
        except binascii.Error:
            return raw
    return _Q.sub(lambda match: bytes([int(match[1], 16)]), raw.replace(b"_", b" "))


def _charset(charset: str, plain: bytes) -> str:
    name = {"us-ascii": "utf-8", "iso-8859-1": "cp1252", "gb2312": "gb18030", "ks_c_5601-1987": "cp949"}.get(charset)
    try:
        return plain.decode(name or charset, "replace").encode("utf-8", "replace").decode()
    except (LookupError, ValueError):  # no such charset; or a codec that is not one of texts, or trips over a NUL
        return _text(plain)
