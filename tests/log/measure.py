"""Measure the log on three servers of this machine, with TLS and ``sync_interval: always``.

``python -m tests.log.measure [PAYLOAD_BYTES [RECORDS]]`` prints JSON: milliseconds of an append, and from its
start to the record being followed on another machine's server; microseconds of CPU a record, here and in each server.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from holdfast.changes.names import Sequence
from holdfast.log import jetstream
from holdfast.log.leader import LeaderPin
from tests.log.harness import NAMES, Servers, eventually, new_segment, take

MAIN, BACKUP, RELAY = NAMES
WARM_UP = 100


def server_seconds(servers: Servers) -> list[float]:
    """CPU of each server so far (proc(5), utime and stime)."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = []
    for name in NAMES:
        fields = Path(f"/proc/{servers.servers[name].pid}/stat").read_text().rpartition(")")[2].split()
        found.append((int(fields[11]) + int(fields[12])) / ticks)
    return found


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 2),
        "p99_ms": round(ordered[len(ordered) * 99 // 100] * 1000, 2),
        "max_ms": round(ordered[-1] * 1000, 2),
    }


async def measured(servers: Servers, payload_bytes: int, records: int) -> dict[str, object]:
    log = await jetstream.create(await servers.connect(MAIN), new_segment(), replicas=3, bytes_max=1024**3)
    pin = LeaderPin(log, RELAY)

    async def led() -> bool:
        return (await pin.tick()).stream == RELAY

    await eventually("the relay leads", led)
    payload = os.urandom(payload_bytes)
    last = Sequence(0)
    for _ in range(WARM_UP):
        last = await log.append(payload, after=last)
    taken: list[float] = []
    here, there = time.process_time(), server_seconds(servers)
    for _ in range(records):
        begun = time.perf_counter()
        last = await log.append(payload, after=last)
        taken.append(time.perf_counter() - begun)
    append_cpu = (time.process_time() - here) / records
    append_servers = [(after - before) / records for before, after in zip(there, server_seconds(servers), strict=True)]

    here = time.process_time()
    begun = time.perf_counter()
    await take(log.follow(Sequence(WARM_UP)), records, 120)
    catch_up_seconds = time.perf_counter() - begun
    catch_up_cpu = (time.process_time() - here) / records

    reader = await jetstream.open_log(await servers.connect(BACKUP), log.stream.segment)
    started: dict[int, float] = {}
    lags: list[float] = []

    async def follow() -> None:
        async for record in reader.follow(last):
            lags.append(time.perf_counter() - started[record.sequence])
            if len(lags) == records:
                return

    following = asyncio.create_task(follow())
    there = server_seconds(servers)
    for _ in range(records):
        started[last + 1] = time.perf_counter()
        last = await log.append(payload, after=last)
    await following
    follow_servers = [(after - before) / records for before, after in zip(there, server_seconds(servers), strict=True)]
    return {
        "payload_bytes": payload_bytes,
        "append": percentiles(taken),
        "append_cpu_us_here": round(append_cpu * 1e6),
        "append_cpu_us_servers": [round(seconds * 1e6) for seconds in append_servers],
        "catch_up_mb_per_second": round(records * payload_bytes / catch_up_seconds / 1e6),
        "catch_up_cpu_us_here": round(catch_up_cpu * 1e6),
        "append_to_followed": percentiles(lags),
        "append_and_follow_cpu_us_servers": [round(seconds * 1e6) for seconds in follow_servers],
    }


async def main(payload_bytes: int, records: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(Path(folder), NAMES)
        await servers.start()
        try:
            print(json.dumps(await measured(servers, payload_bytes, records), indent=2))
        finally:
            await servers.stop()


if __name__ == "__main__":
    asyncio.run(main(*(int(word) for word in (sys.argv[1:] + ["65536", "1000"][len(sys.argv) - 1 :]))))
