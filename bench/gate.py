"""What the gates cost: deliveries through the LMTP gate beside deliveries past it, and acceptances with and without
the shadow milter, on one protected lab, interleaved (a b b a).

``direct``: LMTP into Dovecot; ``gated``: LMTP through the gate into the same Dovecot. Both use DATA: the gate does not
carry CHUNKING. ``bare``: SMTP into Postfix at a port without the milter; ``shadowed``: the same with it. Behind both,
Postfix delivers through the gate meanwhile. IMAP: see :mod:`bench.gate_imap`. Run as ``make bench-gate``; writes
``build/bench/gate.json``; exit status 1 when a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from bench import gate_imap, processes
from bench.delivery import POOL_SEED, geometric_mean
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabSpec, MachineSpec
from holdfast.drill.site import ProtectedLab
from holdfast.drill.workload.lmtp import LoadResult

OUT: Final = Path("build/bench/gate.json")
LAB: Final = "bench-gate"
GATE_PORT: Final = 2424
BARE_PORT: Final = 2525
ACCOUNTS: Final = 50
DISK_BYTES: Final = 8 << 30
MACHINES: Final = ("main:primary", "backup:standby", "relay:relay")
CONFIGURATION: Final = f"""
[gate]
lmtp = "0.0.0.0:{GATE_PORT}"
lmtp_server = "127.0.0.1:24"
milter = "unix:/var/spool/postfix/private/holdfast-milter"
{gate_imap.CONFIGURATION}"""
LMTP_RATIO_MIN: Final = 0.7
LMTP_ADDED_MS_MAX: Final = 10.0
MILTER_RATIO_MIN: Final = 0.6
IMAP_READ_RATIO_MIN: Final = 0.85
IMAP_STORE_ADDED_MS_MAX: Final = 10.0
QUEUE_SECONDS_MAX: Final = 120.0
_seeds = count(1)


class Way(NamedTuple):
    """Where a load goes."""

    name: str
    port: int
    smtp: bool


DIRECT, GATED = Way("direct", 24, smtp=False), Way("gated", GATE_PORT, smtp=False)
BARE, SHADOWED = Way("bare", BARE_PORT, smtp=True), Way("shadowed", 25, smtp=True)


class Run(NamedTuple):
    way: str
    connections: int
    result: LoadResult
    cpu_us: dict[str, int]
    """Per message, by ``MACHINE PROGRAM``."""
    stolen_share: float


def up() -> ProtectedLab:
    Lab.down(LAB)
    specs = tuple(MachineSpec.parse(text) for text in MACHINES)
    site = ProtectedLab(Lab.up(LabSpec(name=LAB, machines=specs, accounts=ACCOUNTS, seed=LAB, disk_bytes=DISK_BYTES)))
    mail = mailhost.MailSettings(
        services=("dovecot", "postfix"),
        plaintext=True,
        deliver_to=f"inet:[127.0.0.1]:{GATE_PORT}",
        milter="unix:private/holdfast-milter",
    )
    site.protect(mail, more_configuration=CONFIGURATION)
    site.wait_settled()
    bare = f"{BARE_PORT} inet n - y - - smtpd -o smtpd_milters="
    site.lab.machine("main").run(["postconf", "-M", "-e", f"{BARE_PORT}/inet={bare}"])
    site.lab.machine("main").run(["postfix", "reload"])
    load(site, Way("first", GATE_PORT, smtp=False), 2, seconds=2.0)
    return site


def load(site: ProtectedLab, way: Way, connections: int, seconds: float) -> Run:
    """Raises HoldfastError, CalledProcessError."""
    machines = site.lab.machines()
    inits = {machine.name: _init(machine) for machine in machines}
    argv = [sys.executable, "-m", "holdfast.drill.workload.lmtp", "--port", str(way.port), "--data"]
    argv += ["--connections", str(connections), "--seconds", str(seconds + 2), "--warm-seconds", "2"]
    argv += ["--smtp"] if way.smtp else []
    argv += [
        "--seed",
        str(next(_seeds)),
        "--pool-seed",
        str(POOL_SEED),
    ]
    for account in site.lab.accounts:
        argv += ["--to", account.address]
    before, stolen, (_, total) = processes.cpu_by_program(inits), processes.stolen(), processes.cpu_of_system()
    with site.lab.machine("main").network():
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    result = msgspec.json.decode(done.stdout, type=LoadResult)
    if result.failed:
        raise SystemExit(f"{way.name}: {result.failed} failed: {result.first_error}")
    _wait_for_queue(site.lab.machine("main"))
    spent = {
        name: round((seconds - before.get(name, 0.0)) * 1e6 / result.accepted_total)
        for name, seconds in sorted(processes.cpu_by_program(inits).items())
    }
    share = (processes.stolen() - stolen) / (processes.cpu_of_system()[1] - total)
    return Run(way.name, connections, result, spent, share)


def _init(machine: Machine) -> int:
    init = machine.state.init
    assert init is not None, "it is on"
    return init.pid


def _wait_for_queue(machine: Machine) -> None:
    """Until Postfix has delivered all, and the shadows are gone."""
    deadline = time.monotonic() + QUEUE_SECONDS_MAX
    folders = [machine.path(f"/var/spool/postfix/{name}") for name in ("incoming", "active", "deferred")]
    folders.append(machine.path("/var/lib/holdfast/shadows"))
    while any(path.is_file() for folder in folders for path in folder.rglob("*") if ".holdfast" not in path.parts):
        if time.monotonic() > deadline:
            raise SystemExit("the queue did not become empty")
        time.sleep(0.2)


def compared(site: ProtectedLab, ways: tuple[Way, Way], connections: int, seconds: float) -> list[Run]:
    return [load(site, way, connections, seconds) for way in (*ways, *reversed(ways))]


def rate(runs: list[Run], way: Way) -> float:
    return geometric_mean([run.result.messages_per_second for run in runs if run.way == way.name])


def latency(runs: list[Run], way: Way) -> float:
    return geometric_mean([run.result.latency_ms_p50 for run in runs if run.way == way.name])


def show(console: Console, runs: list[Run]) -> None:
    table = Table("way", "connections", "messages/s", "p50 ms", "p99 ms", "CPU µs/message", "stolen", box=None)
    for run in runs:
        spent = ", ".join(f"{name} {us}" for name, us in run.cpu_us.items() if us >= 10)
        table.add_row(
            run.way,
            str(run.connections),
            f"{run.result.messages_per_second:.0f}",
            f"{run.result.latency_ms_p50:.1f}",
            f"{run.result.latency_ms_p99:.1f}",
            spent,
            f"{run.stolen_share:.0%}",
        )
    console.print(table)


def deliveries(site: ProtectedLab, console: Console, seconds: float) -> dict[str, Any]:
    lmtp = {n: compared(site, (DIRECT, GATED), n, seconds) for n in (20, 50)}
    alone = compared(site, (DIRECT, GATED), 1, seconds / 2)
    runs = [run for group in (*lmtp.values(), alone) for run in group]
    show(console, runs)
    ratios = {str(n): rate(group, GATED) / rate(group, DIRECT) for n, group in lmtp.items()}
    return {
        "lmtp_gate_ratio": min(ratios.values()),
        "lmtp_gate_ratio_by_connections": ratios,
        "lmtp_added_ms_p50": latency(alone, GATED) - latency(alone, DIRECT),
        "lmtp_runs": [msgspec.to_builtins(run._asdict()) for run in runs],
    }


def acceptances(site: ProtectedLab, console: Console, seconds: float) -> dict[str, Any]:
    runs = compared(site, (BARE, SHADOWED), 20, seconds)
    show(console, runs)
    return {
        "milter_ratio": rate(runs, SHADOWED) / rate(runs, BARE),
        "milter_runs": [msgspec.to_builtins(run._asdict()) for run in runs],
    }


def imap(site: ProtectedLab, console: Console, seconds: float) -> dict[str, Any]:
    made = gate_imap.measured(site)
    console.print_json(data=made)
    return made


PARTS: Final[dict[str, Callable[[ProtectedLab, Console, float], dict[str, Any]]]] = {
    "imap": imap,
    "lmtp": deliveries,
    "milter": acceptances,
}
PROMISES: Final[tuple[tuple[str, str, Callable[[float], bool]], ...]] = (
    ("lmtp_gate_ratio", f"LMTP gate >= {LMTP_RATIO_MIN} of direct", lambda found: found >= LMTP_RATIO_MIN),
    ("lmtp_added_ms_p50", f"LMTP gate adds <= {LMTP_ADDED_MS_MAX:g} ms", lambda found: found <= LMTP_ADDED_MS_MAX),
    ("milter_ratio", f"milter >= {MILTER_RATIO_MIN} of none", lambda found: found >= MILTER_RATIO_MIN),
    ("imap_read_ratio", f"IMAP reads >= {IMAP_READ_RATIO_MIN} of direct", lambda found: found >= IMAP_READ_RATIO_MIN),
    (
        "imap_store_added_ms_p50",
        f"STORE adds <= {IMAP_STORE_ADDED_MS_MAX:g} ms",
        lambda found: found <= IMAP_STORE_ADDED_MS_MAX,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load, after 2 s of warming up")
    parser.add_argument("--only", choices=PARTS, help="a part of it; what else stands in the file stays")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    options = parser.parse_args()
    console = Console(width=200)
    made: dict[str, Any] = json.loads(OUT.read_text()) if options.only and OUT.exists() else {}
    site = up()
    try:
        for name, part in PARTS.items():
            if options.only in (None, name):
                made |= part(site, console, options.seconds)
    finally:
        if not options.keep:
            Lab.down(LAB)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(made, indent=2) + "\n")
    broken = False
    for key, promise, holds in PROMISES:
        if key in made:
            held = holds(made[key])
            console.print(f"{'kept' if held else 'NOT KEPT'}: {promise}: {made[key]:.2f}")
            broken = broken or not held
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
