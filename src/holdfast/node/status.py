"""The site as one machine sees it: what `holdfast status` shows, metrics count, and the web page will draw.

Every warning comes with what to do about it.
"""

from __future__ import annotations

import asyncio
import shutil
from datetime import datetime
from typing import Final

from msgspec import Struct

from holdfast.changes.frame import read_header
from holdfast.changes.names import Sequence
from holdfast.errors import HoldfastError, Unreachable
from holdfast.ledger.kept import LedgerView
from holdfast.ledger.kept import view as ledger_view
from holdfast.log.port import LogState, LogUnavailable, Missing
from holdfast.mail.packages import Severity
from holdfast.node.beats import Beat
from holdfast.node.gates import LEDGER, LEDGER_VIEW
from holdfast.node.kept import KeptAside, kept_aside
from holdfast.node.node import Node
from holdfast.node.readiness import Readiness
from holdfast.node.rehearsal import Rehearsal
from holdfast.node.roles import Role
from holdfast.node.vaults import VaultView, vault_views, vault_warnings
from holdfast.node.watchman import SERVE_SECONDS, Order

VERIFY_AGE_SECONDS_MAX: Final = 7 * 86400.0
"""A copy not compared for a week is a copy believed in."""
UNLOGGED_SECONDS_MAX: Final = 3.0
"""An append takes milliseconds, an election some seconds."""
LOG_SECONDS_MAX: Final = 2.0
"""Who asks for the status is not made to wait until a log without a leader has one."""
COPY_LATE_SECONDS: Final = 120.0
"""A copy begins within a second of its time, when the one before is over."""
READINESS_SHOWN_MAX: Final = 5
REHEARSALS_MISSED_MAX: Final = 3
DISK_FREE_SHARE_MIN: Final = 0.1


class Warned(Struct, frozen=True):
    what: str
    advice: str
    key: str = ""
    """The cause's name, the same while the words change: for alarms. ``own:``: this machine's own; else the site's.
    Empty: for who looks at the status, and nothing to be called for."""


class MachineView(Struct, frozen=True):
    """One machine, as last heard. Negative numbers: not known."""

    name: str
    configured: str
    role: str
    reason: str
    alive: bool
    silent_seconds: float
    epoch: int
    applied: int
    durable: int
    behind_records: int
    lag_ms_p50: float
    lag_ms_p99: float
    serving: bool
    progress: str
    progress_share: float
    version: str
    clock_ahead_seconds: float
    """How far its clock is ahead of this machine's; 0 when they agree within a second."""
    warnings: tuple[str, ...]
    """What it says of itself that others should see."""
    read_only: bool = False
    """It serves, and its gates refuse changes."""


class LogView(Struct, frozen=True):
    reachable: bool
    problem: str
    incarnation: str
    first: int
    last: int
    stored_bytes: int
    leader: str
    lacking: tuple[str, ...] | None
    """Machines whose log server did not hold all records some seconds ago: down, or being filled. None: not known."""


class FailoverView(Struct, frozen=True):
    """What this machine does without a person. *order* and *reason*: of its last look (docs/concepts/failover.md)."""

    policy: str
    paused: str
    order: str
    reason: str
    confirmed: bool
    """Whether enough others have confirmed lately that they hear this machine."""
    switchover_at: float = 0.0
    """When this machine becomes the primary by an order (`holdfast switchover --at`); 0: none."""


class SiteStatus(Struct, frozen=True):
    """``holdfast status --json``."""

    site: str
    segment: str
    machine: str
    role: str
    reason: str
    advice: str
    primary: str
    epoch: int
    service_addresses: tuple[str, ...]
    serving: bool
    failover: FailoverView
    readiness: Readiness
    """Of this machine, as a standby."""
    rehearsal: Rehearsal
    """The last one on this machine."""
    machines: tuple[MachineView, ...]
    log: LogView
    lost_if_primary_died_bytes: int
    """Captured by the primary and not yet in the log; -1 when the primary is not heard."""
    lost_if_primary_died: str
    copied_at: float
    """Under the policy ``interval``: the instant of the newest whole copy on a standby that is heard, by the primary's
    clock, in seconds since 1970; what was done since then a takeover would lose. 0: none."""
    next_copy_at: float
    """When the primary makes the next; 0: not known."""
    files: int
    bytes: int
    watching: str
    scrub: str
    verified_at: float
    verified_differences: int
    kept_aside: KeptAside
    vaults: tuple[VaultView, ...]
    warnings: tuple[Warned, ...]
    ledger: LedgerView | None = None
    """None where no gate is on."""
    read_only: bool = False
    """This machine serves, and its gates refuse changes: the log takes nothing."""


async def site_status(node: Node) -> SiteStatus:
    """The status now. Asks the log once; a log that does not answer is part of the answer."""
    settings = node.world.settings
    state, problem = await _log_state(node)
    own = node.beat()
    beats = {m.name: own if m is settings.me else node.beats.last(m.name) for m in settings.machines}
    last = state.last if state is not None else 0
    machines = tuple(_machine(node, m.name, m.role, beats[m.name], last) for m in settings.machines)
    primary = node.primary_name or _named_primary(beats)
    lost_bytes, lost = _would_be_lost(node, primary, beats)
    local = node.world.local.state
    files, size, watching = _held(node)
    return SiteStatus(
        site=settings.site,
        segment=settings.segment,
        machine=settings.machine,
        role=str(node.role),
        reason=node.reason,
        advice=node.advice,
        primary=primary,
        epoch=int(node.epoch),
        service_addresses=settings.service.addresses,
        serving=own.serving,
        read_only=own.read_only,
        readiness=node.readiness.last,
        rehearsal=node.readiness.rehearsal,
        failover=FailoverView(
            settings.failover.policy,
            node.world.local.state.paused,
            node.decided.order,
            node.decided.reason,
            node.beats.hearing.confirmed_seconds(node.world.clocks.steady()) < SERVE_SECONDS,
            0.0 if local.switchover is None else local.switchover.at,
        ),
        machines=machines,
        log=LogView(
            state is not None,
            problem,
            "" if state is None else state.incarnation,
            0 if state is None else state.first,
            last,
            0 if state is None else state.stored_bytes,
            node.log_servers.stream or "",
            node.log_servers.lacking,
        ),
        lost_if_primary_died_bytes=lost_bytes,
        lost_if_primary_died=lost,
        copied_at=_copied_at(node, primary, beats),
        next_copy_at=primary_beat.next_copy_at if (primary_beat := beats.get(primary)) is not None else 0.0,
        files=files,
        bytes=size,
        watching=watching,
        scrub=node.primary.scrub.words if node.primary is not None and node.primary.scrub is not None else "",
        verified_at=local.verified_at,
        verified_differences=local.verified_differences,
        kept_aside=kept_aside(settings.state),
        vaults=_vaults(node, beats),
        ledger=ledger_view(settings.state / LEDGER, settings.run / LEDGER_VIEW) if settings.gate.lmtp else None,
        warnings=tuple(_warnings(node, machines, state, problem, primary)),
    )


class RecordView(Struct, frozen=True):
    """A record's header: what any machine of the site can read."""

    sequence: int
    captured_at: float
    writer: str
    epoch: int
    kind: str
    more: bool
    bytes: int


async def last_records(node: Node, count: int) -> list[RecordView]:
    """The last *count* records, oldest first. Raises LogUnavailable; Unreachable when there is no log."""
    if node.log is None:
        raise Unreachable("there is no log here yet", hint=node.log_problem)
    state = await node.log.state()
    views = []
    for sequence in range(max(state.first, state.last - count + 1), state.last + 1):
        try:
            record = await node.log.read(Sequence(sequence))
        except Missing as error:
            hint = "Just after a cut its servers may disagree for some seconds. Ask again."
            raise LogUnavailable(f"the log's last record is {state.last}, but {error.message}", hint=hint) from error
        header, _ = read_header(record.payload)
        views.append(
            RecordView(
                sequence,
                header.captured_at_ns / 1e9,
                header.writer,
                header.epoch,
                header.kind.name.lower(),
                header.more,
                len(record.payload),
            )
        )
    return views


async def _log_state(node: Node) -> tuple[LogState | None, str]:
    if node.log is None:
        return None, node.log_problem or "there is no log yet"
    try:
        async with asyncio.timeout(LOG_SECONDS_MAX):
            return await node.log.state(), ""
    except TimeoutError:
        return None, "nobody leads it"
    except HoldfastError as error:
        return None, error.message


def _vaults(node: Node, beats: dict[str, Beat | None]) -> tuple[VaultView, ...]:
    alive = {
        name: beat for name, beat in beats.items() if node.beats.alive(name) or name == node.world.settings.machine
    }
    return vault_views(node.world.settings, alive, node.world.clocks.wall_seconds())


def _beat(node: Node, name: str) -> Beat | None:
    return node.beat() if name == node.world.settings.machine else node.beats.last(name)


def _machine(node: Node, name: str, configured: str, beat: Beat | None, last: int) -> MachineView:
    mine = name == node.world.settings.machine
    silent = 0.0 if mine else node.beats.silent_seconds(name)
    alive = mine or node.beats.alive(name)
    if beat is None:
        return MachineView(
            name, configured, "never heard", "", False, -1.0, -1, -1, -1, -1, -1.0, -1.0, False, "", -1.0, "", 0.0, ()
        )
    follows = beat.role in (Role.STANDBY, Role.YIELDED)
    return MachineView(
        name=name,
        configured=configured,
        role=beat.role if alive else f"silent (was {beat.role})",
        reason=beat.reason,
        alive=alive,
        silent_seconds=-1.0 if silent is None else silent,
        epoch=beat.epoch,
        applied=beat.applied,
        durable=beat.durable,
        behind_records=max(0, last - beat.applied) if follows else -1,
        lag_ms_p50=beat.lag_ms_p50 if follows else -1.0,
        lag_ms_p99=beat.lag_ms_p99 if follows else -1.0,
        serving=beat.serving,
        progress=beat.progress,
        progress_share=beat.progress_share,
        version=beat.version,
        clock_ahead_seconds=0.0 if mine or not alive else -node.beats.clock_ahead_seconds(name),
        warnings=() if mine or not alive else tuple(beat.warnings),
        read_only=beat.read_only,
    )


def _named_primary(beats: dict[str, Beat | None]) -> str:
    return next((name for name, beat in beats.items() if beat is not None and beat.role == Role.PRIMARY), "")


def _would_be_lost(node: Node, primary: str, beats: dict[str, Beat | None]) -> tuple[int, str]:
    """What the death of the primary's machine would take with it, as far as it can be known."""
    beat = beats.get(primary)
    if node.world.settings.at_intervals:
        return -1, _since_copy(_copied_at(node, primary, beats), node.world.clocks.wall_seconds())
    if beat is None or (primary != node.world.settings.machine and not node.beats.alive(primary)):
        return -1, "the primary is not heard: what it did since is not known here"
    if beat.log_away_seconds >= 0:
        return beat.waiting_bytes, f"all changes of the last {beat.log_away_seconds:.0f} s: {beat.log_away_because}"
    if beat.waiting_bytes == 0:
        return 0, "nothing that is captured; what happens within a batch (some milliseconds)"
    return beat.waiting_bytes, f"{beat.waiting_bytes:,} bytes, captured {beat.waiting_seconds * 1000:.0f} ms ago"


def _copied_at(node: Node, primary: str, beats: dict[str, Beat | None]) -> float:
    """Of the best standby that is heard."""
    me = node.world.settings.machine
    copies = [
        beat.copied_at
        for name, beat in beats.items()
        if beat is not None and name != primary and (name == me or node.beats.alive(name))
    ]
    return max(copies, default=0.0)


def _since_copy(copied_at: float, now: float) -> str:
    if not copied_at:
        return "everything: no standby that is heard has a whole copy"
    minutes = max(now - copied_at, 0.0) / 60
    ago = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return f"everything done since {datetime.fromtimestamp(copied_at):%Y-%m-%d %H:%M:%S}, {ago} ago"


def _copy_warnings(node: Node, primary: str) -> list[Warned]:
    """Under the policy ``interval``."""
    warned = []
    settings, now = node.world.settings, node.world.clocks.wall_seconds()
    beat = _beat(node, primary) if primary else None
    if beat is not None and beat.policy and beat.policy != settings.failover.policy:
        what = f"[failover] policy is {beat.policy!r} on {primary} and {settings.failover.policy!r} here"
        warned.append(Warned(what, "It must be the same on every machine.", "own:policy"))
    if not settings.at_intervals:
        return warned
    if beat is not None and beat.next_copy_at and now - beat.next_copy_at > COPY_LATE_SECONDS:
        late = f"the copy of {datetime.fromtimestamp(beat.next_copy_at):%H:%M} has not begun on {primary}"
        warned.append(Warned(late, f"See `holdfast status` there: {beat.reason}.", "copy late"))
    if node.role is Role.STANDBY and not node.copying.whole:
        what = "no copy is whole since this machine was seeded: its files are of different moments"
        warned.append(Warned(what, "The next whole copy mends it; it was asked for.", "own:not whole"))
    return warned


def _held(node: Node) -> tuple[int, int, str]:
    """Files and bytes in this machine's trees, and how they are watched."""
    index = node.index
    if index is None:
        return 0, 0, ""
    totals = index.totals()
    watching = ""
    if node.primary is not None:
        watcher = node.primary.watcher.status()
        watching = watcher.source + (f" ({watcher.source_note})" if watcher.source_note else "")
        if node.primary.copies is not None and watcher.source == "none":
            watching = "nobody until the next copy"
    return totals.files, totals.bytes, watching


def _warnings(
    node: Node, machines: tuple[MachineView, ...], state: LogState | None, problem: str, primary: str
) -> list[Warned]:
    warned, settings = [], node.world.settings
    if node.advice:
        warned.append(Warned(f"this machine is {node.role}: {node.reason}", node.advice, "own:role"))
    if state is None:
        warned.append(
            Warned(
                f"the log cannot be reached: {problem}",
                ("Mail is served, and changes wait on this disk only. " if node.world.serving.on else "")
                + "Two of the three machines must be up and reach each other.",
                "own:log",
            )
        )
    beat = _beat(node, primary) if primary else None
    if beat is not None and max(beat.log_away_seconds, beat.waiting_seconds) > UNLOGGED_SECONDS_MAX:
        waited = max(beat.log_away_seconds, beat.waiting_seconds)
        because = f" ({beat.log_away_because})" if beat.log_away_because else ""
        meanwhile = (
            f"{primary} serves who reads, and its gates refuse changes"
            if beat.read_only
            else f"what {primary} does meanwhile is on its disk only"
        )
        warned.append(
            Warned(
                f"the log takes nothing for {waited:.0f} s{because}: {meanwhile}",
                "Two of the three log servers must be up, have room, and reach each other; the rest happens by itself.",
                "log takes nothing",
            )
        )
    standbys = [view for view in machines if view.configured == "mail" and view.name != primary]
    alone = bool(standbys) and not any(view.alive and view.role == Role.STANDBY for view in standbys)
    for view in machines:
        found = _machine_warnings(view, primary, settings.alarms.lag_milliseconds)
        # A standby that is gone and the last copy but one that is gone are one cause: told as the latter.
        warned += [Warned(each.what, each.advice) for each in found] if alone and view in standbys else found
    if alone:
        whose = ", ".join(f"{view.name} is {view.role}" for view in standbys)
        what = f"down to one copy: there is no standby now ({whose})"
        warned.append(
            Warned(what, "Start it, or another one; until then nothing may happen to the primary.", "one copy")
        )
    for name in sorted(node.lacking_log):
        if name == settings.machine or node.beats.alive(name):  # else that it is silent is the cause
            what = f"the log server of {name} does not hold all records"
            advice = "The others fill it by themselves. Until that is done, no other machine may die."
            warned.append(Warned(what, advice, f"log copy {name}"))
    for name in sorted(node.world.owners.unknown):
        warned.append(
            Warned(
                f"{name} owns protected files and does not exist here",
                f"Create it here as on {primary}, same name.",
                "own:owner",
            )
        )
    beats = {m.name: _beat(node, m.name) for m in node.world.settings.machines}
    warned += [Warned(*warning) for warning in vault_warnings(_vaults(node, beats))]
    warned += _copy_warnings(node, primary)
    warned += _own_warnings(node)
    return warned


def _machine_warnings(view: MachineView, primary: str, lag_ms_max: float) -> list[Warned]:
    if view.silent_seconds < 0:
        return [Warned(f"{view.name} was never heard", "Start the agent there (`holdfast join`, then the service).")]
    if not view.alive:
        advice = (
            "If it is gone: `holdfast takeover` on the standby."
            if view.name == primary
            else f"Start {view.name}; until then one failure less is survived."
        )
        return [Warned(f"{view.name} is silent for {view.silent_seconds:.0f} s", advice, f"silent {view.name}")]
    warned = [Warned(f"{view.name}: {text}", f"`holdfast status` on {view.name} says more.") for text in view.warnings]
    if view.lag_ms_p99 > lag_ms_max:
        warned.append(
            Warned(
                f"{view.name} is {view.lag_ms_p99:.0f} ms behind, and {lag_ms_max:.0f} are allowed",
                "Is its disk or the network slow or full?",
                f"lag {view.name}",
            )
        )
    if view.clock_ahead_seconds:
        words = "ahead of" if view.clock_ahead_seconds > 0 else "behind"
        warned.append(
            Warned(
                f"the clock of {view.name} is {abs(view.clock_ahead_seconds):.0f} s {words} this machine's",
                "Set the wrong one right (chrony, systemd-timesyncd): times of mail and of events depend on it.",
                f"clock {view.name}",
            )
        )
    return warned


def _failover_warnings(node: Node) -> list[Warned]:
    warned = []
    paused = node.world.local.state.paused
    if paused:
        warned.append(Warned(f"automatic takeover is paused: {paused}", "When the work is done: `holdfast resume`."))
    if node.guarded and node.decided.order == Order.ASK:
        warned.append(Warned(f"no automatic takeover: {node.decided.reason}", node.decided.advice, "own:no takeover"))
    if node.not_fenced:
        what = f"no automatic takeover: {node.not_fenced}"
        warned.append(Warned(what, "Look at it. If it is off: `holdfast takeover` here.", "own:no takeover"))
    if node.not_switched:
        advice = "`holdfast history` says how far it came. When that is mended: `holdfast switchover` here."
        warned.append(Warned(node.not_switched, advice, "own:no switchover"))
    if problem := node.world.serving.addresses.problem:
        warned.append(Warned(problem, "It is tried again; docs/operations/outside.md.", "own:address"))
    return warned


def _readiness_warnings(node: Node, now: float) -> list[Warned]:
    """Of a standby. One cause, whatever the number of problems: the first one is told."""
    advice = "Mend it on the primary if it is copied, else here."
    problems = node.readiness.last.problems
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    warned = [
        Warned(f"not ready to take over: {problem}{'' if at else more}", advice, "" if at else "own:ready")
        for at, problem in enumerate(problems[:READINESS_SHOWN_MAX])
    ]
    hours, last = node.world.settings.failover.rehearse_hours, node.readiness.rehearsal.at
    if hours > 0 and last and now - last > REHEARSALS_MISSED_MAX * hours * 3600:
        what = f"this standby was not rehearsed for {(now - last) / 3600:.0f} hours"
        warned.append(Warned(what, "Run `holdfast rehearse`; `holdfast history` says why not.", "own:rehearsal"))
    return warned


def _own_warnings(node: Node) -> list[Warned]:
    warned = [*_failover_warnings(node)]
    local, now = node.world.local.state, node.world.clocks.wall_seconds()
    if node.role is Role.PRIMARY and node.world.serving.released_by_hand:
        warned.append(
            Warned(
                "this machine is the primary and serves nobody: it was released",
                "Run `holdfast takeover` here.",
                "own:released",
            )
        )
    if node.role is Role.STANDBY:
        if local.verified_differences > 0:
            warned.append(
                Warned(
                    f"the last verify named {local.verified_differences} differences",
                    "Run `holdfast verify --heal`.",
                    "own:differences",
                )
            )
        elif now - local.verified_at > VERIFY_AGE_SECONDS_MAX:
            age = "was never" if not local.verified_at else "was not for over a week"
            warned.append(Warned(f"this copy {age} compared with the primary", "Run `holdfast verify`."))
    if node.role is Role.STANDBY:
        warned += _readiness_warnings(node, now)
    software = [each.words for each in node.readiness.software if each.severity == Severity.WARNING]
    if node.role is Role.STANDBY and software:
        count = len(software)
        more = f" (and {count - 1} more)" if count > 1 else ""
        warned.append(
            Warned(f"software differs from the primary's: {software[0]}{more}", "Install the same.", "own:software")
        )
    if node.standby is not None and node.copying.lacking:
        what = f"{node.copying.lacking} files of this copy are wrong and being fetched from the primary"
        warned.append(Warned(what, "It does not take over by itself until they are there.", "own:lacking"))
    if node.standby is not None and node.standby.follow.blocked_because:
        warned.append(
            Warned(node.standby.follow.blocked_because, "Free space: applying goes on by itself.", "own:blocked")
        )
    if node.primary is not None:
        for trouble in node.primary.watcher.status().problems[:5]:
            where = f"{trouble.tree}/{trouble.path.decode('utf-8', 'backslashreplace')}"
            warned.append(Warned(f"not protected: {where} ({trouble.reason})", "Make it readable, or exclude it."))
    usage = shutil.disk_usage(node.world.settings.state_directory)
    if usage.free < DISK_FREE_SHARE_MIN * usage.total:
        warned.append(
            Warned(
                f"the disk of {node.world.settings.state_directory} is {100 - 100 * usage.free // usage.total} % full",
                "Free space there: the log and the index live on it.",
                "own:disk",
            )
        )
    certificate = node.world.certificate_warning()
    if certificate:
        warned.append(
            Warned(
                certificate,
                "Issue a new one: `holdfast trust renew` on the machine with the authority.",
                "own:certificate",
            )
        )
    return warned
