"""A message as a mail store keeps it: maybe compressed, maybe encrypted, in a file of its own or in one of many. Pure.

Dovecot's zlib plugin (``zlib_save``; 2.4: ``mail_compress``) writes whole messages as gzip, bzip2, xz or zstd and
knows them again by their first bytes; ``mail_crypt`` begins with ``CRYPTED\\x03\\x07``. LZ4 is Dovecot's own framing
and is not read here.

dbox (2.3 and 2.4; src/lib-storage/index/dbox-common/dbox-file.h): a file header ``2 M1e C<time>``, then for each
message ``\\1\\2``, type, size in hex (30 bytes in all), the message, ``\\n\\1\\3\\n``, lines of metadata, an empty
line.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from typing import Final

from msgspec import Struct

from holdfast.changes._zstd import ZstdDecompressor, ZstdError

MESSAGE_BYTES_MAX: Final = 512 * 1024 * 1024
"""Of a decompressed message: ten times what mail systems accept. What is longer is a bomb."""
CRYPTED: Final = b"CRYPTED\x03\x07"
_LZ4: Final = b"Dovecot-LZ4\x0d\x2a\x9b\xc5"
_DBOX_PRE: Final = b"\x01\x02"
_DBOX_POST: Final = b"\n\x01\x03\n"
_DBOX_FILE: Final = re.compile(rb"2 M([0-9a-f]{1,4}) C[0-9a-f]{1,16}\n")
_DBOX_MESSAGE: Final = re.compile(rb"\x01\x02(.) .{8} ([0-9A-Fa-f]{16})", re.DOTALL)
_METADATA_BYTES_MAX: Final = 64 * 1024


class Unreadable(Struct, frozen=True):
    """Why a stored message cannot be read here."""

    reason: str


class DboxMessage(Struct, frozen=True):
    """One message of a dbox file. *stored*: its bytes as kept; *end*: where the next one begins."""

    stored: bytes
    received_s: int | None
    guid: str
    saved_to: str
    """The folder it was first saved to, as its user sees it; empty when it was not told."""
    end: int
    parts_elsewhere: bool = False
    """Attachments were taken out of it and stored by themselves (``mail_attachment_dir``)."""


def plain(stored: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> bytes | Unreadable:
    """The message itself, its first *bytes_max* bytes. A beginning of the stored bytes gives a beginning of it."""
    if stored.startswith(CRYPTED):
        return Unreadable("encrypted by mail_crypt: only a Dovecot with the account's keys can read it")
    if stored.startswith(_LZ4):
        return Unreadable("compressed with LZ4, which only Dovecot can read")
    try:
        if stored.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(stored, bytes_max)
        if stored.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(stored, bytes_max)
        if stored.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor().decompress(stored, bytes_max)
        if stored.startswith(b"\x28\xb5\x2f\xfd"):
            return ZstdDecompressor().decompress(stored, bytes_max)
    except (zlib.error, OSError, lzma.LZMAError, ZstdError, EOFError) as error:
        return Unreadable(f"its compressed bytes are damaged ({error})")
    return stored[:bytes_max]


def dbox_message(data: bytes, at: int = 0, *, head: bool = False) -> DboxMessage | Unreadable:
    """The message whose header stands at *at*, or the first one of a file for 0. *head*: *data* may end early; then
    what is there of the message is given, without its metadata."""
    if at == 0:
        opening = _DBOX_FILE.match(data)
        if opening is None:
            return Unreadable("no dbox file")
        at, size = opening.end(), int(opening[1], 16)
    else:
        size = 30
    found = _DBOX_MESSAGE.match(data, at)
    if found is None:
        return Unreadable("no dbox message begins there")
    begin, length = at + size, int(found[2], 16)
    end = begin + length
    stored = data[begin:end]
    if len(stored) < length or not data.startswith(_DBOX_POST, end):
        if head and len(data) <= end + len(_DBOX_POST):
            return DboxMessage(stored, None, "", "", len(data))
        return Unreadable("the dbox message is incomplete")
    metadata_at = end + len(_DBOX_POST)
    metadata_end = data.find(b"\n\n", metadata_at - 1, metadata_at + _METADATA_BYTES_MAX)
    lines = data[metadata_at : metadata_end if metadata_end >= 0 else len(data)].split(b"\n")
    values = {line[:1]: line[1:] for line in lines if line}
    received = values.get(b"R", b"")
    return DboxMessage(
        stored,
        int(received, 16) if re.fullmatch(rb"[0-9a-fA-F]{1,16}", received) else None,
        values.get(b"G", b"").decode("ascii", "replace"),
        values.get(b"B", b"").decode("utf-8", "replace"),
        metadata_end + 2 if metadata_end >= 0 else len(data),
        b"X" in values,
    )


def over_the_wire(message: bytes) -> bytes:
    """As IMAP gives it: lines end in CRLF (RFC 9051 2.3.1), and NUL is 0x80, as Dovecot makes of it."""
    return re.sub(rb"(?<!\r)\n", b"\r\n", message).replace(b"\0", b"\x80")
