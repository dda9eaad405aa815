"""What an append costs: milliseconds until it is on the disks of a quorum, and CPU here and in each log server.

Three servers of this computer with TLS and ``sync_interval: always``, their stores in one folder, the leader pinned as
in a site with a relay. Run as ``make bench-log``; writes ``build/bench/log.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.log.harness import NAMES, Servers
from tests.log.measure import measured

OUT: Final = Path("build/bench/log.json")
PAYLOADS: Final = {4096: 600, 65_536: 400, 1_048_576: 60}
"""Bytes of a record (one delivery; a full batch of them; the largest frame) to how many are appended."""


async def measure(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for payload_bytes, records in PAYLOADS.items():
        servers = Servers(folder / str(payload_bytes), NAMES)
        await servers.start()
        try:
            figures[str(payload_bytes)] = await measured(servers, payload_bytes, records)
        finally:
            await servers.stop()
    return figures


def show(console: Console, figures: dict[str, Any]) -> None:
    table = Table(title="Appends to three replicas, each on disk before it is acknowledged")
    for heading in (
        "record",
        "append ms p50",
        "p99",
        "to a follower ms p50",
        "p99",
        "CPU us here",
        "CPU us, 3 servers",
    ):
        table.add_column(heading, justify="right")
    for size, of in figures.items():
        table.add_row(
            f"{int(size) // 1024} KiB",
            str(of["append"]["p50_ms"]),
            str(of["append"]["p99_ms"]),
            str(of["append_to_followed"]["p50_ms"]),
            str(of["append_to_followed"]["p99_ms"]),
            str(of["append_cpu_us_here"]),
            str(sum(of["append_cpu_us_servers"])),
        )
    console.print(table)


def main() -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(prog="bench/log.py", description="What an append costs.")
    parser.add_argument("--folder", default=None, help="where the servers keep their stores (default: a temporary one)")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-log-", dir=wanted.folder) as folder:
        figures = asyncio.run(measure(Path(folder)))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    show(Console(), figures)


if __name__ == "__main__":
    main()
