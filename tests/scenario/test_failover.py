"""Automatic failover on real machines: the primary dies, freezes, is cut off; others die; nobody gives an order."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from holdfast.drill.checkers.facts import Appended
from holdfast.drill.checkers.in_time import outage_since
from holdfast.drill.checkers.one_writer import one_writer
from holdfast.drill.lab.tools import wait_until
from holdfast.drill.workload.plan import Meter, Plan
from holdfast.node import netlink
from holdfast.node.watchman import ADDRESS_SECONDS_MAX, OVERLAP_SECONDS_MAX

from .site import SERVED, Site, probes, protected_site, wait_served

pytestmark = pytest.mark.system

OUTAGE_SECONDS_MAX = 30.0
"""The promise is 5 s on machines of their own (`make drill-failover`); this one may be shared with other tests."""
NOTICE_SECONDS = 30.0


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with protected_site("maildir", failover="automatic") as made:
        yield made


@pytest.fixture(autouse=True)
def whole(site: Site) -> None:
    """Main serves, backup follows, and the relay leads the log."""
    site.make_main_primary()
    wait_serving(site, "main")
    site.protected.wait_for("backup", lambda facts: bool(facts["log"]["leader"] == "relay"), "led by the relay")


def addresses_of(site: Site, machine: str) -> bool:
    """Whether its kernel has the service address; asked without any of its programs."""
    with site.machine(machine).network():
        return any(str(there.ip) == site.lab.state.service_ipv4 for there in netlink.addresses("eth0"))


def wait_serving(site: Site, machine: str) -> None:
    site.protected.wait_for(machine, lambda facts: facts["role"] == "primary" and facts["serving"], "serving")


@contextmanager
def holders_seen(site: Site) -> Iterator[list[float]]:
    """For how long both machines' kernels had the service address at once; filled when the block is left."""
    both: list[float] = []
    stop = threading.Event()

    def look() -> None:
        last = time.monotonic()
        seconds = 0.0
        while not stop.wait(0.02):
            now = time.monotonic()
            on = [m for m in ("main", "backup") if site.machine(m).running]
            if len(on) == 2 and all(addresses_of(site, m) for m in on):
                seconds += now - last
            last = now
        both.append(seconds)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield both
    finally:
        stop.set()
        thread.join()


_seeds = itertools.count(100)
"""One for every load: all of them go to the same mailboxes, and a message is known by its seed and number."""


def metered(site: Site, load: float = 10.0) -> Plan:
    plan = site.plan(messages=5000, operations=0, rate=load, seed=next(_seeds))
    print(f"\nseed of the load: {plan.seed}")
    return msgspec.structs.replace(plan, meter=Meter(site.probe, every_seconds=0.1))


def said(site: Site, machine: str) -> str:
    return "\n".join(f"{event['what']}: {event.get('why', '')}" for event in site.history(machine))


def cause(site: Site, machine: str) -> str:
    """What `holdfast why` says there that the last event came from."""
    story = site.protected.ask(machine, "/why")
    return f"{story['headline']}\n{story['cause']}"


def assert_one_writer(site: Site, machine: str) -> None:
    appends = [
        Appended(record["sequence"], record["epoch"], record["writer"], promotion=record["kind"] == "promotion")
        for record in site.records(machine)
    ]
    assert one_writer(appends) == []


def test_a_primary_killed_under_load_is_replaced_by_itself_and_comes_back_as_standby(
    site: Site, tmp_path: Path
) -> None:
    before = site.work(site.plan(messages=30, operations=0, seed=2), tmp_path / "before")
    site.judge(before)
    site.settle()
    with site.load(metered(site), tmp_path / "journal") as load:
        load.wait_acknowledged(20)
        killed = time.monotonic_ns()
        site.machine("main").kill()
        wait_served(load, time.monotonic_ns())
        outages = [outage_since(probes(load, killed), protocol, killed) for protocol in SERVED]
        print("\nfrom the kill to the first: " + ", ".join(f"{o.protocol.value} {o.seconds:.2f} s" for o in outages))
        assert max(outage.seconds for outage in outages) <= OUTAGE_SECONDS_MAX
    assert site.primary_of("backup") == "backup"
    assert "confirmed by votes: relay miss" in said(site, "backup")
    site.machine("main").start()
    site.protected.wait_role("main", "standby")
    assert "rejoins by itself" in said(site, "main")
    assert "The machine main died" in cause(site, "main")
    _, verdict = site.judge(before)
    assert verdict.lost == []
    assert verdict.duplicates == []
    site.verify_clean()
    assert_one_writer(site, "backup")


LONE = "Message-ID: <{name}@only-on-main.test>\\nSubject: {name}\\n\\nonly here\\n"


def put_message(site: Site, machine: str, name: str, account: int = 1) -> str:
    """A message in the mailbox of *account* on *machine*, as a delivery leaves it; the Message-ID."""
    user, _, domain = site.accounts[account].name.partition("@")
    box = f"/var/vmail/{domain}/{user}/Maildir"
    text = LONE.format(name=name)
    file = f"1795384035.M1P1.{name},S={len(text.replace(chr(92) + 'n', 'n'))}"
    script = (
        f"printf '{text}' > {box}/tmp/{file} && chown vmail:vmail {box}/tmp/{file} && mv {box}/tmp/{file} {box}/new/"
    )
    site.machine(machine).run(["sh", "-c", script])
    return f"{name}@only-on-main.test"


def test_messages_and_flags_that_only_the_old_primary_has_are_merged_once_and_can_be_undone(
    site: Site, tmp_path: Path
) -> None:
    site.work(site.plan(messages=10, operations=0, seed=9), tmp_path / "before")
    site.machine("main").run(["doveadm", "mailbox", "status", "-u", site.accounts[1].name, "messages", "INBOX"])
    for name in ("here", "both", "gone"):
        put_message(site, "main", name)
        mark(site, "main", "add", "\\Answered", name)
    site.settle()
    site.lab.cut("main")
    wait_until(lambda: not addresses_of(site, "main"), 10, "main to give the address back", 0.02)
    lone, twice = put_message(site, "main", "lone"), put_message(site, "main", "twice")
    relabel(site, "main", "here", "FR")  # what a session that had not ended yet did there
    relabel(site, "main", "both", "FRS")
    relabel(site, "main", "gone", "FR")
    wait_serving(site, "backup")
    put_message(site, "backup", "twice")  # its sender has sent it again
    mark(site, "backup", "add", "\\Seen", "both")
    mark(site, "backup", "remove", "\\Answered", "both")
    site.machine("backup").run(["doveadm", "expunge", "-u", site.accounts[1].name, *searched("gone")])
    site.lab.heal()
    site.protected.wait_role("main", "standby")
    plan = site.protected.order("main", "merge", "--dry-run")
    assert {each["outcome"] for each in plan["messages"]} == {
        *("would be added", "would be merged", "there", "it is not in that folder any more")
    }, plan
    assert count(site, "backup", lone) == 0
    site.protected.order("main", "merge")
    found = [count(site, "backup", name) for name in (lone, twice)]
    assert found == [1, 1], said(site, "main")
    assert flags(site, "backup", "here") == {"\\Answered", "\\Flagged"}
    assert flags(site, "backup", "both") == {"\\Flagged", "\\Seen"}, "each side's own changes, and the one of both"
    (merged,) = [json.loads(path.read_bytes()) for path in merged_files(site)][-1:]
    assert {each["outcome"] for each in merged["messages"]} == {
        *("added", "there", "merged", "it is not in that folder any more")
    }
    assert site.protected.order("main", "merge")["messages"] == [], "once"
    site.verify_clean()
    back = site.protected.order("main", "merge", "--undo")
    assert {each["outcome"] for each in back["messages"]} == {"taken back"}, back
    assert [count(site, "backup", name) for name in (lone, twice)] == [0, 1]
    assert flags(site, "backup", "here") == {"\\Answered"}
    assert flags(site, "backup", "both") == {"\\Seen"}


def searched(name: str) -> list[str]:
    return ["mailbox", "*", "header", "Message-ID", f"{name}@only-on-main.test"]


def mark(site: Site, machine: str, verb: str, flag: str, name: str) -> None:
    """As a client does; on a machine that serves."""
    site.machine(machine).run(["doveadm", "flags", verb, "-u", site.accounts[1].name, flag, *searched(name)])


def relabel(site: Site, machine: str, name: str, letters: str) -> None:
    """A message's flags on *machine*, as its file is called, without a server."""
    user, _, domain = site.accounts[1].name.partition("@")
    (path,) = site.machine(machine).path(f"/var/vmail/{domain}/{user}/Maildir").glob(f"*/*.{name},*")
    path.rename(path.parent.parent / "cur" / f"{path.name.partition(':')[0]}:2,{letters}")


def flags(site: Site, machine: str, name: str) -> set[str]:
    argv = ["doveadm", "-f", "flow", "fetch", "-u", site.accounts[1].name, "flags", *searched(name)]
    return set(site.machine(machine).run(argv).stdout.strip().partition("=")[2].split()) - {"\\Recent"}


def count(site: Site, machine: str, name: str) -> int:
    """How many messages of that Message-ID the account has."""
    argv = ["doveadm", "search", "-u", site.accounts[1].name, "mailbox", "*", "header", "Message-ID", name]
    return len(site.machine(machine).run(argv).stdout.splitlines())


def merged_files(site: Site) -> list[Path]:
    return sorted(site.machine("main").path("/var/lib/holdfast").glob("merged-*.json"))


def test_a_primary_left_alone_stops_and_serves_again_when_it_is_heard(site: Site) -> None:
    """Nobody can replace it, but it cannot know that: it hears nobody."""
    epoch = site.status("main")["epoch"]
    site.machine("backup").kill()
    site.lab.cut("main")
    wait_until(lambda: not addresses_of(site, "main"), 10, "main to give the address back", 0.02)
    site.lab.heal()
    wait_serving(site, "main")
    assert addresses_of(site, "main")
    assert site.status("main")["epoch"] == epoch, "a record of its own was proof enough"
    assert "it serves" in said(site, "main").rpartition("stops serving")[2]


@pytest.mark.parametrize("victim", ["backup", "relay", "nats on main", "nats on backup", "nats on relay"])
def test_who_does_not_serve_may_die_and_no_client_notices(site: Site, tmp_path: Path, victim: str) -> None:
    epoch, stops = site.status("main")["epoch"], said(site, "main").count("stops serving")
    with site.load(metered(site, 5.0), tmp_path / "journal") as load:
        load.wait_acknowledged(10)
        died = time.monotonic_ns()
        if victim.startswith("nats"):
            site.machine(victim.split()[-1]).run(["pkill", "-9", "-x", "nats-server"])
        else:
            site.machine(victim).kill()
            wait_until(lambda: f"{victim} is silent" in site.warnings("main"), NOTICE_SECONDS, "to be missed", 0.1)
        seen = died + 3_000_000_000
        wait_until(lambda: any(p.mono_ns > seen and p.good for p in probes(load, died)), 60, "probes later on", 0.1)
        bad = [each for each in probes(load, died) if not each.good]
    assert bad == []
    facts = site.status("main")
    assert (facts["role"], facts["serving"], facts["epoch"]) == ("primary", True, epoch)
    assert said(site, "main").count("stops serving") == stops


def test_a_frozen_primary_is_replaced_and_thawed_serves_nobody(site: Site) -> None:
    with holders_seen(site) as both:
        site.machine("main").freeze()
        wait_serving(site, "backup")
        wait_until(lambda: not addresses_of(site, "main"), 10, "the kernel to take the address away", 0.05)
        site.machine("main").thaw()
        site.protected.wait_role("main", "standby")
        assert not addresses_of(site, "main")
    assert both[0] <= OVERLAP_SECONDS_MAX, "while it was frozen nobody answered there"
    assert "main was frozen" in cause(site, "backup")
    assert "stops serving" in said(site, "main")
    assert_one_writer(site, "backup")


def test_an_agent_that_hangs_loses_the_address_to_the_kernel(site: Site) -> None:
    main = site.machine("main")
    pid = main.unit("holdfast").pid
    with holders_seen(site) as both:
        main.run(["kill", "-STOP", str(pid)])
        stopped = time.monotonic()
        wait_until(lambda: not addresses_of(site, "main"), 10, "the kernel to take the address away", 0.02)
        assert time.monotonic() - stopped <= ADDRESS_SECONDS_MAX
        wait_serving(site, "backup")
    assert both[0] <= OVERLAP_SECONDS_MAX
    main.run(["kill", "-CONT", str(pid)])
    site.protected.wait_role("main", "standby")


def test_an_agent_killed_alone_leaves_one_that_serves(site: Site) -> None:
    main = site.machine("main")
    with holders_seen(site) as both:
        main.run(["kill", "-9", str(main.unit("holdfast").pid)])
        wait_until(lambda: not addresses_of(site, "main"), 10, "the supervisor to release the address", 0.02)

        def served_by_one() -> bool:
            return addresses_of(site, "main") != addresses_of(site, "backup")

        wait_until(served_by_one, 60, "one machine to serve", 0.1)
    assert both[0] == 0.0
    wait_serving(site, "main" if addresses_of(site, "main") else "backup")


@pytest.mark.parametrize("one_way", [False, True])
def test_a_primary_that_is_not_heard_stops_and_is_replaced(site: Site, *, one_way: bool) -> None:
    """One way: it hears the others all the time, and nothing it sends arrives."""
    with holders_seen(site) as both:
        site.lab.cut("main", one_way=one_way)
        wait_until(lambda: not addresses_of(site, "main"), 10, "main to give the address back", 0.02)
        wait_serving(site, "backup")
        assert not addresses_of(site, "main")
        assert "the one cut off" in said(site, "main")
    assert both[0] == 0.0
    assert "main cannot be asked" in cause(site, "backup")
    site.lab.heal()
    site.protected.wait_role("main", "standby")
    assert "main was cut off from the others" in cause(site, "backup")
    assert_one_writer(site, "backup")


def test_a_cut_between_primary_and_standby_alone_changes_nothing(site: Site) -> None:
    site.lab.cut("main", "backup")
    wait_until(lambda: "main is silent" in site.warnings("backup"), NOTICE_SECONDS, "the cut to be noticed", 0.1)
    wait_until(lambda: "others still hear the primary" in said(site, "backup"), 10, "the decision", 0.1)
    site.lab.heal()
    wait_until(lambda: "main is silent" not in site.warnings("backup"), NOTICE_SECONDS, "to be heard again", 0.1)
    assert addresses_of(site, "main")
    assert site.status("main")["serving"]
    assert site.primary_of("backup") == "main"


def test_while_paused_nobody_takes_over_and_after_it_somebody_does(site: Site) -> None:
    assert site.holdfast("relay", "pause", "--why", "new switch").returncode == 0
    wait_until(lambda: "paused" in site.warnings("backup"), 10, "backup to say so", 0.1)
    relies = "no other machine takes over without a person"  # backup has said that it knows of the pause from main
    wait_until(lambda: relies in site.status("main")["failover"]["reason"], 10, "main to rely on it", 0.1)
    site.lab.cut("main")
    wait_until(lambda: "automatic takeover is paused" in said(site, "backup").rpartition("decided")[2], 20, "it", 0.1)
    assert site.status("main")["serving"], "nobody can replace it, so it serves whoever reaches it"
    assert site.holdfast("backup", "resume").returncode == 4
    site.lab.heal()
    wait_until(lambda: "main is silent" not in site.warnings("backup"), NOTICE_SECONDS, "to be heard again", 0.1)
    assert site.holdfast("backup", "resume").returncode == 0
    site.machine("main").kill()
    wait_serving(site, "backup")
