"""What never passes Postfix is given up for this time, and named; what waits behind it does not wait for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

from holdfast.gate.accept import ADOPTION_TRIES_MAX, Foreign, ShadowMilter
from holdfast.gate.queue import PostfixQueue
from holdfast.gate.shadow_files import FileShadows
from holdfast.gate.shadows import Envelope
from holdfast.mail.commands import SystemCommands


class Swallowing(PostfixQueue):
    """Its Postfix takes everything and hands nothing to its milters: another of them refuses it."""

    put_times = 0

    async def put(self, envelope: Envelope, message: bytes) -> None:
        self.put_times += 1


def test_a_message_that_another_milter_always_refuses_is_given_up_and_stands(tmp_path: Path) -> None:
    async def play() -> None:
        old = FileShadows(tmp_path / "shadows", "main")
        writing = old.write("4f3c" * 8, Envelope.of(b"<a@example.org>", (b"<b@example.org>",)))
        writing.write(b"Subject: x\r\n\r\nx\r\n")
        await writing.keep("4ZqX8x0Yz1z3")
        store, queue = FileShadows(tmp_path / "shadows", "backup"), Swallowing(SystemCommands(), tmp_path / "queue")
        milter = ShadowMilter(store, queue, adoption_seconds=0.01)
        [shadow] = await store.standing()
        async with asyncio.timeout(30):
            for _ in range(2):  # a relay that is gone is looked at every two seconds
                await milter.adopt([Foreign(shadow, store)])
        assert queue.put_times == ADOPTION_TRIES_MAX
        assert milter.counts.given_up == 1
        assert await store.standing() == [shadow]
        assert not milter.adopting_any

    asyncio.run(play())
