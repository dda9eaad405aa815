"""A scan of an unchanged tree beside ``rsync -a --dry-run`` of it, and what the index costs in space.

Both in one run, taking turns, on the same tree with warm caches; the tree stands on this machine's disk (or where
``--at`` says). Prints a table and writes build/bench/scan.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from holdfast.changes.frame import chain_start
from holdfast.changes.names import Epoch, Incarnation
from holdfast.trees.index import Index
from holdfast.trees.spec import Tree, TreeSpec
from holdfast.trees.stat import Owners
from holdfast.watch.watcher import ScanProgress, Watcher

FILES_PER_FOLDER = 200
RATIO_MAX = 3.0


def make_tree(root: Path, files: int) -> None:
    """Maildirs of 200 small messages each, in 50 accounts."""
    content = b"Subject: bench\r\n\r\n" + b"x" * 500
    for folder in range(files // FILES_PER_FOLDER):
        cur = root / f"user{folder % 50:02d}" / "Maildir" / f".folder{folder // 50}" / "cur"
        cur.mkdir(parents=True)
        for number in range(FILES_PER_FOLDER):
            (cur / f"17000000{number:03d}.M{number}P{folder}.host,S=520,W=540:2,S").write_bytes(content)


def rss_mb() -> float:
    """Resident memory now, from /proc/self/statm (proc(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def scan(root: Path, index_file: Path, *, commit: bool = False) -> tuple[float, int, ScanProgress]:
    """Seconds, number of changes, and the last progress of one scan by a fresh watcher."""
    index = Index.open(index_file)
    watcher = Watcher(index, [Tree(TreeSpec("store", str(root), exclude=("tmp/", "*.lock")))], Owners())
    last: list[ScanProgress] = []
    began = time.perf_counter()
    changes = sum(len(part.changes) for part in watcher.scan(last.append))
    seconds = time.perf_counter() - began
    if commit:
        index.commit(chain_start(Incarnation("ab" * 16)), Epoch(1))
    watcher.stop()
    index.close()
    return seconds, changes, last[-1]


def rsync(root: Path, copy: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["rsync", "-a", "--dry-run", f"{root}/", f"{copy}/"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=200_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--at", default=None, help="a folder on the filesystem to measure on")
    options.add_argument("--out", default="build/bench/scan.json")
    arguments = options.parse_args()
    base = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=arguments.at))
    try:
        root, copy, index_file = base / "tree", base / "copy", base / "index.db"
        root.mkdir()
        make_tree(root, arguments.files)
        subprocess.run(["rsync", "-a", f"{root}/", f"{copy}/"], check=True)
        before = rss_mb()
        first_seconds, _, _ = scan(root, index_file, commit=True)
        ours, theirs = [], []
        changes = 0
        for _ in range(arguments.rounds):
            theirs.append(rsync(root, copy))
            seconds, logged, _ = scan(root, index_file)
            ours.append(seconds)
            changes += logged
        index_bytes = sum(file.stat().st_size for file in base.glob("index.db*"))
        rss = rss_mb()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        result = {
            "files": arguments.files,
            "scan_seconds": statistics.median(ours),
            "rsync_seconds": statistics.median(theirs),
            "ratio_to_rsync": statistics.median(o / t for o, t in zip(ours, theirs, strict=True)),
            "first_scan_seconds": first_seconds,
            "changes_in_unchanged_tree": changes,
            "rss_mb": rss,
            "rss_peak_mb": peak,
            "memory_bytes_per_file": max(rss - before, 0.0) * 1e6 / arguments.files,
            "index_bytes_per_file": index_bytes / arguments.files,
        }
    finally:
        shutil.rmtree(base)
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{arguments.files} unchanged files, warm, median of {arguments.rounds}")
    print(f"  {'rsync -a --dry-run':28}{result['rsync_seconds']:8.2f} s")
    print(f"  {'holdfast scan':28}{result['scan_seconds']:8.2f} s   {result['ratio_to_rsync']:.2f} times rsync")
    print(f"  {'first scan (all is new)':28}{first_seconds:8.2f} s")
    print(f"  {'index':28}{result['index_bytes_per_file']:8.0f} bytes a file on disk")
    print(f"  {'memory':28}{result['rss_mb']:8.0f} MB after, {peak:.0f} MB at most")
    met = result["ratio_to_rsync"] <= RATIO_MAX and changes == 0
    print("promised: within 3 times rsync, nothing logged:", "met" if met else "NOT MET")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
