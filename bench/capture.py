"""What capturing and applying a delivery cost in processor time, without a log and without Dovecot.

The files of Maildirs are changed by the same system calls as Dovecot's LMTP server makes (seen with ``strace``):
the message in ``tmp``, renamed to ``new``, lines for ``dovecot-uidlist``, ``dovecot.index.log`` and
``dovecot.index.cache``, a lock, and files that are opened for writing and closed again. A watcher looks at batches of
some deliveries, of which a few are unfinished; an applier of another tree takes the sealed frames. Only the work of
the watcher and of the applier is measured, and both in processor time: what else the machine does hardly matters.
Run from the repository's root, as root::

    python -m bench.capture [--messages 6000] [--accounts 500] [--grown 80000] [--profile capture|apply]

Writes ``build/bench/capture.json``.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from holdfast.apply.applier import Applier
from holdfast.apply.aside import Aside
from holdfast.changes.frame import FrameKind, FrameWriter, SegmentKey, chain_start, open_frame, pack_changes, seal
from holdfast.changes.names import Epoch, Incarnation, MachineName, SegmentName
from holdfast.mail.dovecot_files import store_tree
from holdfast.memory import keep_freed
from holdfast.trees.index import Index, Node, NodeKind
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners
from holdfast.watch.disk import ensure_root
from holdfast.watch.limits import Limits
from holdfast.watch.watcher import Part, Watcher

BATCH_MESSAGES: Final = 15
UNFINISHED: Final = 3
"""Of each batch, deliveries of which the second half comes in the next one."""
COMMIT_BATCHES: Final = 40
"""About a second's."""
MESSAGE_BYTES: Final = 4302
INCARNATION: Final = Incarnation("ab" * 16)
TREE: Final = "store"
OPEN_FILES_MAX: Final = 16_384
SECONDS_BETWEEN: Final = 0.025
"""Batches, by the watcher's clock: here they come faster than they do."""


class Delivery:
    """One message for one account, in steps."""

    def __init__(self, box: bytes, number: int, body: bytes) -> None:
        self._box = box
        self._name = b"%d.M%dP%d.main" % (1_795_000_000 + number // 700, number * 7 % 1_000_000, 170 + number % 8)
        self._body = body
        self._fds: dict[bytes, int] = {}

    def _open(self, name: bytes) -> int:
        fd = self._fds[name] = os.open(self._box + b"/" + name, os.O_RDWR | os.O_CREAT)
        return fd

    def _append(self, name: bytes, data: bytes) -> None:
        fd = self._fds[name]
        os.pwrite(fd, data, os.fstat(fd).st_size)

    def begin(self) -> None:
        """Up to the first transaction in the index log."""
        for name in (b"dovecot.index.log", b"dovecot.index", b"dovecot-uidlist", b"dovecot.index.cache"):
            self._open(name)
        temporary = self._box + b"/tmp/" + self._name
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, self._body)
        os.close(fd)
        fd = os.open(self._box + b"/dovecot-uidlist.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, b"177:main")
        os.close(fd)
        os.rename(temporary, self._box + b"/new/" + self._name + b",S=4302,W=4367")
        self._append(b"dovecot-uidlist", b"313 :%s,S=4302,W=4367\n" % self._name)
        self._append(b"dovecot.index.log", os.urandom(104))

    def finish(self) -> None:
        self._append(b"dovecot.index.cache", os.urandom(216))
        os.pwrite(self._fds[b"dovecot.index.cache"], os.urandom(32), 0)
        self._append(b"dovecot.index.log", os.urandom(72))
        os.unlink(self._box + b"/dovecot-uidlist.lock")
        self._open(b"dovecot.list.index.log")
        for fd in self._fds.values():
            os.close(fd)


class Traffic:
    """Batches of deliveries to the accounts below *root*."""

    def __init__(self, root: Path, message_bytes: int, grown: int, accounts: int) -> None:
        self._boxes = [os.fsencode(root / "example.test" / f"user{number}" / "Maildir") for number in range(accounts)]
        for box in self._boxes:
            for folder in (b"new", b"cur", b"tmp"):
                os.makedirs(box + b"/" + folder, 0o700)
            for name, size in ((b"dovecot.index", 3640), (b"dovecot-uidlist", 5000), (b"dovecot.index.log", grown)):
                Path(os.fsdecode(box + b"/" + name)).write_bytes(os.urandom(size))
        self._chance = random.Random(1)
        self._body = os.urandom(message_bytes // 2) + b"x" * (message_bytes - message_bytes // 2)
        self._number = 0
        self._open: list[Delivery] = []

    def finish(self) -> None:
        for delivery in self._open:
            delivery.finish()
        self._open = []

    def batch(self) -> None:
        self.finish()
        boxes = self._chance.sample(self._boxes, BATCH_MESSAGES)
        for at, box in enumerate(boxes):
            self._number += 1
            delivery = Delivery(box, self._number, b"%8d" % self._number + self._body)
            delivery.begin()
            if at < BATCH_MESSAGES - UNFINISHED:
                delivery.finish()
            else:
                self._open.append(delivery)


class Spent:
    """Processor time of this process inside ``with`` blocks, by batch."""

    def __init__(self, profiler: cProfile.Profile | None) -> None:
        self.batches: list[float] = []
        self._profiler = profiler
        self._began = 0.0

    def __enter__(self) -> None:
        if self._profiler:
            self._profiler.enable()
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.batches[-1] += time.process_time() - self._began
        if self._profiler:
            self._profiler.disable()


def undisturbed(seconds: list[float]) -> float:
    """The tenth percentile: who shares the processor's core with us makes the same work take longer at times."""
    return sorted(seconds)[len(seconds) // 10]


def _standby_index(file: Path, root: Path, tree: Tree) -> Index:
    index = Index.open(file)
    status = os.stat(root)
    node = Node(0, NodeKind.DIRECTORY, None, status.st_ino, 0o755, 0, 0, 0, status.st_mtime_ns, 0, b"", b"")
    ensure_root(index, tree, node)
    index.commit(chain_start(INCARNATION), Epoch(1))
    return index


def measure(main: Path, backup: Path, wanted: argparse.Namespace, profiler: cProfile.Profile) -> dict[str, float]:
    """Microseconds of processor time a message."""
    messages, profile = wanted.messages, wanted.profile
    root, copy = main / "store", backup / "store"
    for made in (root, copy):
        made.mkdir()
    tree, copied = (Tree(store_tree(TREE, str(made), drivers=frozenset({"maildir"}))) for made in (root, copy))
    traffic = Traffic(root, wanted.bytes, wanted.grown, wanted.accounts)
    index = Index.open(main / "index")
    now = 0.0
    limits = Limits.of_process(OPEN_FILES_MAX)
    watcher = Watcher(index, [tree], Owners(), batch_seconds=0.0, limits=limits, monotonic=lambda: now)
    there, aside = _standby_index(backup / "index", copy, copied), Aside(backup / "aside")
    applier = Applier(there, [copied], Owners(), aside, open_files_max=OPEN_FILES_MAX)
    applier.recover()
    writer = FrameWriter(SegmentName("s"), MachineName("main"), Epoch(1), SegmentKey(b"k" * 32))
    chain = chain_start(INCARNATION)
    capturing, packing, applying = (
        Spent(profiler if part == profile else None) for part in ("capture", "pack", "apply")
    )

    def through(parts: Iterator[Part]) -> int:
        nonlocal chain
        changes = 0
        while True:
            with capturing:
                part = next(parts, None)
            if part is None:
                return changes
            changes += len(part.changes)
            with packing:
                packed = pack_changes(part.changes)
                frame = seal(writer, chain, FrameKind.CHANGES, packed, captured_at_ns=1, more=part.more)
                after = chain.after(frame)
            with applying:
                applier.apply(open_frame(frame, writer.key), after)
            chain = after

    spents = (capturing, packing, applying)
    for spent in spents:
        spent.batches.append(0.0)
    watcher.start()
    through(watcher.scan(lambda progress: None))
    rounds = messages // BATCH_MESSAGES
    warm = min(rounds // 4, 40)
    changes = 0
    for number in range(rounds + warm):
        if number == warm:
            changes = 0
            gc.collect()
            for spent in spents:
                spent.batches.clear()
        for spent in spents:
            spent.batches.append(0.0)
        traffic.batch()
        now += SECONDS_BETWEEN
        with capturing:
            parts = watcher.collect(wait_seconds=0.0)
        changes += through(parts)
        if number % COMMIT_BATCHES == 0:
            with capturing:
                index.commit(chain, Epoch(1))
            with applying:
                applier.make_durable()
    traffic.finish()
    watcher.stop()
    applier.close()
    index.close()
    done = rounds * BATCH_MESSAGES
    names = ("capture_us", "pack_us", "apply_us")
    figures = {"messages": done, "changes_per_message": round(changes / done, 2)}
    for name, spent in zip(names, spents, strict=True):
        figures[name] = round(sum(spent.batches) / done * 1e6, 1)
        figures[f"{name}_undisturbed"] = round(undisturbed(spent.batches) / BATCH_MESSAGES * 1e6, 1)
    return figures


@contextmanager
def _machines() -> Iterator[tuple[Path, Path]]:
    """Two filesystems in memory: a watcher hears all of one, as on two machines."""
    with tempfile.TemporaryDirectory(prefix="bench-capture-") as name, ExitStack() as stack:
        folders = Path(name) / "main", Path(name) / "backup"
        for folder in folders:
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "bench", folder], check=True)
            stack.callback(subprocess.check_call, ["umount", folder])
        yield folders


def main() -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(prog="bench/capture.py", description="Processor time of capturing and applying.")
    parser.add_argument("--messages", type=int, default=6000)
    parser.add_argument("--accounts", type=int, default=50)
    parser.add_argument("--bytes", type=int, default=MESSAGE_BYTES, help="of a message")
    parser.add_argument("--grown", type=int, default=8000, help="bytes of each dovecot.index.log at the beginning")
    parser.add_argument("--profile", default="", choices=("", "capture", "pack", "apply"))
    wanted = parser.parse_args()
    profiler = cProfile.Profile()
    keep_freed()  # as the agent does
    with _machines() as (main, backup):
        figures = measure(main, backup, wanted, profiler)
    if wanted.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    out = Path("build/bench/capture.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
