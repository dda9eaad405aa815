"""Directories in parts: shared where they are equal, bounded, and nothing a filesystem would not take."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.change import Meta
from holdfast.changes.exchange import EntryKind
from holdfast.vault.faults import VaultDamaged
from holdfast.vault.record import PART_ENTRIES_MAX, Entry, decode_part, directory_parts

META = Meta(0o600, "vmail", "vmail", 1)
ID = bytes(16)


def entry(name: bytes, content: bytes = ID) -> Entry:
    return Entry(name, EntryKind.FILE, META, 1, content)


def test_one_changed_message_of_twenty_thousand_changes_one_part() -> None:
    names = sorted(b"%d.M%dP1.host,S=%d:2,S" % (number, number * 7919, number % 4096) for number in range(20_000))
    old = list(directory_parts(entry(name) for name in names))
    new = list(directory_parts(entry(name, bytes(15) + b"x" if at == 7777 else ID) for at, name in enumerate(names)))
    without = list(directory_parts(entry(name) for at, name in enumerate(names) if at != 7777))
    assert len(old) > 50
    assert len(set(new) - set(old)) == 1
    assert len(set(without) - set(old)) <= 2


@given(
    st.sets(
        st.binary(min_size=1, max_size=20).filter(
            lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
        ),
        max_size=50,
    )
)
def test_parts_give_back_their_entries(names: set[bytes]) -> None:
    entries = [entry(name) for name in sorted(names)]
    parts = list(directory_parts(entries))
    assert [found for part in parts for found in decode_part(part, ID)] == entries


def test_parts_are_bounded_in_entries_and_bytes() -> None:
    many = list(directory_parts(entry(b"%06d" % number) for number in range(10_000)))
    assert max(len(decode_part(part, ID)) for part in many) <= PART_ENTRIES_MAX
    large = list(directory_parts(entry(b"%06d" % number, bytes(160_000)) for number in range(40)))
    assert max(map(len, large)) < 1_000_000


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc", b"a\0", b"x" * 256])
def test_names_that_would_leave_the_folder_are_refused(name: bytes) -> None:
    with pytest.raises(VaultDamaged):
        decode_part(msgspec.msgpack.encode([entry(name)]), ID)


@given(st.binary(max_size=60))
def test_any_bytes_give_entries_or_damage(data: bytes) -> None:
    try:
        decode_part(data, ID)
    except VaultDamaged:
        return
