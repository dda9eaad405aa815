"""Messages as stores keep them: compressed, encrypted, one of many in a file."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes._zstd import compress
from holdfast.mail.stored import DboxMessage, Unreadable, dbox_message, over_the_wire, plain

MESSAGE = b"Subject: hello\n\n" + b"body " * 500
TAIL = b"\n\x01\x03\nR695645a0\nV1a\nG6245c503cd5b036b0153000083ecc375\nBINBOX\n\n"


@pytest.mark.parametrize("stored", [gzip.compress, bz2.compress, lzma.compress, compress, bytes])
def test_compressed_messages_are_read_whole_or_by_their_beginning(stored: object) -> None:
    assert callable(stored)
    data = stored(MESSAGE)
    assert plain(data) == MESSAGE
    assert plain(data, 10) == MESSAGE[:10]


def test_encrypted_and_damaged_ones_say_so() -> None:
    for data, word in (
        (b"CRYPTED\x03\x07\x02abc", "mail_crypt"),
        (b"\x1f\x8bnothing", "damaged"),
        (b"Dovecot-LZ4\x0d\x2a\x9b\xc5abc", "LZ4"),
    ):
        found = plain(data)
        assert isinstance(found, Unreadable)
        assert word in found.reason


def record(message: bytes) -> bytes:
    return b"\x01\x02N          %016x\n" % len(message) + message + TAIL


def test_dbox_messages_follow_each_other() -> None:
    data = b"2 M1e C6b035bcd\n" + record(MESSAGE) + record(b"second\n")
    first = dbox_message(data)
    assert isinstance(first, DboxMessage)
    assert first.stored == MESSAGE
    assert (first.received_s, first.saved_to) == (0x695645A0, "INBOX")
    assert first.guid == "6245c503cd5b036b0153000083ecc375"
    second = dbox_message(data, first.end)
    assert isinstance(second, DboxMessage)
    assert (second.stored, second.end) == (b"second\n", len(data))
    assert isinstance(dbox_message(data, 3), Unreadable)
    assert isinstance(dbox_message(data[:100]), Unreadable)
    beginning = dbox_message(data[:100], head=True)
    assert isinstance(beginning, DboxMessage)
    assert MESSAGE.startswith(beginning.stored)


def test_a_message_without_its_attachments_says_so() -> None:
    data = b"2 M1e C6b035bcd\n" + record(MESSAGE).replace(b"\nBINBOX\n", b"\nX100 2000 B72 a/b/c\nBINBOX\n")
    found = dbox_message(data)
    assert isinstance(found, DboxMessage)
    assert found.parts_elsewhere


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_a_message_or_unreadable(data: bytes, at: int) -> None:
    for some in (data, b"2 M1e C6b035bcd\n" + data, b"\x01\x02N          0000000000000010\n" + data):
        assert isinstance(dbox_message(some, min(at, len(some))), DboxMessage | Unreadable)
        assert isinstance(plain(some), bytes | Unreadable)


@given(st.binary(max_size=200))
def test_over_the_wire_twice_is_the_same(data: bytes) -> None:
    once = over_the_wire(data)
    assert over_the_wire(once) == once
    assert over_the_wire(once.replace(b"\r\n", b"\n")) == once or b"\r\r\n" in once
