"""How fast a machine is seeded, verified and audited: files a second and MB a second, on this machine's disk.

Both machines are this one; there is no network between them, but every message is sealed and opened. So it shows what
the programs cost. Run from the repository's root::

    python -m bench.seed [--files 50000] [--bytes 4096] [--folder DIR]

Writes ``build/bench/seed.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from holdfast.trees.audit import Audit
from holdfast.trees.rate import TokenBucket
from tests.apply.two_machines import Joiner, Primary

FOLDER_FILES = 500


def make_tree(root: Path, files: int, size: int) -> None:
    """*files* files of about *size* bytes, like mail: half text that compresses, half that does not."""
    chance = random.Random(1)
    text = b"Received: from mail.example.org by mx.example.org with ESMTP id 0123456789\r\n" * 2000
    for number in range(files):
        if number % FOLDER_FILES == 0:
            folder = root / f"user{number // FOLDER_FILES}" / "cur"
            folder.mkdir(parents=True)
        length = chance.randrange(size // 2, size * 3 // 2)
        content = b"%d" % number + text[: length // 2] + chance.randbytes(length // 2)
        (folder / f"{number}.M1P2.host,S={length}:2,S").write_bytes(content)


async def measure(folder: Path, files: int, size: int) -> dict[str, float]:
    """Seconds of each step, and what follows from them."""
    figures: dict[str, float] = {"files": files, "bytes_per_file": size}
    primary, joiner = Primary.made(folder), Joiner.made(folder)
    make_tree(primary.root, files, size)
    primary.rescan(1)
    for name in ("first", "again", "again_checksum"):
        cpu = time.process_time()
        report = await joiner.seed(primary.peer(), checksum=name == "again_checksum")
        figures[f"{name}_seconds"] = round(report.seconds, 2)
        figures[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 2)
        figures[f"{name}_files_per_second"] = round(files / report.seconds)
        figures[f"{name}_mb_per_second"] = round(report.bytes / report.seconds / 1e6, 1)
    for name in ("quick", "full"):
        rate = TokenBucket(0, time.monotonic)
        full = name == "full"
        audit = Audit((joiner.tree,), joiner.index.reader, full=full, rate=rate, clock=time.monotonic, pause=time.sleep)
        began = time.monotonic()
        assert not list(audit.run())
        figures[f"audit_{name}_files_per_second"] = round(files / (time.monotonic() - began))
    began = time.monotonic()
    subprocess.run(["cp", "-a", primary.root, folder / "copy"], check=True)
    figures["cp_seconds"] = round(time.monotonic() - began, 2)
    figures["memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    await primary.source.close()
    return figures


def main() -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--folder", default=None, help="where the trees are made (default: a temporary folder)")
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-seed-", dir=wanted.folder))
    try:
        figures = asyncio.run(measure(folder, wanted.files, wanted.bytes))
    finally:
        shutil.rmtree(folder)
    out = Path("build/bench/seed.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
