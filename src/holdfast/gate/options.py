"""What the agent tells the gate's process: one argument, JSON."""

from __future__ import annotations

from msgspec import Struct


class LogOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach the log's servers, for side streams."""

    urls: tuple[str, ...]
    tls: str
    """The folder of this machine's identity."""
    relay_key: str
    """The file of the key that seals side streams."""
    segment: str
    replicas: int


class RelayOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """On a relay that takes mail."""

    mode: str
    folder: str
    tables: str
    control: str
    """The socket at which people's questions are answered."""
    hold_days: int
    list_hours: float
    straight_to: tuple[str, ...] = ()
    """Where the primary's LMTP gate takes mail from relays, ``HOST:PORT``."""


class RelaysOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """On a machine that holds mail, where there are such relays."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    """By which they come to hand mail on."""
    adopt_seconds: float
    hold_bytes: int
    spool: str
    lmtp: str = ""
    """The gate's place as the settings name it, when relays may hand mail to it; empty: they may not."""
    milter: str = ""


class GateOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Sockets are open listening ones, by number; 0: that gate is off."""

    machine: str
    agent_socket: str
    barrier_seconds: float
    parent: int
    """The process to end with; 0: none."""
    stand_in: bool = False
    """There is no agent yet, and no log: nothing is waited for. See `holdfast.node.stand_in`."""
    read_only: str = ""
    """The run directory, in which the agent says when changes are to be refused; empty: they never are."""
    lmtp_fd: int = 0
    lmtp_server: str = ""
    """Dovecot's LMTP, ``unix:/path`` or ``HOST:PORT``."""
    journal: str = ""
    """The folder of the journal of deliveries."""
    milter_fd: int = 0
    shadows: str = ""
    """The folder of the shadows."""
    ledger: str = ""
    """The folder of the ledger."""
    ledger_days: float = 30.0
    ledger_bytes: int = 1024**3
    ledger_subjects: bool = False
    ledger_view: str = ""
    """The file in which the ledger's figures stand for the agent."""
    imap_fd: int = 0
    sieve_fd: int = 0
    dav_fd: int = 0
    dav_server: str = ""
    policy_fd: int = 0
    straight_fd: int = 0
    """On the primary where relays come with TLS; on a relay where its Postfix comes."""
    log: LogOptions | None = None
    relay: RelayOptions | None = None
    relays: RelaysOptions | None = None
