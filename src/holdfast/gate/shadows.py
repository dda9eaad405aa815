"""Shadows: copies of the messages in a machine's queue, kept where the machine's death does not reach them.

A message's shadow is its envelope and its content with CR LF, its first field ``Holdfast-Delivery``. It is kept before
Postfix hears that the message is accepted: so it is on a second machine. It goes when the queue file is gone
(*settled*: delivered, or returned to its sender).

When a machine is gone, another puts its shadows into its own queue, each with its envelope and its delivery id, and
leaves a mark: *taken*. The first machine, back again, throws those messages out of its own queue. A recipient of this
site who has one already is not given it twice (the LMTP gate); what went to another site in the moments between its
delivery and its settling goes there twice.

A client that heard nothing, or 451 from a Postfix whose milter died after it had kept the shadow, sends its message
again, to the new primary. So a delivery id is half chance and half *fingerprint*, of the envelope and the head of the
message: what comes to the machine that adopted the first copy, or to the first one whose gates began again, from the
same sender to the same recipients with the same head, Message-ID included, gets the id of the first copy, and so its
recipients get one of the two.

Two stores, held to one contract (tests/gate/test_shadow_stores.py): on machines that hold mail, files in a protected
tree (``shadow_files``), which is there when one of them becomes primary; on a relay, which writes no log, a side stream
(``shadow_stream``), out of which the primary takes them when the relay is gone.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

import msgspec
from blake3 import blake3
from msgspec import Struct

from holdfast.errors import HoldfastError, NoSpace
from holdfast.gate.stream import quoted_address
from holdfast.ledger.events import FINGERPRINT_DIGITS

QUEUE_ID: Final = re.compile(r"[0-9A-Za-z]{5,32}")
DELIVERY: Final = re.compile(r"[0-9A-Za-z]{1,64}")


class Envelope(Struct, frozen=True):
    """Addresses without angle brackets, in percent-encoding (RFC 3986): they may be any bytes. A bounce's sender is
    empty."""

    sender: str
    recipients: tuple[str, ...]

    @classmethod
    def of(cls, sender: bytes, recipients: tuple[bytes, ...]) -> Envelope:
        """From what MAIL FROM and RCPT TO said, angle brackets included."""
        return cls(_quoted(sender), tuple(_quoted(recipient) for recipient in recipients))

    def sender_text(self) -> str:
        """As an argument of a program."""
        return os.fsdecode(unquote_to_bytes(self.sender))

    def recipient_texts(self) -> list[str]:
        return [os.fsdecode(unquote_to_bytes(recipient)) for recipient in self.recipients]


def new_delivery(envelope: Envelope, head: Iterable[bytes]) -> str:
    """A delivery id. *head*: the header fields. Without a Message-ID chance alone: two such may be alike.

    Not the date: where it is missing, cleanup(8) puts the time in (``always_add_missing_headers``, and for clients of
    ``local_header_rewrite_clients``).
    """
    fields = [(line.partition(b":")[0].strip().lower(), line) for line in head]
    if all(name != b"message-id" for name, _ in fields):
        return secrets.token_hex(FINGERPRINT_DIGITS)
    told = msgspec.json.encode((envelope.sender, sorted(envelope.recipients)))
    told += b"".join(line for name, line in fields if name != b"date")
    return secrets.token_hex(FINGERPRINT_DIGITS // 2) + blake3(told).hexdigest(length=FINGERPRINT_DIGITS // 2)


class Shadow(NamedTuple):
    name: str
    """In its store: no two have one name."""
    machine: str
    queue_id: str
    delivery: str


class Writing(Protocol):
    """A shadow being written. End it by :meth:`keep` or :meth:`drop`."""

    def write(self, data: bytes) -> None:
        """Raises NoSpace."""
        ...

    async def keep(self, queue_id: str) -> Shadow:
        """On return it is on two machines. Raises NoSpace, HoldfastError: then :attr:`left` says what may be left."""
        ...

    @property
    def left(self) -> Shadow | None:
        """What a failed :meth:`keep` may have left behind: to be settled."""
        ...

    def drop(self) -> None: ...


class ShadowStore(Protocol):
    """Where shadows are. *machine* is this one's name."""

    @property
    def machine(self) -> str: ...

    def write(self, delivery: str, envelope: Envelope) -> Writing:
        """Begin one. Raises NoSpace."""
        ...

    async def standing(self) -> list[Shadow]:
        """Whole ones, of all machines, the oldest first where that is known. Raises HoldfastError."""
        ...

    async def accepted_at(self, shadow: Shadow) -> float:
        """Seconds since 1970, by the clock of its machine; 0: not known any more. Raises HoldfastError."""
        ...

    async def read(self, shadow: Shadow) -> tuple[Envelope, bytes]:
        """The envelope, and the message with CR LF. Raises HoldfastError."""
        ...

    async def settle(self, shadow: Shadow) -> None:
        """Its queue file is gone. Idempotent. Raises HoldfastError."""
        ...

    async def take(self, shadow: Shadow) -> None:
        """It is in this machine's queue now; its first machine is not to deliver it any more. Raises HoldfastError."""
        ...

    async def taken_from_here(self) -> frozenset[str]:
        """Queue ids of this machine that another has taken over. Raises HoldfastError."""
        ...

    async def thrown_out(self, queue_ids: Collection[str]) -> None:
        """They are in this machine's queue no more. Raises HoldfastError."""
        ...


def checked_queue_id(queue_id: str) -> str:
    """*queue_id* itself. Raises HoldfastError."""
    if not QUEUE_ID.fullmatch(queue_id):
        raise HoldfastError("Postfix told no queue id", hint="Add `i` to milter_end_of_data_macros in main.cf.")
    return queue_id


class full_disk:  # reads as a statement
    """Inside, an OSError becomes NoSpace."""

    def __init__(self, directory: object) -> None:
        self._directory = directory

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise NoSpace(
                f"a shadow cannot be written: {error.strerror or error}",
                hint=f"Look at the disk of {self._directory}. Until then nothing is accepted (452).",
                retry=True,
            ) from None


def _quoted(address: bytes) -> str:
    inside = address[1:-1] if address[:1] == b"<" and address[-1:] == b">" else address
    return quoted_address(inside)
