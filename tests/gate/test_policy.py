"""Postfix's policy protocol: every request is answered, whatever the pieces it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from holdfast.gate.policy import DUNNO, REQUEST_BYTES_MAX, PolicyServer, later
from holdfast.gate.serve import Place, listening_at
from tests.gate.test_accept import played
from tests.mail.boxes import free_port

REQUEST = b"request=smtpd_access_policy\nprotocol_state=RCPT\nrecipient=alice@example.org\n\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talked(answers: list[str], talk: Talk) -> None:
    async def play() -> None:
        port = free_port()
        server = PolicyServer(lambda: answers.pop(0))
        await server.start(listening_at(Place("", "127.0.0.1", port)))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await talk(reader, writer)
        writer.close()
        await server.stop()

    played(play)


def test_each_request_gets_the_answer_of_its_moment() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST + REQUEST[:20])
        assert await reader.readuntil(b"\n\n") == b"action=DUNNO\n\n"
        writer.write(REQUEST[20:])
        assert await reader.readuntil(b"\n\n") == b"action=450 4.3.2 the mail server is up\n\n"

    talked([DUNNO, later("the mail server is up")], talk)


def test_what_is_no_request_or_has_no_end_is_hung_up_on() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\n\n")
        assert await reader.read() == b""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * (REQUEST_BYTES_MAX + 1))
        assert await reader.read() == b""

    talked([], talk)
    talked([], endless)


def test_a_reason_is_one_plain_line() -> None:
    assert later("über\r\nDUNNO") == "450 4.3.2 ?ber??DUNNO"
