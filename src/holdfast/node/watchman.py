"""What a machine does about the others' silence, without a person: two tables, one for the primary, one for a standby.

*The primary* serves only while others have lately said that they hear it. When none of them has for ``SERVE_SECONDS``,
it is the one cut off: it gives the address back and stops the mail software, and waits. It serves again when it is
heard again and a record of its own was taken by the log, which shows that nobody was promoted meanwhile.

*A standby* takes over when it, and enough of the others (with three machines: the relay), have not heard the primary
for ``MISSING_SECONDS``. Every reason not to is a row, and most of them ask for a person. A takeover is then: apply the
log to its end; ask the others for their votes, anew; where there is a fencing command (``fencing``), get its proof
that the primary is off; append the promotion behind the record that was the last before the votes.

**Why there are not two.** Let a standby's promotion stand in the log at record L+1. It had read L before the votes, and
each voter had heard nothing of the old primary for 2.0 s when it voted. The old primary's last echo of any voter's is
of a beat sent before that, so 0.5 s and more before the vote it stopped, whatever the network did, if its agent ran. To
serve again it had to append a record while it was heard, and be heard ever since: one up to L came before the votes,
when it was not heard; one after L takes the place of the promotion, and there is none. Nothing in this depends on the
clocks of two machines, on how long a message takes, or on who leads the log. It depends on one clock running within a
few per cent of another's while 2 s pass, and on the old primary's agent being run.

**The bound.** The agent looks every ``TICK_SECONDS`` and needs ``RELEASE_SECONDS_MAX`` to give an address back:
less than the 0.5 s between the two limits, so two machines never answer when both agents run. A machine frozen as a
whole and thawed after a takeover answers for at most ``ANSWER_SECONDS_MAX``, until its agent has looked once. An agent
frozen alone, its mail software running, renews the address no more, and the kernel takes it away:
``ADDRESS_SECONDS_MAX`` after its last confirmed beat at the latest; a takeover comes ``MISSING_SECONDS`` after it at
the earliest, so two machines may answer for the difference, ``OVERLAP_SECONDS_MAX``. An address that a program moves
(``[service] command``) the kernel does not take away: a frozen agent's machine answers at it until the new primary has
taken it, and at no time do two.

Pure: ``guard`` feeds it and does what it says; ``docs/concepts/failover.md`` shows the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

SERVE_SECONDS: Final = 1.5
"""A primary whose last confirmed beat is older than this stops serving: six beats."""
MISSING_SECONDS: Final = 2.0
"""A machine not heard for so long is missed: eight beats."""
TICK_SECONDS: Final = 0.05
RELEASE_SECONDS_MAX: Final = 0.3
"""Giving the address back is one message to the kernel (1 ms measured); a starved machine may need longer for it."""
RENEW_SECONDS: Final = 1.0
"""The address is renewed while the last confirmed beat is younger: what a beat and its echo take (two intervals and the
way there and back), twice. Where the way takes longer, failover without a person is not for that network."""
ADDRESS_SECONDS: Final = 2
"""How long the kernel keeps a service address that nobody renews. Whole seconds: it counts in them."""
ADDRESS_SECONDS_MAX: Final = RENEW_SECONDS + ADDRESS_SECONDS + 1.0
"""From the sending of the last confirmed beat: the kernel looks once a second (check_lifetime() of Linux'
net/ipv4/devinet.c)."""
ANSWER_SECONDS_MAX: Final = TICK_SECONDS + RELEASE_SECONDS_MAX
OVERLAP_SECONDS_MAX: Final = ADDRESS_SECONDS_MAX - MISSING_SECONDS
FRESH_SECONDS: Final = 1.0
"""A voter not heard for longer is asked for nothing: four beats."""
TURN_SECONDS: Final = 2.0
"""With several standbys: how much longer each waits for the one before it."""
START_SECONDS: Final = 60.0
"""A primary never heard since this agent started may just be starting itself, after a power cut of the whole site."""


class Order(StrEnum):
    """What is to be done now."""

    NOTHING = "nothing"
    STOP = "stop serving"
    REFUSE = "refuse changes"
    """Who reads is served on."""
    ALLOW = "take changes again"
    PROVE = "append a record"
    """To see whether the log still takes this machine's."""
    SERVE = "serve"
    PROMOTE = "take over"
    ASK = "ask a person"


class PrimaryFacts(NamedTuple):
    """What the log's last promoted machine knows of itself."""

    superseded: bool
    """A machine that is heard speaks of a later promotion than ours."""
    replaceable: bool
    """Others may take over without a person: the policy is automatic, and they are not known to be paused."""
    serving: bool
    confirmed: bool
    """Enough others have heard a beat of ours that is not older than SERVE_SECONDS."""
    proved: bool
    """The log took a record of ours while we were confirmed, and we were confirmed ever since."""
    logless: bool = False
    """The log takes nothing for too long, and ``[failover] without_quorum`` is ``stop``."""
    read_only_due: bool = False
    """The same, and it is ``read-only``."""
    read_only: bool = False
    """The gates refuse changes."""

    @property
    def serves_on(self) -> bool:
        """Nobody takes over from a machine that is heard, or whom nobody may replace."""
        return self.serving and (self.confirmed or not self.replaceable)


class PrimaryRow(NamedTuple):
    order: Order
    applies: Callable[[PrimaryFacts], bool]
    reason: str


PRIMARY_TABLE: Final = (
    PrimaryRow(
        Order.STOP,
        lambda f: f.superseded and f.serving,
        "another machine was promoted, says one that is heard: this one stops serving, then asks the log",
    ),
    PrimaryRow(Order.NOTHING, lambda f: f.superseded, "another machine was promoted, says one that is heard"),
    PrimaryRow(
        Order.STOP,
        lambda f: f.serving and f.logless,
        "the log takes nothing, and [failover] without_quorum says to stop then: it serves when the log is back",
    ),
    PrimaryRow(
        Order.REFUSE,
        lambda f: f.serves_on and f.read_only_due and not f.read_only,
        "the log takes nothing, and [failover] without_quorum says read-only then: the gates refuse what would change "
        "something, and who reads is served",
    ),
    PrimaryRow(
        Order.NOTHING,
        lambda f: f.serves_on and f.read_only_due,
        "the log takes nothing: it serves who reads, and takes changes again when the log does",
    ),
    PrimaryRow(
        Order.ALLOW,
        lambda f: f.serves_on and f.read_only,
        "the log takes records again: the gates let changes pass again",
    ),
    PrimaryRow(
        Order.NOTHING,
        lambda f: f.serving and not f.replaceable,
        "no other machine takes over without a person: this one serves whoever reaches it",
    ),
    PrimaryRow(Order.NOTHING, lambda f: f.serving and f.confirmed, "the last promotion in the log is this machine's"),
    PrimaryRow(
        Order.STOP,
        lambda f: f.serving,
        f"no other machine has confirmed for {SERVE_SECONDS:g} s that it hears this one: this is the one cut off, "
        "and another may take over",
    ),
    PrimaryRow(
        Order.NOTHING,
        lambda f: f.replaceable and not f.confirmed,
        "the last promotion is this machine's, but the others do not confirm that they hear it: it serves nobody",
    ),
    PrimaryRow(
        Order.PROVE,
        lambda f: not f.proved,
        "this machine is heard again; it serves when the log has taken a record of it",
    ),
    PrimaryRow(Order.SERVE, lambda f: True, "this machine is heard, and the log takes its records: it serves"),
)


class StandbyFacts(NamedTuple):
    """What a standby knows of the primary and of itself."""

    primary_known: bool
    silent: bool
    """We have not heard the primary for MISSING_SECONDS."""
    automatic: bool
    third: bool
    """The site has a machine besides the primary and this one that has a vote."""
    paused: bool
    awaited: bool
    """The primary was heard since this agent started, or for START_SECONDS it was not."""
    voters: bool
    """Enough others are heard for a decision."""
    missed: bool
    """Enough others have said that they miss the primary too."""
    whole: bool
    """Our copy follows the log."""
    loss_bounded: bool
    """What the primary last said it had and the log had not is within the bound."""
    steady: bool
    """There were not too many takeovers lately."""
    turn: bool
    """No better standby is heard, or it was waited for."""
    rested: bool
    """The last attempt did not fail just now."""


class StandbyRow(NamedTuple):
    order: Order
    applies: Callable[[StandbyFacts], bool]
    reason: str
    advice: str = ""


BY_HAND: Final = "Look at the primary. If it is gone: `holdfast takeover` here."
STANDBY_TABLE: Final = (
    StandbyRow(Order.NOTHING, lambda f: not f.primary_known, "nobody was promoted yet"),
    StandbyRow(Order.NOTHING, lambda f: not f.silent, "the primary is heard"),
    StandbyRow(
        Order.ASK, lambda f: not f.automatic, "the primary is silent, and the policy is that a person decides", BY_HAND
    ),
    StandbyRow(
        Order.ASK,
        lambda f: not f.third,
        "the primary is silent, and there is no third machine that could say whether it is gone or only cut off",
        BY_HAND,
    ),
    StandbyRow(
        Order.ASK,
        lambda f: f.paused,
        "the primary is silent, and automatic takeover is paused",
        "`holdfast resume` lets it happen; or `holdfast takeover` here.",
    ),
    StandbyRow(
        Order.NOTHING,
        lambda f: not f.awaited,
        f"the primary was not heard since this agent started: it is given {START_SECONDS:g} s to start, too",
    ),
    StandbyRow(
        Order.ASK,
        lambda f: not f.voters,
        "neither the primary nor enough of the others are heard: this machine may be the one cut off",
        "Look at this machine's network, and at the relay. If both others are gone: docs/operations/log-trouble.md",
    ),
    StandbyRow(
        Order.NOTHING,
        lambda f: not f.missed,
        "others still hear the primary: it is only the way between it and this machine that is broken",
    ),
    StandbyRow(
        Order.ASK,
        lambda f: not f.whole,
        "the primary is gone, but the copy here is not whole",
        "`holdfast status` says what it lacks. Is there another standby, or can the primary be started again?",
    ),
    StandbyRow(
        Order.ASK,
        lambda f: not f.loss_bounded,
        "the primary is gone, and had more that was not in the log than may be lost without asking",
        "Can it be started again, then nothing is lost. Otherwise: `holdfast takeover` here.",
    ),
    StandbyRow(
        Order.ASK,
        lambda f: not f.steady,
        "the primary is gone, but there were too many takeovers lately: something else is wrong",
        "Find out what (`holdfast why`), then `holdfast takeover` here.",
    ),
    StandbyRow(Order.NOTHING, lambda f: not f.turn, "the primary is gone; another standby goes first"),
    StandbyRow(Order.NOTHING, lambda f: not f.rested, "the primary is gone; the last attempt failed, the next comes"),
    StandbyRow(
        Order.PROMOTE, lambda f: True, f"this machine and the others have not heard it for {MISSING_SECONDS:g} s"
    ),
)


def decide_primary(facts: PrimaryFacts) -> PrimaryRow:
    """The first row that applies; there always is one."""
    return next(row for row in PRIMARY_TABLE if row.applies(facts))


def decide_standby(facts: StandbyFacts) -> StandbyRow:
    """The first row that applies; there always is one."""
    return next(row for row in STANDBY_TABLE if row.applies(facts))
