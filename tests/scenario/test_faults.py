"""Faults on real machines under a light load: nothing acknowledged is lost, the standby is never silently different.

Faults of the log alone (damaged, away, full, trimmed), clocks and promotions elsewhere: tests/node/test_two_nodes.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from holdfast.drill.checkers.facts import Outcome, Probe, Protocol, Result
from holdfast.drill.checkers.in_time import longest_outage
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.workload.plan import Meter, Plan
from holdfast.errors import ExitStatus
from holdfast.node.enrol import initial_configuration

from .site import Load, Site, protected_site

pytestmark = pytest.mark.system

AGENTS: Final = ("main", "backup", "relay")
KILLS: Final = 4
"""The lab's supervisor gives a unit up that starts five times within ten seconds, as systemd does."""
START_SECONDS_MAX: Final = 3.0
"""A starting agent is killed somewhere in its first seconds: it takes about two to be back in its role."""
OUTAGE_SECONDS_MAX: Final = 30.0
"""A death costs the seconds an agent needs to come back (printed), two in a row twice that; machines may be shared."""
SEED_VARIABLE: Final = "HOLDFAST_FAULTS_SEED"
BLOCK_BYTES: Final = 4096


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with protected_site("maildir") as made:
        yield made


def chance() -> random.Random:
    """Random moments; the seed is printed, and the environment may give it."""
    seed = os.environ.get(SEED_VARIABLE) or str(secrets.randbelow(10**9))
    print(f"\n{SEED_VARIABLE}={seed}")
    return random.Random(seed)


def light(site: Site, *accounts: int, seed: int, operations: int = 5000) -> Plan:
    """Some twenty operations a second on *accounts* until it is stopped. Each test takes accounts and a seed of its
    own: what it is judged by is what its own clients did."""
    plan = site.plan(messages=5000, operations=operations, rate=10.0, seed=seed)
    return msgspec.structs.replace(
        plan,
        accounts=tuple(site.accounts[number] for number in accounts),
        mailboxes=msgspec.structs.replace(plan.mailboxes, pause_seconds=0.1),
        groupware=msgspec.structs.replace(plan.groupware, pause_seconds=0.1),
    )


def assert_nothing_lost(site: Site, load: Load) -> None:
    """What clients were told is what they find, and what the standby holds; by one writer's records."""
    load.stop()
    _, verdict = site.judge(load.records(), seconds_max=15.0)
    lost = {message.message_id for message in verdict.lost}
    assert lost <= (site.queue_of("main") if lost else set()), "neither in a mailbox nor in the queue"
    assert [str(difference) for difference in verdict.state_differences] == []
    site.verify_clean()
    wrote = {(record["writer"], record["epoch"]) for record in site.records("backup")}
    assert wrote == {("main", site.status("main")["epoch"])}


# -- agents that die ---------------------------------------------------------------------------------------------------


def kill_agent(site: Site, machine: str) -> int:
    """SIGKILL; how often its unit had been started then."""
    unit = site.machine(machine).unit("holdfast")
    assert unit.pid is not None, unit
    site.machine(machine).run(["kill", "-KILL", str(unit.pid)])
    return unit.starts


def wait_restarted(site: Site, machine: str, starts: int) -> None:
    def again() -> bool:
        unit = site.machine(machine).unit("holdfast")
        return unit.starts > starts and unit.pid is not None

    wait_until(again, 60, f"the unit to start {machine}'s agent again", 0.05)


def kill_at_random(site: Site, machine: str, load: Load, role: str) -> None:
    """Several deaths: at work, and while it starts; afterwards it is in its role again."""
    moments = chance()
    for number in range(KILLS):
        if number % 2 == 0:
            site.protected.wait_role(machine, role)
            load.wait_acknowledged(moments.randint(1, 30))
        else:
            time.sleep(moments.uniform(0.0, START_SECONDS_MAX))  # the moment of the fault, not a wait for anything
        wait_restarted(site, machine, kill_agent(site, machine))
    site.protected.wait_role(machine, role)
    load.wait_acknowledged(20)


def wait_served(load: Load, since_mono_ns: int) -> None:
    """Until logging in and handing a message in have each succeeded since then."""

    def good() -> set[Protocol]:
        records = load.records()
        return {r.protocol for r in records if isinstance(r, Probe) and r.good and r.mono_ns >= since_mono_ns}

    wait_until(lambda: good() >= {Protocol.IMAP, Protocol.SMTP}, 60, "service", 0.1)


def test_a_primary_whose_agent_is_killed_again_and_again_serves_again_and_loses_nothing(
    site: Site, tmp_path: Path
) -> None:
    """By design each death is an outage: the unit's on_exit (``ExecStopPost`` of the systemd unit, `holdfast release`)
    gives the address back and stops the mail software at once, also when the agent is restarted right after, because
    without an agent nobody here would learn of another machine's promotion. The agent that comes back serves again, in
    the same epoch."""
    epoch = site.status("main")["epoch"]
    plan = msgspec.structs.replace(light(site, 0, 1, seed=11), meter=Meter(site.probe, every_seconds=0.2))
    with site.load(plan, tmp_path / "journal") as load:
        load.wait_acknowledged(20)
        kill_at_random(site, "main", load, "primary")
        wait_served(load, time.monotonic_ns())  # Postfix is back later than Dovecot
        assert_nothing_lost(site, load)
        probes = [record for record in load.records() if isinstance(record, Probe)]
    for protocol in (Protocol.IMAP, Protocol.SMTP):
        outage = longest_outage(probes, protocol)
        assert outage is not None, "release stopped the service"
        print(f"{protocol.value}: longest outage {outage.seconds:.1f} s")
        assert outage.seconds <= OUTAGE_SECONDS_MAX
    assert site.primary == "main"
    assert site.status("main")["epoch"] == epoch


def test_a_standby_whose_agent_is_killed_again_and_again_is_equal_afterwards(site: Site, tmp_path: Path) -> None:
    with site.load(light(site, 2, seed=12), tmp_path / "journal") as load:
        load.wait_acknowledged(20)
        kill_at_random(site, "backup", load, "standby")
        assert_nothing_lost(site, load)


# -- log servers that die ----------------------------------------------------------------------------------------------


def log_server(site: Site, machine: str) -> str:
    """Its process number there; empty while there is none."""
    return site.machine(machine).run(["pidof", "nats-server"], check=False).stdout.strip()


def kill_log_servers(site: Site, *machines: str) -> None:
    """All at once; on return their agents have started them again."""
    before = {machine: log_server(site, machine) for machine in machines}
    assert all(before.values()), before
    for machine, number in before.items():
        site.machine(machine).run(["kill", "-KILL", number])
    for machine, number in before.items():
        wait_until(lambda: log_server(site, machine) not in ("", number), 30, f"{machine}'s log server", 0.1)  # noqa: B023


def test_log_servers_that_are_killed_one_by_one_and_all_at_once_lose_no_record(site: Site, tmp_path: Path) -> None:
    agents = {machine: site.machine(machine).unit("holdfast").pid for machine in AGENTS}
    known: dict[int, object] = {}
    with site.load(light(site, 3, seed=13), tmp_path / "journal") as load:
        load.wait_acknowledged(20)
        for machines in (("main",), ("backup",), ("relay",), AGENTS):
            known |= {record["sequence"]: record for record in site.records("main", 100)}
            kill_log_servers(site, *machines)
            load.wait_acknowledged(10)  # mail does not wait for the log
            site.protected.barrier("main")
        held = {record["sequence"]: record for record in site.records("main")}
        assert known
        assert known.items() <= held.items(), "records that were acknowledged before"
        assert_nothing_lost(site, load)
    assert {machine: site.machine(machine).unit("holdfast").pid for machine in AGENTS} == agents, "agents went on"


# -- disks that are full -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(site: Site, machine: str) -> Iterator[None]:
    """No block is left on its disk, inside; the file that takes them all lies outside every tree."""
    filler = site.machine(machine).path("/srv/filler")
    with filler.open("wb") as file:
        fill(file.fileno())
        try:
            yield
        finally:
            os.ftruncate(file.fileno(), 0)
            filler.unlink()


def fill(fd: int) -> None:
    """Allocate the last block, without writing any."""
    size, chunk = 0, 1 << 30
    while chunk >= BLOCK_BYTES:
        try:
            os.posix_fallocate(fd, size, chunk)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size = max(size, os.fstat(fd).st_size)
            chunk //= 2
        else:
            size += chunk


def refused(load: Load) -> int:
    return sum(isinstance(record, Outcome) and record.result is Result.REFUSED for record in load.records())


def warns_of_the_full_disk(site: Site, machine: str, *, stands_still: bool = False) -> bool:
    """That it is full and what to do; and what stands still for it, where something must."""
    warned = site.warnings(machine)
    stands = not stands_still or "No space left" in warned or "cannot be written" in warned
    return "100 % full" in warned and stands and "ree space" in warned


def test_a_standby_whose_disk_was_full_says_what_to_do_and_is_equal_when_there_is_room(
    site: Site, tmp_path: Path
) -> None:
    starts = site.machine("backup").unit("holdfast").starts
    was_behind = "ms behind" in site.warnings("backup")  # for an election, in another test
    with site.load(light(site, 0, 1, seed=14, operations=0), tmp_path / "journal") as load:
        load.wait_acknowledged(10)
        with full_disk(site, "backup"):
            wait_until(
                lambda: warns_of_the_full_disk(site, "backup", stands_still=True), 30, "a warning on backup", 0.2
            )
            wait_until(lambda: "backup" in site.warnings("main"), 30, "the primary to say so too", 0.2)
            load.wait_acknowledged(30)  # mail goes on
            assert site.holdfast("backup", "status").returncode == ExitStatus.DIFFERENCES
        site.protected.wait_role("backup", "standby")
        load.wait_acknowledged(10)
        assert_nothing_lost(site, load)
    assert site.machine("backup").unit("holdfast").starts == starts, "its agent went on"
    assert not warns_of_the_full_disk(site, "backup")
    assert was_behind or "ms behind" not in site.warnings("backup"), "having caught up it is not behind any more"


def test_a_primary_whose_disk_was_full_says_what_to_do_and_nothing_acknowledged_is_lost(
    site: Site, tmp_path: Path
) -> None:
    """The mail software refuses mail for the time being, as it does on any full disk; the agent goes on."""
    starts = site.machine("main").unit("holdfast").starts
    with site.load(light(site, 0, 1, seed=15, operations=0), tmp_path / "journal") as load:
        load.wait_acknowledged(10)
        with full_disk(site, "main"):
            names = "$(seq 1 2000)"  # names need no block in the tree, and some in its index
            site.machine("main").run(["sh", "-c", f"for n in {names}; do : >/var/vmail/name-$n; done"], check=False)
            wait_until(lambda: warns_of_the_full_disk(site, "main"), 30, "a warning on main", 0.2)
            wait_until(lambda: refused(load) > 3, 30, "mail to be refused", 0.1)
        site.protected.wait_role("main", "primary")
        load.wait_acknowledged(10)
        assert_nothing_lost(site, load)
    assert site.machine("main").unit("holdfast").starts == starts, "its agent went on"
    assert not warns_of_the_full_disk(site, "main")


# -- people's mistakes -------------------------------------------------------------------------------------------------


def test_a_second_agent_on_a_machine_refuses_and_the_first_goes_on(site: Site) -> None:
    first = site.machine("main").unit("holdfast")
    second = site.holdfast("main", "agent", timeout=30)
    assert second.returncode == ExitStatus.REFUSED, second.stderr
    assert f"another agent runs on this machine (process {first.pid})" in second.stderr
    assert "Stop it first" in second.stderr
    assert site.machine("main").unit("holdfast") == first
    site.settle()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('site = "example"', 'site = "example"\nsiet = "x"'), ("siet", "unknown")),
        (("retention_hours = 72 ", 'retention_hours = "long" '), ("log.retention_hours", "float", "str")),
    ],
)
def test_an_agent_with_a_wrong_configuration_names_file_key_and_what_was_expected(
    tmp_path: Path, change: tuple[str, str], named: tuple[str, ...]
) -> None:
    good = initial_configuration(
        site="example",
        machine="main",
        machines={"main": ("mail", "192.0.2.11")},
        service_addresses=("192.0.2.10/24",),
        interface="eth0",
    )
    assert change[0] in good
    file = tmp_path / "holdfast.toml"
    file.write_text(good.replace(*change))
    command = [str(Path(sys.executable).with_name("holdfast")), "agent", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == ExitStatus.CONFIGURATION
    for words in (str(file), *named, "docs/reference/configuration.md"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
