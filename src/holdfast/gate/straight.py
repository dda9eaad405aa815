"""The straight way: a relay hands mail for a mailbox to the primary's LMTP gate, past the primary's Postfix.

::

    relay's Postfix --LMTP--> relay's gates == TLS ==> LMTP gate of the primary --> Dovecot, journal, barrier
         queue file, shadow:                             250 only when the delivery is in the log
         kept until that 250

By the other way, SMTP, the primary's Postfix takes the message into a queue of its own. So it must be safe there once
more: a second shadow goes to the log while the first still stands in it, and both are settled within seconds. By the
straight way there is no second queue, and the relay's shadow stands until the delivery itself is on two machines.

**For whom.** Only recipients for whom the primary's Postfix would do nothing but hand the message to the gate; the
primary says who they are, in its list (``straight_found``). All others, and everything where ``relay.straight_port``
is not set, go by SMTP. One message may go both ways, each for its recipients: a delivery id is given to each recipient
once, whichever way it comes.

**What dies, and when.** (S: the relay's shadow. Q: its queue file. D: delivery and its line in the journal.)

==============================================  =============================================================
at this moment there is                         after a death
==============================================  =============================================================
S, Q; nothing was handed on                     relay: the primary adopts S after ``adopt_seconds``.
                                                primary: Q is tried at the next primary. standby: nothing
S, Q; an intent is in the journal, no D         relay: its connection ends, the gate goes on or not; S is
                                                adopted, the gate asks the mail store who has it. primary, gate
                                                or Dovecot: no answer, Q is tried again, the gate asks
S, Q; D, but the barrier has not passed         primary: D may have died with it, nobody was told. Q is tried
                                                again and delivered, or found delivered. relay: S is adopted,
                                                each recipient who has it is passed over
S, Q; D is in the log, 250 is on its way        relay: as before; S is adopted for nothing. primary: the next
                                                one has the journal, Q is tried there and answered 250
S; D is in the log, Q is gone                   relay: as before. primary, standby: S is settled by the relay
D                                               nothing is owed to anybody
one of several recipients has D, others wait    Q names those who wait; S names all. Adopted, S goes to all, and
                                                who has it is passed over
the log has no majority                         the barrier fails: 451, S and Q stay. The delivery is repeated
                                                later and found
the standby takes over while a relay delivers   the old primary's barrier cannot pass: no 250 (one writer). Q is
                                                tried at the service address, where the new primary has it or not
==============================================  =============================================================

So nothing accepted is ever on one disk only: S is in the log from before the sender's 250 until after D is.

**The ledger.** The relay tells that it was accepted and that it is settled; the gate tells who has it. The sum of what
was accepted does not change by the way it goes.

**Who may.** Both ends show a certificate of this site: the relay's must name a machine that the settings call a relay,
the other one a machine that holds mail. TLS 1.3. Nobody else gets as far as a greeting.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.gate.serve import CONNECT_SECONDS, SESSIONS_MAX, WAITING_BYTES_MAX, Place
from holdfast.gate.stream import printable
from holdfast.gate.tasks import hang_up
from holdfast.log.link import links_of, tls_context
from holdfast.log.trust import Role, TlsFiles


class StraightDoor:
    """On a relay: what Postfix says at a socket of this machine goes to the primary's gate, and its answers come back.
    Of one event loop."""

    def __init__(self, places: tuple[Place, ...], tls: Path) -> None:
        """*places*: where the primary's gate listens, one after the other is tried."""
        self._places, self._tls = places, tls
        self._server: asyncio.Server | None = None
        self._halves: set[_Half] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Serve who comes to *listening* (see :func:`holdfast.gate.serve.listening_at`)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._half, sock=listening, backlog=SESSIONS_MAX)

    async def stop(self) -> None:
        """Postfix keeps what has no answer."""
        await hang_up(self._server, self._tasks, self._halves)

    def _half(self) -> _Half:
        return _Half(self._halves, self._join)

    def _join(self, near: _Half) -> None:
        assert near.transport is not None
        near.transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._connect(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, near: _Half) -> None:
        why = "no place is known"
        for place in self._places:
            try:
                far = await self._dialled(place)
            except (OSError, TimeoutError, HoldfastError) as error:
                why = f"{place}: {error or 'no answer in time'}"
                continue
            near.other, far.other = far, near
            if near.transport is None or near.transport.is_closing():
                far.abort()
                return
            near.transport.resume_reading()
            assert far.transport is not None
            far.transport.resume_reading()
            return
        if near.transport is not None:
            near.transport.write(b"421 4.4.1 the primary does not answer: " + printable(why) + b"\r\n")
            near.transport.close()

    async def _dialled(self, place: Place) -> _Half:
        """Raises OSError, TimeoutError, HoldfastError (it is no machine that holds mail)."""
        context = tls_context(TlsFiles.inside(self._tls))
        context.check_hostname = False  # the service address is no machine's own: its role is looked at
        async with asyncio.timeout(CONNECT_SECONDS):
            transport, far = await asyncio.get_running_loop().create_connection(
                lambda: _Half(self._halves), place.host, place.port, ssl=context
            )
        transport.pause_reading()
        if Role.MAIL.user not in links_of(transport):
            transport.abort()
            raise HoldfastError("shows no certificate of a mail machine", hint="Who has the service address?")
        return far


class _Half(asyncio.Protocol):
    """One of two connections that are passed into each other."""

    def __init__(self, halves: set[_Half], joined: Callable[[_Half], None] | None = None) -> None:
        """*joined* is called when the connection is made."""
        self._halves, self._joined = halves, joined
        self.transport: asyncio.Transport | None = None
        self.other: _Half | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(WAITING_BYTES_MAX)
        self._halves.add(self)
        if self._joined is not None:
            self._joined(self)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._halves.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
