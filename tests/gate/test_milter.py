from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.gate.milter import (
    Abort,
    Begin,
    Body,
    Close,
    EndOfMessage,
    Event,
    Header,
    MilterSession,
    Reply,
    accept,
    later,
    packet,
)
from holdfast.gate.stream import ProtocolBroken
from tests.gate.test_stream import cut

CONNECTED = (
    packet(b"D", b"Cj\0mx.example.org\0{daemon_name}\0ORIGINATING\0")
    + packet(b"C", b"client.example\0004\x1f\x90192.0.2.9\0")
    + packet(b"D", b"M{auth_authen}\0alice\0")
)
POSTFIX_OFFERS = packet(b"O", struct.pack(">III", 6, 0x1FF, 0x1FFFFF))
MESSAGE = (
    packet(b"D", b"Mi\0004XyZ1\0")
    + packet(b"M", b"<a@outside.example>\0SIZE=10\0")
    + packet(b"R", b"<alice@example.org>\0")
    + packet(b"R", b"<bob@example.org>\0NOTIFY=NEVER\0")
    + packet(b"T")
    + packet(b"L", b"Subject\0 hello\n world\0")
    + packet(b"N")
    + packet(b"B", b"line\r\n")
    + packet(b"E")
)
EVENTS: list[Event] = [
    Begin(b"<a@outside.example>", (b"<alice@example.org>", b"<bob@example.org>")),
    Header(b"Subject", b" hello\r\n world"),
    Body(b"line\r\n"),
    EndOfMessage("4XyZ1"),
]


@given(st.lists(st.integers(0)))
def test_messages_are_read_however_they_are_cut(places: list[int]) -> None:
    session, events = MilterSession(), list[Event]()
    for piece in cut(POSTFIX_OFFERS + MESSAGE + MESSAGE + packet(b"Q"), places):
        events += session.feed(piece)
    answer = events.pop(0)
    assert isinstance(answer, Reply)
    version, actions, protocol = struct.unpack(">III", answer.data[5:])
    assert (version, actions, bool(protocol & 0x80000)) == (6, 0x21, True)
    assert events == [*EVENTS, *EVENTS, Abort(), Close()]


def test_where_a_message_came_from_is_told_with_it() -> None:
    session = MilterSession()
    events = session.feed(POSTFIX_OFFERS + CONNECTED + MESSAGE + MESSAGE)
    begins = [event for event in events if isinstance(event, Begin)]
    assert [(b.client, b.port, b.login) for b in begins] == [
        ("192.0.2.9", "ORIGINATING", "alice"),
        ("192.0.2.9", "ORIGINATING", ""),
    ]


@pytest.mark.parametrize(
    "data",
    [
        packet(b"M", b"<>\0"),
        packet(b"O", b"short"),
        packet(b"O", struct.pack(">III", 2, 0x1FF, 0x7F)),
        POSTFIX_OFFERS + packet(b"N"),
        POSTFIX_OFFERS + packet(b"z"),
        POSTFIX_OFFERS + struct.pack(">I", 1 << 30),
        POSTFIX_OFFERS + struct.pack(">I", 0),
    ],
)
def test_what_is_no_milter_ends_the_session(data: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        MilterSession().feed(data)


@given(st.lists(st.tuples(st.sampled_from([bytes([c]) for c in b"ODMRTLNBEAQKCHUx"]), st.binary(max_size=30))))
def test_any_packets_are_read_or_refused(packets: list[tuple[bytes, bytes]]) -> None:
    session = MilterSession()
    session.feed(POSTFIX_OFFERS)
    try:
        session.feed(b"".join(packet(command, data) for command, data in packets))
    except ProtocolBroken:
        return


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        MilterSession().feed(data)
    except ProtocolBroken:
        return


def test_answers() -> None:
    assert accept(b"X", b"1").endswith(packet(b"c"))
    assert later("50% full\n250 ok") == packet(b"y", b"451 4.3.0 50%% full?250 ok\0")


@pytest.mark.parametrize(
    ("data", "address"),
    [
        (b"relay.example\x006\x00\x19IPv6:2001:DB8::13\0", "2001:db8::13"),
        (b"relay.example\x006\x00\x192001:db8::13\0", "2001:db8::13"),
        (b"unknown\0U", ""),
        (b"", ""),
    ],
)
def test_a_client_is_known_by_its_address(data: bytes, address: str) -> None:
    events = MilterSession().feed(POSTFIX_OFFERS + packet(b"C", data) + MESSAGE)
    assert [event.client for event in events if isinstance(event, Begin)] == [address]


def test_no_room_is_452_and_anything_else_451() -> None:
    assert later("away") == packet(b"y", b"451 4.3.0 away\0")
    assert later("100% full", no_space=True) == packet(b"y", b"452 4.3.1 100%% full\0")
