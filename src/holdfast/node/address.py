"""The service addresses: taken, announced, given back.

Taking means: the kernel has the address on the interface, and every neighbour has been told so: by gratuitous ARP
(RFC 5227 section 3; sent as request and as reply, because switches and hosts differ in which they heed) and by
unsolicited neighbour advertisement with the override flag (RFC 4861 section 7.2.6). The machine's own connections never
start from a service address, because it moves: an IPv6 one is added as deprecated (see ``netlink``), an IPv4 one is
the secondary of its network, behind the machine's own.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Final

from holdfast.errors import EnvironmentUnfit, HoldfastError
from holdfast.node import netlink
from holdfast.node.netlink import Interface

ETH_P_ARP: Final = 0x0806
ETH_P_IPV6: Final = 0x86DD
ALL_NODES: Final = ipaddress.IPv6Address("ff02::1")


class AddressFailed(HoldfastError):
    """The address could not be taken or given back."""


class Addresses:
    """The service addresses of this machine's interface."""

    by_command: Final = False
    problem: Final = ""

    def __init__(self, interface: str, addresses: Sequence[str], *, lease_seconds: int | None = None) -> None:
        """*lease_seconds*: the kernel takes an address away that was not renewed for so long; None: it keeps it."""
        self.lease_seconds = lease_seconds
        self.interface = interface
        self.addresses: tuple[Interface, ...] = tuple(ipaddress.ip_interface(address) for address in addresses)

    def held(self) -> tuple[Interface, ...]:
        """Which of them this machine has, with whatever prefix length. Raises AddressFailed."""
        have = {there.ip for there in self._present()}
        return tuple(address for address in self.addresses if address.ip in have)

    def missing(self) -> tuple[str, ...]:
        """Those that are not here. Raises AddressFailed."""
        held = self.held()
        return tuple(str(address) for address in self.addresses if address not in held)

    def let_go(self) -> None:
        """What can be done at once so that clients are not led here: all of it. Raises as :meth:`release`."""
        self.release()

    def _present(self) -> list[Interface]:
        """What the interface has; nothing when there is no such interface."""
        try:
            return netlink.addresses(self.interface) if self.addresses else []
        except OSError as error:
            if error.errno == errno.ENODEV:
                return []
            raise AddressFailed(f"the addresses of {self.interface} could not be read: {error}") from error

    def take(self) -> None:
        """Add what is missing and announce all. Raises AddressFailed, EnvironmentUnfit."""
        if not self.addresses:
            return
        have = {there.ip for there in self._present()}
        for address in self.addresses:
            if address.ip not in have:
                try:
                    netlink.add(self.interface, address, self.lease_seconds)
                except OSError as error:
                    if error.errno != errno.EEXIST:
                        raise self._failed("taken", address, error) from error
        self.announce()

    def renew(self) -> None:
        """Keep what is there for another lease; what is missing is taken. Raises AddressFailed, EnvironmentUnfit."""
        if self.lease_seconds is None:
            return
        have = {there.ip: there for there in self._present()}
        if any(address.ip not in have for address in self.addresses):
            self.take()
        for address in self.addresses:
            try:
                netlink.renew(self.interface, have.get(address.ip, address), self.lease_seconds)
            except OSError as error:
                raise self._failed("renewed", address, error) from error

    def release(self) -> tuple[Interface, ...]:
        """Take away what is there, whatever prefix length a person gave it; what that was.

        Every one is tried. Raises the first AddressFailed or EnvironmentUnfit.
        """
        ours = {address.ip for address in self.addresses}
        gone, failed = [], []
        for there in self._present():
            if there.ip in ours:
                try:
                    netlink.remove(self.interface, there)
                    gone.append(there)
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                        failed.append(self._failed("given back", there, error))
        if failed:
            raise failed[0]
        return tuple(gone)

    def announce(self) -> None:
        """Tell the neighbours who has the addresses. Raises EnvironmentUnfit without CAP_NET_RAW."""
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
                wire.bind((self.interface, 0))
                hardware = wire.getsockname()[4]
                if len(hardware) != 6:
                    return  # no Ethernet: nobody keeps a neighbour table for us
                for address in self.addresses:
                    for frame in announcements(address.ip, hardware):
                        wire.send(frame)
        except PermissionError as error:
            raise EnvironmentUnfit(
                "this process may not send gratuitous ARP", hint="Run the agent as root, or give it CAP_NET_RAW."
            ) from error
        except OSError as error:
            raise AddressFailed(
                f"the addresses could not be announced on {self.interface}: {error}", hint="Is the interface up?"
            ) from error

    def _failed(self, done: str, address: Interface, error: OSError) -> HoldfastError:
        if error.errno == errno.EPERM:
            return EnvironmentUnfit(
                f"address {address} could not be {done}: not permitted",
                hint="Run the agent as root, or give it CAP_NET_ADMIN.",
            )
        if error.errno == errno.ENODEV:
            return AddressFailed(
                f"there is no interface {self.interface!r}", hint="Correct service.interface in holdfast.toml."
            )
        return AddressFailed(f"address {address} could not be {done}: {error.strerror or error}")


def announcements(address: ipaddress.IPv4Address | ipaddress.IPv6Address, hardware: bytes) -> tuple[bytes, ...]:
    """The Ethernet frames that say "*address* is at *hardware*"; pure."""
    if isinstance(address, ipaddress.IPv4Address):
        broadcast = b"\xff" * 6
        ethernet = broadcast + hardware + struct.pack("!H", ETH_P_ARP)
        request, reply = (
            struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + hardware + address.packed + target + address.packed
            for operation, target in ((1, bytes(6)), (2, broadcast))
        )
        return ethernet + request, ethernet + reply
    # Neighbour advertisement: type 136, override flag, target, option 2 (target link-layer address). RFC 4861 4.4.
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + address.packed + b"\x02\x01" + hardware
    pseudo = address.packed + ALL_NODES.packed + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + address.packed + ALL_NODES.packed
    ethernet = b"\x33\x33\x00\x00\x00\x01" + hardware + struct.pack("!H", ETH_P_IPV6)
    return (ethernet + header + body,)


def _checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
