"""What the gate asks of Dovecot: is a message in a mailbox?"""

from __future__ import annotations

from typing import Final

from holdfast.errors import HoldfastError
from holdfast.gate.deliveries import KEEP_DAYS
from holdfast.mail.port import Commands

SEARCH_SECONDS_MAX: Final = 60.0
"""A search of headers reads what is not cached: a mailbox of 100,000 messages takes seconds."""
_NO_USER: Final = 67
"""EX_NOUSER of sysexits.h, as doveadm(1) exits: who does not exist has no mail."""


class DovecotLookup:
    """``doveadm search``, as root."""

    def __init__(self, commands: Commands, doveadm: tuple[str, ...] = ("doveadm",)) -> None:
        self._commands = commands
        self._doveadm = doveadm

    async def __call__(self, delivery: bytes, recipient: bytes) -> bool:
        """Whether *recipient* has a message with the header ``Holdfast-Delivery: <delivery>``.

        A message without that header (its id is a digest) is never found: it is delivered once more. Raises
        HoldfastError.
        """
        user = recipient.decode("utf-8", "surrogateescape")
        query = ["HEADER", "Holdfast-Delivery", delivery.decode("ascii"), "SAVEDSINCE", f"{KEEP_DAYS}days"]
        argv = [*self._doveadm, "search", "-u", user, *query]
        result = await self._commands.run(argv, timeout_seconds=SEARCH_SECONDS_MAX)
        if result.exit_status == _NO_USER:
            return False
        if not result.ok:
            raise HoldfastError(
                f"doveadm search failed: {result.words}", hint="Is Dovecot's configuration whole?", retry=True
            )
        return bool(result.output.strip())
