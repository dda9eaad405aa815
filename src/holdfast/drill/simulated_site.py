"""A site without machines: the real decisions of automatic failover over a simulated network, log and time.

What is real: ``hearing``, ``outlook``, ``watchman``; the order of a takeover's steps and of a primary's stop and return
is that of ``operations`` and ``guard``. What is simulated: messages (late, lost, held back and delivered in a burst,
one way only), a log with a quorum and elections, machines that die, freeze with their agent or as a whole, and come
back, and a clock of each machine's own that begins anywhere and runs up to one per cent fast or slow. There is no wall
clock at all: no decision asks for one.

One seed is one history. Checked all the while: never two machines that answer, beyond the bound of ``watchman``; never
a record of an older epoch behind a newer promotion. At the end everything is mended, and one machine must serve.

``python -m holdfast.drill.simulated_site --seeds 10000`` (in ``make chaos``); a seed that fails says its number, and
``--seed N --tell`` shows its history.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from holdfast.node.beats import BEAT_SECONDS, Beat
from holdfast.node.hearing import Hearing
from holdfast.node.outlook import Rules, Self, confirmed_by, primary_facts, standby_facts, vote
from holdfast.node.roles import Role
from holdfast.node.watchman import (
    ADDRESS_SECONDS,
    ANSWER_SECONDS_MAX,
    OVERLAP_SECONDS_MAX,
    RELEASE_SECONDS_MAX,
    RENEW_SECONDS,
    START_SECONDS,
    TICK_SECONDS,
    Order,
    decide_primary,
    decide_standby,
)

NAMES: Final = ("main", "backup", "relay")
MAIL: Final = ("main", "backup")
DRIFT: Final = 0.01
VOTE_SECONDS: Final = 0.5
ELECTION_SECONDS: Final = (2.0, 6.0)
FAULTS_SECONDS: Final = 40.0
MENDED_SECONDS: Final = START_SECONDS + 25.0
STEADY_SECONDS: Final = 5.0
TAKEOVER_SECONDS_MAX: Final = 4.0
"""From a primary's death to the standby's service, in a network that is well: 2 s, and what the steps need."""


class Broken(AssertionError):
    """A promise did not hold."""


class Entry(NamedTuple):
    writer: str
    epoch: int
    promotion: bool
    token: int


class Log:
    """Linearizable; there is a leader, or an election."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.entries: list[Entry] = []
        self._leader = "relay"
        self._elected_at = -1e9

    def answers(self, machine: str) -> bool:
        """Whether a request of *machine* is carried out now."""
        site = self._site
        if not self._fit(self._leader):
            fit = [name for name in site.machines if self._fit(name)]
            if not fit:
                return False
            self._leader = site.chance.choice(fit)
            self._elected_at = site.now + site.chance.uniform(*ELECTION_SECONDS)
        return site.now >= self._elected_at and site.both_ways(machine, self._leader)

    def _fit(self, name: str) -> bool:
        machines = self._site.machines
        reached = sum(self._site.both_ways(name, other) and machines[other].runs for other in machines)
        return machines[name].runs and 2 * reached > len(machines)

    @property
    def last_promotion(self) -> Entry | None:
        return next((entry for entry in reversed(self.entries) if entry.promotion), None)


class Machine:
    """A machine: its power, its agent, its mail software, and whether the kernel has the address."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = name
        self.on = False
        self.frozen = False
        self.agent = False
        self.agent_frozen = False
        self.address = False
        self.software = False
        self.run = 0
        """Number of the agent's run: what an earlier one has begun does not go on."""
        self.waiting: list[Callable[[], None]] = []
        self.offset = site.chance.uniform(0, 1e6)
        self.rate = 1 + site.chance.uniform(-DRIFT, DRIFT)
        self.renewed = 0.0
        self.thawed_at = -1e9
        self.agent_frozen_at = -1e9
        self.forget()

    def forget(self) -> None:
        """What only a running agent knows."""
        self.role = Role.STARTING
        self.epoch = 0
        self.primary = ""
        self.applied = 0
        self.held = True
        self.proved = False
        self.proving = False
        self.looks = 0
        """At which nobody heard this machine, which did not serve: a proof begun before one is none after it."""
        self.acting = False
        self.rests_until = 0.0
        self.beats: dict[str, Beat] = {}
        others = [name for name in NAMES if name != self.name]
        self.hearing = Hearing(others, f"{self.name}{self.run}", self.clock())
        self.rules = Rules(self.name, tuple(others), MAIL, automatic=True, takeovers_max=10**6)

    def clock(self) -> float:
        return self.offset + self.rate * self.site.now

    @property
    def runs(self) -> bool:
        """As the others see it: it answers packets that need a program."""
        return self.on and not self.frozen

    @property
    def answers(self) -> bool:
        return self.on and not self.frozen and self.address and self.software

    # -- the agent ---------------------------------------------------------------------------------------------------

    def soon(self, seconds: float, act: Callable[[], None]) -> None:
        """In this run of the agent; while it is frozen it waits."""
        run = self.run

        def due() -> None:
            if self.run != run or not self.agent:
                return
            if self.frozen or self.agent_frozen:
                self.waiting.append(due)
            else:
                act()

        self.site.at(seconds, due)

    def start_agent(self) -> None:
        self.run += 1
        self.agent = True
        self.agent_frozen = False
        self.waiting.clear()
        self.forget()
        chance = self.site.chance
        self.soon(chance.uniform(0.2, 1.0), self._beat)
        self.soon(chance.uniform(0.0, 0.2), self._tick)
        if self.name in MAIL:
            self.soon(chance.uniform(0.5, 2.0), self._take_role)
        else:
            self.role = Role.RELAY
            self.soon(1.0, self._read_epoch)

    def end_agent(self) -> None:
        """It is killed; its supervisor releases the machine, and starts it again."""
        self.agent = False
        self.run += 1
        chance = self.site.chance
        if self.on:
            self.site.at(chance.uniform(0.02, RELEASE_SECONDS_MAX), self._released)
            run = self.run
            self.site.at(chance.uniform(1.0, 4.0), lambda: self.start_agent() if self.on and self.run == run else None)

    def _released(self) -> None:
        if not self.agent and self.on:
            self.address = self.software = False
            self.site.look()

    def _beat(self) -> None:
        now = self.clock()
        beat = Beat(self.name, str(self.role), "", "1", epoch=self.epoch, applied=self.applied)
        beat.said = self.hearing.tell(now)
        for other in self.hearing.others:
            self.site.send(self.name, other, functools.partial(self.site.machines[other].hear, self.name, beat))
        self.soon(BEAT_SECONDS * self.site.chance.uniform(0.98, 1.1), self._beat)

    def hear(self, machine: str, beat: Beat) -> None:
        self.beats[machine] = beat
        self.hearing.hear(machine, beat.said, self.clock())

    def _self(self) -> Self:
        return Self(
            self.role,
            self.epoch,
            self.primary,
            serving=not self.held,
            proved=self.proved,
            applied=self.applied,
            rests_until=self.rests_until,
        )

    def _tick(self) -> None:
        now = self.clock()
        self.hearing.look(now)
        if self.role is Role.PRIMARY:
            self._as_primary(now)
        elif self.name in MAIL and self.role in (Role.STANDBY, Role.SEEDING) and not self.acting:
            row = decide_standby(standby_facts(self.rules, self._self(), self.hearing, self.beats, now))
            if row.order is Order.PROMOTE:
                self.site.tell(f"{self.name}: {row.reason}")
                self._take_over()
        self.soon(TICK_SECONDS * self.site.chance.uniform(0.5, 1.0), self._tick)

    def _as_primary(self, now: float) -> None:
        facts = primary_facts(self.rules, self._self(), self.hearing, self.beats, now)
        row = decide_primary(facts)
        if self.held and not facts.confirmed:
            self.proved = False
            self.looks += 1
        if row.order is Order.STOP:
            self.site.tell(f"{self.name}: {row.reason}")
            self.stop_serving()
        elif row.order is Order.PROVE and not self.proving:
            self.proving = True
            began = self.looks
            self._append(False, lambda taken: self._is_proved(taken, began))
        elif row.order is Order.SERVE:
            self.site.tell(f"{self.name}: {row.reason}")
            self.held = False
            self.address = True
            self.renewed = self.site.now
            run = self.run
            self.site.at(self.site.chance.uniform(0.0, 0.4), lambda: self._software(run))
        if not self.held and self.hearing.confirmed_seconds(now) < RENEW_SECONDS:
            self.renewed = self.site.now
            if not self.address:  # the kernel took it while messages were late
                self.address = True
                self.site.look()

    def _software(self, run: int) -> None:
        if self.run == run and self.on and not self.held:
            self.software = True
            self.site.look()

    def _is_proved(self, taken: bool, began: int) -> None:
        self.proving = False
        if taken:
            self.proved = began == self.looks
        else:
            self._replaced()

    def stop_serving(self) -> None:
        self.held = True
        self.proved = False
        self.looks += 1
        usual = self.site.chance.random() < 0.9
        self.soon(self.site.chance.uniform(0.001, 0.02 if usual else RELEASE_SECONDS_MAX), self._drop)

    def _drop(self) -> None:
        if self.held:
            self.address = self.software = False
            self.site.look()

    def _replaced(self) -> None:
        """The log has a later promotion."""
        self.site.tell(f"{self.name}: was replaced")
        self.stop_serving()
        self.role = Role.RETURNED
        self.soon(self.site.chance.uniform(0.5, 2.0), self._take_role)

    # -- the log -----------------------------------------------------------------------------------------------------

    def _ask_log(self, carry_out: Callable[[], object], then: Callable[[object], None], tries: int = 200) -> None:
        """*carry_out* happens at the log, some time; *then* gets what came of it, later, or nothing ever does. What is
        on its way arrives though the agent has died meanwhile; nobody asks again then."""
        site, run = self.site, self.run

        def arrive() -> None:
            if site.log.answers(self.name):
                result = carry_out()
                if site.chance.random() < 0.97:
                    if self.run == run:
                        self.soon(site.chance.uniform(0.0005, 0.03), lambda: then(result))
                    return
            if tries and self.run == run:
                self.soon(site.chance.uniform(0.1, 0.5), lambda: self._ask_log(carry_out, then, tries - 1))

        site.at(site.chance.uniform(0.0005, 0.03), arrive)

    def _append(self, promotion: bool, then: Callable[[bool], None], *, after: int | None = None) -> None:
        """One record behind *after* (usually: what this machine appended or applied last)."""
        after = self.applied if after is None else after
        entry = Entry(self.name, self.epoch + promotion, promotion, next(self.site.numbers))

        def carry_out() -> object:
            entries = self.site.log.entries
            if len(entries) == after:
                last = self.site.log.last_promotion
                if last is not None and entry.epoch < last.epoch + promotion:
                    raise Broken(f"{entry.writer} appended in epoch {entry.epoch} after {last}")
                entries.append(entry)
                if promotion:
                    self.site.tell(f"{self.name}: promoted, epoch {entry.epoch}")
                    self.site.promotions += 1
            return len(entries) > after and entries[after] == entry

        def taken(result: object) -> None:
            if result:
                self.applied = after + 1
            then(bool(result))

        self._ask_log(carry_out, taken)

    def _state(self) -> tuple[int, Entry | None]:
        return len(self.site.log.entries), self.site.log.last_promotion

    def _read_epoch(self) -> None:
        def read(result: object) -> None:
            assert isinstance(result, tuple)
            if result[1] is not None:
                self.epoch, self.primary = result[1].epoch, result[1].writer
            self.soon(1.0, self._read_epoch)

        self._ask_log(self._state, read, tries=10**6)

    def _take_role(self) -> None:
        """What ``Node`` does when it has opened the log."""

        def opened(result: object) -> None:
            assert isinstance(result, tuple)
            last, promotion = result
            self.applied = last
            if promotion is None:
                if self.name == MAIL[0]:
                    self._append(True, lambda taken: self._am_primary() if taken else self._take_role())
                else:
                    self.soon(0.5, self._take_role)
                return
            self.epoch, self.primary = promotion.epoch, promotion.writer
            if promotion.writer == self.name:
                self._append(False, lambda taken: self._am_primary(same=True) if taken else self._take_role())
            else:
                self.role = Role.SEEDING
                self.soon(self.site.chance.uniform(0.1, 3.0), self._follow)

        self._ask_log(self._state, opened, tries=10**6)

    def _am_primary(self, *, same: bool = False) -> None:
        self.epoch += 0 if same else 1
        self.role, self.primary = Role.PRIMARY, self.name
        self.held, self.proved = True, True
        self.soon(self.site.chance.uniform(0.05, 0.5), self._work)

    def _work(self) -> None:
        """Users change something: a record. An idle primary looks at the log's end each second."""
        if self.role is not Role.PRIMARY:
            return

        def done(taken: bool) -> None:
            if self.role is Role.PRIMARY:
                if taken:
                    self.soon(self.site.chance.choice((0.05, 0.3, 1.0)), self._work)
                else:
                    self._replaced()

        if self.proving or self.site.chance.random() < 0.3:
            self.soon(0.5, self._work)
        else:
            self.proving = True

            def free(taken: bool) -> None:
                self.proving = False
                done(taken)

            self._append(False, free)

    def _follow(self) -> None:
        self.role = Role.STANDBY
        self._apply()

    def _apply(self) -> None:
        def read(result: object) -> None:
            assert isinstance(result, tuple)
            if self.role is Role.STANDBY and not self.acting and result[0] >= self.applied:
                self.applied = result[0]
                self.epoch, self.primary = result[1].epoch, result[1].writer
            if self.role is Role.STANDBY:
                self.soon(0.15, self._apply)

        self._ask_log(self._state, read, tries=10**6)

    # -- a takeover: Operations.takeover ----------------------------------------------------------------------------

    def _take_over(self) -> None:
        self.acting = True
        old = self.primary

        def rest(why: str) -> None:
            self.site.tell(f"{self.name}: takeover given up: {why}")
            self.acting = False
            self.rests_until = self.clock() + 1.0

        def drained(result: object) -> None:
            assert isinstance(result, tuple)
            last, promotion = result
            if promotion.writer != old:
                self.epoch, self.primary = promotion.epoch, promotion.writer
                rest(f"{promotion.writer} was promoted")
                return
            if self.site.chance.random() < 0.1:
                last = max(self.applied, last - 1)  # a server that does not know the last record yet
            self.soon(self.site.chance.uniform(0.0, 0.2), lambda: self._ask_votes(old, lambda m: voted(last, m)))

        def voted(last: int, missing: list[str]) -> None:
            why = confirmed_by(self.rules, self.hearing, old, missing, self.clock())
            if why:
                rest(why)
                return
            self._append(True, promoted, after=last)

        def promoted(taken: bool) -> None:
            if not taken:
                self._ask_log(self._state, drained)
                return
            self.acting = False
            self._am_primary()

        self._ask_log(self._state, drained)

    def _ask_votes(self, old: str, then: Callable[[list[str]], None]) -> None:
        missing: list[str] = []
        done, run = False, self.run

        def finish() -> None:
            nonlocal done
            if not done:
                done = True
                then(missing)

        def heard(name: str, misses: bool) -> None:
            if misses and not done and self.run == run:  # whom a dead agent asked answers nobody
                missing.append(name)
                finish()

        for name in self.hearing.others:
            if name != old:
                other = self.site.machines[name]

                def asked(other: Machine = other) -> None:
                    misses = vote(other.hearing, old, other.clock())
                    self.site.send(other.name, self.name, lambda: heard(other.name, misses))

                self.site.send(self.name, name, asked)
        self.soon(VOTE_SECONDS, finish)


class Site:
    """The world of one seed."""

    def __init__(self, seed: int, *, tell: bool = False) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.numbers = itertools.count()
        self.promotions = 0
        self.history: list[str] = []
        self._tell = tell
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.cuts: dict[tuple[str, str], str] = {}
        self._late: dict[tuple[str, str], float] = {}
        self._arrived: dict[tuple[str, str], float] = {}
        self._held: dict[tuple[str, str], list[Callable[[], None]]] = {}
        self.log = Log(self)
        self.machines = {name: Machine(self, name) for name in NAMES}
        self._both_since: float | None = None
        self.overlap_seconds_max = 0.0
        self.at(0.25, self._kernel)

    # -- time and messages -------------------------------------------------------------------------------------------

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), act))

    def run_until(self, end: float, fact: Callable[[], bool] | None = None) -> bool:
        """Until *end*, or *fact* holds: whether it did."""
        while self._events and self._events[0][0] <= end:
            self.now, _, act = heapq.heappop(self._events)
            act()
            if fact is not None and fact():
                return True
        self.now = end
        return False

    def tell(self, text: str) -> None:
        self.history.append(f"{self.now:8.3f} {text}")
        if self._tell:
            print(self.history[-1])

    def both_ways(self, one: str, other: str) -> bool:
        return (one, other) not in self.cuts and (other, one) not in self.cuts

    def send(self, sender: str, receiver: str, act: Callable[[], None]) -> None:
        """In order, as over TCP; lost or held back while the way is cut."""
        way = (sender, receiver)
        cut = self.cuts.get(way)
        if cut == "lose":
            return
        machine = self.machines[receiver]
        run = machine.run

        def arrive() -> None:
            if machine.run == run:
                machine.soon(0.0, act)

        if cut == "hold":
            self._held.setdefault(way, []).append(arrive)
            return
        arrival = max(
            self.now + self._late.get(way, 0.0) + self.chance.uniform(0.0005, 0.02), self._arrived.get(way, 0)
        )
        self._arrived[way] = arrival
        self.at(arrival - self.now, arrive)

    def heal(self, way: tuple[str, str]) -> None:
        self.cuts.pop(way, None)
        for arrive in self._held.pop(way, []):
            self.at(self.chance.uniform(0, 0.001), arrive)

    # -- faults --------------------------------------------------------------------------------------------------------

    def power_on(self, machine: Machine) -> None:
        if not machine.on:
            machine.on, machine.frozen = True, False
            machine.address = machine.software = False
            run = machine.run
            self.at(self.chance.uniform(0.0, 1.0), lambda: machine.start_agent() if machine.run == run else None)

    def power_off(self, machine: Machine) -> None:
        machine.on = machine.agent = machine.frozen = False
        machine.run += 1
        self.look()

    def freeze(self, machine: Machine, *, agent_only: bool = False) -> None:
        if agent_only:
            machine.agent_frozen, machine.agent_frozen_at = True, self.now
        else:
            machine.frozen = True
        self.look()

    def thaw(self, machine: Machine) -> None:
        if machine.frozen:
            machine.thawed_at = self.now
        machine.frozen = machine.agent_frozen = False
        waiting, machine.waiting = machine.waiting, []
        self.chance.shuffle(waiting)
        for act in waiting:
            self.at(self.chance.uniform(0, TICK_SECONDS), act)
        self.look()

    def _kernel(self) -> None:
        """Takes away an address that nobody has renewed; it goes on while programs are frozen."""
        for machine in self.machines.values():
            lived = self.now - machine.renewed
            if machine.address and lived > ADDRESS_SECONDS + self.chance.uniform(0, 0.75):
                machine.address = False
                self.look()
        self.at(0.25, self._kernel)

    # -- what is checked -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """After every change of who answers."""
        answering = [machine for machine in self.machines.values() if machine.answers]
        if len(answering) > 1:
            self._both_since = self.now if self._both_since is None else self._both_since
            self._both = sorted(answering, key=lambda machine: machine.epoch)
        elif self._both_since is not None:
            seconds, self._both_since = self.now - self._both_since, None
            self._judge(seconds)

    def _judge(self, seconds: float) -> None:
        self.overlap_seconds_max = max(self.overlap_seconds_max, seconds)
        old = self._both[0]
        bound = 0.0
        if self.now - old.thawed_at <= ANSWER_SECONDS_MAX + seconds:
            bound = ANSWER_SECONDS_MAX
        if old.agent_frozen_at > old.thawed_at - 10 and self.now - old.agent_frozen_at < 10:
            bound = OVERLAP_SECONDS_MAX
        self.tell(f"{' and '.join(m.name for m in self._both)} both answered for {seconds:.3f} s")
        if seconds > bound:
            raise Broken(f"two machines answered for {seconds:.3f} s, where the bound is {bound:g} s")

    @property
    def served_by(self) -> str:
        return next((machine.name for machine in self.machines.values() if machine.answers), "")

    def settle(self) -> None:
        """Everything on, main primary, backup standby."""
        for machine in self.machines.values():
            self.power_on(machine)
        ready = self.run_until(
            self.now + 30.0, lambda: self.served_by == "main" and self.machines["backup"].role is Role.STANDBY
        )
        if not ready:
            raise Broken("the site did not come up")
        self.run_until(self.now + 1.0 + self.chance.random())


def chaos(seed: int, *, tell: bool = False) -> Site:
    """Random faults, then everything is mended. Raises Broken."""
    site = Site(seed, tell=tell)
    site.settle()
    chance = site.chance
    end = site.now + FAULTS_SECONDS
    while site.now < end:
        _some_fault(site)
        site.run_until(
            site.now + chance.choice((0.1, 0.5, 1.0, 1.8, 2.0, 2.3, 3.0, 5.0, 8.0)) * chance.uniform(0.9, 1.1)
        )
    site.tell("everything is mended")
    site._late.clear()
    for way in list(site.cuts):
        site.heal(way)
    for machine in site.machines.values():
        site.thaw(machine)
        site.power_on(machine)
    if not site.run_until(site.now + MENDED_SECONDS, lambda: bool(site.served_by)):
        raise Broken(f"nobody serves within {MENDED_SECONDS:g} s although everything is mended")
    site.run_until(site.now + STEADY_SECONDS)
    before = site.served_by
    if site.run_until(site.now + STEADY_SECONDS, lambda: site.served_by != before) or not before:
        raise Broken(f"{before or 'nobody'} serves, but not steadily, although everything is mended")
    return site


def _some_fault(site: Site) -> None:
    chance = site.chance
    machine = chance.choice(list(site.machines.values()))
    other = chance.choice([name for name in NAMES if name != machine.name])
    ways = [(machine.name, other)] if chance.random() < 0.5 else [(machine.name, other), (other, machine.name)]
    kind = chance.choice(
        ("cut", "cut", "heal", "heal", "alone", "late", "kill", "on", "freeze", "thaw", "agent", "stuck")
    )
    site.tell(f"-- {kind}: {machine.name} {ways if kind in ('cut', 'heal', 'late') else ''}")
    match kind:
        case "cut":
            for way in ways:
                site.cuts[way] = chance.choice(("lose", "hold"))
        case "heal":
            for way in ways if chance.random() < 0.5 else list(site.cuts):
                site.heal(way)
        case "alone":
            for name in NAMES:
                if name != machine.name:
                    site.cuts[machine.name, name] = site.cuts[name, machine.name] = chance.choice(("lose", "hold"))
        case "late":
            for way in ways:
                site._late[way] = chance.choice((0.0, 0.0, 0.1, 0.4, 1.0, 3.0))
        case "kill":
            site.power_off(machine)
        case "on":
            for each in site.machines.values():
                site.power_on(each)
        case "freeze" if machine.runs:
            site.freeze(machine)
        case "stuck" if machine.runs and machine.agent:
            site.freeze(machine, agent_only=True)
        case "thaw":
            for each in site.machines.values():
                site.thaw(each)
        case "agent" if machine.agent and machine.runs:
            machine.end_agent()


def primary_dies(seed: int, *, tell: bool = False) -> float:
    """The primary's power goes while all else is well: the seconds until the standby serves. Raises Broken."""
    site = Site(seed, tell=tell)
    site.settle()
    died = site.now
    site.power_off(site.machines["main"])
    if not site.run_until(died + TAKEOVER_SECONDS_MAX, lambda: site.served_by == "backup"):
        raise Broken(f"backup did not serve within {TAKEOVER_SECONDS_MAX:g} s")
    return site.now - died


def another_dies(seed: int, *, tell: bool = False) -> None:
    """Standby or relay, one at a time, die, freeze, are cut off and come back: nothing may happen. Raises Broken."""
    site = Site(seed, tell=tell)
    site.settle()
    for _ in range(4):
        machine = site.machines[site.chance.choice(NAMES[1:])]
        kind = site.chance.choice(("kill", "freeze", "agent", "cut", "one way"))
        site.tell(f"-- {kind}: {machine.name}")
        if kind == "kill":
            site.power_off(machine)
        elif kind == "freeze":
            site.freeze(machine)
        elif kind == "agent":
            machine.end_agent()
        else:
            site.cuts["main", machine.name] = "lose"
            if kind == "cut":
                site.cuts[machine.name, "main"] = "lose"
        if site.run_until(site.now + site.chance.uniform(1, 8), lambda: site.served_by != "main"):
            raise Broken(f"main does not serve any more after {kind} of {machine.name}")
        for way in list(site.cuts):
            site.heal(way)
        site.thaw(machine)
        site.power_on(machine)
        site.run_until(site.now + 4.0, lambda: site.served_by != "main")
    if site.promotions != 1 or site.served_by != "main":
        raise Broken(f"{site.promotions - 1} takeovers, and {site.served_by or 'nobody'} serves")


def main(arguments: list[str]) -> int:
    """Exit status 1 when a seed fails."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None, help="only this one")
    parser.add_argument("--tell", action="store_true")
    chosen = parser.parse_args(arguments)
    first, count = (chosen.first, chosen.seeds) if chosen.seed is None else (chosen.seed, 1)
    seeds = range(first, first + count)
    began, overlap, failed, promotions = time.monotonic(), 0.0, 0, 0
    for seed in seeds:
        for name, run in (("chaos", chaos), ("primary_dies", primary_dies), ("another_dies", another_dies)):
            try:
                done = run(seed, tell=chosen.tell)
                if isinstance(done, Site):
                    overlap = max(overlap, done.overlap_seconds_max)
                    promotions += done.promotions
            except Broken as error:
                failed += 1
                print(f"{name} --seed {seed}: {error}")
    print(
        f"{len(seeds)} seeds, {failed} failed, {promotions} promotions, longest overlap {overlap:.3f} s, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
