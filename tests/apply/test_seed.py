"""A seed makes trees equal, reuses what is there, keeps what is in the way, and can be killed at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from holdfast.apply.aside import Aside
from holdfast.apply.peer import Peer
from holdfast.apply.seed import seed
from holdfast.apply.seed_book import SeedBook, Wanted
from holdfast.apply.seed_contents import SeedContents
from holdfast.apply.seed_ground import Ground
from holdfast.changes.change import Meta
from holdfast.changes.digest import BLOCK_BYTES
from holdfast.changes.exchange import (
    Entry,
    EntryKind,
    ExchangeDamaged,
    ExchangeSeal,
    Listing,
    NextPage,
    OpenListing,
    Page,
    Reply,
)
from holdfast.changes.names import NOWHERE
from holdfast.errors import ConfigurationError, NoSpace
from holdfast.trees.index import Index
from holdfast.trees.stat import Owners
from tests.apply.model import index_agrees, picture_of
from tests.apply.two_machines import BACKUP, KEY, MAIN, Joiner, Primary, fill, no_pause, run_async, tree_at, write
from tests.trees.small_scan import chain_at

NOON_NS = 1_700_000_000_123_456_789


def directory_times(root: Path) -> dict[str, int]:
    """Modification times of directories, ours and the root's (which ours stand in) left out."""
    times = {}
    for above, names, _ in os.walk(root):
        names[:] = [name for name in names if name != ".holdfast"]
        times[os.path.relpath(above, root)] = os.stat(above).st_mtime_ns
    return times


def manifest(joiner: Joiner) -> list[dict[str, str]]:
    """What was moved aside."""
    lines = (joiner.aside.folder / "manifest").read_text().splitlines()
    return [json.loads(line) for line in lines]


@run_async
async def test_an_empty_machine_becomes_equal(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    fill(primary.root, random.Random(1))
    primary.rescan(7)
    report = await joiner.seed(primary.peer())
    assert picture_of(joiner.root) == picture_of(primary.root)
    assert directory_times(joiner.root) == directory_times(primary.root)
    index_agrees(joiner.index, joiner.root)
    assert joiner.index.chain == chain_at(7)
    assert (report.counts.newer, report.counts.gone, report.counts.problems_count, report.aside) == (0, 0, 0, 0)
    assert joiner.told[-1].files == joiner.told[-1].files_total == report.files
    assert joiner.told[-1].bytes == report.bytes
    assert (joiner.root / "sparse").stat().st_blocks * 512 < 1_000_000


@run_async
async def test_a_second_seed_fetches_nothing(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    fill(primary.root, random.Random(2))
    primary.rescan(7)
    await joiner.seed(primary.peer())
    before = picture_of(joiner.root)
    for checksum in (False, True):
        report = await joiner.seed(primary.peer(), checksum=checksum)
        assert (report.counts.fetched, report.counts.moved, report.aside) == (0, 0, 0)
        assert report.counts.reused == report.files
        assert picture_of(joiner.root) == before
        index_agrees(joiner.index, joiner.root)


@run_async
async def test_checksum_finds_what_size_and_time_hide(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    write(primary.root / "a", b"right", NOON_NS)
    write(joiner.root / "a", b"wrong", NOON_NS)
    primary.rescan(1)
    await joiner.seed(primary.peer())
    assert (joiner.root / "a").read_bytes() == b"wrong"
    await joiner.seed(primary.peer(), checksum=True)
    assert (joiner.root / "a").read_bytes() == b"right"


@run_async
async def test_after_a_power_cut_only_what_changed_since_is_read(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    write(primary.root / "a", b"right", NOON_NS)
    write(joiner.root / "a", b"wrong", NOON_NS)
    primary.rescan(1)
    changed_ns = (joiner.root / "a").stat().st_ctime_ns
    await joiner.seed(primary.peer(), doubt_since_ns=changed_ns + 1)
    assert (joiner.root / "a").read_bytes() == b"wrong"
    await joiner.seed(primary.peer(), doubt_since_ns=changed_ns)
    assert (joiner.root / "a").read_bytes() == b"right"


@run_async
async def test_what_stands_in_the_way_or_besides_is_kept_aside_with_a_list(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    write(primary.root / "both", b"primary's", NOON_NS)
    write(primary.root / "file", b"a file")
    write(primary.root / "directory" / "in it", b"x")
    (primary.root / "link").symlink_to("there")
    primary.rescan(1)
    write(joiner.root / "both", b"mine", NOON_NS)
    write(joiner.root / "only here", b"unseen mail")
    write(joiner.root / "folder" / "sub" / "m", b"more unseen mail")
    write(joiner.root / "file" / "was a directory", b"1")
    write(joiner.root / "directory", b"was a file")
    write(joiner.root / "link", b"was a file too")
    report = await joiner.seed(primary.peer())
    assert picture_of(joiner.root) == picture_of(primary.root)
    index_agrees(joiner.index, joiner.root)
    kept = {line["path"]: joiner.root / line["kept"] for line in manifest(joiner)}
    assert kept.keys() == {"both", "only here", "folder", "file", "directory", "link"}
    assert report.aside == 6
    assert kept["both"].read_bytes() == b"mine"
    assert kept["only here"].read_bytes() == b"unseen mail"
    assert (kept["folder"] / "sub" / "m").read_bytes() == b"more unseen mail"
    assert (kept["file"] / "was a directory").read_bytes() == b"1"


@run_async
async def test_a_symlink_to_a_directory_is_not_followed(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    outside = tmp_path / "outside"
    write(outside / "passwd", b"untouched")
    write(primary.root / "etc" / "passwd", b"written")
    primary.rescan(1)
    (joiner.root / "etc").symlink_to(outside)
    await joiner.seed(primary.peer())
    assert (outside / "passwd").read_bytes() == b"untouched"
    assert picture_of(joiner.root) == picture_of(primary.root)


@run_async
async def test_what_is_left_out_stays(tmp_path: Path) -> None:
    spec = {"exclude": ("tmp/", "*.cache"), "overrides": ("conf/own.cf",)}
    primary, joiner = Primary.made(tmp_path, **spec), Joiner.made(tmp_path, **spec)
    write(primary.root / "a", b"a")
    primary.rescan(1)
    for name in ("tmp/x", "index.cache", "conf/own.cf"):
        write(joiner.root / name, b"mine")
    write(joiner.root / "conf" / "other.cf", b"goes")
    os.mkfifo(joiner.root / "fifo")
    await joiner.seed(primary.peer())
    for name in ("tmp/x", "index.cache", "conf/own.cf"):
        assert (joiner.root / name).read_bytes() == b"mine"
    assert [line["path"] for line in manifest(joiner)] == ["conf/other.cf"]
    assert (joiner.root / "fifo").is_fifo()


@run_async
async def test_locks_and_caches_that_nobody_holds_any_more_are_removed(tmp_path: Path) -> None:
    spec = {"exclude": ("*.lock", "index.cache", "own"), "transient": ("*.lock", "index.cache")}
    primary, joiner = Primary.made(tmp_path, **spec), Joiner.made(tmp_path, **spec)
    write(primary.root / "box" / "a", b"a")
    primary.rescan(1)
    for name in ("box/uidlist.lock", "box/index.cache", "box/own"):
        write(joiner.root / name, b"mine")
    await joiner.seed(primary.peer())
    assert sorted(path.name for path in (joiner.root / "box").iterdir()) == ["a", "own"]


@run_async
async def test_renamed_files_are_moved_here_and_not_fetched(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    for number in range(20):
        write(primary.root / "cur" / f"{number}:2,", b"mail %d" % number, NOON_NS + number // 4)
    shutil.copytree(primary.root, joiner.root, dirs_exist_ok=True)
    for number in range(20):
        (primary.root / "cur" / f"{number}:2,").rename(primary.root / "cur" / f"{number}:2,S")
    (primary.root / "cur").rename(primary.root / "new")
    primary.rescan(1)
    report = await joiner.seed(primary.peer())
    assert picture_of(joiner.root) == picture_of(primary.root)
    index_agrees(joiner.index, joiner.root)
    assert (report.counts.moved, report.counts.fetched) == (20, 0)


@run_async
async def test_of_a_large_file_only_what_differs_is_fetched(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    content = random.Random(1).randbytes(40 * BLOCK_BYTES)
    write(joiner.root / "m.1", content + b"old end")
    changed = bytearray(content + random.Random(2).randbytes(3000))
    changed[5 * BLOCK_BYTES] ^= 1
    write(primary.root / "m.1", bytes(changed), NOON_NS)
    primary.rescan(1)
    report = await joiner.seed(primary.peer())
    assert (joiner.root / "m.1").read_bytes() == changed
    assert report.counts.fetched_bytes == BLOCK_BYTES + 3000
    assert (joiner.root / manifest(joiner)[0]["kept"]).read_bytes() == content + b"old end"
    index_agrees(joiner.index, joiner.root)


@run_async
async def test_without_keeping_what_is_replaced_nothing_is_set_aside(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    for root, byte in ((primary.root, b"1"), (joiner.root, b"2")):
        write(root / "small", byte * 100)
        write(root / "large", byte * 1_000_000)
    primary.rescan(1)
    report = await joiner.seed(primary.peer(), keep_replaced=False)
    assert report.aside == 0
    assert picture_of(joiner.root) == picture_of(primary.root)


@run_async
async def test_hard_links_are_joined_and_parted(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    write(primary.root / "one", b"together", NOON_NS)
    os.link(primary.root / "one", primary.root / "two")
    os.link(primary.root / "one", primary.root / "three")
    write(primary.root / "x", b"apart", NOON_NS)
    write(primary.root / "y", b"apart", NOON_NS)
    primary.rescan(1)
    for name in ("one", "two"):
        write(joiner.root / name, b"together", NOON_NS)
    write(joiner.root / "x", b"apart", NOON_NS)
    os.link(joiner.root / "x", joiner.root / "y")
    await joiner.seed(primary.peer())
    assert picture_of(joiner.root) == picture_of(primary.root)
    index_agrees(joiner.index, joiner.root)


@run_async
async def test_killed_at_any_moment_and_run_again(tmp_path: Path) -> None:
    """Each run ends at another question; the index stands for nothing until a run reaches the end."""

    class Killed(Exception):
        pass

    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    fill(primary.root, random.Random(3), files=150)
    write(primary.root / "large", random.Random(4).randbytes(4_000_000))
    primary.rescan(1)
    fetched = runs = 0

    async def hook(number: int) -> None:
        if number > 3 + runs // 2:
            raise Killed

    while True:
        runs += 1
        try:
            report = await joiner.seed(primary.peer(hook))
            break
        except Killed:
            joiner.index.close()
            joiner.index = Index.open(tmp_path / "backup.index")
            assert joiner.index.position == NOWHERE
    fetched = report.counts.fetched_bytes
    assert picture_of(joiner.root) == picture_of(primary.root)
    index_agrees(joiner.index, joiner.root)
    assert runs > 5
    assert fetched < report.bytes / 2, "the runs before were for nothing"
    assert joiner.aside.count == 0, "what a killed run left was taken for somebody's"


def test_a_process_killed_outright_leaves_nothing_that_harms(tmp_path: Path) -> None:
    """SIGKILL: no transaction is rolled back, no file closed, staging stays as it is."""
    root = tmp_path / "main" / "store"
    root.mkdir(parents=True)
    fill(root, random.Random(5), files=80)
    write(root / "large", random.Random(6).randbytes(6_000_000))
    Primary.made(tmp_path).index.close()
    for last in range(3, 15):
        pid = os.fork()
        if pid == 0:
            killed_seed(tmp_path, last)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    index = Index.open(tmp_path / "backup.index")
    assert index.position == NOWHERE
    index.close()
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    report = asyncio.run(joiner.seed(primary.peer()))
    assert report.counts.reused
    assert picture_of(joiner.root) == picture_of(primary.root)
    index_agrees(joiner.index, joiner.root)
    assert joiner.aside.count == 0
    assert not any((joiner.root / ".holdfast" / "staging").iterdir())
    assert not list(tmp_path.glob("*.seed*"))


def killed_seed(folder: Path, last: int) -> NoReturn:
    """In a process of its own: ends at question *last*."""

    async def hook(number: int) -> None:
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        primary, joiner = Primary.made(folder), Joiner.made(folder)
        asyncio.run(joiner.seed(primary.peer(hook)))
    finally:
        os._exit(1)


def test_what_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    joiner = Joiner.made(tmp_path)
    book = SeedBook(tmp_path / "book")
    trees = {"store": joiner.tree}
    ground = Ground(
        joiner.index, trees, Owners(), joiner.aside, book, checksum=False, doubt_since_ns=None, keep_replaced=True
    )
    seeder = SeedContents(ground)
    book.want(Wanted(1, 1, "store", b"a", 2**60), 0, 4096)
    assert seeder.check_space() == (1, 4096)
    book.want(Wanted(2, 2, "store", b"b", 2**60), 0, 2**60)
    with pytest.raises(NoSpace, match="does not fit"):
        seeder.check_space()
    ground.close()
    book.close()


@pytest.mark.system
@run_async
async def test_a_disk_that_fills_on_the_way_is_named_and_nothing_counts_as_copied(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    for number in range(8):
        write(primary.root / f"f{number}", random.Random(number).randbytes(1_000_000))
    primary.rescan(1)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", joiner.root], check=True)
    try:
        asked = 0

        async def eat(number: int) -> None:
            nonlocal asked
            asked = number
            if number == 5:
                space = os.statvfs(joiner.root)
                write(joiner.root / "eaten.tmp", bytes(space.f_bavail * space.f_frsize - 2_000_000))

        with pytest.raises(NoSpace) as failed:
            await joiner.seed(primary.peer(eat))
        assert failed.value.retry
        assert asked >= 5
        assert joiner.index.position == NOWHERE
        (joiner.root / "eaten.tmp").unlink()
        await joiner.seed(primary.peer())
        assert picture_of(joiner.root) == picture_of(primary.root)
    finally:
        subprocess.run(["umount", joiner.root], check=True)


@run_async
async def test_a_tree_this_machine_does_not_have_is_refused(tmp_path: Path) -> None:
    primary, joiner = Primary.made(tmp_path), Joiner.made(tmp_path)
    told: list[object] = []
    other = {"other": tree_at(tmp_path / "other")}
    with pytest.raises(ConfigurationError, match="store"):
        await seed(
            primary.peer(),
            joiner.index,
            other,
            Owners(),
            Aside(tmp_path / "a"),
            progress=told.append,
            clock=lambda: 0.0,
        )


META = Meta(0o600, "#0", "#0", 0)


def entry(path: bytes, kind: EntryKind = EntryKind.FILE, node: int = 1, links: int = 1) -> Entry:
    return Entry(path, kind, META, 0, b"", node, links)


@pytest.mark.parametrize(
    "entries",
    [
        [entry(b"../escape")],
        [entry(b"a/../../escape")],
        [entry(b"/etc/passwd")],
        [entry(b"")],
        [entry(b"nul\0")],
        [entry(b".holdfast", EntryKind.DIRECTORY)],
        [entry(b"missing/child")],
        [entry(b"b"), entry(b"a")],
        [entry(b"a"), entry(b"a")],
        [entry(b"a"), entry(b"a/b")],
        [
            entry(b"a", EntryKind.DIRECTORY, 5, 2),
            entry(b"b", EntryKind.FILE, 5, 2),
            entry(b"c", EntryKind.SYMLINK, 5, 2),
        ],
    ],
)
@run_async
async def test_a_hostile_listing_writes_nothing_outside(tmp_path: Path, entries: list[Entry]) -> None:
    joiner = Joiner.made(tmp_path)
    seal = ExchangeSeal(KEY, MAIN)

    async def call(message: bytes) -> bytes:
        asked = seal.open_request(message)
        reply: Reply
        match asked.request:
            case OpenListing():
                reply = Listing("t", "ab" * 16, 1, bytes(32), 1, ("store",), 1, 1, 0, 0)
            case NextPage():
                reply = Page((entry(b"", EntryKind.DIRECTORY, 9), *entries), True)
            case _:
                raise AssertionError(asked.request)
        return seal.answer(asked, reply)

    peer = Peer(call, key=KEY, requester=BACKUP, answerer=MAIN, pause=no_pause)
    with pytest.raises(ExchangeDamaged):
        await joiner.seed(peer)
    assert joiner.index.position == NOWHERE
    assert {path.name for path in joiner.root.iterdir()} <= {".holdfast", "a", "b"}
    assert {path.name for path in tmp_path.iterdir()} <= {
        "backup",
        "backup.index",
        "backup.index-wal",
        "backup.index-shm",
    } | {
        "backup.index.seed",
        "backup.index.seed-wal",
        "backup.index.seed-shm",
    }
