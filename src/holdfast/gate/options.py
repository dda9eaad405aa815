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
