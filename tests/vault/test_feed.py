"""A feed that dies anywhere and begins anew, here or on another machine, leaves no gap and no wrong instant."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.changes.frame import Chain, FrameDamaged, frame_digest
from holdfast.changes.names import Sequence
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backup import Clocks
from holdfast.vault.feed import Feed, snapshot_due
from holdfast.vault.instant import Archive, open_instant
from holdfast.vault.port import BackendUnavailable
from holdfast.vault.repository import Vault, init_vault, open_vault
from holdfast.vault.settings import VaultSettings
from holdfast.vault.verify import EVERYTHING, verify
from tests.apply.model import INCARNATION, KEY, Op
from tests.examples import examples
from tests.vault import site
from tests.vault.history import SECOND, START_NS, History, picture_of, position
from tests.vault.test_logfed import Standby

OPS = st.builds(Op, st.integers(0, 14), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2000))
STEPS = st.lists(st.tuples(st.lists(OPS, min_size=1, max_size=5), st.integers(0, 9)), min_size=2, max_size=14)


class Machine:
    """An archiver on one machine: its own cache, the vault's store."""

    def __init__(self, standby: Standby, vault: Vault) -> None:
        self.standby = standby
        at_ns = lambda: START_NS + standby.history.last * SECOND + SECOND // 2  # noqa: E731
        self.vault = vault
        self.feed = Feed(vault, KEY, INCARNATION, "backup", Clocks(at_ns))

    def begin(self, first: int = 1) -> None:
        after = self.feed.follows_from(first)
        if after is None:
            self.feed.first_snapshot(self.standby.trees, self.standby.read_index)
        else:
            raw = self.standby.history.log.raw
            digest = frame_digest(raw[after - 1]) if after else bytes(32)
            self.feed.begin(Chain(INCARNATION, Sequence(after), digest))

    def take(self, through: int | None = None) -> None:
        through = self.standby.history.last if through is None else through
        for raw in self.standby.history.log.raw[self.feed.reached : through]:
            self.feed.take(raw)

    def snapshot(self) -> None:
        self.feed.snapshot(self.standby.trees, self.standby.read_index, self.take)


@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
@settings(max_examples=examples(20), deadline=None)
@given(STEPS, st.data())
def test_archivers_that_die_leave_every_instant_exact(steps: list[tuple[list[Op], int]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(prefix="hf-feed-") as folder, ExitStack() as stack:
        backend = MemoryBackend()
        key = init_vault(backend, (site.RECIPIENT,))
        caches = [Path(folder) / "a.sqlite", Path(folder) / "b.sqlite"]

        def open_here(number: int) -> Vault:
            opened = open_vault(backend, writer=key, cache=caches[number])
            return stack.enter_context(closing(opened))

        standby = stack.enter_context(closing(Standby(Path(folder), site.reader(backend))))
        machine = Machine(standby, open_here(0))
        machine.begin()
        base = standby.history.last
        for ops, then in steps:
            standby.history.do(ops, frames=1 + then % 3)
            try:
                if then in (2, 3):
                    backend.fail(data.draw(st.integers(0, 5)), after=then == 2)
                machine.take()
                if then < 5:
                    machine.feed.flush()
                if then in (1, 2, 3, 8):
                    machine.snapshot()
            except BackendUnavailable:
                then = 9
            backend.recover()
            if then == 9:
                machine.vault.close()
                machine = Machine(standby, open_here(len(ops) % 2))
                machine.begin()
        machine.take()
        machine.feed.flush()
        assert machine.feed.archived == standby.history.last
        archive = Archive(standby.vault)
        wanted = [sequence for sequence in standby.history.pictures if sequence >= base]
        for sequence in {data.draw(st.sampled_from(wanted)), wanted[-1]}:
            standby.vault.sync()
            with open_instant(standby.vault, archive.at_position(position(sequence))) as instant:
                assert picture_of(instant.vault, instant.snapshot) == standby.history.pictures[sequence]
        assert verify(standby.vault, EVERYTHING).findings == []


@pytest.fixture
def standby(tmp_path: Path) -> Standby:
    return Standby(tmp_path, site.new_vault(MemoryBackend()))


def busy(history: History, count: int) -> None:
    for number in range(count):
        history.do([Op(0, number, number, number)])


def test_another_machine_goes_on_where_the_last_one_stopped(standby: Standby) -> None:
    machine = Machine(standby, standby.vault)
    machine.begin()
    busy(standby.history, 5)
    machine.take()
    machine.feed.flush()
    backend = standby.vault.backend
    assert isinstance(backend, MemoryBackend)
    before = len(backend.objects)
    other = Machine(standby, standby.vault)
    assert other.feed.place.archived == 5
    assert other.feed.follows_from(1) == 0
    other.begin()
    assert not other.feed.touched.everything
    other.take()
    other.feed.flush()
    assert len(backend.objects) == before, "nothing is archived twice"
    other.snapshot()
    assert other.feed.place.look_back == 5


def test_records_trimmed_before_they_were_archived_are_a_gap_and_then_it_goes_on(standby: Standby) -> None:
    machine = Machine(standby, standby.vault)
    machine.begin()
    busy(standby.history, 6)
    machine.take(2)
    machine.feed.flush()
    late = Machine(standby, standby.vault)
    assert late.feed.follows_from(5) is None
    late.begin(5)
    assert late.feed.reached == 6
    busy(standby.history, 2)
    late.take()
    late.feed.flush()
    archive = Archive(standby.vault)
    assert archive.at_position(position(2)).sequence == 2
    assert archive.at_position(position(8)).sequence == 8
    with pytest.raises(Exception, match="cannot be restored"):
        archive.at_position(position(4))


def test_a_snapshot_whose_records_are_missing_is_followed_by_them(standby: Standby) -> None:
    Machine(standby, standby.vault).begin()
    busy(standby.history, 5)
    standby.snapshot()
    machine = Machine(standby, standby.vault)
    assert machine.feed.place.archived == 0
    machine.begin()
    machine.take()
    machine.feed.flush()
    assert Archive(standby.vault).at_position(position(3)).sequence == 3


def test_what_was_touched_in_trimmed_records_is_looked_at_nevertheless(standby: Standby) -> None:
    machine = Machine(standby, standby.vault)
    machine.begin()
    busy(standby.history, 6)
    machine.take()
    machine.feed.flush()
    late = Machine(standby, standby.vault)
    assert late.feed.follows_from(6) == 6
    late.begin(6)
    busy(standby.history, 1)
    late.snapshot()
    newest = standby.vault.snapshot(standby.vault.snapshots()[-1])
    assert picture_of(standby.vault, newest) == standby.history.pictures[standby.history.last]


def test_a_wrong_record_is_refused(standby: Standby) -> None:
    machine = Machine(standby, standby.vault)
    machine.begin()
    busy(standby.history, 2)
    with pytest.raises(FrameDamaged):
        machine.feed.take(standby.history.log.raw[1])
    with pytest.raises(FrameDamaged):
        machine.feed.take(standby.history.log.raw[0][:-1])


def test_snapshots_are_due_after_so_many_minutes_and_at_times_of_the_day() -> None:
    def due(settings: VaultSettings, last: datetime, now: datetime) -> bool:
        return snapshot_due(settings, int(last.timestamp() * 1e9), int(now.timestamp() * 1e9))

    def vault(minutes: float, *times: str) -> VaultSettings:
        return VaultSettings(name="v", location="/v", key="/k", snapshot_minutes=minutes, snapshot_times=times)

    night = datetime(2026, 11, 22, 2, 0)
    assert due(vault(30), night, night.replace(minute=30))
    assert not due(vault(30), night, night.replace(minute=29))
    assert not due(vault(0), night, night.replace(day=28))
    at = vault(0, "02:30", "14:00")
    assert due(at, night, night.replace(minute=30))
    assert not due(at, night.replace(minute=31), night.replace(hour=13, minute=59))
    assert due(at, night.replace(minute=31), night.replace(hour=14))
