"""The shadow milter with a real Postfix."""

from __future__ import annotations

import asyncio
import os
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
from holdfast.gate.accept import Foreign, ShadowMilter
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.queue import MARK, PostfixQueue
from holdfast.gate.serve import Place, listening_at
from holdfast.gate.shadow_files import FileShadows
from holdfast.gate.shadow_stream import StreamShadows
from holdfast.gate.shadows import Envelope, Shadow, ShadowStore
from holdfast.ledger.book import Book, Limits, read
from holdfast.ledger.states import Ledger, State
from holdfast.log import side as side_port
from holdfast.log.port import LogUnavailable
from holdfast.log.side_memory import MemorySide
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
            + "smtputf8_autodetect_classes = verify\nlocal_recipient_maps =\n"
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
    async with milter_with(box, FileShadows(directory, machine, SharedBarrier(barrier).wait), book) as made:
        yield made


@asynccontextmanager
async def milter_with(
    box: Box,
    store: ShadowStore,
    book: Book | None = None,
    relays: frozenset[str] = frozenset(),
    *,
    adopts_at_start: bool = True,
    adopts_own: bool = True,
) -> AsyncIterator[ShadowMilter]:
    made = ShadowMilter(store, box.queue, book, relays=relays, adopts_at_start=adopts_at_start, adopts_own=adopts_own)
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


def hand_in(box: Box, subject: str, sender: str = "a@outside.example", identity: str = "") -> tuple[int, bytes]:
    """The answer to the message."""
    message_id = f"Message-ID: {identity}\r\n" if identity else ""
    message = f"From: a@outside.example\r\n{message_id}Subject: {subject}\r\n folded\r\n\r\n{BODY}"
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
            (shadow,) = await made.store.standing()
            path = tmp_path / shadow.name
            assert not answer.done()
            barrier.holds.set()
            assert (await answer)[0] == 250
            assert shadow.machine == "main"
            assert shadow.queue_id in box.queue.ids()
            envelope, message = await made.store.read(shadow)
            assert (envelope.sender, envelope.recipients) == (
                "a@outside.example",
                RECIPIENTS,
            )
            head = f"Holdfast-Delivery: {shadow.delivery}\r\nFrom: a@outside.example\r\nSubject: first\r\n folded\r\n"
            assert message.startswith(head.encode())
            assert message.endswith(b"\r\n\r\n" + BODY.encode())
            await until(lambda: made.counts.settled == 0 and path.exists(), "a second look")
            await box.queue.throw_out([shadow.queue_id])  # as if it had been delivered
            await until(lambda: not path.exists(), "settling")
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
            assert await made.store.standing() == []

    played(play)


def test_without_the_milter_nothing_is_accepted(box: Box) -> None:
    assert hand_in(box, "nobody")[0] == 451


def test_a_new_primary_puts_what_another_accepted_into_its_queue(box: Box, tmp_path: Path) -> None:
    """With its envelope and delivery id; and the first machine throws it out of its own queue."""

    async def play() -> None:
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "moved", "<>"))[0] == 250
            (old,) = await made.store.standing()
        async with milter(box, tmp_path, "backup", Barrier()) as made:
            await until(lambda: made.counts.adopted == 1, "adoption")
            (new,) = await made.store.standing()
            assert (new.machine, new.delivery) == ("backup", old.delivery)
            assert new.queue_id != old.queue_id
            envelope, message = await made.store.read(new)
            assert (envelope.sender, envelope.recipients) == ("", RECIPIENTS)
            assert message.count(b"Holdfast-Delivery: " + old.delivery.encode()) == 1
            assert message.endswith(b"\r\n\r\n" + BODY.encode())
        back = await FileShadows(tmp_path, "main").taken_from_here()
        assert back == {old.queue_id}
        await box.queue.throw_out(back & box.queue.ids())
        assert box.queue.ids() == {new.queue_id}
        await box.queue.throw_out([new.queue_id])

    played(play)


def test_what_its_client_sends_again_to_the_machine_that_adopts_it_keeps_its_delivery_id(
    box: Box, tmp_path: Path
) -> None:
    """The client heard 451, or nothing. By the id its recipients get one of the two, whichever comes first."""

    async def play() -> None:
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "again", identity="<1@outside>"))[0] == 250
            (named,) = made.standing
            assert (await asyncio.to_thread(hand_in, box, "again"))[0] == 250
            (nameless,) = {*made.standing} - {named}
            await box.queue.throw_out([named.queue_id, nameless.queue_id])  # with main's disk
        store = SlowlyRead(tmp_path, "backup")
        async with milter_with(box, store) as made:
            for number in (1, 2):
                assert (await asyncio.to_thread(hand_in, box, "again", identity=f"<{number}@outside>"))[0] == 250
            assert (await asyncio.to_thread(hand_in, box, "again"))[0] == 250
            came = [shadow.delivery for shadow in made.standing]
            assert came[0] == named.delivery
            assert not {named.delivery, nameless.delivery} & set(came[1:])
            store.may.set()
            await until(lambda: made.counts.adopted == 2, "adoption")
            assert sorted(shadow.delivery for shadow in made.standing) == sorted(
                [*came, named.delivery, nameless.delivery]
            )
            await box.queue.throw_out(shadow.queue_id for shadow in made.standing)

    played(play)


class SlowlyRead(FileShadows):
    """Its disk gives nothing until :attr:`may` is set."""

    def __init__(self, directory: Path, machine: str) -> None:
        super().__init__(directory, machine, SharedBarrier(Barrier()).wait)
        self.may = asyncio.Event()

    async def read(self, shadow: Shadow) -> tuple[Envelope, bytes]:
        await self.may.wait()
        return await super().read(shadow)


def test_what_an_adoption_left_in_the_maildrop_before_a_power_cut_keeps_its_delivery_id(
    box: Box, tmp_path: Path
) -> None:
    """It is put there once more, and comes by twice; by its id its recipients get it once."""

    async def play() -> None:
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "moved twice"))[0] == 250
            (old,) = await made.store.standing()
            await box.queue.throw_out([old.queue_id])  # with main's disk
            envelope, message = await made.store.read(old)
        await box.queue.put(envelope, message)  # no milter: pickup(8) leaves it where it is
        store = SlowlyRead(tmp_path, "backup")
        async with milter_with(box, store) as made:
            await box.queue.put(envelope, b"Subject: another\r\n\r\n")  # pickup(8) takes both
            await until(lambda: made.waiting == 2, "both in the queue")
            store.may.set()
            await until(lambda: made.waiting == 3, "the adopted one in the queue")
            new = [shadow for shadow in await store.standing() if shadow.machine == "backup"]
            assert [each.delivery for each in new].count(old.delivery) == 2
            await box.queue.throw_out(shadow.queue_id for shadow in new)

    played(play)


def test_an_adopted_message_is_asked_no_more_of_its_next_hop_than_it_was_before(box: Box, tmp_path: Path) -> None:
    """Raw UTF-8 in a header field does not make it an SMTPUTF8 message, which Dovecot 2.3 would not be given."""

    async def asks_for_smtputf8(queue_id: str) -> bool:
        """By the queue file's first record (postcat(1)): its last number is SMTPUTF8's bits, the lowest "requested"."""
        argv = ["postcat", "-c", str(box.postfix.config), "-qe", queue_id]
        result = await SystemCommands().run(argv, timeout_seconds=20)
        size = next(line for line in result.output.splitlines() if line.startswith("message_size:"))
        return bool(int(size.split()[-1]) & 1)

    async def play() -> None:
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "Grüße"))[0] == 250
            (old,) = await made.store.standing()
        async with milter(box, tmp_path, "backup", Barrier()) as made:
            await until(lambda: made.counts.adopted == 1, "adoption")
            (new,) = await made.store.standing()
            try:
                assert not await asks_for_smtputf8(old.queue_id)
                assert not await asks_for_smtputf8(new.queue_id)
            finally:
                await box.queue.throw_out([old.queue_id, new.queue_id])

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
            (shadow,) = await made.store.standing()
            whole = (tmp_path / "shadows" / shadow.name).read_bytes()
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
        message = whole.partition(b"\n")[2].split(b"\r\n", 1)[1]
        assert (event.digest, event.bytes) == (blake3(message).hexdigest(length=16), len(message))
        async with milter(box, tmp_path / "shadows", "backup", Barrier(), book("backup")) as made:
            await until(lambda: made.counts.adopted == 1, "adoption")
            (new,) = await made.store.standing()
            await box.queue.throw_out([shadow.queue_id, new.queue_id])
            await until(lambda: made.counts.settled == 1, "settling")
        ledger = Ledger(read(place))
        told = ledger.messages[shadow.delivery]
        assert (told.accepted[1].after, told.accepted[1].after_queue) == ("main", shadow.queue_id)
        assert ledger.row(told, RECIPIENTS[0]).state is State.RESENT

    (tmp_path / "shadows").mkdir()
    played(play)


def test_what_stood_in_a_queue_that_is_lost_is_queued_again(box: Box, tmp_path: Path) -> None:
    """A machine whose disk was replaced, or that was rebuilt from a backup, has its shadows and another queue."""

    async def play() -> None:
        mark = box.postfix.config.parent / "queue" / MARK
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "lost queue"))[0] == 250
            (old,) = await made.store.standing()
        await box.queue.throw_out([old.queue_id])
        mark.unlink()
        store = FileShadows(tmp_path, "main")
        async with milter_with(box, store, adopts_at_start=False, adopts_own=False) as made:  # there is no agent yet
            assert (await asyncio.to_thread(hand_in, box, "meanwhile"))[0] == 250
            await box.queue.throw_out(box.queue.ids())
            await until(lambda: made.counts.settled == 1, "settling")
            assert (made.counts.adopted, await made.store.standing()) == (0, [old])
        async with milter(box, tmp_path, "main", Barrier()) as made:
            await until(lambda: made.counts.adopted == 1, "a place in the new queue")
            (new,) = await made.store.standing()
            assert new.delivery == old.delivery
            assert new.queue_id != old.queue_id
            assert new.queue_id in box.queue.ids()
        await box.queue.throw_out([new.queue_id])
        async with milter(box, tmp_path, "main", Barrier()) as made:  # the same queue: it has gone from there
            await until(lambda: made.counts.settled == 1, "settling")
            assert made.counts.adopted == 0

    played(play)


def test_a_message_whose_postfix_was_killed_before_it_was_whole_leaves_no_shadow(box: Box, tmp_path: Path) -> None:
    """Its client was told nothing and sends it again: adopted besides by the next primary it would come twice."""

    async def play() -> None:
        barrier = Barrier()
        async with milter(box, tmp_path / "shadows", "main", barrier) as made:
            barrier.holds.clear()
            sending = asyncio.create_task(asyncio.to_thread(hand_in, box, "killed"))
            await barrier.reached.wait()
            (left,) = (box.queue.directory / "incoming").iterdir()
            os.utime(left, (time.time() - 60,) * 2)
            assert box.queue.ids() == {left.name}  # it is being written, however long that takes
            await box.postfix.service.stop(force=True)
            with pytest.raises(smtplib.SMTPException):
                await sending
            barrier.holds.set()
            await box.postfix.service.start()
            await asyncio.to_thread(wait_until, lambda: not made.standing, 30, "the shadow goes")
            assert left.exists()
            assert await made.store.standing() == []

    played(play)


def test_a_header_from_outside_does_not_choose_the_delivery_id(box: Box, tmp_path: Path) -> None:
    async def play() -> None:
        async with milter(box, tmp_path, "main", Barrier()) as made:
            assert (await asyncio.to_thread(hand_in, box, "x\r\nHoldfast-Delivery: forged"))[0] == 250
            (shadow,) = await made.store.standing()
            assert shadow.delivery != "forged"
            await box.queue.throw_out([shadow.queue_id])

    played(play)


def relay_store(side: MemorySide, machine: str, spool: Path) -> StreamShadows:
    return StreamShadows(side, machine, spool)


def test_a_relay_keeps_its_shadows_in_the_stream_and_a_full_stream_is_452(box: Box, tmp_path: Path) -> None:
    async def play() -> None:
        side = MemorySide(bytes_max=20_000)
        async with milter_with(box, relay_store(side, "relay", tmp_path), adopts_at_start=False) as made:
            assert (await asyncio.to_thread(hand_in, box, "first"))[0] == 250
            (shadow,) = await made.store.standing()
            assert shadow.queue_id in box.queue.ids()
            envelope, message = await made.store.read(shadow)
            assert envelope.recipients == RECIPIENTS
            assert message.endswith(b"\r\n\r\n" + BODY.encode())
            side.bytes_max = 100
            code, said = await asyncio.to_thread(hand_in, box, "no room")
            assert code == 452
            assert b"full" in said
            side.bytes_max, side.available = 20_000, False
            assert (await asyncio.to_thread(hand_in, box, "no log"))[0] == 451
            side.available = True
            assert (await side.state()).messages == 1
            await box.queue.throw_out([shadow.queue_id])
            await until(lambda: made.counts.settled == 1, "settling")
            assert (await side.state()).messages == 0

    played(play)


def test_what_a_refused_message_left_in_the_stream_goes(box: Box, tmp_path: Path) -> None:
    """The log took it and its answer was lost: it was refused, its sender comes again, and nobody may adopt it."""

    class Answerless(MemorySide):
        async def publish(self, subject: str, payload: bytes, *, once: str = "") -> side_port.Place:
            await super().publish(subject, payload, once=once)
            raise LogUnavailable("no answer", sent=True)

    async def play() -> None:
        side = Answerless()
        async with milter_with(box, relay_store(side, "relay", tmp_path), adopts_at_start=False):
            assert (await asyncio.to_thread(hand_in, box, "answerless"))[0] == 451
            await until(lambda: side.messages == 0, "it to be gone")

    played(play)


def test_the_primary_adopts_what_a_dead_relay_had_and_the_relay_throws_it_out(box: Box, tmp_path: Path) -> None:
    async def play() -> None:
        side = MemorySide()
        relays = relay_store(side, "relay", tmp_path / "relay")
        async with milter_with(box, relays, adopts_at_start=False):
            for subject in ("one", "two"):
                assert (await asyncio.to_thread(hand_in, box, subject))[0] == 250
        old = await relays.standing()
        seen_by_main = relay_store(side, "main", tmp_path / "main")
        async with milter(box, tmp_path / "shadows", "main", Barrier()) as made:
            await made.adopt([Foreign(shadow, seen_by_main) for shadow in await seen_by_main.standing()])
            await until(lambda: made.counts.adopted == 2, "adoption")
            new = await made.store.standing()
            assert {shadow.delivery for shadow in new} == {shadow.delivery for shadow in old}
            assert await seen_by_main.standing() == []
            taken = await relays.taken_from_here()
            assert taken == {shadow.queue_id for shadow in old}
            await box.queue.throw_out(taken & box.queue.ids())
            await relays.thrown_out(taken)
            assert await relays.taken_from_here() == frozenset()
            assert box.queue.ids() == {shadow.queue_id for shadow in new}
            await box.queue.throw_out(box.queue.ids())

    played(play)


def test_what_a_relay_hands_on_keeps_its_delivery_id_also_twice_at_once(box: Box, tmp_path: Path) -> None:
    async def play() -> None:
        store = FileShadows(tmp_path, "main")
        async with milter_with(box, store, relays=frozenset({"127.0.0.1"})) as made:
            text = "relayed\r\nHoldfast-Delivery: 0123abc\r\nX-Other: x"
            answers = await asyncio.gather(*(asyncio.to_thread(hand_in, box, text) for _ in range(3)))
            assert [code for code, _ in answers] == [250, 250, 250]
            shadows: list[Shadow] = await made.store.standing()
            assert [shadow.delivery for shadow in shadows] == ["0123abc"] * 3
            for shadow in shadows:
                _, message = await made.store.read(shadow)
                assert message.count(b"Holdfast-Delivery:") == 1
            await box.queue.throw_out([shadow.queue_id for shadow in shadows])
            await until(lambda: made.counts.settled == 3, "settling of all three")

    played(play)


def test_a_relay_whose_disk_was_replaced_queues_again_what_stands_for_it(box: Box, tmp_path: Path) -> None:
    async def play() -> None:
        side = MemorySide()
        async with milter_with(box, relay_store(side, "relay", tmp_path), adopts_at_start=False) as made:
            assert (await asyncio.to_thread(hand_in, box, "kept"))[0] == 250
            (old,) = await made.store.standing()
        await box.queue.throw_out([old.queue_id])
        (box.postfix.config.parent / "queue" / MARK).unlink()  # another disk
        async with milter_with(box, relay_store(side, "relay", tmp_path), adopts_at_start=False) as made:
            await until(lambda: made.counts.adopted == 1, "queueing it again")
            (new,) = await made.store.standing()
            assert new.delivery == old.delivery
            assert new.queue_id in box.queue.ids()
            await box.queue.throw_out([new.queue_id])

    played(play)
