"""The relay's pure parts: its list, what waits, its pace."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.gate.held import DAY_SECONDS, HoldOrder, Order, in_order, waiting
from holdfast.gate.list_kept import KeptList
from holdfast.gate.pace import WINDOW_MAX, WINDOW_MIN, Pace
from holdfast.gate.queue import Queued, QueuedRecipient
from holdfast.gate.recipients import Recipients, decode, encode, tables
from holdfast.gate.relay_view import read_view, view_of, write_view

LIST = Recipients(
    machine="main",
    at=1000.0,
    domains=("example.org", "ldap.example.org"),
    recipients=("@example.net", "alice@example.org", "bad key@example.org", "#x@example.org"),
    unlisted=("ldap.example.org",),
    delimiter="+",
    message_bytes_max=1_000_000,
)
NOW = 1_800_000_000


def queued(number: int, *recipients: str, age: float = 0.0, queue: str = "hold", reason: str = "") -> Queued:
    to = tuple(QueuedRecipient(address, reason) for address in recipients)
    return Queued(queue, f"Q{number}", int(NOW - age), 1000, "s@outside.example", to)


def test_a_list_comes_back_as_it_was_sent_and_makes_three_tables() -> None:
    assert decode(encode(LIST)) == LIST
    made = tables(LIST)
    assert made["domains"] == "example.org OK\nldap.example.org OK\n"
    assert made["recipients"] == "@example.net OK\n@ldap.example.org OK\nalice@example.org OK\n"
    assert made["unlisted"] == "ldap.example.org reject_unverified_recipient\n"


@pytest.mark.parametrize("payload", [b"", b"x" * 100, encode(LIST)[:-3]])
def test_what_is_no_list_is_refused(payload: bytes) -> None:
    with pytest.raises(HoldfastError):
        decode(payload)


def test_a_list_is_the_same_whoever_says_it_and_when() -> None:
    other = Recipients("backup", 2000.0, *[getattr(LIST, name) for name in LIST.__struct_fields__[2:]])
    assert LIST.same_as(other)
    assert not LIST.same_as(None)
    assert not LIST.same_as(Recipients("main", 1000.0, LIST.domains, ()))


class Tables:
    """Made, or not."""

    def __init__(self) -> None:
        self.broken = False
        self.made: list[Recipients] = []

    async def write(self, recipients: Recipients) -> None:
        if self.broken:
            raise HoldfastError("postmap: no space")
        self.made.append(recipients)


def test_tables_that_could_not_be_made_are_made_later_after_a_restart_too(tmp_path: Path) -> None:
    async def play() -> None:
        tables = Tables()
        tables.broken = True
        kept = KeptList(tmp_path / "list", tables, lambda: 2000.0)
        await kept.load()
        with pytest.raises(HoldfastError):
            await kept.take(LIST)
        again = KeptList(tmp_path / "list", tables, lambda: 2000.0)
        await again.load()
        assert again.list == LIST
        tables.broken = False
        for _ in range(2):
            await again.take(LIST)
        assert tables.made == [LIST]

    asyncio.run(play())


def test_an_older_list_is_not_taken_unless_ours_comes_from_a_clock_that_was_wrong(tmp_path: Path) -> None:
    def dated(at: float) -> Recipients:
        return msgspec.structs.replace(LIST, at=at)

    async def play() -> None:
        kept = KeptList(tmp_path / "list", Tables(), lambda: 5000.0)
        for at, expected in ((4000.0, 4000.0), (3000.0, 4000.0), (5300.0, 5300.0), (5000.0, 5300.0)):
            await kept.take(dated(at))
            assert kept.list == dated(expected)
        await kept.take(dated(90_000.0))
        await kept.take(dated(5010.0))
        assert kept.list == dated(5010.0)

    asyncio.run(play())


def test_what_waits_is_told_with_what_goes_back_when() -> None:
    messages = [
        queued(1, "alice@example.org", age=29.5 * DAY_SECONDS, reason="connect: refused"),
        queued(2, "alice@example.org", "bob@example.org", age=27.5 * DAY_SECONDS, queue="deferred"),
        queued(3, "bob@example.org", queue="active"),
    ]
    told = waiting(messages, NOW, 30)
    assert (told.messages, told.bytes, told.on_hold) == (3, 3000, 1)
    assert told.first_bounce_at == pytest.approx(NOW + 0.5 * DAY_SECONDS)
    assert [(due.days, due.messages) for due in told.bounces] == [(1, 1), (2, 1)] + [(n, 2) for n in range(3, 8)]
    assert told.accounts == {"alice@example.org": 2, "bob@example.org": 2}
    assert told.reasons == {"connect: refused": 1}
    assert waiting([], NOW, 30).first_bounce_at == 0.0


def test_the_named_go_first_then_the_oldest() -> None:
    messages = [
        queued(1, "alice@example.org", age=10),
        queued(2, "bob@example.org", age=30),
        queued(3, "Boss@example.org", age=5),
        queued(4, "x@urgent.example.org", age=1),
        queued(5, "carol@example.org", age=99, queue="deferred"),
    ]
    assert in_order(messages, ["boss@example.org", "@urgent.example.org"]) == ["Q3", "Q4", "Q2", "Q1"]


def test_an_order_to_hold_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "hold.json"
    order = HoldOrder(path)
    assert order.order is None
    order.give(Order(5.0, "repair"))
    assert HoldOrder(path).order == Order(5.0, "repair")
    order.lift()
    assert HoldOrder(path).order is None
    path.write_text("{")
    with pytest.raises(ConfigurationError):
        HoldOrder(path)


def simulated(
    capacity: float, messages: int, seed: int, outage: tuple[float, float] = (-1.0, -1.0)
) -> tuple[float, int]:
    """A primary that takes *capacity* messages a second, but for *outage*. Seconds until all is there, most on way."""
    chance = random.Random(seed)
    pace, now, on_way, left, most = Pace(), 0.0, 0, messages, 0
    while left or on_way:
        free = 0 if pace.stalled and on_way else max(0, min(left, pace.window - on_way))
        on_way, left = on_way + free, left - free
        most = max(most, on_way)
        now += 0.5
        able = 0 if outage[0] <= now < outage[1] else int(capacity * 0.5 * chance.uniform(0.5, 1.5))
        done = min(on_way, able)
        on_way -= done
        pace = pace.looked(done, on_way, 0.5)
        assert WINDOW_MIN <= pace.window <= WINDOW_MAX
        assert now < 100_000
    return now, most


@pytest.mark.parametrize("capacity", [10.0, 100.0, 1000.0])
def test_a_drain_goes_at_the_pace_of_the_primary_and_does_not_flood_it(capacity: float) -> None:
    seconds, most = simulated(capacity, 20_000, seed=1)
    assert seconds < 1.3 * 20_000 / capacity + 10
    assert most <= max(12 * capacity, 200)


def test_a_primary_that_goes_away_in_the_middle_is_asked_with_few() -> None:
    seconds, _ = simulated(100.0, 5000, seed=2, outage=(10.0, 60.0))
    assert seconds < 50 + 1.5 * 5000 / 100
    pace = Pace(window=1000, rate=50.0)
    for _ in range(40):
        pace = pace.looked(0, 500, 0.5)
    assert pace.stalled
    assert pace.window == WINDOW_MIN
    assert not pace.looked(10, 490, 0.5).stalled


def test_how_long_it_takes_is_told_when_it_can_be() -> None:
    assert Pace().seconds_left(100) is None
    assert Pace(rate=50.0).seconds_left(100) == 2.0


def test_a_relay_says_of_itself_what_waits_and_that_it_says_nothing(tmp_path: Path) -> None:
    assert read_view(tmp_path, NOW).warnings == ("its gates say nothing: `holdfast relay status` there",)
    here = waiting([queued(1, "alice@example.org"), queued(2, "bob@example.org", queue="active")], NOW, 30)
    write_view(tmp_path, view_of(NOW, here, taking="", held_why="a new disk", warnings=("the list is old",)))
    told = read_view(tmp_path, NOW + 60)
    assert told.words == "2 messages wait, 1 of them on hold; nothing is handed on, by order: a new disk"
    assert told.warnings == ("the list is old",)
    assert "say nothing" in read_view(tmp_path, NOW + 600).warnings[0]
