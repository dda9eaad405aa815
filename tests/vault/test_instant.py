"""Any archived instant is exactly what the recorded history says of it; what is not archived is refused by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.vault.archive import FramesName, covering, list_frames, read_frames
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backup import put_snapshot
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.instant import Archive, InstantUnknown, open_instant
from holdfast.vault.record import Snapshot
from holdfast.vault.repository import Vault
from holdfast.vault.verify import verify
from holdfast.vault.writer import Writer
from tests.apply.model import INCARNATION, Op
from tests.examples import examples
from tests.vault import site
from tests.vault.history import SECOND, START_NS, History, first_snapshot, picture_of, position

KINDS = st.integers(0, 14)
CONTENTS = st.sampled_from((2, 3, 4, 4))
"""Append, overwrite, truncate (to a longer size, too): drawn more often than their share, and on few files."""
OPS = st.builds(Op, KINDS | CONTENTS, st.integers(0, 3), st.integers(0, 9), st.integers(0, 2000))
BATCHES = st.lists(st.tuples(st.lists(OPS, min_size=1, max_size=6), st.integers(1, 3)), min_size=1, max_size=12)


def snapshot_here(vault: Vault, sequence: int) -> None:
    """A snapshot at a position, made from the instant itself."""
    with open_instant(vault, Archive(vault).at_position(position(sequence))) as instant:
        assert instant.position == position(sequence)
        with vault.catalog.transaction(), Writer(vault) as writer:
            for pack in [found.name for found in instant.vault.backend.list("packs/")]:
                for content_id, *_ in list(_contents(instant.vault, pack)):
                    writer.add_new(content_id, instant.vault.content(content_id), instant.vault.pack_cipher(pack)[0])
            writer.flush()
        made = Snapshot(
            START_NS + sequence * SECOND,
            "main",
            instant.snapshot.trees,
            0,
            0,
            incarnation=INCARNATION,
            sequence=sequence,
        )
    put_snapshot(vault, made)


def _contents(vault: Vault, name: str) -> list[tuple[bytes, int, int, int]]:
    (number,) = [pack.number for pack in vault.catalog.packs() if pack.name == name]
    return list(vault.catalog.contents_of(number))


@settings(max_examples=examples(20), deadline=None)
@given(BATCHES, st.lists(st.integers(1, 40), max_size=6), st.integers(0, 40), st.data())
def test_every_instant_is_exactly_as_recorded(
    batches: list[tuple[list[Op], int]], cuts: list[int], snapshot_at: int, data: st.DataObject
) -> None:
    history = History()
    for ops, frames in batches:
        history.do(ops, frames=frames)
    with site.new_vault(MemoryBackend()) as vault:
        first_snapshot(vault)
        edges = sorted({0, history.last, *(cut for cut in cuts if cut < history.last)})
        for before, after in pairwise(edges):
            history.archive(vault, before + 1, after)
        whole = sorted(history.pictures)
        base = min(whole, key=lambda sequence: abs(sequence - snapshot_at))
        if base:
            snapshot_here(vault, base)
        wanted = data.draw(st.sampled_from(whole))
        for sequence in {wanted, history.last}:
            with open_instant(vault, Archive(vault).at_position(position(sequence))) as instant:
                assert picture_of(instant.vault, instant.snapshot) == history.pictures[sequence]
        between_ns = START_NS + wanted * SECOND + SECOND // 2
        if wanted < history.last:
            target = Archive(vault).at_time(between_ns)
            with open_instant(vault, target) as instant:
                assert picture_of(instant.vault, instant.snapshot) == history.pictures[wanted]


@settings(max_examples=examples(10), deadline=None)
@given(st.lists(st.tuples(CONTENTS, st.integers(0, 2000), st.integers(0, 5000)), min_size=1, max_size=8), st.data())
def test_contents_are_exact_whatever_is_written_where(steps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """One file from the snapshot, written to, cut, and made longer with a hole."""
    history = History()
    history.do([Op(0, 3, 0, 3)])
    base = data.draw(st.integers(1, len(steps)))
    for what, amount, place in steps:
        history.do([Op(what, 0, place, amount)])
    with site.new_vault(MemoryBackend()) as vault:
        first_snapshot(vault)
        history.archive(vault, 1, history.last)
        if base in history.pictures:
            snapshot_here(vault, base)
        for sequence in history.pictures:
            with open_instant(vault, Archive(vault).at_position(position(sequence))) as instant:
                assert picture_of(instant.vault, instant.snapshot) == history.pictures[sequence]


def busy(history: History, count: int) -> None:
    for number in range(count):
        history.do([Op(0, number, number, number)])


@pytest.fixture
def vault() -> Vault:
    return site.new_vault(MemoryBackend())


def test_what_is_not_archived_names_the_nearest_instants(vault: Vault) -> None:
    history = History()
    busy(history, 9)
    with pytest.raises(InstantUnknown, match="Nothing is archived"):
        Archive(vault).at_time(START_NS)
    first_snapshot(vault)
    history.archive(vault, 1, 3)
    history.archive(vault, 7, 9)
    with pytest.raises(InstantUnknown) as missing:
        Archive(vault).at_position(position(8))
    assert missing.value.before == START_NS + 3 * SECOND
    with pytest.raises(InstantUnknown) as early:
        Archive(vault).at_time(START_NS - 1)
    assert (early.value.before, early.value.after) == (None, START_NS)
    with pytest.raises(InstantUnknown, match=r"after .*23\.000 UTC is not") as late:
        Archive(vault).at_time(START_NS + 5 * SECOND)
    assert "before it" in late.value.hint
    assert Archive(vault).at_time(START_NS + 3 * SECOND).sequence == 3
    assert Archive(vault).spans() == [(START_NS, START_NS + 3 * SECOND)]
    assert Archive(vault).latest().sequence == 3
    (finding,) = verify(vault).findings
    assert "records 4 to 6" in finding.reason
    assert "between 2026-09-21 14:13:23.000 UTC and" in finding.reason


def test_a_quiet_time_can_be_restored_when_something_later_shows_that_it_was(vault: Vault) -> None:
    history = History()
    busy(history, 4)
    first_snapshot(vault)
    history.archive(vault, 1, 2)
    with pytest.raises(InstantUnknown):
        Archive(vault).at_time(START_NS + 2 * SECOND + 1)
    history.archive(vault, 3, 4)
    assert Archive(vault).at_time(START_NS + 2 * SECOND + 1).sequence == 2
    with open_instant(vault, Archive(vault).at_position(position(4))) as instant:
        made = Snapshot(
            START_NS + 99 * SECOND, "main", instant.snapshot.trees, 0, 0, incarnation=INCARNATION, sequence=4
        )
    put_snapshot(vault, made)
    assert Archive(vault).at_time(START_NS + 50 * SECOND).sequence == 4
    assert Archive(vault).latest().time_ns == START_NS + 99 * SECOND
    with pytest.raises(InstantUnknown):
        Archive(vault).at_time(START_NS + 100 * SECOND)


def test_the_middle_of_a_batch_is_no_instant(vault: Vault) -> None:
    history = History()
    history.do([Op(0, number, number, number) for number in range(4)], frames=2)
    first_snapshot(vault)
    history.archive(vault, 1, history.last)
    with pytest.raises(InstantUnknown, match="middle of a batch"):
        Archive(vault).at_position(position(1))


def test_the_same_records_twice_do_no_harm_and_a_replaced_object_is_found(vault: Vault) -> None:
    history = History()
    busy(history, 6)
    first_snapshot(vault)
    for first, last in ((1, 4), (1, 4), (2, 5), (5, 6)):
        history.archive(vault, first, last)
    with open_instant(vault, Archive(vault).at_position(position(6))) as instant:
        assert picture_of(instant.vault, instant.snapshot) == history.pictures[6]
    assert isinstance(vault.backend, MemoryBackend)
    objects = vault.backend.objects
    (third,) = [name for name in list_frames(vault.backend) if name.first == 5]
    objects[third.name] = objects[third.name][:-1]
    with pytest.raises(VaultDamaged):
        Archive(vault).at_position(position(6))
    other = third.name.replace(f"{5:016d}-{6:016d}", f"{6:016d}-{7:016d}")
    objects[other] = objects.pop(third.name)
    with pytest.raises(VaultDamaged):
        read_frames(vault, FramesName(other, INCARNATION, Sequence(6), Sequence(7), 0, 0))


def test_an_instant_is_restored_and_leaves_nothing_behind(vault: Vault, tmp_path: Path) -> None:
    history = History()
    busy(history, 6)
    first_snapshot(vault)
    history.archive(vault, 1, 6)
    with open_instant(vault, Archive(vault).at_position(position(5)), folder=tmp_path) as instant:
        assert list(tmp_path.iterdir())
        assert instant.snapshot.taken_at_ns == START_NS + 5 * SECOND
    assert not list(tmp_path.iterdir())


def test_covering_takes_few_objects_and_tells_where_a_gap_is() -> None:
    def name(first: int, last: int) -> FramesName:
        return FramesName(f"{first}-{last}", Incarnation(INCARNATION), Sequence(first), Sequence(last), 0, 0)

    names = [name(1, 3), name(2, 9), name(4, 5), name(10, 10), name(12, 20)]
    assert [chosen.name for chosen in covering(names, 0, 10)[0]] == ["1-3", "2-9", "10-10"]
    assert covering(names, 0, 15)[1] == 10
    assert covering(names, 11, 15) == ([names[4]], 15)
    assert covering([], 4, 4) == ([], 4)


def test_positions_may_be_given_by_the_beginning_of_the_incarnation(vault: Vault) -> None:
    first_snapshot(vault)
    short = Position(Incarnation(INCARNATION[:8]), Sequence(0))
    assert Archive(vault).at_position(short).base == vault.snapshots()[0]
