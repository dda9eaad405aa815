"""Records of the log as whole copies."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.names import Sequence
from holdfast.log.memory import MemoryLogStore
from holdfast.log.port import Record
from holdfast.node.whole import WholeCopies
from tests.apply.model import INCARNATION, LogWriter

from .two_nodes import wait_until


@given(
    copies=st.lists(st.integers(1, 5), max_size=5),
    unfinished=st.integers(0, 4),
    promoted_at=st.integers(0, 30),
    held_bytes_max=st.sampled_from([0, 400, 1 << 20]),
    after=st.integers(0, 3),
)
def test_records_are_given_a_whole_copy_at_a_time_whatever_memory_holds(
    copies: list[int], unfinished: int, promoted_at: int, held_bytes_max: int, after: int
) -> None:
    ends = [number + 1 == size for size in copies for number in range(size)] + [False] * unfinished
    writer = LogWriter()
    for number, end in enumerate(ends):
        if number == promoted_at and not end:
            writer.promotion("main", 2, more=True)
        else:
            writer.changes((), more=not end)

    async def scenario() -> None:
        store = MemoryLogStore()
        store.incarnation = INCARNATION
        for raw in writer.raw:
            store.put(raw)
        begin = Sequence(min(after, len(ends)))
        promotions: list[Record] = []
        whole = WholeCopies(
            store.open(),
            begin,
            on_seen=lambda: None,
            on_promotion=promotions.append,
            held_bytes_max=held_bytes_max,
        )
        given_out: list[Record] = []

        async def read() -> None:
            async for record in whole.records():
                given_out.append(record)

        reading = asyncio.create_task(read())
        await wait_until(lambda: whole.seen >= len(ends), lambda: f"read to {whole.seen}")
        last = max((number for number in range(begin + 1, len(ends) + 1) if ends[number - 1]), default=begin)
        await wait_until(lambda: len(given_out) >= last - begin, lambda: f"{len(given_out)} given")
        reading.cancel()
        assert [record.sequence for record in given_out] == list(range(begin + 1, last + 1))
        assert [record.payload for record in given_out] == writer.raw[begin:last]
        assert whole.whole == last
        expected = begin <= promoted_at < len(ends) and not ends[promoted_at]
        assert len(promotions) == expected, "who was promoted is told before the copy is whole"

    asyncio.run(asyncio.wait_for(scenario(), 10))
