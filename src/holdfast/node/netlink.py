"""The addresses of an interface, by rtnetlink(7): read, added, removed.

Standard library only, because of who needs it: ``holdfast release`` has to take the service address away from a machine
whose agent has died, at once, and importing a netlink library takes longer (0.15 to 0.6 s) than everything it does.
Formats: netlink(7), rtnetlink(7), linux/if_addr.h. All numbers are in the machine's own byte order.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
_ADDRESS: Final = struct.Struct("=BBBBI")
"""ifaddrmsg: family, prefix length, flags, scope, index."""
_ATTRIBUTE: Final = struct.Struct("=HH")
"""rtattr: length, type."""
_LIFETIMES: Final = struct.Struct("=IIII")
"""ifa_cacheinfo: preferred and valid seconds, and two times that only the kernel writes."""
_ERROR: Final = 2
_DONE: Final = 3
_NEW, _DELETE, _GET = 20, 21, 22
_REQUEST, _ACKNOWLEDGE, _REPLACE, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x100, 0x300, 0x200, 0x400
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO = 1, 2, 6
_IFA_F_NODAD: Final = 0x02
_FOREVER: Final = 0xFFFFFFFF
_ANSWER_BYTES_MAX: Final = 1 << 16
"""The kernel fills at most 32 KB for one answer of a dump."""
ANSWER_SECONDS_MAX: Final = 5.0
"""The kernel answers in microseconds; a machine out of memory may not."""
_numbers = itertools.count(1)


def addresses(interface: str) -> list[Interface]:
    """What *interface* has, each with the prefix length it is there with. Raises OSError; ENODEV without one."""
    index = _index(interface)
    found = []
    for kind, body in _ask(_GET, _DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, length, _, _, at = _ADDRESS.unpack_from(body)
        if kind == _NEW and at == index and family in (socket.AF_INET, socket.AF_INET6):
            attributes = dict(_attributes(body[_ADDRESS.size :]))
            packed = attributes.get(_IFA_LOCAL) or attributes[_IFA_ADDRESS]  # the peer's, where they differ
            found.append(ipaddress.ip_interface((packed, length)))
    return found


def add(interface: str, address: Interface, lease_seconds: int | None = None) -> None:
    """Raises OSError; EEXIST when it is there. *lease_seconds*: the kernel removes it after that, unless renewed.

    IPv6: without duplicate address detection (it would wait a second, and the log has decided who has the address), and
    with a preferred lifetime of 0: the machine answers at it and never chooses it as the source of its own connections
    (RFC 6724 section 5, rule 3), which would break the moment it moves away.
    """
    _order(_NEW, _CREATE | _EXCLUSIVE, interface, address, _lifetimes(address, lease_seconds))


def renew(interface: str, address: Interface, lease_seconds: int) -> None:
    """*address*, as it is there, stays for another *lease_seconds*. Raises OSError."""
    _order(_NEW, _REPLACE, interface, address, _lifetimes(address, lease_seconds))


def _lifetimes(address: Interface, lease_seconds: int | None) -> bytes:
    if address.version == 4 and lease_seconds is None:
        return b""
    valid = _FOREVER if lease_seconds is None else lease_seconds
    return _attribute(_IFA_CACHEINFO, _LIFETIMES.pack(0 if address.version == 6 else valid, valid, 0, 0))


def remove(interface: str, address: Interface) -> None:
    """Raises OSError; EADDRNOTAVAIL when it is not there with this prefix length."""
    _order(_DELETE, 0, interface, address, b"")


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:  # Python before 3.14 gives no number
        raise OSError(errno.ENODEV, f"there is no interface {interface}") from None


def _order(kind: int, flags: int, interface: str, address: Interface, more: bytes) -> None:
    six = address.version == 6
    family, nodad = (socket.AF_INET6, _IFA_F_NODAD) if six else (socket.AF_INET, 0)
    index = _index(interface)
    body = _ADDRESS.pack(family, address.network.prefixlen, nodad if kind == _NEW else 0, 0, index)
    for name in (_IFA_LOCAL, _IFA_ADDRESS):
        body += _attribute(name, address.ip.packed)
    for _ in _ask(kind, _ACKNOWLEDGE | flags, body + more):
        pass


def _ask(kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Send one request; the messages of the answer, to its end. Raises OSError with the kernel's number."""
    number = next(_numbers)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as kernel:
        kernel.settimeout(ANSWER_SECONDS_MAX)
        kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, number, 0) + body)
        while True:
            answer = kernel.recv(_ANSWER_BYTES_MAX)
            while answer:
                length, what, _, _, _ = _HEADER.unpack_from(answer)
                part, answer = answer[_HEADER.size : length], answer[(length + 3) & ~3 :]
                if what == _DONE:
                    return
                if what == _ERROR:
                    (code,) = struct.unpack_from("=i", part)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield what, part


def _attribute(kind: int, value: bytes) -> bytes:
    """One attribute, filled up to a multiple of four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
