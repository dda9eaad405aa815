"""Backups beside restic and borg: first, again after changes, restored; sizes, memory. Encrypted, in a local folder.

All in one run and interleaved, on the generated stores of ``bench.mailstore`` (see there what they are like):
``restic backup`` and ``borg create -C zstd,3`` of Debian, ``holdfast vault backup``. Before each backup and each
restore all that it will read is read once (``warm``): borg drops what it has read from the page cache, and whoever came
after it read the disk for the others. Between rounds one message in a thousand is new, gone, or has other flags.
Fed by the log Holdfast runs in this process, as it does in the agent,
which is there anyway; everything else counts with the start of its program. A restore counts until the files are
durable: ``sync -f`` is part of it for all three. Nothing is deleted before the end, because ext4 does not give inodes
of the last minutes away, and making files is ten times slower while it looks for others.

Run from the repository's root::

    python -m bench.vault [--quick] [--store office|small|none] [--rounds N] [--share 1.0] [--files N] [--at FOLDER]

Prints a table and writes ``build/bench/vault.json``. With ``--store`` the figures of the other store are kept from the
run before; with ``--files 0`` those of memory are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from bench.mailstore import ACCOUNTS, OFFICE, SMALL, Kind, make_store, messages, write_message
from bench.processes import stolen
from bench.vault_log import LogFed

CHANGED_SHARE: Final = 0.001
OUT: Final = Path("build/bench/vault.json")
HOLDFAST: Final = str(Path(sys.executable).with_name("holdfast"))
PROMISED: Final = {
    "first_ratio_restic": 1.0,
    "size_ratio_best": 0.9,
    "incremental_log_ratio_restic": 0.05,
    "incremental_log_cpu_ratio_restic": 0.05,
    "incremental_scan_ratio_restic": 1.0,
    "restore_ratio_restic": 0.8,
    "account_restore_seconds": 1.0,
    "rss_mb_million_files": 250.0,
}


class Cost(NamedTuple):
    """Of one program: wall and processor time in seconds, the most memory its processes had together, in MB."""

    seconds: float
    cpu_seconds: float
    rss_mb: float


def run(command: list[str], environment: Mapping[str, str], folder: Path | None = None) -> Cost:
    """Raises CalledProcessError."""
    os.sync()
    runner = [sys.executable, "-S", "-c", _RUNNER, *command]
    done = subprocess.run(runner, env=dict(environment), cwd=folder, stdout=subprocess.PIPE, check=True)
    return Cost(*json.loads(done.stdout))


_RUNNER: Final = """
import os, subprocess, sys, threading, time
def below(pid):
    try:
        found = [int(one) for one in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    except OSError:
        return [pid]
    return [pid, *(other for one in found for other in below(one))]
def pages(pid):
    try:
        return int(open(f"/proc/{pid}/statm").read().split()[1])
    except OSError:
        return 0
def watch():
    global most
    while not ended.wait(0.2):
        most = max(most, sum(map(pages, below(process.pid))))
most, ended = 0, threading.Event()
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
watching = threading.Thread(target=watch)
watching.start()
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
ended.set()
watching.join()
together = most * os.sysconf("SC_PAGE_SIZE") / 1024**2
print([seconds, usage.ru_utime + usage.ru_stime, max(usage.ru_maxrss / 1024, together)])
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process between: the memory a program is said to have had includes that of the one that started it. Memory:
the most one process had, or all of them together five times a second, whichever is more."""


class Tool(Protocol):
    """A backup program with a repository of its own below a folder."""

    name: str
    repository: Path

    def backup(self, store: Path) -> Cost: ...

    def restore(self, store: Path, target: Path) -> Cost:
        """What was backed up of *store*, into the new folder *target*."""


class Restic:
    name = "restic"

    def __init__(self, home: Path) -> None:
        self.repository = home / "restic"
        password = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(home / "restic-cache")}
        self._environment = {**os.environ, **password, "RESTIC_REPOSITORY": str(self.repository)}
        run(["restic", "init", "-q"], self._environment)

    def backup(self, store: Path) -> Cost:
        return run(["restic", "backup", "-q", str(store)], self._environment)

    def restore(self, store: Path, target: Path) -> Cost:
        return synced(["restic", "restore", "-q", "latest", "--target", str(target)], target, self._environment)


class Borg:
    name = "borg"

    def __init__(self, home: Path) -> None:
        self.repository = home / "borg"
        self._environment = {**os.environ, "BORG_PASSPHRASE": "bench", "BORG_BASE_DIR": str(home / "borg-base")}
        self._number = 0
        run(["borg", "--critical", "init", "-e", "repokey-blake2", str(self.repository)], self._environment)

    def backup(self, store: Path) -> Cost:
        self._number += 1
        return run(
            ["borg", "create", "-C", "zstd,3", f"{self.repository}::{self._number}", str(store)], self._environment
        )

    def restore(self, store: Path, target: Path) -> Cost:
        target.mkdir()
        return synced(["borg", "extract", f"{self.repository}::{self._number}"], target, self._environment, target)


class Holdfast:
    name = "holdfast"

    def __init__(self, home: Path) -> None:
        self.repository = home / "holdfast"
        folders = {"HOLDFAST_VAULTS": str(home / "holdfast-vaults"), "HOLDFAST_CACHE": str(home / "holdfast-cache")}
        self._environment = {**os.environ, **folders}
        run([HOLDFAST, "vault", "init", str(self.repository)], self._environment)

    def backup(self, store: Path) -> Cost:
        return run([HOLDFAST, "vault", "backup", "--quiet", "--json", f"store={store}"], self._environment)

    def restore(self, store: Path, target: Path) -> Cost:
        return synced(self._restore(target, "--tree", "store"), target, self._environment)

    def restore_account(self, account: str, target: Path) -> Cost:
        return run(self._restore(target, f"store/{account}"), self._environment)

    def _restore(self, target: Path, *what: str) -> list[str]:
        return [HOLDFAST, "restore", "--quiet", "--to", str(target), *what]


def synced(command: list[str], target: Path, environment: Mapping[str, str], folder: Path | None = None) -> Cost:
    """*command*, and the disk has it."""
    words = ["sh", "-c", '"$@" && sync -f "$0"', str(target), *command]
    return run(words, environment, folder)


def warm(folder: Path) -> None:
    """All files below *folder* are in the page cache, whoever came before."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def change(store: Path, kind: Kind, share: float, seed: int) -> int:
    """Half of the changed messages are new, a quarter has other flags, a quarter is gone."""
    chance = random.Random(seed)
    standing = sorted(path for path in store.rglob("cur/*"))
    count = max(round(len(standing) * share), 4)
    for path in chance.sample(standing, count // 4):
        path.unlink()
    for path in chance.sample([path for path in standing if path.exists()], count // 4):
        path.rename(path.with_name(path.name.partition(":2,")[0] + ":2,FRS"))
    for number, (account, message) in enumerate(islice(messages(kind, seed + 1000), count // 2)):
        write_message(store, account, len(standing) * seed + number, message, chance)
    return count


class Round(NamedTuple):
    """Costs by name of tool; ``log`` among those of ``again``."""

    first: dict[str, Cost]
    again: dict[str, Cost]
    restored: dict[str, Cost]
    account: Cost
    size_mb: dict[str, float]


def backup(tool: Tool, store: Path) -> Cost:
    warm(store)
    return tool.backup(store)


def restore(tool: Tool, store: Path, target: Path) -> Cost:
    warm(tool.repository)
    return tool.restore(store, target)


def one_round(base: Path, store: Path, kind: Kind, number: int) -> Round:
    home = base / f"round{number}"
    home.mkdir()
    makers: list[Callable[[Path], Tool]] = [Restic, Borg, Holdfast]
    tools = [maker(home) for maker in makers]
    tools = tools[number % 3 :] + tools[: number % 3]
    log = LogFed(home, store)
    first = {tool.name: backup(tool, store) for tool in tools}
    sizes = {tool.name: size_mb(tool.repository) for tool in tools}
    change(store, kind, CHANGED_SHARE, number)
    log.follow()
    again = {tool.name: backup(tool, store) for tool in tools}
    again["log"] = Cost(*log.snapshot())
    log.close()
    restored = {tool.name: restore(tool, store, home / f"restored-{tool.name}") for tool in tools}
    ours = next(tool for tool in tools if isinstance(tool, Holdfast))
    account = ours.restore_account(f"user{number:03d}", home / "account")
    exact = ["diff", "-r", "--no-dereference", "-x", ".holdfast", str(store), str(home / "restored-holdfast")]
    subprocess.run(exact, check=True)
    return Round(first, again, restored, account, sizes)


def median_ratio(rounds: list[dict[str, Cost]], ours: str, theirs: str, field: str = "seconds") -> float:
    return float(statistics.median(getattr(costs[ours], field) / getattr(costs[theirs], field) for costs in rounds))


def figures(rounds: list[Round]) -> dict[str, Any]:
    first, again = [one.first for one in rounds], [one.again for one in rounds]
    restored = [one.restored for one in rounds]

    def medians(costs: list[dict[str, Cost]], field: str) -> dict[str, float]:
        return {name: round(statistics.median(getattr(one[name], field) for one in costs), 3) for name in costs[0]}

    sizes = {name: round(statistics.median(one.size_mb[name] for one in rounds), 1) for name in rounds[0].size_mb}
    return {
        "rounds": len(rounds),
        "first_seconds": medians(first, "seconds"),
        "first_cpu_seconds": medians(first, "cpu_seconds"),
        "first_rss_mb": medians(first, "rss_mb"),
        "again_seconds": medians(again, "seconds"),
        "again_cpu_seconds": medians(again, "cpu_seconds"),
        "restore_seconds": medians(restored, "seconds"),
        "restore_cpu_seconds": medians(restored, "cpu_seconds"),
        "restore_rss_mb": medians(restored, "rss_mb"),
        "size_mb": sizes,
        "first_ratio_restic": median_ratio(first, "holdfast", "restic"),
        "size_ratio_best": sizes["holdfast"] / min(sizes["restic"], sizes["borg"]),
        "incremental_log_ratio_restic": median_ratio(again, "log", "restic"),
        "incremental_log_cpu_ratio_restic": median_ratio(again, "log", "restic", "cpu_seconds"),
        "incremental_scan_ratio_restic": median_ratio(again, "holdfast", "restic"),
        "restore_ratio_restic": median_ratio(restored, "holdfast", "restic"),
        "account_restore_seconds": statistics.median(one.account.seconds for one in rounds),
    }


def measure(base: Path, kind: Kind, count: int, rounds: int) -> dict[str, Any]:
    base.mkdir()
    store = base / "store"
    made = make_store(store, kind, count)
    stolen_before, began = stolen(), time.perf_counter()
    done = [one_round(base, store, kind, number) for number in range(1, rounds + 1)]
    share = (stolen() - stolen_before) / (time.perf_counter() - began) / (os.cpu_count() or 1)
    facts = {"messages": made.messages, "mb": round(made.bytes / 1e6, 1), "accounts": ACCOUNTS, "stolen_share": share}
    return {**facts, **figures(done)}


def measure_memory(base: Path, files: int) -> dict[str, Any]:
    """Backup and restore of many tiny files: the most memory either had."""
    base.mkdir()
    store = base / "many"
    for number in range(files):
        folder = store / f"user{number % ACCOUNTS:03d}" / f"{number // ACCOUNTS // 5000}" / "cur"
        if number // ACCOUNTS % 5000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{1_700_000_000 + number}.M{number}P7.mail,S=100:2,S").write_bytes(b"%020d" % number * 5)
    ours = Holdfast(base)
    costs = {
        "first": ours.backup(store),
        "again": ours.backup(store),
        "restore": ours.restore(store, base / "restored"),
    }
    return {
        "files": files,
        "rss_mb": {name: round(cost.rss_mb, 1) for name, cost in costs.items()},
        "seconds": {name: round(cost.seconds, 1) for name, cost in costs.items()},
    }


def summary(result: dict[str, Any]) -> dict[str, float]:
    """The worst of both stores."""
    stores = result["stores"].values()
    keys = {key: max(store[key] for store in stores) for key in PROMISED if key != "rss_mb_million_files" and stores}
    if "memory" in result:
        keys["rss_mb_million_files"] = max(result["memory"]["rss_mb"].values())
    return keys


def show(result: dict[str, Any]) -> None:
    for name, store in result["stores"].items():
        print(f"\n{name}: {store['messages']} messages, {store['mb']} MB, median of {store['rounds']} rounds")
        print(f"  {'':22}{'restic':>9}{'borg':>9}{'holdfast':>9}{'from log':>9}")
        for row in ("first", "again", "restore"):
            for unit in ("seconds", "cpu_seconds"):
                costs = store[f"{row}_{unit}"]
                cells = "".join(
                    f"{costs[tool]:9.2f}" for tool in ("restic", "borg", "holdfast", "log") if tool in costs
                )
                print(f"  {row + ' ' + unit:22}{cells}")
        print(
            f"  {'size, MB':22}" + "".join(f"{store['size_mb'][tool]:9.0f}" for tool in ("restic", "borg", "holdfast"))
        )
    if "memory" in result:
        print(f"\n{result['memory']['files']} files: MB of memory {result['memory']['rss_mb']}")
    print()
    for key, promised in PROMISED.items():
        if key in result:
            print(
                f"  {key:36}{result[key]:8.3f}   promised {promised:g}{'' if result[key] <= promised else '  NOT MET'}"
            )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="2,000 and 10,000 messages, one round, 20,000 files")
    options.add_argument("--store", choices=("office", "small", "none"), help="only this one")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--share", type=float, default=1.0, help="of the messages: for a first look")
    options.add_argument("--files", type=int, default=1_000_000, help="for memory; 0: not measured")
    options.add_argument("--at", default=None, help="a folder on the filesystem to measure on")
    given = options.parse_args()
    kinds = {"office": (OFFICE, 20_000, given.rounds), "small": (SMALL, 200_000, max(given.rounds // 3, 1))}
    kinds = {name: (kind, round(count * given.share), rounds) for name, (kind, count, rounds) in kinds.items()}
    if given.quick:
        kinds = {"office": (OFFICE, 2_000, 1), "small": (SMALL, 10_000, 1)}
    result: dict[str, Any] = {"stores": {}}
    if OUT.exists() and not given.quick and (given.store or not given.files):
        before = json.loads(OUT.read_text())
        result = result if before["quick"] else before
    base = Path(tempfile.mkdtemp(prefix="holdfast-bench-vault-", dir=given.at))
    try:
        for name, (kind, count, rounds) in kinds.items():
            if given.store in (None, name):
                result["stores"][name] = measure(base / name, kind, count, rounds)
        if given.files:
            result["memory"] = measure_memory(base / "many", 20_000 if given.quick else given.files)
        result.update(summary(result))
        result["quick"] = given.quick
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(result, indent=2) + "\n")
        show(result)
    finally:
        shutil.rmtree(base)  # minutes, for millions of files
    return 0 if all(result.get(key, 0.0) <= promised for key, promised in PROMISED.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
