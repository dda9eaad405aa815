"""Attachments are cut out of messages, so that what comes in many is stored once."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.changes.change import Extent, Meta, Patch
from holdfast.changes.digest import content_digests
from holdfast.vault import backup, restore
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.cut import is_base64, pieces
from holdfast.vault.objects import CONTENT_BYTES_MAX, Sizes
from holdfast.vault.overlay import Overlay
from holdfast.vault.repository import init_vault, open_vault
from holdfast.vault.writer import Writer
from tests.vault import site


def message(headers: str, attachment: bytes) -> bytes:
    part = "--b\nContent-Type: application/pdf\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment\n\n"
    head = f"{headers}\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n\n{part}".encode()
    return head + base64.encodebytes(attachment) + b"\n--b--\n"


def cut(data: bytes) -> list[bytes]:
    return list(pieces(lambda at, length: data[at : at + length]))


@pytest.mark.parametrize("size", [20_000, 900_000, 3_000_000])
def test_an_attachment_gives_the_same_contents_whatever_the_headers(size: int) -> None:
    attachment = random.Random(1).randbytes(size)
    one, other = cut(message("Subject: a", attachment)), cut(message("Subject: another one\nX-Spam: no", attachment))
    assert len(set(one) & set(other)) == len(one) - 1 == len(other) - 1
    assert max(map(len, one)) <= CONTENT_BYTES_MAX
    assert [is_base64(piece) for piece in one] == [False, *[True] * (len(one) - 2), False]


def test_lines_may_end_as_on_the_wire_and_text_about_base64_is_not_cut() -> None:
    attachment = random.Random(1).randbytes(20_000)
    assert len(cut(message("Subject: a", attachment).replace(b"\n", b"\r\n"))) == 3
    assert len(cut(b"Subject: base64\n\n" + b"how base64 works\n\n" + b"it is long. " * 9000)) == 1
    assert len(cut(message("Subject: small", attachment[:900]))) == 1


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.sampled_from([b"\n\n", b"base64\n\n", b"\n-", b"\n--b\n"]),
            st.integers(1, 40).map(lambda n: base64.encodebytes(bytes(300 * n))),
            st.integers(1, 3).map(lambda n: b"QUJD" * (n * CONTENT_BYTES_MAX // 8)),
        ),
        max_size=12,
    ).map(b"".join)
)
def test_pieces_make_the_file_again(data: bytes) -> None:
    made = cut(data)
    assert b"".join(made) == data
    assert all(0 < len(piece) <= CONTENT_BYTES_MAX for piece in made)


@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
@pytest.mark.parametrize("size", [100_000, CONTENT_BYTES_MAX, 3_000_000])
def test_a_file_cut_anywhere_is_restored_and_patched_where_it_should_be(tmp_path: Path, size: int) -> None:
    (tmp_path / "store").mkdir()
    data = bytearray(message("Subject: a", random.Random(1).randbytes(size * 3 // 4)))
    (tmp_path / "store" / "m").write_bytes(data)
    with site.new_vault(MemoryBackend()) as vault:
        made = backup.backup_trees(vault, [site.tree(tmp_path / "store")], "main", clocks=site.clocks())
        root = made.snapshot.tree("store")
        restore.restore_path(vault, root, b"", tmp_path / "out")
        assert (tmp_path / "out" / "m").read_bytes() == data
        at = len(data) - 5000
        data[at : at + 3] = b"new"
        digests = content_digests(bytes(data))
        change = Patch("store", b"m", len(data), Meta(0o600, "root", "root", 1), digests, (Extent(at, b"new"),))
        with Overlay(made.snapshot.trees, vault.content) as overlay, Writer(vault) as writer:
            overlay.apply(change)
            (patched,) = overlay.write(writer)
            writer.flush()
        restore.restore_path(vault, patched, b"", tmp_path / "patched")
    assert (tmp_path / "patched" / "m").read_bytes() == data


def test_what_stands_behind_an_attachment_opens_no_block_again(tmp_path: Path) -> None:
    """A line that all copies of a message share lies in the block of the first copy: some MiB, far away."""
    store, chance = tmp_path / "store", random.Random(1)
    store.mkdir()
    sent = random.Random(2).randbytes(20_000)
    for name in ("first", "last"):
        (store / name).write_bytes(message(f"To: {name}", sent))
    for number in range(26):
        (store / f"from-{number:02d}").write_bytes(chance.randbytes(1024 * 1024))
    backend = MemoryBackend()
    with site.new_vault(backend) as vault:
        root = backup.backup_trees(vault, [site.tree(store)], "main", clocks=site.clocks()).snapshot.tree("store")
    with site.reader(backend) as vault:
        vault.hold_less()
        vault.sync()
        headers = 1
        blocks = sum(headers + len(vault.catalog.blocks_of(pack)) for pack in vault.catalog.packs())
        backend.reads.clear()
        restore.restore_path(vault, root, b"", tmp_path / "out")
        read = sum(call.name.startswith("packs/") for call in backend.reads)
    assert (tmp_path / "out" / "last").read_bytes() == (store / "last").read_bytes()
    assert read == blocks + 1, "the attachment, and nothing else, is opened twice"


def test_many_tiny_files_make_several_packs() -> None:
    """Else one index object would list millions of contents."""
    backend = MemoryBackend()
    key = init_vault(backend, (site.RECIPIENT,))
    sizes = Sizes(block_contents=4, pack_contents=8)
    with (
        open_vault(backend, writer=key, identities=(site.IDENTITY,), sizes=sizes) as vault,
        Writer(vault) as writer,
    ):
        ids = [writer.add(b"%d" % number) for number in range(20)]
        writer.flush()
        assert [vault.content(content_id) for content_id in ids] == [b"%d" % number for number in range(20)]
        counts = [len(list(vault.catalog.contents_of(pack.number))) for pack in vault.catalog.packs()]
    assert counts == [8, 8, 4]
