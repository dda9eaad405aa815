"""The NATS protocol, byte by byte."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.log.wire import Complaint, Decoder, Event, Info, Message, Ping, Pong, ProtocolBroken, headers, publish

STREAM = (
    b'INFO {"server_name":"main"}\r\n'
    b"PING\r\n+OK\r\n"
    b"MSG a.b 1 5\r\nhe\r\nl\r\n"
    b"MSG a.b 12 _INBOX.x 0\r\n\r\n"
    b"HMSG a 2 30 34\r\nNATS/1.0\r\nNats-Sequence: 7\r\n\r\nbody\r\n"
    b"HMSG a 2 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    b"-ERR 'Permissions Violation'\r\nPONG\r\n"
)


def decoded(pieces: list[bytes]) -> list[Event]:
    decoder = Decoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def shape(events: list[Event]) -> list[object]:
    return [type(event) if isinstance(event, (Ping, Pong)) else event for event in events]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_same_events_come_out_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    events = decoded([STREAM[begin:end] for begin, end in pairwise(edges)])
    assert shape(events) == [
        Info({"server_name": "main"}),
        Ping,
        Message(1, "a.b", "", b"", b"he\r\nl"),
        Message(12, "a.b", "_INBOX.x", b"", b""),
        Message(2, "a", "", b"NATS/1.0\r\nNats-Sequence: 7\r\n\r\n", b"body"),
        Message(2, "a", "", b"NATS/1.0 503\r\n\r\n", b""),
        Complaint("Permissions Violation"),
        Pong,
    ]


def test_status_and_headers() -> None:
    message = Message(1, "a", "", b"NATS/1.0 404 Not Found\r\nNats-Sequence: 7\r\n\r\n", b"")
    assert message.status == 404
    assert message.header(b"Nats-Sequence") == "7"
    assert message.header(b"Nats-Seq") is None
    assert Message(1, "a", "", b"", b"").status == 0


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_the_documented_error(data: bytes) -> None:
    with suppress(ProtocolBroken):
        decoded([data, b"\r\n"])


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 1\r\n",
        b"MSG a x 5\r\n",
        b"HMSG a 1 9 5\r\n",
        b"MSG a 1 99999999999\r\n",
        b"HTTP/1.1 400\r\n",
        b"INFO []\r\n",
    ],
)
def test_what_is_not_the_protocol_is_said_to_be_so(line: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        decoded([line])


@given(st.text(), st.binary(max_size=20000))
def test_a_header_value_cannot_become_another_header_or_command(value: str, payload: bytes) -> None:
    block = headers({"Hf-Error": value})
    sent = b"".join(publish("a.b", payload, reply="c", headers=block))
    head, _, rest = sent.partition(b"\r\n")
    assert head == b"HPUB a.b c %d %d" % (len(block), len(block) + len(payload))
    assert rest == block + payload + b"\r\n"
    assert block.count(b"\r\n") == 3
