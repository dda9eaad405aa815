"""After a rebuild: has the agent come to the role that was asked for, and what is to be done when it has not? Pure.

``--join primary`` is a person's word that what this machine holds is the mail. So where the log cannot go on from here,
it starts anew from here. But only when that has been so for SETTLED_SECONDS: an agent that has just started waits, too,
before it has heard anybody. And not while another machine serves: then there is somebody with newer mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from holdfast.errors import Refused

SETTLED_SECONDS: Final = 30.0
"""Servers have started and the log has elected (9 s), and a machine that serves was heard (four beats a second)."""
STUCK: Final = frozenset({"blocked", "returned", "waiting"})
"""Roles out of which no time leads, when the log does not go on."""


class Step(StrEnum):
    DONE = "done"
    WAIT = "wait"
    FOUND = "start the log anew"


class Seen(NamedTuple):
    """The agent's status, as far as it matters here. *role*: empty while the agent does not answer."""

    role: str = ""
    reason: str = ""
    advice: str = ""
    serves: str = ""
    """Another machine that is heard and serves."""


def seen_in(status: Mapping[str, Any]) -> Seen:
    """Of ``GET /status``."""
    others = [view for view in status["machines"] if view["name"] != status["machine"]]
    serves = next((str(view["name"]) for view in others if view["alive"] and view["serving"]), "")
    return Seen(str(status["role"]), str(status["reason"]), str(status["advice"]), serves)


def next_step(join: str, seen: Seen, same_seconds: float, *, ordered: bool) -> Step:
    """*same_seconds*: for how long the role has been this one. *ordered*: the log was ordered anew already.

    Raises Refused.
    """
    if seen.role == join:
        return Step.DONE
    if join != "primary" or ordered:
        return Step.WAIT
    if seen.serves:
        raise Refused(
            f"{seen.serves} serves: this machine is {seen.role or 'silent'}, and does not take its place",
            hint="Let it become the standby (`holdfast join --rejoin` here, if `holdfast status` asks for it); then "
            "`holdfast switchover` here. Docs: docs/operations/rebuild.md.",
        )
    return Step.FOUND if seen.role in STUCK and same_seconds >= SETTLED_SECONDS else Step.WAIT
