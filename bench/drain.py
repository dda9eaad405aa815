"""Handing on what a relay has held, beside the same queue straight into Dovecot.

``straight``: the relay's Postfix into the primary's Dovecot by LMTP, past all gates, all of it released at once.
``relayed``: `holdfast relay drain`: through the primary's LMTP gate into Dovecot (``relay.straight_port``), or, with
``--by-smtp``, before that through the primary's Postfix, whose milter keeps a shadow; counted until nothing is in any
queue and no shadow is left on the primary. On one lab, one after the other, the same number
of messages each. Run as ``make bench-drain``; writes ``build/bench/drain.json``; exit status 1 when the promise is not
kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.delivery import POOL_SEED
from bench.gate import ACCOUNTS, CONFIGURATION, DISK_BYTES, GATE_PORT, MACHINES
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabSpec, MachineSpec
from holdfast.drill.site import ProtectedLab
from holdfast.drill.workload.lmtp import LoadResult

OUT: Final = Path("build/bench/drain.json")
LAB: Final = "bench-drain"
RELAY: Final = "relay"
RATIO_MIN: Final = 0.8
STRAIGHT_PORT: Final = 2425
QUEUES: Final = ("maildrop", "incoming", "active", "deferred", "hold")
EMPTY_SECONDS_MAX: Final = 1200.0
POLL_SECONDS: Final = 0.1


def _files(machine: Machine, *folders: str) -> int:
    found = 0
    for folder in folders:
        found += sum(path.is_file() for path in machine.path(folder).rglob("*") if ".holdfast" not in path.parts)
    return found


def _queued(machine: Machine) -> int:
    return _files(machine, *(f"/var/spool/postfix/{name}" for name in QUEUES))


def _until_empty(site: ProtectedLab) -> None:
    main, relay = site.lab.machine("main"), site.lab.machine(RELAY)
    deadline = time.monotonic() + EMPTY_SECONDS_MAX
    while _queued(relay) or _queued(main) or _files(main, "/var/lib/holdfast/shadows"):
        if time.monotonic() > deadline:
            raise SystemExit("the queues did not become empty")
        time.sleep(POLL_SECONDS)


def _status(site: ProtectedLab) -> dict[str, Any]:
    done = site.lab.machine(RELAY).run(["holdfast", "relay", "status", "--json"], check=False)
    told: dict[str, Any] = json.loads(done.stdout or '{"list": {"at": 0}}')
    return told


def wait_ready(site: ProtectedLab) -> None:
    """The relay has its list."""
    deadline = time.monotonic() + 60.0
    while not _status(site)["list"]["at"]:
        if time.monotonic() > deadline:
            raise SystemExit("the relay got no list of recipients")
        time.sleep(POLL_SECONDS)


def fill(site: ProtectedLab, messages: int, seed: int) -> None:
    """So many on hold at the relay."""
    relay = site.lab.machine(RELAY)
    relay.run(["holdfast", "relay", "hold", "--why", "a benchmark"])
    argv = [sys.executable, "-m", "holdfast.drill.workload.lmtp", "--port", "25", "--data", "--smtp"]
    argv += ["--connections", "20", "--messages", str(messages), "--seed", str(seed), "--pool-seed", str(POOL_SEED)]
    for account in site.lab.accounts:
        argv += ["--to", account.address]
    with relay.network():
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    result = msgspec.json.decode(done.stdout, type=LoadResult)
    held = _status(site)["waiting"]["on_hold"]
    if result.failed or held != messages:
        raise SystemExit(f"{held} of {messages} are on hold; {result.failed} failed: {result.first_error}")


def straight(site: ProtectedLab, messages: int, seed: int) -> float:
    """Messages a second."""
    relay = site.lab.machine(RELAY)
    usual = [relay.run(["postconf", name]).stdout.strip() for name in ("relay_transport", "transport_maps")]
    fill(site, messages, seed)
    relay.path("/var/lib/holdfast/relay/hold.json").unlink()
    past = f"relay_transport = lmtp:inet:[{site.lab.machine('main').state.ipv4}]:24"
    relay.run(["postconf", "-e", past, "transport_maps ="])
    relay.run(["postfix", "reload"])
    began = time.monotonic()
    relay.run(["postsuper", "-H", "ALL"])
    relay.run(["postqueue", "-f"])
    _until_empty(site)
    took = time.monotonic() - began
    relay.run(["postconf", "-e", *usual])
    relay.run(["postfix", "reload"])
    return messages / took


def relayed(site: ProtectedLab, messages: int, seed: int) -> float:
    """Messages a second."""
    fill(site, messages, seed)
    began = time.monotonic()
    site.lab.machine(RELAY).run(["holdfast", "relay", "drain"], timeout=EMPTY_SECONDS_MAX)
    _until_empty(site)
    return messages / (time.monotonic() - began)


def up(straight_port: int = STRAIGHT_PORT) -> ProtectedLab:
    Lab.down(LAB)
    specs = tuple(MachineSpec.parse(text) for text in MACHINES)
    site = ProtectedLab(Lab.up(LabSpec(name=LAB, machines=specs, accounts=ACCOUNTS, seed=LAB, disk_bytes=DISK_BYTES)))
    mail = mailhost.MailSettings(
        services=("dovecot", "postfix"),
        plaintext=True,
        deliver_to=f"inet:[127.0.0.1]:{GATE_PORT}",
        milter="unix:private/holdfast-milter",
    )
    site.protect(mail, more_configuration=CONFIGURATION, relays={RELAY: "front"}, straight_port=straight_port)
    site.wait_settled()
    wait_ready(site)
    return site


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--by-smtp", action="store_true", help="by the usual way, without relay.straight_port")
    options = parser.parse_args()
    site = up(0 if options.by_smtp else STRAIGHT_PORT)
    try:
        made = {
            "messages": options.messages,
            "straight_per_second": straight(site, options.messages, 101),
            "relayed_per_second": relayed(site, options.messages, 102),
        }
    finally:
        Lab.down(LAB)
    made["drain_ratio"] = made["relayed_per_second"] / made["straight_per_second"]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(made, indent=2) + "\n")
    for key, value in made.items():
        print(f"{key}: {value:.2f}")
    kept = made["drain_ratio"] >= RATIO_MIN
    print(f"{'kept' if kept else 'NOT KEPT'}: a drain >= {RATIO_MIN} of Postfix straight into Dovecot")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
