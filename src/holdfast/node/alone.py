"""``holdfast takeover --alone``: this machine is what is left, and begins a new log from what it holds.

A log of three machines takes nothing without two of them, whatever is ordered. So the site becomes one of this machine
alone: the others leave its ``holdfast.toml``, its store of the old log is kept aside, and the agent begins again and
founds a log, as the first machine of a new site does. Its epoch is above any that this machine knows of.

The order, with its reason, is in ``node.json`` before the configuration changes: cut short anywhere, the next start of
the agent goes on with it, or, when the configuration still has the others, forgets it. The order is over when the
promotion is in the new log.

*Not promised*: that the others stay away. Two of the old machines have the old log, and a quorum of it: started
together, they go on as if this machine were gone. They must be off, and join anew (docs/operations/alone.md).
"""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from holdfast.errors import HoldfastError, Refused
from holdfast.files import write_once
from holdfast.node.local import LocalFile
from holdfast.node.node import Node
from holdfast.node.plan import Plan, Step
from holdfast.node.roles import Role
from holdfast.node.settings import Settings, parse_settings

ACTION: Final = "takeover --alone"
BEFORE: Final = "before-alone"
CAN: Final = (Role.PRIMARY, Role.STANDBY, Role.RETURNED, Role.WAITING, Role.BLOCKED, Role.YIELDED)
_HEADER: Final = re.compile(r"\s*\[")
_NAME: Final = re.compile(r"""\s*name\s*=\s*["']([^"']+)["']""")


def alone_configuration(text: str, machine: str) -> str:
    """The site's configuration *text* for a site of *machine* alone; everything else in it stays. Raises Refused."""
    kept = [line for section in _sections(text) for line in _of_section(section, machine)]
    at = next((number for number, line in enumerate(kept) if re.match(r"\s*machine\s*=", line)), 0)
    kept.insert(at + 1, f'first_primary = "{machine}"   # the others are gone: holdfast takeover --alone')
    changed = "\n".join(kept) + "\n"
    try:
        settings = parse_settings(changed, "holdfast.toml for this machine alone")
    except HoldfastError as error:
        raise Refused(f"the configuration cannot be made one of this machine alone: {error.message}") from error
    if len(settings.machines) > 1:
        raise Refused(
            "the other machines in holdfast.toml stand in a form that is not recognised",
            hint="Remove them by hand: docs/operations/alone.md.",
        )
    return changed


def _sections(text: str) -> Iterator[list[str]]:
    """The lines of *text*, a table at a time."""
    section: list[str] = []
    for line in text.splitlines():
        if _HEADER.match(line):
            yield section
            section = []
        section.append(line)
    yield section


def _of_section(section: list[str], machine: str) -> list[str]:
    header = section[0].split("#")[0].strip() if section else ""
    if header == "[[machines]]":
        name = next((found[1] for line in section if (found := _NAME.match(line))), "")
        if name == machine:
            return section
        last = max(
            (n for n, line in enumerate(section) if line.strip() and not line.strip().startswith("#")), default=0
        )
        return [line for line in section[last + 1 :] if line.strip()]  # what is said before the next table
    if header == "[failover]":
        kept = [line for line in section if not re.match(r"\s*(prefer|failback_at)\s*=", line)]
        return [re.sub(r'^(\s*policy\s*=\s*)["\']automatic["\']', r'\1"manual"', line) for line in kept]
    if not header.startswith("["):
        return [line for line in section if not re.match(r"\s*first_primary\s*=", line)]
    return section


def prepare(configuration: Path, local: LocalFile, why: str) -> Path:
    """Give the order: the next start of the agent carries it out. Where the configuration as it was is kept.

    Raises Refused, HoldfastError; then nothing is changed.
    """
    text = configuration.read_text(encoding="utf-8")
    settings = parse_settings(text, str(configuration))
    changed = alone_configuration(text, settings.machine)
    kept = configuration.with_name(f"{configuration.name}.{BEFORE}")
    mode = stat.S_IMODE(configuration.stat().st_mode)  # an administrator may have shut it
    if len(settings.machines) > 1:
        write_once(kept, text.encode(), mode)
    local.change(alone=why)
    write_once(configuration, changed.encode(), mode)
    return kept


def carry_out(settings: Settings, local: LocalFile) -> str:
    """At the agent's start, before its log server: the old store is kept aside when that was ordered; what was done."""
    if not local.state.alone:
        return ""
    if len(settings.machines) > 1:  # the configuration was not changed any more, or is as it was again
        local.change(alone="")
        return "the order to go on alone was not carried out: holdfast.toml has other machines"
    store = settings.state / "log"
    if not store.exists():
        return ""
    aside = store.with_name(f"log.{BEFORE}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    store.rename(aside)
    return f"the old log is kept in {aside}"


class Alone:
    """The order, given to a running agent. *restart* ends it so that its supervisor starts it again."""

    def __init__(self, node: Node, configuration: Path, restart: Callable[[], object]) -> None:
        self._node = node
        self._configuration = configuration
        self._restart = restart

    def plan(self, why: str, *, force: bool) -> Plan:
        """What it would do here, and what may be missing."""
        node, settings = self._node, self._node.world.settings
        primary, me = str(node.primary_name or ""), settings.machine
        others = [machine.name for machine in settings.machines if machine.name != me]
        heard = [name for name in others if node.beats.alive(name)]
        refusals = []
        if settings.me.role == "relay":
            refusals.append(f"{me} is a relay: it holds no mail to go on with")
        elif node.role not in CAN:
            refusals.append(f"{me} is {node.role}: its copy is not one to go on with ({node.reason})")
        if not settings.log.embedded:
            refusals.append("the log's servers are your own: make the log there anew, then `holdfast found` here")
        if heard and not force:
            refusals.append(
                f"{' and '.join(heard)} can be heard: with two machines the log goes on, and nothing is given up; "
                "`holdfast takeover` here, or --force if it is gone for good all the same"
            )
        names = " and ".join(others) or "nobody"
        return Plan(
            ACTION,
            me,
            why or f"by hand, no reason given; {names} not heard",
            (
                Step("leave", f"{names} leave {self._configuration}; as it was it is kept beside it, .{BEFORE}"),
                Step(
                    "restart",
                    f"the agent starts again; its store of the old log is kept, {settings.state}/log.{BEFORE}-*",
                ),
                Step("found", "a new log begins with all that is in the trees here, under a new epoch"),
                Step("serve", "take the service addresses and start the mail software"),
            ),
            (
                *self._missing(primary),
                f"{names} must be off: two of the old machines, started together, go on with the old log. "
                "They can only join anew: docs/operations/alone.md",
            ),
            tuple(refusals),
            {"primary": primary, "epoch": int(node.epoch), "others": others, "heard": heard},
        )

    def _missing(self, primary: str) -> Iterator[str]:
        node, me = self._node, self._node.world.settings.machine
        if primary == me or node.role is Role.PRIMARY:
            yield "nothing is missing: this machine was the primary, and its trees are the newest there are"
            return
        index = node.index
        at = int(index.position.sequence) if index is not None else 0
        stands = f"record {at}" if at else "a record that is not known now"
        if not node.copying.whole:
            yield "no copy is whole since this machine was seeded: its files are of different moments"
        yield (
            f"this copy stands at {stands}: what the log has behind it, and what {primary or 'the primary'} did "
            "without the log, is not here; it is on the disks of the machines that are gone"
        )
        last = node.beats.last(primary) if primary else None
        if last is not None:
            silent = node.beats.silent_seconds(primary) or 0.0
            behind = max(0, last.captured - at) if at else 0
            yield (
                f"{primary} was last heard {silent:.0f} s ago, at record {last.captured}: {behind} records more than "
                f"are here; {last.waiting_bytes:,} bytes were not in the log"
            )

    async def order(self, why: str, *, force: bool) -> Plan:
        """Give it; the agent ends when this has been answered. Raises Refused."""
        plan = self.plan(why, force=force)
        if plan.refusals:
            raise Refused(f"{ACTION} is not possible here: {plan.refusals[0]}", hint="\n  ".join(plan.refusals[1:]))
        node = self._node
        prepare(self._configuration, node.world.local, plan.why)
        node.world.history.record(
            "takeover begins", f"alone: {plan.why}", machine=plan.machine, primary=plan.facts["primary"]
        )
        for warning in plan.warnings:
            node.world.history.record("takeover: may be missing", warning)
        self._restart()
        return plan
