"""Frames: what is sealed comes back, and whatever is not as it was sealed is found out."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.changes import _zstd, frame
from holdfast.changes.change import (
    Change,
    Extent,
    Link,
    Meta,
    Mkdir,
    Patch,
    Put,
    Remove,
    Rename,
    Rmdir,
    SetMeta,
    Symlink,
)
from holdfast.changes.frame import (
    BODY_BYTES_MAX,
    Chain,
    FrameDamaged,
    FrameKind,
    FrameWriter,
    Promotion,
    SegmentKey,
    chain_start,
    follow_chain,
    open_frame,
    pack_changes,
    pack_promotion,
    read_header,
    seal,
)
from holdfast.changes.names import Epoch, Incarnation, MachineName, SegmentName
from tests.changes import fuzz_frame
from tests.changes.fuzz_frame import ALL_KINDS, CHAIN, KEY, WRITER, sealed

names = st.text(max_size=20)
paths = st.binary(max_size=300)
sizes = st.integers(0, 2**63 - 1)
metas = st.builds(
    Meta,
    st.integers(0, 0o7777),
    names,
    names,
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple),
)
extents = st.lists(st.builds(Extent, sizes, st.binary(max_size=50)), max_size=3).map(tuple)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(Put, names, paths, sizes, metas, st.binary(), extents, st.booleans()),
    st.builds(Patch, names, paths, sizes, metas, st.binary(), extents, sizes, st.booleans()),
    st.builds(Rename, names, paths, paths),
    st.builds(Link, names, paths, paths),
    st.builds(Remove, names, paths),
    st.builds(Mkdir, names, paths, metas),
    st.builds(Rmdir, names, paths),
    st.builds(SetMeta, names, paths, metas),
    st.builds(Symlink, names, paths, paths, metas),
)


@given(st.lists(changes, max_size=5).map(tuple), sizes, st.booleans())
def test_what_is_sealed_comes_back(batch: tuple[Change, ...], captured_at_ns: int, more: bool) -> None:
    raw = seal(WRITER, CHAIN, FrameKind.CHANGES, pack_changes(batch), captured_at_ns=captured_at_ns, more=more)
    opened = open_frame(raw, KEY)
    assert opened.changes == batch
    assert opened.promotion is None
    header = opened.header
    assert (header.segment, header.writer, header.epoch) == (WRITER.segment, WRITER.machine, WRITER.epoch)
    assert (header.captured_at_ns, header.more) == (captured_at_ns, more)
    assert header.position == (CHAIN.incarnation, 1)
    assert read_header(raw)[0] == header, "readable without the key"
    assert follow_chain(CHAIN, raw, header) == CHAIN.after(raw)


def test_a_promotion_comes_back() -> None:
    promotion = Promotion(MachineName("backup"), "main is dead", False)
    opened = open_frame(sealed(pack_promotion(promotion), FrameKind.PROMOTION), KEY)
    assert opened.promotion == promotion
    assert opened.changes == ()


RAW = sealed(pack_changes(ALL_KINDS))


@pytest.mark.parametrize("raw", [RAW, sealed(pack_changes(()))], ids=["full", "empty"])
def test_every_flipped_bit_of_every_byte_is_found(raw: bytes) -> None:
    for at in range(len(raw)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            damaged = raw[:at] + bytes((raw[at] ^ flip,)) + raw[at + 1 :]
            with pytest.raises(FrameDamaged):
                open_frame(damaged, KEY)


def test_every_truncation_and_every_addition_is_found() -> None:
    for end in range(len(RAW)):
        with pytest.raises(FrameDamaged):
            open_frame(RAW[:end], KEY)
    for extra in (b"\0", b"x" * 16, RAW):
        with pytest.raises(FrameDamaged):
            open_frame(RAW + extra, KEY)


@settings(max_examples=500)
@given(st.binary(max_size=500))
def test_arbitrary_bytes_raise_the_one_error(noise: bytes) -> None:
    for data in (noise, b"HF" + noise, b"HF\x01" + noise, b"HF\x01" + len(noise).to_bytes(2, "big") + noise):
        with pytest.raises(FrameDamaged):
            open_frame(data, KEY)
        with pytest.raises(FrameDamaged):
            read_header(data)


def test_a_seeded_storm_of_inputs() -> None:
    """Some 20,000 here; a million in `make chaos`."""
    count = int(os.environ.get(fuzz_frame.COUNT_VARIABLE, "20000"))
    ends = fuzz_frame.run(seed=1, count=count)
    assert ends.total() == count
    assert ends["damaged"] > count // 2


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(FrameDamaged, match="seal"):
        open_frame(RAW, SegmentKey.generate())
    with pytest.raises(FrameDamaged):
        SegmentKey(b"short")


def test_a_frame_of_another_place_or_epoch_does_not_pass_for_this_one() -> None:
    """The header is authenticated: it can be read by a relay, but not changed."""
    header, body_at = read_header(RAW)
    for change in ({"sequence": 9}, {"epoch": 9}, {"incarnation": "aa" * 16}, {"more": True}, {"writer": "evil"}):
        other = msgspec.structs.replace(header, **change)
        encoded = msgspec.msgpack.encode(other)
        forged = RAW[:3] + len(encoded).to_bytes(2, "big") + encoded + RAW[body_at:]
        assert read_header(forged)[0] == other
        with pytest.raises(FrameDamaged):
            open_frame(forged, KEY)


def test_paths_and_contents_are_not_readable_without_the_key() -> None:
    secret = b"a-secret-name"
    raw = sealed(pack_changes((Put("store", secret, 0, Meta(0, "owner-name", "g", 0), b"", ()),)))
    assert secret not in raw
    assert b"owner-name" not in raw
    assert b"store" not in raw


def test_the_same_batch_never_looks_the_same() -> None:
    assert sealed(pack_changes(ALL_KINDS)) != sealed(pack_changes(ALL_KINDS))


def test_a_newer_format_says_so() -> None:
    with pytest.raises(FrameDamaged, match="version 2") as caught:
        open_frame(RAW[:2] + b"\x02" + RAW[3:], KEY)
    assert "Update" in caught.value.hint


def test_a_body_that_would_fill_the_memory_is_refused() -> None:
    bomb = _zstd.compress(bytes(BODY_BYTES_MAX + 1), 1)
    assert len(bomb) < 10_000
    with pytest.raises(FrameDamaged, match="more than"):
        open_frame(sealed(bomb), KEY)
    nested = b"\x91" * 100_000  # arrays in arrays: a decoder that recurses would overflow
    with pytest.raises(FrameDamaged):
        open_frame(sealed(_zstd.compress(nested, 1)), KEY)


def test_fields_a_newer_writer_adds_to_a_header_are_refused() -> None:
    header, _ = read_header(RAW)
    encoded = msgspec.msgpack.encode([*msgspec.structs.astuple(header), "new"])
    with pytest.raises(FrameDamaged):
        read_header(RAW[:3] + len(encoded).to_bytes(2, "big") + encoded)


# -- the chain -------------------------------------------------------------------------------------------------------


def a_log(count: int, key: SegmentKey = KEY) -> list[bytes]:
    chain = chain_start(CHAIN.incarnation)
    writer = FrameWriter(SegmentName("mail"), MachineName("main"), Epoch(1), key)
    log = []
    for number in range(count):
        batch = (Remove("store", b"%d" % number),)
        log.append(seal(writer, chain, FrameKind.CHANGES, pack_changes(batch), captured_at_ns=number))
        chain = chain.after(log[-1])
    return log


def follow(chain: Chain, log: list[bytes]) -> Chain:
    for raw in log:
        chain = follow_chain(chain, raw, open_frame(raw, KEY).header)
    return chain


@given(st.integers(2, 6), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=30)
def test_gaps_repetitions_swaps_and_forks_are_found(count: int, at: int, other: int) -> None:
    log, start = a_log(count), chain_start(CHAIN.incarnation)
    assert follow(start, log).sequence == count
    at, other = at % count, other % count
    broken = [[*log[: at + 1], *log[at:]]]
    if at < count - 1:
        broken.append(log[:at] + log[at + 1 :])
        broken.append([*log[: at + 1], *a_log(count)[at + 1 :]])
    if at != other:
        swapped = list(log)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        broken.append(swapped)
    for damaged in broken:
        with pytest.raises(FrameDamaged):
            follow(start, damaged)


def test_a_replaced_log_is_another_log() -> None:
    raw = a_log(1)[0]
    with pytest.raises(FrameDamaged, match="belongs to log"):
        follow_chain(chain_start(Incarnation("ee" * 16)), raw, open_frame(raw, KEY).header)


def test_limits_stand_in_an_order_that_works() -> None:
    assert frame.FRAME_CONTENT_BYTES < frame.FRAME_BYTES_MAX < BODY_BYTES_MAX
    assert read_header(RAW)[1] < frame.HEADER_BYTES_MAX // 4
