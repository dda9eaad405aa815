"""A generated mail store: Maildirs of 200 accounts, made to be like an office's mail, not like what a format likes.

Words come from a vocabulary of 40,000 with frequencies as in text (Zipf's law), drawn independently: there are no
phrases that return, which makes this harder to compress than people's prose. What returns is what returns in mail:

* a message has the headers a real one has (two to four ``Received``, a DKIM signature, ids: random where those are);
* three in ten are answers and quote what they answer, which lies in other accounts too;
* one in ten goes to several accounts at once: equal bodies under headers of their own;
* half have an HTML alternative, with its sender's style sheet; a quarter of those come from a mailing (a template);
* one in ten has attachments: random bytes (as of JPEG, PDF, Office files: compressed already) in base64, 70 % of all
  bytes; one in three of them was in another message before (forwarded, answered, sent around).

``OFFICE`` is that; ``SMALL`` are plain messages of 3 KB: notes, notifications, lists, without HTML and attachments.
"""

from __future__ import annotations

import base64
import os
import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ACCOUNTS: Final = 200
VOCABULARY: Final = 40_000
_CONSONANTS: Final = "bdfghklmnprstvw"
SYLLABLES: Final = [first + vowel for first in _CONSONANTS for vowel in "aeiou"] + ["en", "er", "es", "ing", "tion"]
LINE_WORDS: Final = 11
SENTENCE_WORDS: Final = 13
DRAWS: Final = 65_536
"""A table with each word as often as its frequency says: drawing is an index."""
STYLES: Final = 40
SENDERS: Final = 3_000
REMEMBERED_BODIES: Final = 2_000
START_SECONDS: Final = 1_700_000_000


class Kind(NamedTuple):
    """What a store is like. *words*, *attachment_bytes*: medians (lognormal)."""

    words: float
    html: float
    attached: float
    attachment_bytes: int


OFFICE: Final = Kind(words=120, html=0.5, attached=0.10, attachment_bytes=34_000)
SMALL: Final = Kind(words=110, html=0.0, attached=0.0, attachment_bytes=0)


class _Text:
    """Words, sentences, pages."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        made = ("".join(chance.choices(SYLLABLES, k=chance.choice((1, 2, 2, 3, 3, 4)))) for _ in range(2 * VOCABULARY))
        self.vocabulary = list(dict.fromkeys(made))[:VOCABULARY]
        frequencies = [1 / (rank + 2.7) for rank in range(len(self.vocabulary))]
        scale = DRAWS / sum(frequencies)
        pairs = zip(self.vocabulary, frequencies, strict=True)
        self._table = [word for word, frequency in pairs for _ in range(max(round(frequency * scale), 1))]
        self._styles = [self._style() for _ in range(STYLES)]

    def words(self, count: int) -> list[str]:
        table, size = self._table, len(self._table)
        return [table[number % size] for number in array("I", self._chance.randbytes(4 * count))]

    def prose(self, count: int) -> str:
        words = self.words(count)
        for at in range(0, count, SENTENCE_WORDS):
            words[at] = words[at].capitalize()
            words[at - 1] += "."
        return "\n".join(" ".join(words[at : at + LINE_WORDS]) for at in range(0, count, LINE_WORDS))

    def _style(self) -> str:
        chance = self._chance
        rules = [
            f"td.c{chance.randrange(99)} {{ font-family: Arial, sans-serif; font-size: {chance.randrange(9, 20)}px; "
            f"color: #{chance.randrange(1 << 24):06x}; padding: {chance.randrange(30)}px }}"
            for _ in range(chance.randrange(5, 40))
        ]
        return "<style>\n" + "\n".join(rules) + "\n</style>"

    def page(self, prose: str) -> str:
        number = self._chance.randrange(STYLES)
        lines = (f'<p class="c{number % 7}" style="margin:0 0 12px 0">{line}</p>\n' for line in prose.split("\n"))
        return (
            f'<!DOCTYPE html>\n<html><head><meta charset="utf-8">{self._styles[number]}</head>\n'
            f'<body bgcolor="#ffffff"><table width="600"><tr><td>\n{"".join(lines)}</td></tr></table></body></html>\n'
        )


class _Sender:
    """Messages."""

    def __init__(self, seed: int, kind: Kind) -> None:
        self.chance = chance = random.Random(seed)
        self._kind = kind
        self.text = _Text(chance)
        words = self.text.vocabulary
        self.people = [f"{chance.choice(words)}@{chance.choice(words)}.example" for _ in range(SENDERS)]
        self._templates = [self.text.page(self.text.prose(400)) for _ in range(30)]
        self._attachments: list[bytes] = []
        self._bodies: list[str] = []

    def body(self) -> bytes:
        """Content headers and body of one message."""
        chance, kind = self.chance, self._kind
        prose = self._with_quote(self.text.prose(max(int(chance.lognormvariate(0, 0.8) * kind.words), 14)))
        content = f"Content-Type: text/plain; charset=utf-8\n\n{prose}\n"
        if chance.random() < kind.html:
            mailing = chance.random() < 0.25
            page = self._mailing() if mailing else self.text.page(prose)
            html = f"Content-Type: text/html; charset=utf-8\n\n{page}"
            content = self._multipart("alternative", [content.encode(), html.encode()]).decode()
        if chance.random() >= kind.attached:
            return content.encode()
        return self._multipart("mixed", [content.encode(), *self._attached(chance.choice((1, 1, 1, 2, 3)))])

    def _with_quote(self, prose: str) -> str:
        if self._bodies and self.chance.random() < 0.3:
            quoted = self.chance.choice(self._bodies[-400:])
            lines = "".join("> " + line for line in quoted.splitlines(keepends=True))
            prose += "\n\nOn that day somebody wrote:\n" + lines
        self._bodies.append(prose)
        if len(self._bodies) > REMEMBERED_BODIES:
            del self._bodies[: REMEMBERED_BODIES // 2]
        return prose

    def _mailing(self) -> str:
        return self.chance.choice(self._templates).replace("600", str(self.chance.randrange(500, 700)))

    def _multipart(self, kind: str, parts: list[bytes]) -> bytes:
        boundary = b"%024x" % self.chance.getrandbits(96)
        head = f'Content-Type: multipart/{kind}; boundary="{boundary.decode()}"\n'.encode()
        return head + b"".join(b"\n--" + boundary + b"\n" + part for part in parts) + b"\n--" + boundary + b"--\n"

    def _attached(self, count: int) -> Iterator[bytes]:
        for number in range(count):
            name = f"file{number}.pdf"
            head = (
                f"Content-Type: application/pdf; name={name}\nContent-Transfer-Encoding: base64\n"
                f"Content-Disposition: attachment; filename={name}\n\n"
            )
            yield head.encode() + self._attachment()

    def _attachment(self) -> bytes:
        if self._attachments and self.chance.random() < 1 / 3:
            return self.chance.choice(self._attachments)
        size = min(int(self.chance.lognormvariate(0, 1.3) * self._kind.attachment_bytes) + 2000, 5_000_000)
        self._attachments.append(base64.encodebytes(self.chance.randbytes(size)))
        return self._attachments[-1]

    def headers(self, account: str, number: int, sender: str, subject: str) -> bytes:
        chance = self.chance
        domain = sender.rpartition("@")[2]
        date = f"{number % 28 + 1} Nov 2023 {number % 24:02d}:{number % 60:02d}:{number % 59:02d} +0000"
        hops = "".join(
            f"Received: from mx{chance.randrange(9)}.{domain} (unknown [192.0.2.{chance.randrange(256)}])\n"
            f"\tby mail.example.org (Postfix) with ESMTPS id {chance.getrandbits(60):015X}\n"
            f"\tfor <{account}@example.org>; {date}\n"
            for _ in range(chance.choice((2, 3, 3, 4)))
        )
        signature = base64.b64encode(chance.randbytes(256)).decode()
        lines = "\n\t ".join(signature[at : at + 70] for at in range(0, len(signature), 70))
        digest = base64.b64encode(chance.randbytes(32)).decode()
        return (
            f"Return-Path: <{sender}>\nDelivered-To: {account}@example.org\n{hops}"
            f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain};\n"
            f"\ts=mail; t={START_SECONDS + number};\n\tbh={digest};\n\th=From:To:Subject:Date; b={lines}\n"
            f"From: <{sender}>\nTo: <{account}@example.org>\nSubject: {subject}\nDate: {date}\n"
            f"Message-ID: <{chance.getrandbits(120):030x}@{domain}>\nMIME-Version: 1.0\n"
        ).encode()


def messages(kind: Kind, seed: int) -> Iterator[tuple[int, bytes]]:
    """Endless: (account's number, message)."""
    sender = _Sender(seed, kind)
    chance = sender.chance
    number = 0
    while True:
        author, subject, body = chance.choice(sender.people), " ".join(sender.text.words(5)), sender.body()
        copies = chance.choice((2, 3, 4, 8)) if chance.random() < 0.1 else 1
        for account in chance.sample(range(ACCOUNTS), copies):
            yield account, sender.headers(f"user{account:03d}", number, author, subject) + body
            number += 1


class Made(NamedTuple):
    messages: int
    bytes: int


def make_store(root: Path, kind: Kind, count: int, seed: int = 1) -> Made:
    """*count* messages below *root*: ``userNNN/Maildir/[.folder/]cur/``."""
    chance = random.Random(seed + 1)
    total = 0
    for number, (account, message) in zip(range(count), messages(kind, seed), strict=False):
        write_message(root, account, number, message, chance)
        total += len(message)
    return Made(count, total)


def write_message(root: Path, account: int, number: int, message: bytes, chance: random.Random) -> Path:
    folder = chance.choice(("", "", "", ".Sent", ".Archive.2023", ".Projects"))
    cur = root / f"user{account:03d}" / "Maildir" / folder / "cur"
    seconds, wire_bytes = START_SECONDS + number, len(message) + message.count(b"\n")
    unique = f"M{chance.randrange(10**6)}P{chance.randrange(30_000)}"
    path = cur / f"{seconds}.{unique}.mail,S={len(message)},W={wire_bytes}:2,{chance.choice(('S', 'S', 'RS', ''))}"
    try:
        path.write_bytes(message)
    except FileNotFoundError:
        cur.mkdir(parents=True)
        path.write_bytes(message)
    os.utime(path, (seconds, seconds))
    return path
