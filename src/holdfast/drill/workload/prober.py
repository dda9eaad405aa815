"""The outage meter: every 50 ms somebody logs in, and somebody sends a message, at the service address.

Tries overlap: the next begins on time though the last still waits for a dead machine, so that the end of an outage is
seen within one interval. A message sent is looked for in the probe account; once seen, that is the ``DELIVERY`` probe.
Messages that were accepted stand in the journal like any other delivery: none of them may get lost either.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

from holdfast.drill.checkers.facts import Deliver, Protocol, Result
from holdfast.drill.workload import messages
from holdfast.drill.workload.journal import Answered, Journal, now
from holdfast.drill.workload.net import Endpoint, tls_context
from holdfast.drill.workload.plan import Plan
from holdfast.mail import imap_syntax

OUTSTANDING_MAX: Final = 6
"""Tries under way at once per protocol: below Dovecot's ten connections per user and address, and enough for a connect
timeout of 250 ms every 50 ms."""

STREAM: Final = "probe"
_EXISTS: Final = re.compile(rb"^\* (\d+) EXISTS", re.IGNORECASE)
_PROBE_ID: Final = re.compile(rb"<(probe\.\d+\.[0-9a-f]+@[a-z.]+)>")


class _Bad(Exception):
    """A try ended with this; text for the journal."""


class Prober:
    """Runs in a thread of its own with its own event loop, until *stop* is set."""

    def __init__(self, plan: Plan, journal: Journal, stop: threading.Event) -> None:
        assert plan.meter.probe is not None
        self._plan = plan
        self._meter = plan.meter
        self._login = plan.meter.probe
        self._journal = journal
        self._stop = stop
        self._sent: dict[str, tuple[int, int]] = {}
        self._seen = 0
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._outstanding = {Protocol.IMAP: 0, Protocol.SMTP: 0}

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._start(Protocol.IMAP, self._imap)
            self._start(Protocol.SMTP, self._smtp)
            due = max(due + self._meter.every_seconds, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._meter.answer_seconds)

    def _start(self, protocol: Protocol, probe: Callable[[], Awaitable[str]]) -> None:
        if self._outstanding[protocol] < OUTSTANDING_MAX:
            self._outstanding[protocol] += 1
            task = asyncio.create_task(self._one(protocol, probe))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, protocol: Protocol, probe: Callable[[], Awaitable[str]]) -> None:
        began = now()
        try:
            async with asyncio.timeout(self._meter.connect_seconds + self._meter.answer_seconds):
                answered_by = await probe()
        except (_Bad, OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            detail = str(error) or type(error).__name__
            self._journal.probe(protocol, good=False, began=began, detail=detail)
        else:
            self._journal.probe(protocol, good=True, began=began, answered_by=answered_by)
        finally:
            self._outstanding[protocol] -= 1

    # --- the two transactions ----------------------------------------------------------------------------------------

    async def _imap(self) -> str:
        talk = await self._connect(self._plan.service.imap)
        try:
            answered_by = (await talk.line()).decode("utf-8", "replace").removeprefix("* OK ")
            login = f"{imap_syntax.quoted(self._login.name)} {imap_syntax.quoted(self._login.password)}"
            await talk.command(b"a", f"LOGIN {login}")
            exists = 0
            for line in await talk.command(b"b", "EXAMINE INBOX"):
                if found := _EXISTS.match(line):
                    exists = int(found[1])
            if exists > self._seen:
                self._note_seen(
                    await talk.command(b"c", f"FETCH {self._seen + 1}:{exists} (BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])")
                )
            self._seen = exists
            talk.say("d LOGOUT")
            return answered_by
        finally:
            talk.close()

    def _note_seen(self, lines: list[bytes]) -> None:
        for line in lines:
            if (found := _PROBE_ID.search(line)) and (sent := self._sent.pop(found[1].decode(), None)):
                self._journal.probe(Protocol.DELIVERY, good=True, began=sent, detail=found[1].decode())

    async def _smtp(self) -> str:
        self._number += 1
        message_id = f"{STREAM}.{self._number}.{self._plan.seed:x}@{messages.DOMAIN}"
        body = f"probe {self._number}\r\n"
        content = f"Message-ID: <{message_id}>\r\nSubject: probe\r\n\r\n{body}"
        began = now()
        talk = await self._connect(self._plan.service.smtp)
        try:
            answered_by = (await talk.reply(b"220"))[4:].split(b" ")[0].decode("utf-8", "replace")
            if self._plan.service.smtp.tls == "starttls":
                raise _Bad("the prober speaks SMTP without STARTTLS only; give it port 25")
            for command, expected in (
                ("EHLO prober.drill.example", b"250"),
                (f"MAIL FROM:<{self._plan.sender}>", b"250"),
                (f"RCPT TO:<{self._login.name}>", b"250"),
                ("DATA", b"354"),
            ):
                talk.say(command)
                await talk.reply(expected)
            doing = Deliver(
                message_id,
                (self._login.name,),
                messages.digest(body.encode()),
                len(content),
                "probe",
                purpose="probe",
            )
            operation = self._journal.attempt("prober", "", doing)
            self._sent[message_id] = began
            await self._finish_data(talk, content, operation)
            talk.say("QUIT")
            return answered_by
        finally:
            talk.close()

    async def _finish_data(self, talk: _Talk, content: str, operation: int) -> None:
        talk.say(f"{content}.")
        result, detail = Result.UNKNOWN, "no answer"
        try:
            detail = (await talk.reply(b"250")).decode("utf-8", "replace")
            result = Result.ACKNOWLEDGED
        except _Bad as error:
            result, detail = Result.REFUSED, str(error)
            raise
        finally:
            self._journal.outcome(operation, result, Answered(detail=detail))

    async def _connect(self, endpoint: Endpoint) -> _Talk:
        context = tls_context(self._plan.patience.ca_file) if endpoint.tls == "implicit" else None
        async with asyncio.timeout(self._meter.connect_seconds):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
        return _Talk(reader, writer)


class _Talk:
    """One connection's lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, text: str) -> None:
        self._writer.write(text.encode() + b"\r\n")

    async def line(self) -> bytes:
        return (await self._reader.readuntil(b"\n")).rstrip(b"\r\n")

    async def reply(self, expected: bytes) -> bytes:
        """The last line of an SMTP reply. Raises _Bad when it is another than *expected*."""
        while (line := await self.line())[3:4] == b"-":
            pass
        if not line.startswith(expected):
            raise _Bad(line.decode("utf-8", "replace"))
        return line

    async def command(self, tag: bytes, text: str) -> list[bytes]:
        """The untagged lines before IMAP's OK (literals by their lines). Raises _Bad for NO and BAD."""
        self.say(f"{tag.decode()} {text}")
        lines: list[bytes] = []
        while not (line := await self.line()).startswith(tag + b" "):
            lines.append(line)
        if not line[len(tag) + 1 :].upper().startswith(b"OK"):
            raise _Bad(line.decode("utf-8", "replace"))
        return lines

    def close(self) -> None:
        self._writer.close()
