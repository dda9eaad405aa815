"""What applying costs: CPU of one message on a standby, and how long a durable point takes.

A message is what a delivery and a look at it make: a put of 4 KB, an append to ``dovecot-uidlist`` and one to
``dovecot.index.log``, a rename (``new`` to ``cur``), and metadata of a directory; 20 messages a frame, 50 accounts.
Frames are opened beforehand: sealing and opening is the log's account. Run from the repository's root::

    python -m bench.apply [--messages 10000] [--folder DIR] [--profile]

Writes ``build/bench/apply.json``.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from holdfast.changes.change import Change, Extent, Meta, Mkdir, Patch, Put, Rename, SetMeta
from holdfast.changes.digest import BLOCK_BYTES, content_digests
from tests.apply.model import TREE, LogRecord, LogWriter
from tests.apply.standby import Standby

ACCOUNTS: Final = 50
MESSAGES_PER_FRAME: Final = 20
GROWING: Final = ((b"dovecot-uidlist", 60), (b"dovecot.index.log", 120))
FRAMES_PER_DURABLE: Final = 10


def _meta(mtime_ns: int, mode: int = 0o600) -> Meta:
    return Meta(mode, "#1000", "#1000", mtime_ns)


def _accounts() -> list[Change]:
    out: list[Change] = []
    for account in range(ACCOUNTS):
        for folder in (b"u%d", b"u%d/Maildir", b"u%d/Maildir/new", b"u%d/Maildir/cur"):
            out.append(Mkdir(TREE, folder % account, _meta(0, 0o700)))
        out += [Put(TREE, b"u%d/Maildir/%s" % (account, name), 0, _meta(0), b"", ()) for name, _ in GROWING]
    return out


def make_log(messages: int) -> list[LogRecord]:
    """The first record makes the accounts."""
    chance, writer = random.Random(1), LogWriter()
    log = [writer.changes(_accounts())]
    body = chance.randbytes(2048) + b"x" * 2048
    digests = content_digests(body)
    grown: dict[bytes, bytes] = {}
    batch: list[Change] = []
    for number in range(messages):
        box = b"u%d/Maildir/" % chance.randrange(ACCOUNTS)
        meta = _meta(10**18 + number * 1000)
        name = b"%d.M%dP%d.main,S=4096,W=4170" % (1_700_000_000 + number, number * 7, number)
        batch.append(Put(TREE, box + b"new/" + name, len(body), meta, digests, (Extent(0, body),)))
        for file, growth in GROWING:
            old = grown.get(box + file, b"")
            new = grown[box + file] = old + chance.randbytes(growth)
            first = len(old) // BLOCK_BYTES
            extents = (Extent(len(old), new[len(old) :]),)
            tail = content_digests(new[first * BLOCK_BYTES :])
            batch.append(Patch(TREE, box + file, len(new), meta, tail, extents, first))
        batch.append(Rename(TREE, box + b"new/" + name, box + b"cur/" + name + b":2,S"))
        batch.append(SetMeta(TREE, box + b"cur", _meta(meta.mtime_ns, 0o700)))
        if number % MESSAGES_PER_FRAME == MESSAGES_PER_FRAME - 1 or number == messages - 1:
            log.append(writer.changes(batch))
            batch = []
    return log


def measure(folder: Path, messages: int, profiler: cProfile.Profile | None) -> dict[str, float]:
    """Microseconds of CPU a message, and milliseconds of the durable points."""
    log = make_log(messages)
    with Standby(folder) as standby:
        standby.follow(log[:1])
        standby.applier.make_durable()
        cpu = wall = 0.0
        durable: list[float] = []
        for number, record in enumerate(log[1:]):
            before = time.process_time(), time.perf_counter()
            if profiler:
                profiler.enable()
            standby.applier.apply(*record)
            if profiler:
                profiler.disable()
            cpu, wall = cpu + time.process_time() - before[0], wall + time.perf_counter() - before[1]
            if number % FRAMES_PER_DURABLE == FRAMES_PER_DURABLE - 1:
                began = time.perf_counter()
                standby.applier.make_durable()
                durable.append(time.perf_counter() - began)
    return {
        "messages": messages,
        "cpu_us_per_message": round(cpu / messages * 1e6, 1),
        "wall_us_per_message": round(wall / messages * 1e6, 1),
        "durable_ms_median": round(statistics.median(durable) * 1e3, 1) if durable else 0.0,
        "durable_ms_max": round(max(durable) * 1e3, 1) if durable else 0.0,
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--folder", default=None, help="where the tree is made (default: a temporary folder)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-apply-", dir=wanted.folder))
    profiler = cProfile.Profile() if wanted.profile else None
    try:
        figures = measure(folder, wanted.messages, profiler)
    finally:
        shutil.rmtree(folder)
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    out = Path("build/bench/apply.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
