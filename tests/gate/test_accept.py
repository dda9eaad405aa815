"""The shadow milter with a real Postfix."""

from __future__ import annotations

import asyncio
import smtplib
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from holdfast.drill.lab.tools import wait_until
from holdfast.gate.accept import ShadowMilter
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.queue import PostfixQueue
from holdfast.gate.serve import Place, listening_at
from holdfast.gate.shadows import Shadows, read_shadow
from holdfast.ledger.book import Book, Limits, read
from holdfast.ledger.states import Ledger, State
from holdfast.mail.commands import SystemCommands
from tests.gate.test_serve import Barrier, words
from tests.mail.boxes import PostfixBox, free_port

pytestmark = pytest.mark.system
BODY = "line one\r\n.stuffed\r\nl\u00e4st\r\n"


RECIPIENTS = ("alice@example.org", "bob@example.org")


class Box:
    def __init__(self, folder: Path) -> None:
        self.postfix = PostfixBox(folder)
        self.milter_port = free_port()
        main = self.postfix.config / "main.cf"
        main.write_text(
            main.read_text()
            + f"smtpd_milters = inet:127.0.0.1:{self.milter_port}\nnon_smtpd_milters = $smtpd_milters\n"
            + "milter_default_action = tempfail\ndefer_transports = local smtp\n"
            + "smtputf8_enable = no\nlocal_recipient_maps =\n"
        )
        subprocess.run(["postmap", f"hash:{self.postfix.config}/virtual"], check=True)
        subprocess.run(["postalias", f"hash:{self.postfix.config}/aliases"], check=True)
        self.queue = PostfixQueue(SystemCommands(), folder / "queue", str(self.postfix.config))


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with tempfile.TemporaryDirectory(prefix="hf-accept-") as folder:
        box = Box(Path(folder))
        asyncio.run(box.postfix.service.start())
        yield box
        asyncio.run(box.postfix.service.stop(force=True))


@asynccontextmanager
async def milter(
    box: Box, directory: Path, machine: str, barrier: Barrier, book: Book | None = None
) -> AsyncIterator[ShadowMilter]:
    made = ShadowMilter(Shadows(directory, machine), box.queue, SharedBarrier(barrier), book)
    await made.start(listening_at(Place("", "127.0.0.1", box.milter_port)))
    try:
        yield made
    finally:
        await made.stop()


def played(play: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(90):
            await play()

    asyncio.run(run())


def hand_in(box: Box, subject: str, sender: str = "a@outside.example") -> tuple[int, bytes]:
    """The answer to the message."""
    message = f"From: a@outside.example\r\nSubject: {subject}\r\n folded\r\n\r\n{BODY}"
    with smtplib.SMTP("127.0.0.1", box.postfix.port, timeout=30) as client:
        client.ehlo("client.example")
        code, said = client.mail(sender)
        for recipient in RECIPIENTS:
            if code == 250:
                code, said = client.rcpt(recipient)
        if code != 250:
            return code, said
        try:
            return client.data(message.encode())
        except smtplib.SMTPDataError as error:
            return error.smtp_code, words(error)


async def until(fact: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, fact, 40, what)


def test_a_message_is_accepted_when_its_shadow_is_in_the_log_and_the_shadow_goes_with_it(
    box: Box, tmp_path: Path
) -> None:
    async def play() -> None:
        barrier = Barrier()
        async with milter(box, tmp_path, "main", barrier) as made:
            barrier.holds.clear()
            answer = asyncio.create_task(asyncio.to_thread(hand_in, box, "first"))
            await barrier.reached.wait()
            (shadow,) = made.shadows.standing()
            assert not answer.done()
            barrier.holds.set()
            assert (await answer)[0] == 250
            assert shadow.machine == "main"
            assert shadow.queue_id in box.queue.ids()
            envelope, message = read_shadow(shadow.path)
            assert (envelope.sender, envelope.recipients) == (
                "a@outside.example",
                RECIPIENTS,
            )
            head = f"Holdfast-Delivery: {shadow.delivery}\r\nFrom: a@outside.example\r\nSubject: first\r\n folded\r\n"
            assert message.startswith(head.encode())
            assert message.endswith(b"\r\n\r\n" + BODY.encode())
            await until(lambda: made.counts.settled == 0 and shadow.path.exists(), "a second look")
            await box.queue.throw_out([shadow.queue_id])  # as if it had been delivered
            await until(lambda: not shadow.path.exists(), "settling")
            assert list(tmp_path.iterdir()) == []

    played(play)


def test_what_the_log_does_not_take_is_not_accepted(box: Box, tmp_path: Path) -> None:
    async def play() -> None:
        barrier = Barrier()
        barrier.fails = True
        async with milter(box, tmp_path, "main", barrier) as made:
            code, said = await asyncio.to_thread(hand_in, box, "away")
            assert code == 451
            assert b"the log is away" in said
            assert list(made.shadows.standing()) == []

    played(play)


def test_without_the_milter_nothing_is_accepted(box: Box) -> None:
    assert hand_in(box, "nobody")[0] == 451


def test_a_new_primary_puts_what_another_accepted_into_its_queue(box: Box, tmp_path: Path) -> None:
    """With its envelope and delivery id; and the first machine throws it out of its own queue."""

    async def play() -> None:
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "moved", "<>"))[0] == 250
            (old,) = made.shadows.standing()
        async with milter(box, tmp_path, "backup", Barrier()) as made:
            await until(lambda: made.counts.adopted == 1, "adoption")
            (new,) = made.shadows.standing()
            assert (new.machine, new.delivery) == ("backup", old.delivery)
            assert new.queue_id != old.queue_id
            envelope, message = read_shadow(new.path)
            assert (envelope.sender, envelope.recipients) == ("", RECIPIENTS)
            assert message.count(b"Holdfast-Delivery: " + old.delivery.encode()) == 1
            assert message.endswith(b"\r\n\r\n" + BODY.encode())
        back = Shadows(tmp_path, "main")
        assert back.taken_from_here() == {old.queue_id}
        await box.queue.throw_out(back.taken_from_here() & box.queue.ids())
        assert box.queue.ids() == {new.queue_id}
        await box.queue.throw_out([new.queue_id])

    played(play)


def test_the_ledger_has_what_was_accepted_put_off_queued_again_and_settled(box: Box, tmp_path: Path) -> None:
    place = tmp_path / "ledger"

    def book(machine: str) -> Book:
        return Book(place, machine, time.time, Limits(days=30, bytes=1024**2))

    async def play() -> None:
        barrier, main = Barrier(), book("main")
        async with milter(box, tmp_path / "shadows", "main", barrier, main) as made:
            header = "x\r\nMessage-ID: <1@outside.example>\r\nX-More: y"
            assert (await asyncio.to_thread(hand_in, box, header))[0] == 250
            (shadow,) = made.shadows.standing()
            barrier.fails = True
            assert (await asyncio.to_thread(hand_in, box, "later"))[0] == 451
        main.flush()
        ledger = Ledger(read(place))
        first, refused = ledger.messages.values()
        assert [[ledger.row(told, name).state for name in RECIPIENTS] for told in (first, refused)] == [
            [State.QUEUED] * 2,
            [State.REFUSED] * 2,
        ]
        event = first.accepted[0]
        assert (event.delivery, event.queue, event.to) == (shadow.delivery, shadow.queue_id, RECIPIENTS)
        assert (event.message_id, event.client, event.subject) == ("1@outside.example", "127.0.0.1", "")
        message = read_shadow(shadow.path)[1].split(b"\r\n", 1)[1]
        assert (event.digest, event.bytes) == (blake3(message).hexdigest(length=16), len(message))
        async with milter(box, tmp_path / "shadows", "backup", Barrier(), book("backup")) as made:
            await until(lambda: made.counts.adopted == 1, "adoption")
            (new,) = made.shadows.standing()
            await box.queue.throw_out([shadow.queue_id, new.queue_id])
            await until(lambda: made.counts.settled == 1, "settling")
        ledger = Ledger(read(place))
        told = ledger.messages[shadow.delivery]
        assert (told.accepted[1].after, told.accepted[1].after_queue) == ("main", shadow.queue_id)
        assert ledger.row(told, RECIPIENTS[0]).state is State.RESENT

    (tmp_path / "shadows").mkdir()
    played(play)


def test_a_header_from_outside_does_not_choose_the_delivery_id(box: Box, tmp_path: Path) -> None:
    async def play() -> None:
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "x\r\nHoldfast-Delivery: forged"))[0] == 250
            (shadow,) = made.shadows.standing()
            assert shadow.delivery != "forged"
            await box.queue.throw_out([shadow.queue_id])

    played(play)
