"""The list of recipients: what the primary's Postfix takes mail for, so that relays refuse all else.

The primary reads it out of its own Postfix (``recipients_found``) and publishes it in the side stream ``recipients``,
sealed and dated, when it has changed and every REPEAT_SECONDS. A relay may read that stream and not write it. It keeps
the last list on its disk and makes four tables of it for its Postfix::

    domains       relay_domains           what we take mail for
    recipients    relay_recipient_maps    who is there; everybody else is refused at RCPT TO: 550 5.1.1
    unlisted      a restriction           domains whose recipients cannot be listed (LDAP, SQL, regular expressions):
                                          there the primary is asked (address verification), and what it answered is
                                          remembered for a month
    straight      transport_maps          whose mail goes past the primary's Postfix (``straight``); mostly empty

*Old*: the list is used however old it is; past ``relay.list_hours`` there is a warning. *None yet*: every recipient is
answered 450.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from backports import zstd
from msgspec import Struct

from holdfast.errors import HoldfastError

STREAM_BYTES: Final = 128 * 1024 * 1024
"""The oldest goes: some twenty lists of the longest kind."""
SUBJECT: Final = "list"
LIST_BYTES_MAX: Final = 64 * 1024 * 1024
"""Two million addresses."""
REPEAT_SECONDS: Final = 3600.0
STRAIGHT_TRANSPORT: Final = "lmtp:unix:private/holdfast-straight"


class Recipients(Struct, frozen=True):
    """Names in lower case, sorted."""

    machine: str
    at: float
    """Seconds since 1970, by that machine's clock."""
    domains: tuple[str, ...]
    recipients: tuple[str, ...]
    """``user@domain``; ``@domain``: everybody there."""
    unlisted: tuple[str, ...] = ()
    """Domains whose recipients cannot be listed."""
    delimiter: str = ""
    """``recipient_delimiter``: user+folder@domain is user@domain."""
    message_bytes_max: int = 0
    """``message_size_limit``: what is longer would come back; 0: no limit."""
    straight: tuple[str, ...] = ()
    """Of *recipients*, those whose mail the primary's Postfix only hands to its gate (``straight``)."""

    def same_as(self, other: Recipients | None) -> bool:
        """But for who says it, and when."""
        return other is not None and msgspec.structs.replace(self, machine=other.machine, at=other.at) == other


def encode(recipients: Recipients) -> bytes:
    return zstd.compress(msgspec.json.encode(recipients))


def decode(payload: bytes) -> Recipients:
    """Raises HoldfastError."""
    try:
        # A short message must not become an endless one.
        return msgspec.json.decode(zstd.ZstdDecompressor().decompress(payload, LIST_BYTES_MAX), type=Recipients)
    except (zstd.ZstdError, msgspec.DecodeError) as error:
        raise HoldfastError(
            f"the list of recipients cannot be read: {error}", hint="Are all machines of one version?"
        ) from None


def tables(recipients: Recipients, *, straight: bool = False) -> dict[str, str]:
    """Table name to its text, as postmap(1) reads it. *straight*: whether there is a way past the primary's Postfix."""
    everybody = (f"@{domain}" for domain in recipients.unlisted)
    return {
        "domains": _table(recipients.domains, "OK"),
        "recipients": _table((*recipients.recipients, *everybody), "OK"),
        "straight": _table(recipients.straight if straight else (), STRAIGHT_TRANSPORT),
        "unlisted": _table(recipients.unlisted, "reject_unverified_recipient"),
    }


def _table(keys: Iterable[str], value: str) -> str:
    return "".join(f"{key} {value}\n" for key in sorted(set(keys)) if is_plain(key))


def is_plain(key: str) -> bool:
    """Whether *key* can stand in a table: postmap has no quoting, and lines that begin with # or a blank are others."""
    return bool(key) and not key.startswith("#") and not any(mark.isspace() or ord(mark) < 32 for mark in key)
