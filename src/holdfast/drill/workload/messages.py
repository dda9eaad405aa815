"""Messages as people send them, made from a seed: the same (seed, number) is always the same message.

Shapes: ``plain``, ``html`` (multipart/alternative), ``attachment`` (base64, up to 5 MB), ``eight_bit`` (UTF-8 or
Latin-1 bytes as they are), ``long_lines`` (998 octets, the longest RFC 5322 2.1.1 allows), ``dots`` (lines of dots,
which SMTP must stuff). Subjects and names are partly non-ASCII: as encoded words (RFC 2047), and in some raw UTF-8.
Sizes follow a log-normal law, as mail does: many small ones, few large ones that make most of the bytes.
"""

from __future__ import annotations

import base64
import math
import random
import time
from email.header import Header
from typing import Final

import blake3
from msgspec import Struct

SHAPES: Final = {"plain": 34, "html": 24, "eight_bit": 16, "long_lines": 8, "dots": 6, "attachment": 12}
"""Shape -> its share of the messages, in percent."""

TEXT_BYTES_MEDIAN: Final = 5_000
TEXT_BYTES_SIGMA: Final = 1.0
TEXT_BYTES_MAX: Final = 200_000
ATTACHMENT_BYTES_MEDIAN: Final = 40_000
ATTACHMENT_BYTES_SIGMA: Final = 1.6
ATTACHMENT_BYTES_MAX: Final = 5_000_000
LINE_OCTETS_MAX: Final = 998
"""RFC 5322 2.1.1; Postfix cuts longer ones (``smtp_line_length_limit``), which would change the body's digest."""

LARGE_EVERY: Final = 250
"""Of so many messages one has an attachment between 2 and 5 MB, so that every load has some."""

DOMAIN: Final = "drill.holdfast.example"

_TEXT: Final = (
    "mail meeting invoice the of and to please attached regards report budget quarter deadline thanks question answer "
    "server standby project draft version number account travel Monday reply forward room agenda minutes customer order"
)
_WORDS: Final = _TEXT.split(" ")
_ABROAD: Final = (
    "Grüße aus Köln – Übergabe, Straße, naïve façade",
    "Привет, коллеги: отчёт за квартал",
    "会議の議事録をお送りします",
    "Καλημέρα σας, η αναφορά",
    "שלום לכולם",
    "Smörgåsbord, ærlig, Łódź, čaj 🙂",
)


class Mail(Struct, frozen=True):
    """*content* is the whole message with CRLF line ends and a final one; *message_id* stands without ``<>``."""

    message_id: str
    content: bytes
    body_digest: str
    shape: str


def make(seed: int, number: int, *, stream: str, sender: str, recipient: str) -> Mail:
    """Message *number* of *stream* (a name that keeps two kinds of load apart)."""
    chance = random.Random(f"{seed}/{stream}/{number}")
    shape = chance.choices(list(SHAPES), list(SHAPES.values()))[0]
    large = number % LARGE_EVERY == LARGE_EVERY // 2
    if large:
        shape = "attachment"
    message_id = f"{stream}.{number}.{seed:x}@{DOMAIN}"
    header, body = _BODIES[shape](chance, large)
    subject = _subject(chance, number)
    lines = [
        b"From: " + _name(chance) + b" <" + sender.encode() + b">",
        b"To: <" + recipient.encode() + b">",
        b"Subject: " + subject,
        b"Date: " + time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(1_700_000_000 + number * 60)).encode(),
        b"Message-ID: <" + message_id.encode() + b">",
        b"MIME-Version: 1.0",
        *header,
    ]
    return Mail(message_id, b"\r\n".join(lines) + b"\r\n\r\n" + body, body_digest(b"\r\n\r\n" + body), shape)


def body_digest(content: bytes) -> str:
    """Digest (BLAKE3, 32 hexadecimal digits) of what follows the first empty line of *content*."""
    _, _, body = content.partition(b"\r\n\r\n")
    return digest(body)


def digest(content: bytes) -> str:
    return blake3.blake3(content).hexdigest(length=16)


def message_id_of(header: bytes) -> str:
    """The Message-ID without ``<>``; empty when the header has none."""
    for line in header.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"message-id":
            return value.strip().strip(b"<>").decode("ascii", "replace")
    return ""


def _subject(chance: random.Random, number: int) -> bytes:
    kind = chance.random()
    if kind < 0.5:
        return f"{_sentence(chance, 5)} {number}".encode()
    text = f"{chance.choice(_ABROAD)} {number}"
    if kind < 0.9:
        return Header(text, "utf-8", header_name="Subject").encode(linesep="\r\n").encode()
    return text.encode()  # raw UTF-8: not allowed without SMTPUTF8, and sent every day


def _name(chance: random.Random) -> bytes:
    return chance.choice((b"Ann Other", b"=?utf-8?q?J=C3=BCrgen_M=C3=BCller?=", b'"Doe, Jane"', b"postmaster"))


def _sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=words))


def _size(chance: random.Random, median: int, sigma: float, most: int) -> int:
    return min(most, max(64, round(chance.lognormvariate(math.log(median), sigma))))


def _text(chance: random.Random, size_bytes: int) -> bytes:
    """About *size_bytes* of ASCII lines. Long texts repeat one page: making them must not cost the machine much."""
    page = "\r\n".join(_sentence(chance, 10) for _ in range(min(40, size_bytes // 60 + 1))).encode() + b"\r\n"
    return page * max(1, size_bytes // len(page))


def _text_size(chance: random.Random) -> int:
    return _size(chance, TEXT_BYTES_MEDIAN, TEXT_BYTES_SIGMA, TEXT_BYTES_MAX)


def _plain(chance: random.Random, large: bool) -> tuple[list[bytes], bytes]:
    return [b"Content-Type: text/plain; charset=us-ascii"], _text(chance, _text_size(chance))


def _dots(chance: random.Random, large: bool) -> tuple[list[bytes], bytes]:
    body = b".\r\n..\r\n.hidden\r\n\r\n" + _text(chance, 400).replace(b"\r\n", b"\r\n.") + b"\r\n.\r\n"
    return [b"Content-Type: text/plain; charset=us-ascii"], body


def _eight_bit(chance: random.Random, large: bool) -> tuple[list[bytes], bytes]:
    charset = chance.choice(("utf-8", "iso-8859-1"))
    abroad = "".join(f"{chance.choice(_ABROAD)}\r\n" for _ in range(8)).encode(charset, "ignore")
    header = [b"Content-Type: text/plain; charset=" + charset.encode(), b"Content-Transfer-Encoding: 8bit"]
    return header, abroad + _text(chance, _text_size(chance)) + abroad


def _long_lines(chance: random.Random, large: bool) -> tuple[list[bytes], bytes]:
    line = (_sentence(chance, 300).encode() + b"x" * LINE_OCTETS_MAX)[:LINE_OCTETS_MAX]
    return [b"Content-Type: text/plain; charset=us-ascii"], (line + b"\r\n") * chance.randint(1, 12)


def _html(chance: random.Random, large: bool) -> tuple[list[bytes], bytes]:
    text = _text(chance, _text_size(chance) // 2)
    page = b"<html><body><p>" + text.replace(b"\r\n", b"<br>\r\n") + b"</p></body></html>\r\n"
    return _multipart(
        chance,
        "alternative",
        [(b"Content-Type: text/plain; charset=us-ascii", text), (b"Content-Type: text/html; charset=utf-8", page)],
    )


def _attachment(chance: random.Random, large: bool) -> tuple[list[bytes], bytes]:
    size = (
        chance.randint(2_000_000, ATTACHMENT_BYTES_MAX)
        if large
        else _size(chance, ATTACHMENT_BYTES_MEDIAN, ATTACHMENT_BYTES_SIGMA, ATTACHMENT_BYTES_MAX)
    )
    data = base64.encodebytes(chance.randbytes(size)).replace(b"\n", b"\r\n")
    header = (
        b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-Disposition: attachment; filename*=utf-8''%C3%9Cbersicht.bin"
    )
    return _multipart(
        chance, "mixed", [(b"Content-Type: text/plain; charset=us-ascii", _text(chance, 600)), (header, data)]
    )


def _multipart(chance: random.Random, kind: str, parts: list[tuple[bytes, bytes]]) -> tuple[list[bytes], bytes]:
    boundary = b"=_%032x" % chance.getrandbits(128)
    body = b"".join(b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    header = b"Content-Type: multipart/" + kind.encode() + b'; boundary="' + boundary + b'"'
    return [header], body + b"--" + boundary + b"--\r\n"


_BODIES: Final = {
    "plain": _plain,
    "html": _html,
    "attachment": _attachment,
    "eight_bit": _eight_bit,
    "long_lines": _long_lines,
    "dots": _dots,
}
