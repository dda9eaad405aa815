"""Deliveries a second, and how far the second machine is behind: bare Dovecot, Dovecot's replicator, Holdfast.

The same LMTP load goes to three systems in one run, interleaved and repeated (a b c c b a):

* ``bare``: one Dovecot;
* ``dsync``: Dovecot 2.3 with its own replicator to a second Dovecot;
* ``holdfast``: Dovecot beside Holdfast, three replicas of the log, and a standby that applies.

Every machine is one of a lab on this computer: each has an ext4 filesystem of its own in an image (where: ``DISKS``),
and all share the processors, as does the load generator. A load during which the machine beneath a virtual one took the
processors away is repeated (``stolen_share`` and ``tries`` say so). Dovecot's configuration is the same everywhere, but
for the replicator. Run as ``make bench-delivery`` (six to ten minutes); ``--quick`` takes about a minute. Writes
``build/bench/delivery.json``; exit status 1 when a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench import processes
from bench.arrivals import Arrivals
from holdfast.console.client import Client
from holdfast.drill.lab import mailhost, store
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabError, LabSpec, MachineSpec
from holdfast.drill.site import ProtectedLab
from holdfast.drill.workload.lmtp import LoadResult, percentile
from holdfast.errors import HoldfastError

OUT: Final = Path("build/bench/delivery.json")
ACCOUNTS: Final = 200
"""At full load each then gets two or three messages a second: still many more than people get, so that whoever copies
account by account has several to copy at once. With fewer, Dovecot's replicator copies more of them in each of its
runs, with more accounts fewer; with 500 it takes half a minute to catch up. docs/reference/performance.md has both."""
DISK_BYTES: Final = 12 << 30
"""Sparse: the log and the store of all runs."""
DISKS: Final = ("own", "shared", "memory")
"""Where the machines' images lie.

``own``: the machine that mail goes to has the real disk, in each of the three systems; the others' images are in
memory. Machines do not share a disk: with all images on the one disk here (``shared``) each sync of Dovecot's waits
behind those of three log servers and of the standby, of which on real machines only one is on its disk; and bare
Dovecot's waits for nobody. What shares a machine's disk in reality does so here: Dovecot's syncs, its machine's log
server's and its agent's. Memory is kinder than a disk to the replicator's second machine, and to Holdfast's lag (two of
three log servers have to sync a frame, a standby once a second); not to its throughput, for no delivery waits for
another machine. ``memory``: all images there, what processors alone allow."""
TARGETS: Final = ("bare", "first", "main")
"""The machines that mail goes to, one of each system."""
SYSTEMS: Final = ("bare", "dsync", "holdfast")
ORDER: Final = ("bare", "dsync", "holdfast", "holdfast", "dsync", "bare")
"""Forwards and backwards: what drifts during a case (mailboxes grow, the disk's cache fills) weighs on all alike."""
POOL_SEED: Final = 27
"""All systems get the same contents. Of the pools of seeds 1 to 32 this one's mean size in the mix, 19.6 KB, is the one
nearest to that of all of them together, 19.4 KB; they go from 7 to 48 KB."""
DRAIN_SECONDS_MAX: Final = 60.0
REST_SECONDS: Final = 0.3
"""Between a load's end and the next beginning: two beats of the agents."""
QUIET_SECONDS: Final = 3.0
"""After the last change a directory's time is logged two seconds later; then there is nothing more to do."""
STOLEN_SHARE_MAX: Final = 0.05
"""A virtual machine whose neighbours take more than this measures its neighbours: the load is repeated."""
RATIO_TO_BARE_MIN: Final = 0.75
RATIO_TO_BARE_AIM: Final = 0.9
RATIO_TO_DSYNC_MIN: Final = 2.0
LAG_MS_P99_MAX: Final = 100.0
LAG_TIMES_LOWER_MIN: Final = 10.0


class Case(NamedTuple):
    size: str
    connections: int

    @property
    def name(self) -> str:
        return f"{self.size}-{self.connections}"


CASES: Final = (Case("4k", 8), Case("4k", 32), Case("mix", 8), Case("mix", 32))


class Run(Struct):
    """One load on one system.

    *seen_ms*: from the client's acknowledgement to the message standing on the second machine, of every message;
    *captured_ms*: what Holdfast itself says of its frames, from read on the primary to applied on the standby.
    *cpu_us* is per message, by machine and program; *other_cpu_share* is what ran on this computer besides (0 to 1):
    the kernel's threads, and whoever else was there.
    """

    system: str
    load: LoadResult
    cpu_us: dict[str, float]
    busy_share: float
    other_cpu_share: float
    stolen_share: float = 0.0
    """Of the processors' time, taken away by the machine beneath this virtual one: the run was disturbed."""
    seen_ms: list[float] = []
    missing: int = 0
    captured_ms_p50: float | None = None
    captured_ms_p99: float | None = None
    drain_seconds: float = 0.0
    frames: int = 0
    tries: int = 1

    @property
    def rate(self) -> float:
        return self.load.messages_per_second

    @property
    def rate_on_both(self) -> float:
        """Messages a second until all of them stood on the second machine too: what a pair of machines sustains. A
        replicator that falls behind takes mail faster than it copies it, and pays after the load."""
        seconds = self.load.accepted_total / self.rate
        return self.load.accepted_total / (seconds + self.drain_seconds)


class System:
    """One of the three: where mail is handed in, and where it has to appear."""

    def __init__(self, name: str, target: Machine, second: Machine | None, machines: Sequence[Machine]) -> None:
        self.name = name
        self.target = target
        self.second = second
        self._inits = {machine.name: _init_pid(machine) for machine in machines}

    def cpu(self) -> dict[str, float]:
        return processes.cpu_by_program(self._inits)

    def mailboxes(self) -> list[Path]:
        """The directories on the second machine in which messages appear."""
        if self.second is None:
            return []
        homes = [self.second.path("/var/vmail") / a.address.partition("@")[2] / a.address.partition("@")[0]
                 for a in self.second.lab.accounts]  # fmt: skip
        return [home / "Maildir" / name for home in homes for name in ("new", "cur")]


def _init_pid(machine: Machine) -> int:
    init = machine.state.init
    assert init is not None, "it is on"
    return init.pid


class Bench:
    """The three systems, up."""

    def __init__(self, name: str, wanted: Sequence[str], more: str, accounts: int, disks: str) -> None:
        self._names = (f"{name}-peers", name)
        self._accounts = accounts
        self._disks = disks
        self._wanted = wanted
        self._more = more
        self.systems: dict[str, System] = {}
        self.site: ProtectedLab | None = None
        self._seed = 0

    def up(self) -> None:
        """Make the labs and deliver one message to each account, so that all directories are there."""
        mail = mailhost.MailSettings(services=("dovecot",), plaintext=True)
        peers = {"bare": ("bare",), "dsync": ("first", "second"), "holdfast": ()}
        roles = [f"{name}:client" for system in self._wanted for name in peers[system]]
        if roles:
            lab = _lab(self._names[0], roles, self._accounts, self._disks)
            for machine in lab.machines():
                mailhost.configure(machine, mail)
            if "bare" in self._wanted:
                mailhost.start(lab.machine("bare"), ["dovecot"])
                self._add("bare", lab.machine("bare"), None, [lab.machine("bare")])
            if "dsync" in self._wanted:
                first, second = lab.machine("first"), lab.machine("second")
                mailhost.replicator(first, second)
                self._add("dsync", first, second, [first, second])
        if "holdfast" in self._wanted:
            roles = ["main:primary", "backup:standby", "relay:relay"]
            lab = _lab(self._names[1], roles, self._accounts, self._disks)
            self.site = ProtectedLab(lab)
            self.site.protect(mail, more_configuration=self._more)
            self.site.wait_settled()
            self._add("holdfast", lab.machine("main"), lab.machine("backup"), lab.machines())
        for system in self.systems.values():
            self._prime(system)

    def _add(self, name: str, target: Machine, second: Machine | None, machines: Sequence[Machine]) -> None:
        self.systems[name] = System(name, target, second, machines)

    def down(self) -> None:
        for name in self._names:
            Lab.down(name)

    def _prime(self, system: System) -> None:
        load = ["--messages", str(self._accounts), "--connections", "2"]
        self._generate(system, load)
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while not all(folder.is_dir() for folder in system.mailboxes()):
            if time.monotonic() > deadline:
                raise LabError(f"{system.name}: the first messages do not appear on the second machine")
            time.sleep(0.1)
        time.sleep(1.0)

    def _generate(self, system: System, load: list[str], out: Path | None = None) -> LoadResult:
        self._seed += 1
        argv = [sys.executable, "-m", "holdfast.drill.workload.lmtp", "--port", "24", *load]
        argv += ["--seed", str(self._seed), "--pool-seed", str(POOL_SEED)]
        for account in system.target.lab.accounts:
            argv += ["--to", account.address]
        if out is not None:
            argv += ["--acknowledged", str(out)]
        with system.target.network():
            done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
        return msgspec.json.decode(done.stdout, type=LoadResult)

    def run(self, case: Case, system: System, seconds: float, warm_seconds: float) -> Run:
        """One load. Raises HoldfastError, OSError."""
        load = ["--seconds", str(seconds + warm_seconds), "--warm-seconds", str(warm_seconds), "--size", case.size]
        load += ["--connections", str(case.connections)]
        time.sleep(REST_SECONDS)
        agent = self._agent() if system.name == "holdfast" else None
        before = self._frames()
        if agent is not None:
            agent.post("/lags/forget")
        with ExitStack() as stack:
            arrivals = stack.enter_context(Arrivals(system.mailboxes())) if system.second is not None else None
            out = Path(stack.enter_context(tempfile.NamedTemporaryFile()).name)
            cpu, (busy, total), stolen = system.cpu(), processes.cpu_of_system(), processes.stolen()
            result = self._generate(system, load, out)
            if result.failed:
                raise LabError(f"{system.name}: {result.failed} deliveries failed: {result.first_error}")
            busy_end, total_end = processes.cpu_of_system()
            stolen = processes.stolen() - stolen
            during = _since(cpu, system.cpu())
            ended_ns = time.monotonic_ns()
            if arrivals is not None:
                arrivals.wait(result.accepted_total, DRAIN_SECONDS_MAX)
            drained = 0.0 if arrivals is None else max(arrivals.last_ns - ended_ns, 0) / 1e9
            spent = _since(cpu, system.cpu())
            own = result.cpu_us_per_message * result.accepted_total / 1e6
            run = Run(
                system.name,
                result,
                {name: seconds * 1e6 / result.accepted_total for name, seconds in sorted(spent.items())},
                (busy_end - busy) / (total_end - total),
                max(busy_end - busy - sum(during.values()) - own, 0.0) / (total_end - total),
                stolen_share=stolen / (total_end - total),
                drain_seconds=drained,
            )
            if arrivals is not None:
                _note_lags(run, arrivals, out, warm_seconds)
        if agent is not None:
            run.captured_ms_p50, run.captured_ms_p99 = self._lags(agent)
            run.frames = self._frames() - before
        return run

    def run_undisturbed(self, case: Case, system: System, seconds: float, warm_seconds: float, tries: int) -> Run:
        """Loads until one was not disturbed from outside, *tries* at most; the least disturbed one."""
        runs: list[Run] = []
        while len(runs) < tries:
            runs.append(self.run(case, system, seconds, warm_seconds))
            if runs[-1].stolen_share <= STOLEN_SHARE_MAX:
                break
        best = min(runs, key=lambda run: run.stolen_share)
        best.tries = len(runs)
        return best

    def _agent(self) -> Client:
        assert self.site is not None
        return Client(self.site.lab.machine("backup").path("/run/holdfast/agent.sock"))

    def _frames(self) -> int:
        """Records in the log so far."""
        return int(self._agent().get("/status")["log"]["last"]) if "holdfast" in self.systems else 0

    def _lags(self, agent: Client) -> tuple[float, float]:
        view = next(view for view in agent.get("/status")["machines"] if view["name"] == "backup")
        return view["lag_ms_p50"], view["lag_ms_p99"]

    def idle_cpu(self, seconds: float) -> float:
        """What the agents and log servers take while nothing is delivered, in processors."""
        time.sleep(QUIET_SECONDS)
        before = self.systems["holdfast"].cpu()
        time.sleep(seconds)
        spent = _since(before, self.systems["holdfast"].cpu())
        return sum(spent.values()) / seconds


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {name: seconds - before.get(name, 0.0) for name, seconds in now.items()}


def _lab(name: str, machines: list[str], accounts: int, disks: str) -> Lab:
    Lab.down(name)
    specs = tuple(MachineSpec.parse(text) for text in machines)
    targets = {spec.name: str(store.DISKS_ON_DISK) for spec in specs if spec.name in TARGETS and disks == "own"}
    most = str(store.DISKS_ON_DISK if disks == "shared" else store.DISKS_IN_MEMORY)
    return Lab.up(
        LabSpec(
            name=name,
            machines=specs,
            accounts=accounts,
            seed=name,
            disk_bytes=DISK_BYTES,
            disks=most,
            disks_of=targets,
        )
    )


def _note_lags(run: Run, arrivals: Arrivals, acknowledged: Path, warm_seconds: float) -> None:
    seen = arrivals.by_message()
    lines = [line.split() for line in acknowledged.read_text().splitlines()]
    from_ns = min(int(begun) for _, begun, _ in lines) + int(warm_seconds * 1e9)
    for message, begun, answered in lines:
        if int(begun) < from_ns:
            continue
        at_ns = seen.get(message)
        if at_ns is None:
            run.missing += 1
        else:
            run.seen_ms.append((at_ns - int(answered)) / 1e6)
    run.seen_ms.sort()


# -- what came of it ---------------------------------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(mean([math.log(value) for value in values]))


def of_system(runs: Sequence[Run], system: str) -> dict[str, Any]:
    """The figures of one system in one case: means over its runs, percentiles over all their messages."""
    own = [run for run in runs if run.system == system]
    seen = sorted(ms for run in own for ms in run.seen_ms)
    figures: dict[str, Any] = {
        "messages_per_second": round(mean([run.rate for run in own]), 1),
        "messages_per_second_on_both": round(mean([run.rate_on_both for run in own]), 1),
        "runs": [round(run.rate, 1) for run in own],
        "latency_ms_p50": round(mean([run.load.latency_ms_p50 for run in own]), 2),
        "latency_ms_p99": round(mean([run.load.latency_ms_p99 for run in own]), 2),
        "bytes_per_message": round(mean([run.load.bytes / max(run.load.messages, 1) for run in own])),
        "busy_share": round(mean([run.busy_share for run in own]), 2),
        "other_cpu_share": round(mean([run.other_cpu_share for run in own]), 2),
        "stolen_share": [round(run.stolen_share, 3) for run in own],
        "tries": sum(run.tries for run in own),
        "cpu_us_per_message": cpu_by_program(own),
    }
    if seen:
        figures |= {
            "seen_ms_p50": round(percentile(seen, 50), 1),
            "seen_ms_p99": round(percentile(seen, 99), 1),
            "seen_ms_max": round(seen[-1], 1),
            "missing": sum(run.missing for run in own),
            "drain_seconds": [round(run.drain_seconds, 2) for run in own],
        }
    if system == "holdfast":
        figures |= {
            "lag_ms_p50": round(mean([run.captured_ms_p50 or 0.0 for run in own]), 1),
            "lag_ms_p99": round(max(run.captured_ms_p99 or 0.0 for run in own), 1),
            "messages_per_frame": round(
                sum(r.load.accepted_total for r in own) / max(sum(r.frames for r in own), 1), 1
            ),
        }
    return figures


def cpu_by_program(runs: Sequence[Run]) -> dict[str, int]:
    names = sorted({name for run in runs for name in run.cpu_us})
    return {name: round(mean([run.cpu_us.get(name, 0.0) for run in runs])) for name in names}


def report(runs: dict[str, list[Run]], systems: Sequence[str]) -> dict[str, Any]:
    """Everything measured, and the keys the promises are about (each the worst case's)."""
    cases = {case: {system: of_system(of, system) for system in systems} for case, of in runs.items()}
    made: dict[str, Any] = {"cases": cases}
    if "holdfast" not in systems:
        return made
    holdfast = [of["holdfast"] for of in cases.values()]
    made |= {
        "lag_ms_p50": max(of["lag_ms_p50"] for of in holdfast),
        "lag_ms_p99": max(of["lag_ms_p99"] for of in holdfast),
        "seen_ms_p99": max(of["seen_ms_p99"] for of in holdfast),
        "missing": sum(of["missing"] for of in holdfast),
        "cpu_us_per_message": {
            name: value
            for name, value in cpu_by_program([r for of in runs.values() for r in of if r.system == "holdfast"]).items()
            if not name.endswith(" mail")
        },
    }
    if "bare" in systems:
        ratios = {case: ratio(of, "bare") for case, of in cases.items()}
        made |= {"ratio_to_bare": min(ratios.values()), "ratio_to_bare_by_case": ratios,
                 "ratio_to_bare_mean": round(geometric_mean(list(ratios.values())), 3)}  # fmt: skip
    if "dsync" in systems:
        ratios = {case: ratio(of, "dsync") for case, of in cases.items()}
        made |= {"ratio_to_dsync": min(ratios.values()), "ratio_to_dsync_by_case": ratios}
        made["dsync_lag_ms_p99"] = min(of["dsync"]["seen_ms_p99"] for of in cases.values())
        made["lag_times_lower"] = min(
            round(of["dsync"]["seen_ms_p99"] / max(of["holdfast"]["seen_ms_p99"], 0.1), 1) for of in cases.values()
        )
    return made


def ratio(case: dict[str, Any], other: str) -> float:
    key = "messages_per_second" if other == "bare" else "messages_per_second_on_both"
    holdfast, peer = (float(case[system][key]) for system in ("holdfast", other))
    return round(holdfast / peer, 3)


class Verdict(NamedTuple):
    what: str
    promised: str
    measured: str
    kept: bool


def verdicts(made: dict[str, Any]) -> list[Verdict]:
    """The promises that what was measured says something about."""
    found: list[Verdict] = []

    def check(key: str, what: str, promised: str, limit: float, *, at_least: bool) -> None:
        if key in made:
            value = made[key]
            kept = value >= limit if at_least else value <= limit
            found.append(Verdict(what, promised, f"{value:g}", kept))

    check("ratio_to_bare", "throughput, of bare Dovecot's", f">= {RATIO_TO_BARE_MIN} (aim {RATIO_TO_BARE_AIM})",
          RATIO_TO_BARE_MIN, at_least=True)  # fmt: skip
    check("ratio_to_dsync", "throughput to both machines, of the replicator's", f">= {RATIO_TO_DSYNC_MIN:g}",
          RATIO_TO_DSYNC_MIN, at_least=True)  # fmt: skip
    check("lag_ms_p99", "captured to applied, p99, ms", f"<= {LAG_MS_P99_MAX:g}", LAG_MS_P99_MAX, at_least=False)
    check("lag_times_lower", "lag p99, times lower than the replicator's", f">= {LAG_TIMES_LOWER_MIN:g}",
          LAG_TIMES_LOWER_MIN, at_least=True)  # fmt: skip
    check("missing", "acknowledged, not on the standby afterwards", "0", 0, at_least=False)
    return found


def show(console: Console, made: dict[str, Any], kept: list[Verdict]) -> None:
    table = Table(title="LMTP deliveries (means of all runs)")
    headings = ("messages/s", "on both", "ms p50", "ms p99", "behind ms p50", "p99", "CPU us/message", "busy", "others")
    for heading in ("case", "system"):
        table.add_column(heading, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", min_width=4)
    for case, systems in made["cases"].items():
        for system, of in systems.items():
            table.add_row(
                case,
                system,
                f"{of['messages_per_second']:.0f}",
                f"{of['messages_per_second_on_both']:.0f}" if "seen_ms_p50" in of else "-",
                f"{of['latency_ms_p50']:.1f}",
                f"{of['latency_ms_p99']:.1f}",
                f"{of['seen_ms_p50']:.0f}" if "seen_ms_p50" in of else "-",
                f"{of['seen_ms_p99']:.0f}" if "seen_ms_p99" in of else "-",
                str(sum(of["cpu_us_per_message"].values())),
                f"{of['busy_share']:.0%}",
                f"{of['other_cpu_share']:.0%}",
            )
        table.add_section()
    console.print(table)
    if "cpu_us_per_message" in made:
        parts = ", ".join(f"{name} {value}" for name, value in made["cpu_us_per_message"].items())
        console.print(f"Holdfast's CPU a message, us: {parts}. While idle: {made['idle_cpu']:.1%} of a processor.")
    promises = Table(title="Promised and measured (worst case)")
    for heading in ("", "promised", "measured", ""):
        promises.add_column(heading)
    for verdict in kept:
        promises.add_row(*verdict[:3], "[green]kept[/]" if verdict.kept else "[red]NOT kept[/]")
    console.print(promises)


@contextmanager
def _labs(bench: Bench, *, keep: bool) -> Iterator[None]:
    try:
        bench.up()
        yield
    finally:
        if not keep:
            bench.down()


def main() -> int:
    """Measure, print, write the file. The exit status."""
    parser = argparse.ArgumentParser(prog="bench/delivery.py", description="Deliveries: bare, replicator, Holdfast.")
    parser.add_argument("--quick", action="store_true", help="one case (4 KB, 8 connections), about a minute")
    parser.add_argument("--seconds", type=float, default=6.0, help="of one load, after its warm-up")
    parser.add_argument("--warm-seconds", type=float, default=1.5)
    parser.add_argument("--repeat", type=int, default=1, help="how often the order a b c c b a is gone through")
    parser.add_argument("--tries", type=int, default=2, help="of a load, while other machines take the processors")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--system", action="append", choices=SYSTEMS)
    parser.add_argument("--accounts", type=int, default=ACCOUNTS, help="that the mail goes to, in turn")
    parser.add_argument(
        "--disks", choices=DISKS, default=DISKS[0], help="own: the machine that mail goes to has the disk"
    )
    parser.add_argument("--lab", default="bench")
    parser.add_argument("--keep", action="store_true", help="leave the labs up")
    parser.add_argument("--more", default="", help="lines for Holdfast's configuration")
    wanted = parser.parse_args()
    systems = [system for system in SYSTEMS if not wanted.system or system in wanted.system]
    chosen = wanted.case or (["4k-8"] if wanted.quick else [case.name for case in CASES])
    cases = [case for case in CASES if case.name in chosen]
    console = Console()
    bench = Bench(wanted.lab, systems, wanted.more, wanted.accounts, wanted.disks)
    began = time.monotonic()
    runs: dict[str, list[Run]] = {}
    with _labs(bench, keep=wanted.keep):
        console.print(f"labs are up after {time.monotonic() - began:.0f} s")
        idle = bench.idle_cpu(2.0) if "holdfast" in systems else 0.0
        for case in cases:
            for name in (name for name in ORDER * wanted.repeat if name in systems):
                system = bench.systems[name]
                run = bench.run_undisturbed(case, system, wanted.seconds, wanted.warm_seconds, wanted.tries)
                runs.setdefault(case.name, []).append(run)
                others = f"others {run.other_cpu_share:.0%}  stolen {run.stolen_share:.0%}, try {run.tries}"
                console.print(f"{case.name:8} {name:9} {run.rate:6.0f}/s  {others}")
    made = report(runs, systems) | {"idle_cpu": round(idle, 3), "seconds": round(time.monotonic() - began)}
    made |= {"accounts": wanted.accounts, "disks": wanted.disks}
    kept = verdicts(made)
    made["kept"] = all(verdict.kept for verdict in kept)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(made, indent=2) + "\n")
    show(console, made, kept)
    console.print(f"{OUT} ({time.monotonic() - began:.0f} s)")
    return 0 if made["kept"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HoldfastError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_status)
