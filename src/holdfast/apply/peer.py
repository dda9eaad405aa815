"""The asking side of the exchange: one question, one sound answer, through whatever stands between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from holdfast.changes.digest import DIGEST_BYTES, block_count
from holdfast.changes.exchange import (
    Busy,
    Contents,
    Digests,
    Entry,
    ExchangeDamaged,
    ExchangeSeal,
    Expired,
    Failed,
    Listing,
    NextPage,
    Page,
    PartRead,
    PartWanted,
    ReadContents,
    ReadDigests,
    Reply,
    Request,
)
from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import MachineName
from holdfast.errors import HoldfastError, Unreachable

TRIES_MAX: Final = 5
RETRY_SECONDS: Final = 0.5
BUSY_TRIES_MAX: Final = 120
BUSY_SECONDS_MAX: Final = 30.0
R = TypeVar("R", bound=Reply)


class PeerFailed(HoldfastError):
    """The other machine answered that it could not do what was asked; the message says why, in its words."""


class ListingLost(HoldfastError):
    """The other machine holds the listing (or audit) no more: it was started again, or we were away too long."""


class Peer:
    """The machine *answerer*, asked by *requester*.

    *call* sends a request's bytes and returns the reply's (a Bus's ``request`` with subject and time limit); it raises
    Unreachable in time. *pause* sleeps. A lost, damaged or foreign reply is asked for again, ``TRIES_MAX`` times.
    """

    def __init__(
        self,
        call: Callable[[bytes], Awaitable[bytes]],
        *,
        key: SegmentKey,
        requester: MachineName,
        answerer: MachineName,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._call = call
        self._seal = ExchangeSeal(key, answerer)
        self._requester = requester
        self._pause = pause
        self.name: Final = answerer

    async def ask(self, request: Request, expected: type[R]) -> R:
        """The answer. Raises Unreachable, ExchangeDamaged, ListingLost, PeerFailed; HoldfastError from the way."""
        tries = busy = 0
        while True:
            asked, message = self._seal.ask(self._requester, request)
            try:
                reply = self._seal.open_reply(asked, await self._call(message))
            except (Unreachable, ExchangeDamaged):
                tries += 1
                if tries >= TRIES_MAX:
                    raise
                await self._pause(RETRY_SECONDS * tries)
                continue
            if isinstance(reply, expected):
                return reply
            if not isinstance(reply, Busy):
                raise self._refusal(reply)
            busy += 1
            if busy >= BUSY_TRIES_MAX:
                raise Unreachable(f"{self.name} stays busy: {reply.reason}", hint="Try again later.", retry=True)
            await self._pause(min(max(reply.retry_seconds, 0.01), BUSY_SECONDS_MAX))

    async def page(self, listing: Listing, tree: str, after: bytes | None) -> Page:
        """A page of a listing held, with all digests of large files. Raises as :meth:`ask`."""
        page = await self.ask(NextPage(listing.listing, tree, after), Page)
        if not any(entry.digests_apart for entry in page.entries):
            return page
        return Page(tuple([await self.whole(listing, entry) for entry in page.entries]), page.done)

    async def whole(self, listing: Listing, entry: Entry) -> Entry:
        """*entry* with the digests that were left out of the answer."""
        if not entry.digests_apart:
            return entry
        digests = b""
        wanted = block_count(entry.size) * DIGEST_BYTES
        while len(digests) < wanted:
            request = ReadDigests(listing.listing, entry.node, len(digests) // DIGEST_BYTES)
            more = (await self.ask(request, Digests)).digests
            if not more:
                raise PeerFailed(
                    f"{self.name} has not all digests of {entry.path!r}",
                    hint="Its index is damaged: let it scan, then begin again.",
                )
            digests += more
        return msgspec.structs.replace(entry, content=digests[:wanted])

    async def contents(self, parts: list[PartWanted]) -> tuple[PartRead, ...]:
        """Answers to the first of *parts*, at least one."""
        return (await self.ask(ReadContents(tuple(parts)), Contents)).parts[: len(parts)]

    def _refusal(self, reply: Reply) -> HoldfastError:
        match reply:
            case Expired():
                return ListingLost(
                    f"{self.name} does not hold the listing any more",
                    hint="Begin again: what was copied is found in place and not copied twice.",
                    retry=True,
                )
            case Failed(message, hint, retry):
                return PeerFailed(f"{self.name}: {message}", hint=hint, retry=retry)
            case _:
                return ExchangeDamaged(f"{self.name} answered another thing than was asked: {type(reply).__name__}")
