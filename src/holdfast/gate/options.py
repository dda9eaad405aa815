"""What the agent tells the gate's process: one argument, JSON."""

from __future__ import annotations

from msgspec import Struct


class GateOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Sockets are open listening ones, by number; 0: that gate is off."""

    machine: str
    agent_socket: str
    barrier_seconds: float
    parent: int
    """The process to end with."""
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
    imap_server: str = ""
    sieve_fd: int = 0
    sieve_server: str = ""
    dav_fd: int = 0
    dav_server: str = ""
