"""Headers of any message: what people look for is found, however it was written, and nothing makes the reader fail."""

from __future__ import annotations

from email.header import Header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.mail.headers import VALUE_CHARS_MAX, Envelope, date_seconds, decoded, envelope, message_id, split_header

PLAIN = b"""Return-Path: <x@y>\r
Message-ID: <abc.1@example.org>\r
From: =?utf-8?Q?J=C3=BCrgen_M=C3=BCller?= <j@example.org>\r
To: a@example.org,\r
\tb@example.org\r
Cc: =?iso-8859-1?B?S/ZsbiAmIEJvbm4=?= <c@example.org>\r
Subject: =?UTF-8?B?5Lya6K2w?= =?UTF-8?B?44Gu5LqI5a6a?=\r
Date: Tue, 17 Nov 2026 10:00:00 +0100\r
\r
Subject: not this one\r
"""


def test_an_ordinary_message() -> None:
    assert envelope(PLAIN) == Envelope(
        "abc.1@example.org",
        "Jürgen Müller <j@example.org>",
        "a@example.org, b@example.org, Köln & Bonn <c@example.org>",
        "会議の予定",
        1794906000,
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"plain", "plain"),
        ("raw UTF-8 Größe".encode(), "raw UTF-8 Größe"),
        ("raw Latin-1 Größe".encode("latin-1"), "raw Latin-1 Größe"),
        (b"=?utf-8?q?a_b=20c?=", "a b c"),
        (b"=?utf-8?q?one?= =?utf-8?q?two?= three", "onetwo three"),
        (b"=?utf-8?B?w6Q?=", "ä"),
        (b"=?utf-8?B?5Lya6A==?= =?utf-8?B?rbA=?=", "会議"),
        (b"=?UTF-8*de?Q?Sprache?=", "Sprache"),
        (b"=?x-unknown?Q?caf=C3=A9?=", "café"),
        (b"=?utf-16?Q?=00?=", "�"),
        (b"=?idna?Q?=00?=", ""),
        (b"=?rot13?Q?abc?=", "abc"),
        (b"=?utf-8?Q?half", "=?utf-8?Q?half"),
        (b"a\x1b[31mred\x00\x07", "a [31mred"),
        (b"=?utf-8?Q?evil=1B]0;title=07?=", "evil ]0;title"),
    ],
)
def test_values(written: bytes, read: str) -> None:
    assert decoded(written) == read


def test_broken_headers_give_what_they_can() -> None:
    assert envelope(b"").subject == ""
    assert envelope(b"\r\nSubject: body\r\n").subject == ""
    assert envelope(b"From nobody Tue Nov 17\nno colon here\nSubject : spaced\n\nx").subject == "spaced"
    assert envelope(b"Subject: first\nSubject: second\n\n").subject == "first"
    assert envelope(b"Subject:\n\n").subject == ""
    assert envelope(b"SUBJECT: without an end").subject == "without an end"
    assert envelope(b"Date: Mon, 99 Foo 20266 99:99:99 +9999\n\n").date_s is None
    assert envelope(b"To: a\nTo: b\nBcc: c\n\n").recipients == "a, b, c"
    assert message_id(b"no brackets@x") == "no brackets@x"
    assert message_id(b" (comment) <id@x> more") == "id@x"
    assert len(envelope(b"Subject: " + b"x" * 100_000 + b"\n\n").subject) == VALUE_CHARS_MAX


@given(st.binary(max_size=600))
@example(b"\\ud800")
def test_any_bytes_have_an_envelope(data: bytes) -> None:
    for message in (
        data,
        b"Subject: " + data + b"\n\n",
        b"Date: " + data + b"\n",
        b"From: =?utf-8?b?" + data + b"?=\n",
    ):
        found = envelope(message)
        for text in (found.message_id, found.sender, found.recipients, found.subject):
            text.encode("utf-8")
            assert not any(ord(letter) < 32 or ord(letter) == 127 for letter in text)
        assert data.startswith(split_header(data)) or not split_header(data)


@given(
    st.text(alphabet=st.characters(min_codepoint=0x20, exclude_categories=("Cs", "Cc", "Zl", "Zp", "Cf")), max_size=80)
)
def test_what_python_encodes_is_read_back(text: str) -> None:
    """The standard library's writer of encoded words, read by our reader."""
    words = text.strip()
    written = Header(words, "utf-8", maxlinelen=75).encode().encode()
    unfolded = envelope(b"Subject: " + written + b"\n\n").subject
    assert unfolded == words


@given(st.text(max_size=60))
def test_any_date_is_a_number_or_none(text: str) -> None:
    assert date_seconds(text) is None or isinstance(date_seconds(text), int)
