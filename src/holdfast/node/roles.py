"""Who is primary, and what this machine does about it: a table.

The log decides. Its last record names the primary: only the machine of the last promotion writes. From that, and from
what this machine knows of itself, exactly one row of ``TABLE`` applies: the first that fits. Its reason is the log line
and the line in `holdfast status`. Pure; ``docs/concepts/roles.md`` shows the table.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from holdfast.changes.names import Epoch, MachineName


class Role(StrEnum):
    """What a machine is at this moment."""

    STARTING = "starting"
    RELAY = "relay"
    FOUNDER = "founder"
    """Starts the log: scans everything into it and becomes its first primary."""
    PRIMARY = "primary"
    STANDBY = "standby"
    SEEDING = "seeding"
    """Fetches what differs from the primary, then is a standby."""
    RETURNED = "returned"
    """Served as primary, and another machine was promoted: waits for a person's word to rejoin."""
    YIELDED = "yielded"
    """Stopped serving for a switchover and waits for the other machine's promotion."""
    WAITING = "waiting"
    """Cannot do its part yet."""
    BLOCKED = "blocked"
    """Must not do its part until a person has decided."""


class Facts(NamedTuple):
    """What the decision rests on."""

    relay: bool
    log_empty: bool
    starts_log: bool
    primary: MachineName | None
    """Who wrote the log's last record; None when the log is empty."""
    epoch: Epoch
    me: MachineName
    served_epoch: Epoch
    """The epoch this machine last served in without handing over; 0: none."""
    index_fits: bool
    """The tree index stands at a position that the log still continues from (same incarnation, not trimmed past)."""
    index_empty: bool
    told_to_found: bool = False
    """A person said: what this machine holds is the mail, start the log anew from it."""
    told_to_rejoin: bool = False
    known_elsewhere: Epoch = Epoch(0)
    """The latest epoch that another machine, heard now, knows of from its own disk or the log."""
    unheard: str = ""
    """A machine that holds mail and is not heard, or has not yet said what it knows: it may have served later."""


class Row(NamedTuple):
    role: Role
    applies: Callable[[Facts], bool]
    reason: str
    advice: str = ""


TABLE: Final = (
    Row(Role.RELAY, lambda f: f.relay, "this machine stores the log and holds no mail"),
    Row(
        Role.FOUNDER,
        lambda f: f.told_to_found,
        "a person said that what this machine holds is the mail: the log starts anew from it",
    ),
    Row(
        Role.BLOCKED,
        lambda f: f.log_empty and f.served_epoch > 0 and f.known_elsewhere > f.served_epoch,
        "the log is lost, and another machine knows of a later primary than this one: the trees here are old",
        "The machine that served last starts the log again by itself. Is it gone for good? "
        "Then `holdfast found --force` on the machine whose trees are the newest.",
    ),
    Row(
        Role.WAITING,
        lambda f: f.log_empty and f.served_epoch > 0 and bool(f.unheard),
        "the log is lost, and another machine, which may have served later than this one, is not heard",
        "Start the agents on all machines. Is the other one gone for good? Then `holdfast found` here.",
    ),
    Row(
        Role.FOUNDER,
        lambda f: f.log_empty and f.served_epoch > 0,
        "the log is empty, and this machine served last: its trees start it again",
    ),
    Row(
        Role.WAITING,
        lambda f: f.log_empty and not f.index_empty,
        "the log is lost, and this machine holds a copy of it: the machine that served last starts it again",
        "Start the agent on that machine. Is it gone for good? Then `holdfast found` here.",
    ),
    Row(
        Role.BLOCKED,
        lambda f: f.log_empty and f.starts_log and f.known_elsewhere > 0,
        "the log is lost, and this machine has no copy: another machine has one",
        "The machine that served last starts the log again by itself. Is it gone for good? "
        "Then `holdfast found` on the machine whose trees are the newest.",
    ),
    Row(
        Role.FOUNDER,
        lambda f: f.log_empty and f.starts_log,
        "the log is empty and this machine is configured to start it",
    ),
    Row(
        Role.WAITING,
        lambda f: f.log_empty,
        "the log is empty and another machine is configured to start it",
        "Start the agent on that machine.",
    ),
    Row(
        Role.PRIMARY,
        lambda f: f.primary == f.me and f.index_fits,
        "the last promotion in the log is this machine's",
    ),
    Row(
        Role.BLOCKED,
        lambda f: f.primary == f.me,
        "the log says this machine is the primary, but its tree index does not continue the log",
        "Was its disk replaced? Then run `holdfast takeover` on the standby and `holdfast join --rejoin` here. "
        "Is its mail store the good one? Then run `holdfast found` here.",
    ),
    Row(
        Role.SEEDING,
        lambda f: f.told_to_rejoin,
        "told to rejoin, by a person or by [failover] rejoin; what only this machine has is kept aside",
    ),
    Row(
        Role.RETURNED,
        lambda f: f.served_epoch > 0 and f.served_epoch != f.epoch,
        "this machine served until another was promoted; it may hold changes the log never got",
        "Run `holdfast join --rejoin` here: what only this machine has is kept aside and reported.",
    ),
    Row(Role.STANDBY, lambda f: f.index_fits, "another machine is the primary; this one continues its copy"),
    Row(Role.SEEDING, lambda f: f.index_empty, "this machine has no copy yet"),
    Row(
        Role.SEEDING,
        lambda f: True,
        "this machine's copy does not continue the log (trimmed past it, or another log): it is compared and mended",
    ),
)


def decide(facts: Facts) -> Row:
    """The first row that applies; there always is one."""
    return next(row for row in TABLE if row.applies(facts))
