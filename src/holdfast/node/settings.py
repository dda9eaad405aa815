"""What the administrator decides: ``/etc/holdfast/holdfast.toml``, one file for the whole site but for ``machine``.

Every key has its type, its unit in its name, and a limit; an unknown key or a wrong type is an error that names file,
key and what was expected. `docs/reference/configuration.md` is made from the structs below.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct, field

from holdfast.changes.names import MachineName, SegmentName, checked_name
from holdfast.errors import ConfigurationError
from holdfast.mail.settings import MailSettings
from holdfast.node.schedule import TIME_OF_DAY
from holdfast.vault.settings import VaultSettings, checked_vaults

CONFIGURATION_PATH: Final = Path("/etc/holdfast/holdfast.toml")
Role = Literal["mail", "relay"]
WITHOUT_QUORUM_SECONDS_MIN: Final = 10.0
"""Measured, electing a leader of the log takes 4 to 9 s."""
EVERY_HOURS_MIN: Final = 0.05
"""Three minutes. A copy looks at every name of the trees: more often it would be a slow way to copy all the time."""
EVERY_HOURS_MAX: Final = 24.0 * 7


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class MachineSettings(_Table, frozen=True):
    """``[[machines]]``: one machine of the site."""

    name: str
    role: Role
    """``mail``: holds the trees, may be primary. ``relay``: stores the log, hears beats, and takes in mail where
    ``[relay]`` says so."""
    address: str
    """Its own address (IP) for the log and the beats; never the service address."""


class ServiceSettings(_Table, frozen=True):
    """``[service]``: where clients find the mail server, whichever machine it is on."""

    addresses: tuple[str, ...] = ()
    """With prefix length: ``192.0.2.10/24``, ``2001:db8::10/64``. Only the primary holds them."""
    interface: str = "eth0"
    command: tuple[str, ...] = ()
    """A program that moves the addresses, instead of this machine's interface: a cloud's floating address, a name at a
    DNS provider. Called with ``take``, ``release`` or ``check``, and the addresses. docs/operations/outside.md."""
    command_seconds: float = 30.0
    """How long it may take, until ``check`` says that the address is here."""


class LogSettings(_Table, frozen=True):
    """``[log]``: the replicated log."""

    embedded: bool = True
    """False: use the NATS servers under ``servers`` instead of running one here."""
    servers: tuple[str, ...] = ()
    client_port: int = 4242
    cluster_port: int = 6242
    retention_hours: float = 72.0
    """Records older than this are trimmed, when every live reader has them."""
    retention_bytes: int = 20 * 1024**3
    limit_bytes: int = 40 * 1024**3
    """The log never grows beyond; a reader further behind is seeded again."""
    program: str = ""
    """The nats-server to run; empty: the one that came with Holdfast."""


class CopySettings(_Table, frozen=True):
    """``[copy]``: how the primary captures and a standby applies."""

    batch_milliseconds: float = 50.0
    """How long a batch fills at most, while changes keep coming: longer saves CPU, shorter loses less with a machine.
    What comes alone, or has a gate waiting for it, is sent after 5 ms."""
    durable_seconds: float = 1.0
    """How often a standby brings what it applied to its disk."""
    seed_bytes_per_second: int = 0
    """Limit for seeding a standby, so that users do not notice; 0: none."""
    scrub_hours: float = 168.0
    """A background comparison of all contents with the log's knowledge takes this long; 0: never."""
    at: tuple[str, ...] = ()
    """Under the policy ``interval``: the times of the day (``["06:00", "14:00"]``, this machine's clock) at which the
    primary makes a copy."""
    every_hours: float = 0.0
    """The same by a distance: a copy begins so long after the one before began. One of the two is given."""


class GateSettings(_Table, frozen=True):
    """``[gate]``: what is acknowledged through a gate is on two machines before. docs/concepts/gates.md."""

    lmtp: str = ""
    """Where Postfix hands deliveries over, ``unix:/var/spool/postfix/private/holdfast-lmtp`` or ``127.0.0.1:2424``; set
    ``virtual_transport`` (or ``mailbox_transport``) of Postfix to it. Empty: no gate."""
    lmtp_server: str = "unix:/run/dovecot/lmtp"
    """Dovecot's LMTP, behind the gate: ``unix:/path`` or ``HOST:PORT``."""
    milter: str = ""
    """Where Postfix asks before it accepts a message, ``unix:/var/spool/postfix/private/holdfast-milter``; name it in
    ``smtpd_milters`` and ``non_smtpd_milters``. Empty: what is in the queue is on this machine only."""
    imap: str = ""
    """Where Dovecot hands its IMAP clients over, ``unix:/run/holdfast/imap-gate``. Empty: what users file, flag and
    save is answered before the log has it. docs/concepts/imap-gate.md has Dovecot's side of it."""
    sieve: str = ""
    """The same for ManageSieve, ``unix:/run/holdfast/sieve-gate``."""
    dav: str = ""
    """Where CalDAV and CardDAV clients, or the web server before them, are let in, ``127.0.0.1:5233``."""
    dav_server: str = "127.0.0.1:5232"
    """Radicale, behind the gate."""
    barrier_seconds: float = 30.0
    """How long the log is waited for: then a delivery or a message is answered "later" (451), an IMAP or ManageSieve
    connection closed, and a DAV request answered 504."""
    ledger_days: float = 30.0
    """The ledger (what became of each message, docs/concepts/ledger.md) keeps so much,"""
    ledger_bytes: int = 1024**3
    """and no more than this."""
    ledger_subjects: bool = False
    """Whether the ledger keeps the subjects of messages. They tell of people; nothing here needs them."""

    @property
    def used(self) -> bool:
        """Whether any gate is on."""
        return bool(self.lmtp or self.milter or self.imap or self.sieve or self.dav)


class RelaySettings(_Table, frozen=True):
    """``[relay]``: what machines of role ``relay`` do besides storing the log. The same on every machine.
    docs/systems/relay.md.
    """

    mode: Literal["log", "front", "backup-mx"] = "log"
    """``log``: nothing more. ``front``: all mail from outside comes through the relays, which hand it on.
    ``backup-mx``: a relay takes mail only while it and another machine agree that the primary does not serve."""
    milter: str = "unix:/var/spool/postfix/private/holdfast-milter"
    """Where the relay's Postfix asks before it accepts a message."""
    policy: str = "unix:/var/spool/postfix/private/holdfast-policy"
    """Where it asks before it accepts a recipient."""
    hand_on_to: tuple[str, ...] = ()
    """Where the primary's Postfix takes mail, as in transport(5): ``[192.0.2.10]:25``. Empty: the service addresses."""
    straight_port: int = 0
    """A port of the mail machines, ``2425``, at which their LMTP gate takes from relays what is for mailboxes, past the
    primary's Postfix, which must do nothing else with it. Less work for every message; docs/systems/relay.md. 0: all
    mail goes through that Postfix."""
    also_from: tuple[str, ...] = ()
    """IP addresses by which relays come to the primary, other than those of ``machines``."""
    hold_days: int = 30
    """How long a relay tries to hand mail on before it goes back to its sender."""
    hold_bytes: int = 8 * 1024**3
    """How much all relays hold together: beyond, 452. The log's servers need this much more room."""
    adopt_seconds: float = 60.0
    """A relay not heard for so long is gone: the primary delivers what it had accepted."""
    list_hours: float = 72.0
    """A list of recipients older than this is warned of; it is used all the same."""
    certificate: str = ""
    """Of the relay's Postfix, PEM with its chain; empty: the machine's own certificate of this site."""
    key: str = ""

    @property
    def takes_mail(self) -> bool:
        return self.mode != "log"


class FailoverSettings(_Table, frozen=True):
    """``[failover]``: what happens without a person when the primary is gone. The same on every machine.

    docs/concepts/failover.md has the tables that decide.
    """

    policy: Literal["automatic", "manual", "interval"] = "manual"
    """``automatic``: a standby takes over when it and the others miss the primary, and a primary that is cut off stops
    serving; needs three machines. ``manual``: `holdfast takeover`, by a person; a primary that is cut off serves on.
    ``interval``: as ``manual``, and what changes is not copied all the time, but at the times of ``[copy] at`` or
    ``every_hours``: a takeover loses what was done since the last whole copy. docs/concepts/intervals.md."""
    loss_seconds_max: float = 10.0
    """When the primary last said that it had changes older than this not yet in the log, a person is asked."""
    loss_bytes_max: int = 64 * 1024 * 1024
    """And when they were more than this."""
    takeovers_max: int = 3
    """After so many takeovers within ``takeovers_hours`` a person is asked: something else is wrong then."""
    takeovers_hours: float = 1.0
    fence_command: tuple[str, ...] = ()
    """A program that switches the old primary off before an automatic takeover: called with ``fence``, then ``check``,
    its name and its address. Not proven: no takeover, and a person is asked. docs/operations/outside.md."""
    fence_seconds: float = 30.0
    """How long that may take, the proof included."""
    without_quorum: Literal["serve", "read-only", "stop"] = "serve"
    """What the primary does when the log takes nothing, as two of three log servers are away: ``serve`` on, with an
    alarm, while what happens is on its disk only; serve ``read-only`` (needs all gates: they refuse what would change
    something); or ``stop`` serving, until the log is back. docs/operations/log-trouble.md"""
    without_quorum_seconds: float = 30.0
    """How long a change has to wait for the log before that begins. An election of the log takes up to 9 s."""
    rejoin: Literal["automatic", "manual"] = "automatic"
    """Under the policy ``automatic``, whether a machine that was replaced becomes a standby by itself when it is back.
    What only it has is kept aside and listed either way."""
    prefer: tuple[str, ...] = ()
    """Which standby goes first when several have the same of the log; empty: in the order of ``machines``."""
    failback_at: str = ""
    """A time of the day (``03:30``, this machine's clock) at which the most preferred machine, when it is a standby and
    nothing speaks against it, becomes the primary by a switchover. Empty: by a person, `holdfast switchover` there."""
    rehearse_hours: float = 24.0
    """How often a standby starts the mail software on a sample of its copy, in private, to show that it can; 0: never.
    docs/operations/readiness.md."""


class AlarmSettings(_Table, frozen=True):
    """``[alarms]``: who is told when something is wrong: one message for each cause, and one when it is over.

    `holdfast alarm` sends a message to try them. docs/operations/alarms.md has the causes, and examples.
    """

    command: tuple[str, ...] = ()
    """A program and its arguments: it gets the message as JSON on its standard input, and its words in
    ``HOLDFAST_TEXT``."""
    webhook: str = ""
    """An ``https://`` or ``http://`` address: it gets the JSON by POST; its key ``text`` is what chat services show."""
    after_seconds: float = 10.0
    """A cause is told when it has lasted so long; that nobody is served, at once."""
    lag_milliseconds: float = 1000.0
    """The objective for a standby: 99 of 100 changes are applied so soon after they were captured."""
    over_seconds: float = 30.0
    """It is over when it was not seen for so long: what comes and goes is one cause."""


class Settings(_Table, frozen=True):
    """The whole file."""

    site: str
    machine: str
    """Which of ``machines`` this is. The only line that differs between machines."""
    machines: tuple[MachineSettings, ...]
    segment: str = "main"
    first_primary: str = ""
    """The machine that starts the log when there is none; empty: the first of role ``mail``."""
    service: ServiceSettings = field(default_factory=ServiceSettings)
    log: LogSettings = field(default_factory=LogSettings)
    copy: CopySettings = field(default_factory=CopySettings)
    mail: MailSettings = field(default_factory=MailSettings)
    failover: FailoverSettings = field(default_factory=FailoverSettings)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    relay: RelaySettings = field(default_factory=RelaySettings)
    vaults: tuple[VaultSettings, ...] = ()
    state_directory: str = "/var/lib/holdfast"
    run_directory: str = "/run/holdfast"
    metrics_port: int = 0
    """Prometheus metrics on 127.0.0.1 at this port; 0: only on the agent's socket."""

    # -- derived ------------------------------------------------------------------------------------------------------

    @property
    def at_intervals(self) -> bool:
        """Whether copies are made at times, and not all the time."""
        return self.failover.policy == "interval"

    @property
    def me(self) -> MachineSettings:
        return next(machine for machine in self.machines if machine.name == self.machine)

    @property
    def machine_name(self) -> MachineName:
        return MachineName(self.machine)

    @property
    def segment_name(self) -> SegmentName:
        return SegmentName(self.segment)

    @property
    def mail_machines(self) -> tuple[MachineSettings, ...]:
        return tuple(machine for machine in self.machines if machine.role == "mail")

    @property
    def relays(self) -> tuple[MachineSettings, ...]:
        return tuple(machine for machine in self.machines if machine.role == "relay")

    @property
    def without_majority(self) -> str:
        """A sentence when the loss of any one machine stops the log; empty when it does not."""
        names = [machine.name for machine in self.machines]
        if not self.log.embedded or len(names) != 2:
            return ""
        return (
            f"there is no third machine: when {names[0]} or {names[1]} is lost, EITHER of them, the log stops, because "
            "one of two is no majority; nothing is copied any more then, and `holdfast takeover` is not possible"
        )

    @property
    def starts_log(self) -> bool:
        return self.machine == (self.first_primary or self.mail_machines[0].name)

    @property
    def outside_environment(self) -> dict[str, str]:
        """What programs that reach outside are told of where they run."""
        return {"HOLDFAST_SITE": self.site, "HOLDFAST_MACHINE": self.machine, "HOLDFAST_ADDRESS": self.me.address}

    @property
    def state(self) -> Path:
        return Path(self.state_directory)

    @property
    def run(self) -> Path:
        return Path(self.run_directory)

    @property
    def control_socket(self) -> Path:
        return self.run / "agent.sock"


def _wrong_interval(settings: Settings) -> tuple[str, str] | None:
    """What makes no sense about copies at times, and what to write instead."""
    copy, gate = settings.copy, settings.gate
    if not settings.at_intervals:
        if copy.at or copy.every_hours:
            return (
                f'copy.at and copy.every_hours with failover.policy = "{settings.failover.policy}": under it every '
                "change is copied at once",
                'Write policy = "interval" (a takeover then loses hours, and so is never automatic), or remove them.',
            )
        return None
    if bool(copy.at) == bool(copy.every_hours):
        return (
            'failover.policy = "interval" needs one of copy.at and copy.every_hours, and not both',
            'Write at = ["06:00", "14:00"], or every_hours = 4.',
        )
    for at in copy.at:
        if not re.fullmatch(TIME_OF_DAY, at):
            return f"copy.at: {at!r} is no time", "Write it as 14:00."
    if not copy.at and not EVERY_HOURS_MIN <= copy.every_hours <= EVERY_HOURS_MAX:
        return (
            f"copy.every_hours = {copy.every_hours:g} is not between {EVERY_HOURS_MIN:g} and {EVERY_HOURS_MAX:g}",
            'For less, write policy = "manual": changes are then copied all the time, in milliseconds.',
        )
    if settings.failover.without_quorum != "serve":
        return (
            f'failover.without_quorum = "{settings.failover.without_quorum}" with policy = "interval": between two '
            "copies nothing comes into the log anyway",
            'Remove it, or write policy = "manual".',
        )
    if gate.lmtp or gate.milter:
        return (
            'gate.lmtp and gate.milter with failover.policy = "interval": a gate acknowledges a message when it is in '
            "the log, and between two copies nothing comes into the log",
            'Write policy = "manual" or "automatic", or remove the gates: without them, a takeover loses what was '
            "accepted since the last copy.",
        )
    return None


def _past_the_gates(settings: Settings) -> list[str]:
    """The gates that are off, and past which people could change something."""
    gate, services = settings.gate, settings.mail.services
    needed = {"gate.lmtp": gate.lmtp, "gate.milter": gate.milter, "gate.imap": gate.imap, "gate.sieve": gate.sieve}
    if services is None or "radicale" in services:
        needed["gate.dav"] = gate.dav
    return [name for name, place in needed.items() if not place]


def _checked(settings: Settings, source: str) -> Settings:
    def wrong(what: str, hint: str) -> ConfigurationError:
        return ConfigurationError(f"{source}: {what}", hint=hint)

    names = [machine.name for machine in settings.machines]
    try:
        checked_name(settings.segment, "segment")
        for name in names:
            checked_name(name, "machine")
        checked_vaults(settings.vaults)
    except ConfigurationError as error:
        raise wrong(error.message, error.hint) from None
    if len(set(names)) != len(names):
        raise wrong("two machines have the same name", "Give each [[machines]] its own name.")
    if settings.machine not in names:
        raise wrong(
            f"machine = {settings.machine!r} is not among the [[machines]]: {', '.join(names)}",
            "Write the name of the machine this file is on.",
        )
    if not settings.mail_machines:
        raise wrong('no machine has role = "mail"', "One or two machines hold the mail.")
    first = settings.first_primary
    if first and first not in [machine.name for machine in settings.mail_machines]:
        raise wrong(f"first_primary = {first!r} is no machine of role mail", "Name one that holds the mail.")
    for machine in settings.machines:
        try:
            ipaddress.ip_address(machine.address)
        except ValueError:
            raise wrong(f"machine {machine.name!r}: {machine.address!r} is no IP address", "Write one.") from None
    for address in settings.service.addresses:
        try:
            interface = ipaddress.ip_interface(address)
        except ValueError:
            raise wrong(f"service.addresses: {address!r} is no address", "Write it as 192.0.2.10/24.") from None
        if "/" not in address:
            usual = 24 if interface.version == 4 else 64
            raise wrong(
                f"service.addresses: {address!r} has no prefix length",
                f"Write {address}/{usual}, or what its network has: `ip address` shows it behind the machine's own "
                f"address. If you mean the address alone, write {interface}.",
            )
        if str(interface.ip) in [machine.address for machine in settings.machines]:
            raise wrong(f"service address {interface.ip} is a machine's own", "It must move between machines.")
    if not settings.log.embedded and not settings.log.servers:
        raise wrong("log.embedded = false needs log.servers", 'Write servers = ["tls://host:4222"].')
    if settings.alarms.webhook and not settings.alarms.webhook.startswith(("https://", "http://")):
        raise wrong(f"alarms.webhook = {settings.alarms.webhook!r} is no web address", "Write https://...")
    programs = {
        "alarms.command": settings.alarms.command,
        "service.command": settings.service.command,
        "failover.fence_command": settings.failover.fence_command,
    }
    for key, command in programs.items():
        if command and not command[0].startswith("/"):
            raise wrong(f"{key}: {command[0]!r} is no whole path", "Write it from / on.")
    if settings.failover.policy == "automatic" and len(names) < 3:
        raise wrong(
            'failover.policy = "automatic" with only two machines: when one no longer hears the other, neither can '
            "tell whether the other is gone or only the way between them, and both would serve",
            'Add a third machine that hears both (a small one, role = "relay"), or write policy = "manual": '
            "a takeover is then one command.",
        )
    if wrong_interval := _wrong_interval(settings):
        raise wrong(*wrong_interval)
    if settings.failover.without_quorum_seconds < WITHOUT_QUORUM_SECONDS_MIN:
        raise wrong(
            f"failover.without_quorum_seconds is below {WITHOUT_QUORUM_SECONDS_MIN:g}",
            "Less than an election of the log takes would stop serving whenever the relay is restarted.",
        )
    if settings.failover.without_quorum == "read-only" and (past := _past_the_gates(settings)):
        raise wrong(
            f'failover.without_quorum = "read-only" without {" and ".join(past)}: what does not pass a gate would be '
            "changed and acknowledged all the same",
            "Set them (docs/concepts/gates.md, docs/concepts/imap-gate.md), or write serve or stop. A site without "
            'Radicale needs no gate.dav: say so by [mail] services = ["dovecot", "postfix"].',
        )
    if settings.failover.failback_at and not re.fullmatch(TIME_OF_DAY, settings.failover.failback_at):
        raise wrong(f"failover.failback_at: {settings.failover.failback_at!r} is no time", "Write it as 03:30.")
    for key, place in (("imap", settings.gate.imap), ("sieve", settings.gate.sieve)):
        if place and not place.startswith("unix:/"):
            raise wrong(
                f"gate.{key} = {place!r}: Dovecot can hand clients over at a socket file only", "Write unix:/..."
            )
    for name in settings.failover.prefer:
        if name not in [machine.name for machine in settings.mail_machines]:
            raise wrong(f"failover.prefer: {name!r} is no machine of role mail", "Name machines that hold the mail.")
    if settings.gate.milter and not settings.gate.lmtp:
        raise wrong(
            "gate.milter without gate.lmtp: after a takeover, messages of the other machine would be delivered twice",
            "Set gate.lmtp, too.",
        )
    if settings.gate.milter and settings.mail.postfix.protect_queue:
        raise wrong(
            "gate.milter and mail.postfix.protect_queue: each of them would bring the queue to the standby",
            "Set protect_queue = false: shadows lose nothing.",
        )
    _check_relay(settings, wrong)
    if settings.log.limit_bytes < settings.log.retention_bytes:
        raise wrong("log.limit_bytes is below log.retention_bytes", "The limit is the larger of the two.")
    return settings


def _check_relay(settings: Settings, wrong: Callable[[str, str], ConfigurationError]) -> None:
    relay = settings.relay
    if not relay.takes_mail:
        return
    if not settings.relays:
        raise wrong(f'relay.mode = "{relay.mode}", but no machine has role = "relay"', "Add one to [[machines]].")
    if not (settings.gate.lmtp and settings.gate.milter):
        raise wrong(
            f'relay.mode = "{relay.mode}" without gate.lmtp and gate.milter: what a relay hands on twice would be '
            "delivered twice",
            "Set both: docs/concepts/gates.md.",
        )
    if not relay.hand_on_to and not settings.service.addresses:
        raise wrong("relay.hand_on_to is empty, and there is no service address", 'Write hand_on_to = ["[HOST]:25"].')
    if relay.straight_port and not settings.service.addresses:
        raise wrong("relay.straight_port without a service address", "Set it to 0, or add service.addresses.")
    if not 0 <= relay.straight_port < 65536:
        raise wrong(f"relay.straight_port = {relay.straight_port}", "A port such as 2425; 0: none.")
    for address in relay.also_from:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise wrong(f"relay.also_from: {address!r} is no IP address", "Write it without prefix length.") from None
    if relay.hold_days < 1:
        raise wrong(f"relay.hold_days = {relay.hold_days}", "At least one day.")
    if bool(relay.certificate) != bool(relay.key):
        raise wrong("relay.certificate and relay.key belong together", "Set both, or neither.")


def parse_settings(text: str, source: str) -> Settings:
    """Settings from TOML *text*; *source* is the file's name for errors. Raises ConfigurationError."""
    try:
        settings = msgspec.convert(tomllib.loads(text), Settings)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source} is not valid TOML: {error}", hint="Mend that line.") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"{source}: {error}", hint="See docs/reference/configuration.md for every key and its type."
        ) from None
    return _checked(settings, source)


def load_settings(path: Path = CONFIGURATION_PATH) -> Settings:
    """Read and check the configuration file. Raises ConfigurationError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist",
            hint="Run `holdfast init` on the first machine, `holdfast join` on the others.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", hint="Run as root.") from None
    return parse_settings(text, str(path))
