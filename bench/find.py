"""What searching a vault's mail costs: the first time, again, and through many snapshots.

The store is that of ``bench.mailstore`` (``SMALL``: 3 KB messages of 200 accounts); between two snapshots one message
in a thousand is deleted and as many arrive, all over the accounts. Processor time counts: nothing waits here. Run from
the repository's root::

    python -m bench.find [--messages 200000] [--snapshots 30] [--folder DIR]

Writes ``build/bench/find.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.mailstore import ACCOUNTS, SMALL, make_store, messages, write_message
from holdfast.mail.mailboxes import Accounts
from holdfast.recover.boxes import Moment
from holdfast.recover.headers import Headers
from holdfast.recover.search import Query, search
from holdfast.vault import backup
from holdfast.vault.location import open_backend
from holdfast.vault.repository import SnapshotName, Vault, init_vault, open_vault
from tests.vault import site

CHANGED_SHARE = 1_000


def moments(vault: Vault, names: list[SnapshotName]) -> Iterator[Moment]:
    for name in names:
        snapshot = vault.snapshot(name)
        yield Moment(name.short[:8], snapshot.taken_at_ns, snapshot.trees, vault.content)


def change(store: Path, count: int, chance: random.Random, made: Iterator[tuple[int, bytes]], number: int) -> None:
    """*count* messages go, *count* come."""
    folders = [Path(folder) for folder, _, files in os.walk(store) if folder.endswith("/cur") and files]
    for at in range(count):
        folder = chance.choice(folders)
        files = os.listdir(folder)
        if files:
            (folder / chance.choice(files)).unlink()
        account, message = next(made)
        write_message(store, account % ACCOUNTS, number + at, message, chance)


def measure(folder: Path, count: int, snapshots: int) -> dict[str, float]:
    store, chance = folder / "store", random.Random(1)
    made = make_store(store, SMALL, count)
    for cur in store.glob("*/Maildir/**/cur"):
        (cur.parent / "new").mkdir(exist_ok=True)
    backend = open_backend(str(folder / "vault"), create=True)
    key, clocks = init_vault(backend, (site.RECIPIENT,)), site.clocks()
    figures: dict[str, float] = {"messages": count, "snapshots": snapshots, "bytes": made.bytes}
    with open_vault(backend, writer=key, identities=(site.IDENTITY,), cache=folder / "catalog.sqlite") as vault:

        def searched(label: str, names: list[SnapshotName], query: Query) -> None:
            used, began = cpu(), time.monotonic()
            headers = Headers(folder / "headers.sqlite")
            found = search(moments(vault, names), query, headers, Accounts())
            figures[f"{label}_cpu_seconds"] = round(cpu() - used, 2)
            figures[f"{label}_wall_seconds"] = round(time.monotonic() - began, 2)
            figures[f"{label}_headers_read"] = headers.read_total
            figures[f"{label}_found"] = len(found.presences)
            headers.close()

        names = [backup.backup_trees(vault, [site.tree(store)], "bench", clocks=clocks).name]
        wanted = Query(text="xyzzy")
        searched("first", names, wanted)
        searched("one", names, wanted)
        more = messages(SMALL, 2)
        for number in range(1, snapshots):
            change(store, count // CHANGED_SHARE, chance, more, count + number * count)
            names.append(backup.backup_trees(vault, [site.tree(store)], "bench", clocks=clocks).name)
        searched("all_first", names, wanted)
        searched("all", names, wanted)
        figures["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        searched("deleted", names, Query(deleted_from_ns=0))
    figures["all_to_one"] = round(figures["all_cpu_seconds"] / figures["one_cpu_seconds"], 2)
    return figures


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--snapshots", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hf-bench-find-", dir=options.folder))
    try:
        figures = measure(folder, options.messages, options.snapshots)
    finally:
        shutil.rmtree(folder)
    target = Path("build/bench")
    target.mkdir(parents=True, exist_ok=True)
    (target / "find.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:28} {value:,}")


if __name__ == "__main__":
    main()
