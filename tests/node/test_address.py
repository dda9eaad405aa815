"""What is said to the neighbours when an address moves, byte by byte."""

from __future__ import annotations

import ipaddress
import struct

from holdfast.node.address import announcements

HARDWARE = bytes.fromhex("02004d010b01")


def test_gratuitous_arp_is_sent_as_request_and_as_reply() -> None:
    request, reply = announcements(ipaddress.IPv4Address("192.0.2.10"), HARDWARE)
    for frame, operation in ((request, 1), (reply, 2)):
        assert len(frame) == 42
        assert frame[:6] == b"\xff" * 6
        assert frame[6:12] == HARDWARE
        assert struct.unpack("!H", frame[12:14]) == (0x0806,)
        assert struct.unpack("!HHBBH", frame[14:22]) == (1, 0x0800, 6, 4, operation)
        sender, target = frame[28:32], frame[38:42]
        assert sender == target == ipaddress.IPv4Address("192.0.2.10").packed, "RFC 5227: both are the address"


def test_the_neighbour_advertisement_overrides_and_its_checksum_is_right() -> None:
    (frame,) = announcements(ipaddress.IPv6Address("2001:db8::10"), HARDWARE)
    header, body = frame[14:54], frame[54:]
    assert frame[:6] == bytes.fromhex("333300000001"), "RFC 2464: multicast address of ff02::1"
    assert header[6] == 58, "next header ICMPv6"
    assert header[7] == 255, "RFC 4861 7.1.2: hop limit 255"
    assert body[0] == 136
    assert body[4] & 0x20, "override"
    assert body[8:24] == ipaddress.IPv6Address("2001:db8::10").packed
    assert body[24:] == b"\x02\x01" + HARDWARE
    pseudo = header[8:40] + struct.pack("!II", len(body), 58)
    words = struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF, "RFC 1071: the sum with the checksum in place is all ones"
