"""The lines of the ledger: values, and their one line of JSON. Pure."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

LINE_BYTES_MAX: Final = 2 * 1024 * 1024
"""10,000 recipients (the milter's limit) of 200 bytes."""


FINGERPRINT_DIGITS: Final = 16


def fingerprint_of(delivery: str) -> str:
    """The part of a delivery id that two copies of one message have in common, when its client sent it twice."""
    return delivery[-FINGERPRINT_DIGITS:]


class _Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Read by older and newer programs: unknown fields are passed over."""

    at: int
    """Milliseconds since 1970, by the machine's clock."""
    n: int = 0
    machine: str


class Accepted(_Event, frozen=True, kw_only=True, tag="accepted"):
    delivery: str
    queue: str
    client: str = ""
    """The client's address, as Postfix told it."""
    port: str = ""
    """Postfix's name or number of where it came in: ``25``, ``587``, ``ORIGINATING``."""
    login: str = ""
    """Who handed it in, where one logged in: then it is a submission."""
    message_id: str = ""
    subject: str = ""
    sender: str = ""
    to: tuple[str, ...]
    digest: str = ""
    bytes: int = 0
    after: str = ""
    """It was accepted before, by this machine, and is queued again."""
    after_queue: str = ""

    @property
    def by(self) -> str:
        """The machine that accepted it from outside: its own line may have died with it, if no answer was given yet."""
        return self.after or self.machine


class Refused(_Event, frozen=True, tag="refused"):
    delivery: str
    queue: str
    why: str = ""


class Delivered(_Event, frozen=True, tag="delivered"):
    delivery: str
    to: tuple[str, ...]


class Rejected(_Event, frozen=True, tag="rejected"):
    delivery: str
    to: tuple[str, ...]


class Settled(_Event, frozen=True, tag="settled"):
    delivery: str
    queue: str


class Restarted(_Event, frozen=True, tag="restarted"):
    """Postfix was started anew while it was in the queue."""

    delivery: str
    queue: str


class Safe(_Event, frozen=True, tag="safe"):
    upto: int
    log: str
    """The log's incarnation."""
    record: int


class Began(_Event, frozen=True, tag="began"):
    pass


OfMessage = Accepted | Refused | Delivered | Rejected | Settled | Restarted
Event = OfMessage | Safe | Began
_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    return _ENCODER.encode(event) + b"\n"


def decode(line: bytes) -> Event | None:
    """None: not a whole line of ours (cut short by a crash), or of a kind that a newer program writes."""
    if not line.endswith(b"\n") or len(line) > LINE_BYTES_MAX:
        return None
    try:
        event: Event = _DECODER.decode(line)
    except (msgspec.DecodeError, ValueError):
        return None
    return event
